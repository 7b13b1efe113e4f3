"""The worked example of docs/your_own_task.md runs, and what it says of itself holds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).resolve().parents[1] / "docs" / "your_own_task.md"


@pytest.mark.filterwarnings(
    "ignore:The student .* seems to start from random", "ignore:The teacher is nearly uniform"
)
def test_the_worked_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), names)
    assert {"eval_loss/label", "eval_loss/forward_kl", "eval_agreement"} <= set(names["metrics"])
    assert names["trainer"]._normalisation.name == "MEAN"
    loaded = names["BertForComparison"].from_pretrained("runs/own_task")
    assert loaded.config.num_hidden_layers == 1


def test_every_name_on_the_page_is_there() -> None:
    from hf_distill.image_views import ImageViews
    from hf_distill.jobs.run import Defaults, run_recipe
    from hf_distill.tasks.task import Task

    text = PAGE.read_text(encoding="utf-8")
    for name in ("load", "new_processor", "encode", "collator", "new_model", "measure"):
        assert f"`{name}`" in text
        assert hasattr(Task, name)
    assert all((ImageViews, Defaults, run_recipe))
