"""A cache goes to the Hub and comes back as any data set does, with the real client and a Hub on 127.0.0.1."""

from pathlib import Path

import huggingface_hub
import pytest
import torch

from hf_distill import CacheError, TeacherCache
from tests.hub_server import Hub
from tests.tiny import collate, examples, teacher_of

TOKEN = "hf_averysecrettokenofada"


def test_pushed_and_loaded_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = examples(12)
    cache = TeacherCache.capture(
        teacher_of(), rows, tmp_path / "cache", data_collator=collate, say=lambda line: None
    )
    with Hub(users={TOKEN: "ada"}) as hub:
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace("https://huggingface.co", hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        assert cache.push_to_hub("ada/answers", token=TOKEN).endswith("/datasets/ada/answers")
        names = {path.name for path in (tmp_path / "cache").iterdir()} - {".lock"}
        assert names <= set(hub.repositories["ada/answers"])
        loaded = TeacherCache("ada/answers")
        assert torch.equal(loaded(collate(rows)).logits, cache(collate(rows)).logits)  # type: ignore[arg-type]
        with pytest.raises(CacheError, match="expected a folder, or the id of a data set on the Hub"):
            TeacherCache("ada/nothing")
