"""The card names what it should, shows no token, and its snippets run for every kind of head."""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from hf_distill.reporting.card_metrics import latest_metrics, results_table
from hf_distill.reporting.model_card import command_line, create_card, is_hub_id
from hf_distill.reporting.usage import auto_class_name, usage_snippet

WORDS = ["[PAD]", "[UNK]", "One", "sentence", "to", "try", "."]
BERT = {
    "vocab_size": len(WORDS),
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "intermediate_size": 8,
}


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")


def trainer_of(folder: Path, teacher: Any = None, log: list[dict[str, Any]] | None = None) -> Any:
    trainer = Trainer(
        model=BertForSequenceClassification(BertConfig(**BERT, num_labels=3)),
        args=TrainingArguments(
            output_dir=str(folder), report_to="none", use_cpu=True, hub_token="not-a-prefix"
        ),
        processing_class=tokenizer(),
    )
    trainer.state.log_history = log or []
    trainer.teacher = teacher  # type: ignore[attr-defined]
    return trainer


def metadata_of(card: Any) -> dict[str, Any]:
    metadata: dict[str, Any] = yaml.safe_load(str(card).split("---\n")[1])
    return metadata


MODELS = {
    "single label": (
        "AutoModelForSequenceClassification",
        lambda: BertForSequenceClassification(BertConfig(**BERT)),
    ),
    "multi label": (
        "AutoModelForSequenceClassification",
        lambda: BertForSequenceClassification(BertConfig(**BERT, problem_type="multi_label_classification")),
    ),
    "regression": (
        "AutoModelForSequenceClassification",
        lambda: BertForSequenceClassification(BertConfig(**BERT, num_labels=1)),
    ),
    "no token types": (
        "AutoModelForSequenceClassification",
        lambda: DistilBertForSequenceClassification(
            DistilBertConfig(vocab_size=len(WORDS), dim=8, hidden_dim=8, n_layers=1, n_heads=1)
        ),
    ),
    "tokens": ("AutoModelForTokenClassification", lambda: BertForTokenClassification(BertConfig(**BERT))),
    "masked": ("AutoModelForMaskedLM", lambda: BertForMaskedLM(BertConfig(**BERT))),
    "questions": ("AutoModelForQuestionAnswering", lambda: BertForQuestionAnswering(BertConfig(**BERT))),
    "no head": ("AutoModel", lambda: BertModel(BertConfig(**BERT))),
    "causal": (
        "AutoModelForCausalLM",
        lambda: GPT2LMHeadModel(
            GPT2Config(
                vocab_size=len(WORDS),
                n_embd=8,
                n_layer=1,
                n_head=1,
                n_positions=64,
                bos_token_id=0,
                eos_token_id=0,
            )
        ),
    ),
    "sequence to sequence": (
        "AutoModelForSeq2SeqLM",
        lambda: T5ForConditionalGeneration(
            T5Config(
                vocab_size=len(WORDS),
                d_model=8,
                d_kv=8,
                d_ff=8,
                num_layers=1,
                num_heads=1,
                decoder_start_token_id=0,
            )
        ),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_snippet_runs(name: str, tmp_path: Path) -> None:
    auto_class, make = MODELS[name]
    model = make()
    assert auto_class_name(model) == auto_class
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(usage_snippet(model, str(tmp_path), tokenizer()), {})
    assert printed.getvalue().strip() or auto_class in ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM")


def test_snippet_of_an_image_model_runs(tmp_path: Path) -> None:
    model = ViTForImageClassification(
        ViTConfig(
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            intermediate_size=8,
            image_size=8,
            patch_size=4,
        )
    )
    processor = ViTImageProcessor(size={"height": 8, "width": 8})
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    code = usage_snippet(model, str(tmp_path), processor)
    assert "AutoImageProcessor" in code
    with contextlib.redirect_stdout(io.StringIO()):
        exec(code, {})


def test_multiple_choice_has_its_auto_class() -> None:
    assert auto_class_name(BertForMultipleChoice(BertConfig(**BERT))) == "AutoModelForMultipleChoice"


def test_revision_is_in_the_snippet() -> None:
    code = usage_snippet(BertModel(BertConfig(**BERT)), "ada/student", tokenizer(), "try-2")
    assert code.count('from_pretrained("ada/student", revision="try-2")') == 2


def test_teacher_on_the_hub_and_in_a_folder(tmp_path: Path) -> None:
    on_hub = create_card(trainer_of(tmp_path / "a", SimpleNamespace(name="big/teacher", model=None)))
    assert metadata_of(on_hub)["base_model"] == "big/teacher"
    (tmp_path / "my teacher").mkdir()
    model = BertModel(BertConfig(**BERT))
    in_folder = create_card(
        trainer_of(tmp_path / "a", SimpleNamespace(name=str(tmp_path / "my teacher"), model=model))
    )
    assert "base_model" not in metadata_of(in_folder)
    assert "`my teacher`, a local model (`BertModel`)" in str(in_folder)
    assert f"its teacher {model.num_parameters():,}," in str(in_folder)
    assert str(tmp_path / "my teacher") not in str(in_folder)
    for teacher in (
        None,
        SimpleNamespace(name="BertModel", model=model),
    ):  # no teacher, and its class for a name
        nameless = create_card(trainer_of(tmp_path / "a", teacher))
        assert "base_model" not in metadata_of(nameless)
        assert "distilled from a teacher without a name" in str(nameless)


def test_all_teachers_of_an_ensemble_are_named(tmp_path: Path) -> None:
    def teacher(name: str) -> Any:
        return SimpleNamespace(name=name, model=BertForSequenceClassification(BertConfig(**BERT)))

    (tmp_path / "mine").mkdir()
    local = teacher(str(tmp_path / "mine"))
    members = [teacher("big/one"), teacher("big/two"), local]
    card = create_card(trainer_of(tmp_path, SimpleNamespace(name="all", members=members)))
    metadata = metadata_of(card)
    assert metadata["base_model"] == ["big/one", "big/two"]
    assert metadata["base_model_relation"] == "finetune"
    text = " ".join(str(card).split())
    links = [f"[big/{name}](https://huggingface.co/big/{name})" for name in ("one", "two")]
    assert f"distilled from {links[0]}, {links[1]} and `mine`, a local model (`BertFor" in text
    assert str(tmp_path / "mine") not in text
    size = f"{sum(weight.numel() for weight in local.model.parameters()):,}"
    assert f", its teachers {size}, {size} and {size}, and it loads" in text
    one = create_card(trainer_of(tmp_path, SimpleNamespace(name="all", members=[teacher("big/one"), local])))
    assert metadata_of(one)["base_model"] == "big/one"
    assert "base_model_relation" not in metadata_of(one)


def test_folder_that_looks_like_an_id_is_not_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("runs/teacher")
    (tmp_path / "runs" / "teacher").mkdir(parents=True)
    assert not is_hub_id("runs/teacher")
    assert not is_hub_id("/runs/teacher")


def test_tags_data_sets_and_licence(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, log=[{"eval_accuracy": 0.5, "step": 1}])
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "README.md").write_text("---\ntags:\n- kept\n---\n# Old")
    card = create_card(
        trainer,
        tags=["new"],
        license="mit",
        language="en",
        dataset_tags="ada/data",
        dataset_names="Ada's data",
        dataset_configurations="small",
        model_name="A student",
        started_from="small/start",
    )
    metadata = metadata_of(card)
    assert metadata["tags"] == [
        "hf-distill",
        "knowledge-distillation",
        "generated_from_trainer",
        "new",
        "kept",
    ]
    assert (metadata["license"], metadata["language"], metadata["datasets"]) == ("mit", "en", ["ada/data"])
    assert metadata["pipeline_tag"] == "text-classification"
    result = metadata["model-index"][0]["results"][0]
    assert result["dataset"] == {"name": "Ada's data", "type": "ada/data", "config": "small"}
    assert "# A student" in str(card)
    assert "started from `small/start`" in str(card)


def test_command_without_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "from-the-environment")
    monkeypatch.setattr(
        sys,
        "argv",
        [
            *(
                "distill.py",
                "--hub_token",
                "one-secret",
                "--hub-token=two-secret",
                "--wandb_api_key",
                "key-secret",
            ),
            *(
                "--max_new_tokens",
                "5",
                "--tokenizer_name",
                "bert",
                "--note",
                "x-not-a-prefix-x",
                "hf_ABCDEF1234",
            ),
            *('{"k": "from-the-environment"}', "--hub_t", "not-a-prefix"),
        ],
    )
    text = str(create_card(trainer_of(tmp_path)))
    for secret in ("secret", "not-a-prefix", "hf_ABCDEF1234", "from-the-environment"):
        assert secret not in text
    assert "--max_new_tokens 5 --tokenizer_name bert" in text


