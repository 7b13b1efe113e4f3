"""What a push leaves on the Hub, and what it says when it can't, with the real client and a Hub on 127.0.0.1."""

from __future__ import annotations

import copy
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

from hf_distill.arguments import DistillationTrainingArguments
from hf_distill.publishing import PublishingMixin, PushError, check_push
from hf_distill.trainer import DistillationTrainer
from tests.hub_server import Hub

TOKEN = "hf_averysecrettokenofada"
STUDENT_FILES = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"}
WORDS = ["[PAD]", "[UNK]", "One", "sentence", "to", "try", "."]


class PublishingTrainer(PublishingMixin, Trainer):
    teacher = SimpleNamespace(model=None, name="big/teacher")

    def distillation_settings(self) -> dict[str, Any]:
        return {"alpha": 0.5, "temperature": 2.0, "objectives": [{"name": "forward_kl", "weight": 2.0}]}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with Hub(users={TOKEN: "ada", "hf_readonlyvisitor": "bob"}) as server:
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between retries
        yield server


def trainer(folder: Path, **arguments: Any) -> PublishingTrainer:
    torch.manual_seed(0)
    config = DistilBertConfig(
        vocab_size=len(WORDS), dim=8, hidden_dim=16, n_layers=1, n_heads=2, num_labels=3, pad_token_id=0
    )
    words = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    data = [{"input_ids": [2, 3, 4, 5], "labels": index % 3} for index in range(8)]
    defaults: dict[str, Any] = {
        "output_dir": str(folder / "student"),
        "max_steps": 4,
        "save_steps": 2,
        "per_device_train_batch_size": 2,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "push_to_hub": True,
        "hub_token": TOKEN,
        "hub_model_id": "ada/student",
        "hub_strategy": "end",
    }
    return PublishingTrainer(
        model=DistilBertForSequenceClassification(config),
        args=TrainingArguments(**{**defaults, **arguments}),
        train_dataset=data,
        eval_dataset=data,
        processing_class=PreTrainedTokenizerFast(
            tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]"
        ),
    )


def in_subprocess(code: list[str], hub: Hub, folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if "OFFLINE" not in name}
    environment |= {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(folder / "home"),
        "OMP_NUM_THREADS": "1",
    }
    run = subprocess.run(code, env=environment, capture_output=True, text=True, timeout=120, cwd=folder)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.parametrize(
    ("name", "token", "message"),
    [
        ("ada/student", TOKEN, None),
        ("ada/student", None, "needs a token that may write to 'ada/student', and none was found"),
        ("ada/student", "hf_readonlyvisitor", "the user 'bob' may not write to 'ada/student'"),
    ],
)
def test_a_run_is_checked_before_it_trains(
    hub: Hub, tmp_path: Path, name: str, token: str | None, message: str | None
) -> None:
    args = TrainingArguments(
        str(tmp_path), push_to_hub=True, hub_model_id=name, hub_token=token, use_cpu=True, report_to="none"
    )
    if message is None:
        check_push(args)
        return
    with pytest.raises(PushError, match=message):
        check_push(args)