def test_launcher_in_the_command() -> None:
    command = command_line(["distill.py", "--alpha", "1"], processes=2)
    assert command == "accelerate launch --num_processes 2 distill.py --alpha 1"
    assert command_line(["-c"]) == "# an interactive session"


def test_metrics_are_those_of_the_model_at_hand() -> None:
    history = [
        {"step": 1, "eval_accuracy": 0.9, "eval_runtime": 1.0, "eval_loss": float("nan")},
        {"step": 2, "eval_accuracy": 0.8, "loss": 0.1},
        {"step": 2, "train_runtime": 3.0},
    ]
    state = SimpleNamespace(log_history=history, best_global_step=1, best_model_checkpoint="checkpoint-1")
    assert latest_metrics(state) == {"accuracy": 0.9}
    state.best_model_checkpoint = None
    assert latest_metrics(state) == {"accuracy": 0.8}
    history.append({"step": 2, "eval_accuracy": 0.7})
    assert latest_metrics(state) == {"accuracy": 0.7}


def test_rows_of_several_evaluation_sets() -> None:
    metrics = {"a_accuracy": 0.5, "a_teacher_accuracy": 1.0, "a_retention_accuracy": 0.5, "b_accuracy": 0.25}
    assert results_table(metrics) == [
        ("a_accuracy", "0.5000", "1.0000", "0.5000"),
        ("b_accuracy", "0.2500", "", ""),
    ]


def test_values_with_bars_stay_in_their_cells(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    trainer.distillation_settings = lambda: {
        "alpha": 0.5,
        "note": "a|b\nc",
        "objectives": [{"name": "forward_kl"}],
    }
    text = str(create_card(trainer))
    assert "| note | a\\|b c |" in text
    assert '| objectives | [{"name": "forward_kl"}] |' in text
    assert "/home/ada" not in text
    assert torch.__version__.split("+")[0] in text