def test_every_process_hears_that_it_may_not_push(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def from_process_0(answer: list[Any]) -> None:
        assert answer == [None], "process 0 alone asks"
        answer[0] = "may not write"

    monkeypatch.setattr("hf_distill.publishing.broadcast_object_list", from_process_0)
    with pytest.raises(PushError, match="may not write"):
        check_push(SimpleNamespace(push_to_hub=True, process_index=1, world_size=2))
    assert not hub.requests


@pytest.mark.parametrize(
    ("strategy", "folders"),
    [
        ("end", set()),
        ("every_save", set()),
        ("checkpoint", {"last-checkpoint"}),
        ("all_checkpoints", {"checkpoint-2", "checkpoint-4"}),
    ],
)
def test_files_of_each_strategy(hub: Hub, tmp_path: Path, strategy: str, folders: set[str]) -> None:
    publisher = trainer(tmp_path, hub_strategy=strategy, hub_always_push=True)
    another = tmp_path / "student" / "teacher"
    publisher.save_model(str(another), _internal_call=True)  # as a recipe keeps its teacher for the next run
    publisher.train()
    assert (set(hub.repositories["ada/student"]) >= STUDENT_FILES) == (strategy != "end")
    publisher.save_metrics("eval", publisher.evaluate())
    publisher.push_to_hub()

    files = hub.repositories["ada/student"]
    root = {path for path in files if "/" not in path}
    assert root == STUDENT_FILES | {"all_results.json", "eval_results.json"}
    assert {path.split("/")[0] for path in files if "/" in path} == folders
    for folder in folders:
        names = {path.split("/")[1] for path in files if path.startswith(f"{folder}/")}
        assert names >= {"model.safetensors", "optimizer.pt", "trainer_state.json", "rng_state.pth"}
    assert not any("training_args" in path for path in files)
    assert TOKEN.encode() not in bytes(hub.received)
    assert hub.received  # the bytes were looked at


def test_local_training_arguments_keep_all_but_the_token(hub: Hub, tmp_path: Path) -> None:
    publisher = trainer(tmp_path, hub_strategy="checkpoint")
    publisher.train()
    publisher.save_model()
    saved = list(tmp_path.rglob("training_args.bin"))
    assert {path.parent.name for path in saved} == {"checkpoint-2", "checkpoint-4", "student"}
    for path in saved:
        assert TOKEN.encode() not in path.read_bytes()
        arguments = torch.load(path, weights_only=False)
        assert arguments.hub_token is None
        assert arguments.max_steps == 4
    assert publisher.args.hub_token == TOKEN
    assert trainer(tmp_path).train(resume_from_checkpoint=True).global_step == 4


def test_pushed_student_loads_by_name_and_its_snippet_runs(hub: Hub, tmp_path: Path) -> None:
    publisher = trainer(tmp_path, max_steps=2)
    publisher.train()
    publisher.push_to_hub()
    card = hub.repositories["ada/student"]["README.md"].decode()
    snippet = card.split("```python\n")[1].split("```")[0]
    script = tmp_path / "load.py"
    script.write_text(
        "import json, sys, torch\n"
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n"
        "tokenizer = AutoTokenizer.from_pretrained('ada/student')\n"
        "model = AutoModelForSequenceClassification.from_pretrained('ada/student').eval()\n"
        "inputs = tokenizer('One sentence to try .', return_tensors='pt', return_token_type_ids=False)\n"
        "print(json.dumps([inputs['input_ids'].tolist(), model(**inputs).logits.tolist()]))\n"
        f"exec({snippet!r})\n"
        "assert not any(name.startswith('hf_distill') for name in sys.modules)\n"
    )
    first, last = in_subprocess([sys.executable, str(script)], hub, tmp_path).splitlines()
    input_ids, logits = json.loads(first)
    with torch.inference_mode():
        expected = publisher.model.eval()(input_ids=torch.tensor(input_ids)).logits
    assert input_ids == [[2, 3, 4, 5, 6]]
    torch.testing.assert_close(torch.tensor(logits), expected, rtol=0, atol=1e-6)
    assert last in publisher.model.config.id2label.values()


def test_card_on_the_hub(hub: Hub, tmp_path: Path) -> None:
    publisher = trainer(tmp_path, max_steps=2)
    publisher.train()
    publisher.evaluate()
    publisher.log({"eval_accuracy": 0.9, "eval_teacher_accuracy": 1.0, "eval_retention_accuracy": 0.9})
    publisher.push_to_hub(tags="mine", language="en")
    text = hub.repositories["ada/student"]["README.md"].decode()
    assert (
        "POST /api/validate-yaml" in hub.requests
    )  # the client sends nothing on where the Hub refuses the card
    assert str(ModelCard(text)).strip() == text.strip()
    metadata = yaml.safe_load(text.split("---\n")[1])
    assert metadata["base_model"] == "big/teacher"
    assert metadata["library_name"] == "transformers"
    assert {"hf-distill", "knowledge-distillation", "mine"} <= set(metadata["tags"])
    metrics = {entry["type"]: entry["value"] for entry in metadata["model-index"][0]["results"][0]["metrics"]}
    assert metrics == {"accuracy": 0.9, "retention_accuracy": 0.9}
    assert "| accuracy | 0.9000 | 1.0000 | 0.9000 |" in text
    assert "| temperature | 2.0 |" in text


def test_distillation_resumes_from_what_was_pushed(hub: Hub, tmp_path: Path) -> None:
    parts = trainer(tmp_path)

    def distillation(max_steps: int) -> DistillationTrainer:
        arguments = {
            name: getattr(parts.args, name) for name in ("hub_token", "save_steps", "use_cpu", "report_to")
        }
        return DistillationTrainer(
            model=parts.model,
            teacher=copy.deepcopy(parts.model),
            args=DistillationTrainingArguments(
                output_dir=str(tmp_path / "distilled"),
                push_to_hub=True,
                hub_model_id="ada/distilled",
                hub_strategy="checkpoint",
                hub_always_push=True,
                max_steps=max_steps,
                temperature=3,
                **arguments,
            ),
            train_dataset=parts.train_dataset,
            eval_dataset=parts.eval_dataset,
            processing_class=parts.processing_class,
        )

    publisher = distillation(2)
    publisher.train()
    publisher.evaluate()
    publisher.push_to_hub()
    files = hub.repositories["ada/distilled"]
    card = files["README.md"].decode()
    assert "base_model" not in card  # a copy in memory is no model on the Hub
    assert "| temperature | 3.0 |" in card
    assert "| agreement | 1.0000 |" in card
    assert not any("training_args" in path for path in files)
    downloaded = tmp_path / "downloaded" / "last-checkpoint"
    downloaded.mkdir(parents=True)
    for path, data in files.items():
        if path.startswith("last-checkpoint/"):
            (downloaded / path.split("/")[1]).write_bytes(data)
    assert distillation(4).train(resume_from_checkpoint=str(downloaded)).global_step == 4


def test_missing_token_is_found_at_construction(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(PermissionError, match="hf auth login") as caught:
        trainer(tmp_path, hub_token=None)
    assert str(caught.value).count("\n") == 1
    assert hub.requests == []


def test_missing_permission_is_found_at_construction(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["ada/student"] = {}
    with pytest.raises(PermissionError, match=r"'bob' may not write to 'ada/student'"):
        trainer(tmp_path, hub_token="hf_readonlyvisitor")
    hub.read_only.add("ada/student")  # create_repo answers 409, as for any repository of one's own
    with pytest.raises(PermissionError, match=r"'ada' may not write to 'ada/student'"):
        trainer(tmp_path)
    with pytest.raises(PermissionError, match="does not know the token"):
        trainer(tmp_path, hub_token="hf_expired")
    assert hub.repositories == {"ada/student": {}}


def test_unreachable_hub_is_found_at_construction(hub: Hub, tmp_path: Path) -> None:
    hub.server.server_close()
    with pytest.raises(PushError, match="Nothing was trained"):
        trainer(tmp_path)


def test_failed_background_push_is_logged_and_ends_training_in_an_error(
    hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub.refuse_commit = lambda message: True
    publisher = trainer(tmp_path, hub_strategy="every_save", hub_always_push=True)
    with caplog.at_level(logging.ERROR), pytest.raises(PushError, match="500") as caught:
        publisher.train()
    assert publisher.state.global_step == 4  # training went on to its end
    failures = [record for record in caplog.records if "failed" in record.message]
    assert len(failures) == 2
    assert "hf upload ada/student" in str(caught.value)
    student = DistilBertForSequenceClassification.from_pretrained(tmp_path / "student")
    for name, weight in publisher.model.state_dict().items():
        torch.testing.assert_close(student.state_dict()[name], weight, rtol=0, atol=0)

    hub.refuse_commit = lambda message: False
    publisher.push_to_hub()
    assert publisher.hub_pushes is not None
    assert publisher.hub_pushes.failures == {}


def test_later_push_makes_up_for_a_failed_one(hub: Hub, tmp_path: Path) -> None:
    hub.refuse_commit = lambda message: message == "Training in progress, step 2"
    trainer(tmp_path, hub_strategy="every_save", hub_always_push=True).train()
    assert hub.commits == ["Training in progress, step 4"]

    hub.refuse_commit = lambda message: message == "Training in progress, step 2, checkpoint"
    publisher = trainer(tmp_path / "all", hub_strategy="all_checkpoints", hub_always_push=True)
    with pytest.raises(PushError, match="checkpoint-2"):  # the later checkpoint is another
        publisher.train()
    publisher.push_to_hub()  # a failure is told once
    assert hub.commits[-1] == "End of training"


def test_connection_cut_in_mid_push(hub: Hub, tmp_path: Path) -> None:
    publisher = trainer(tmp_path, max_steps=2)
    publisher.train()
    hub.cut_uploads = 100
    with pytest.raises(PushError, match="The files are safe in") as caught:
        publisher.push_to_hub()
    hub.cut_uploads = 0
    message = str(caught.value)
    assert str(tmp_path / "student") in message
    assert hub.commits == []

    # The command in the message is all that is needed.
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "token").write_text(TOKEN)
    hf = Path(sys.executable).parent / "hf"
    in_subprocess(["/bin/sh", "-c", message.splitlines()[-1].replace("hf", str(hf), 1)], hub, tmp_path)
    assert set(hub.repositories["ada/student"]) == STUDENT_FILES
    assert (
        hub.repositories["ada/student"]["model.safetensors"]
        == (tmp_path / "student" / "model.safetensors").read_bytes()
    )


def test_push_that_does_not_block(hub: Hub, tmp_path: Path) -> None:
    publisher = trainer(tmp_path, push_to_hub=False)
    future: Any = publisher.push_to_hub(blocking=False)
    assert future.result(timeout=30).oid
    assert set(hub.repositories["ada/student"]) == STUDENT_FILES
    hub.refuse_commit = lambda message: True
    failing: Any = publisher.push_to_hub(blocking=False, commit_message="again")
    with pytest.raises(PushError, match="again"):
        failing.result(timeout=30)
    with pytest.raises(PushError, match="and again"):
        publisher.push_to_hub(commit_message="and again")
    hub.refuse_commit = lambda message: False
    assert publisher.train().global_step == 4  # what was told before does not end it in an error
