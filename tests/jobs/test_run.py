"""What a recipe says before it trains: how much there is, and what is cut."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Sequence, Value

from hf_distill.jobs.recipe_settings import RecipeTrainingArguments
from hf_distill.jobs.run import Defaults, limit_lines
from hf_distill.tasks.audio_classification import AudioClassification, SoundDataArguments, SoundModelArguments
from hf_distill.tasks.causal_lm import CausalLanguageModelling, LanguageDataArguments, LanguageModelArguments
from hf_distill.tasks.model_arguments import ModelArguments
from hf_distill.tasks.seq2seq import PairDataArguments, PairModelArguments, SequenceToSequence
from hf_distill.tasks.token_classification import TaggerModelArguments, TokenClassification, WordDataArguments


def lines(task: Any, rows: Dataset) -> list[str]:
    splits = DatasetDict(train=rows, test=rows.select(range(2)))
    processor = task.new_processor(splits)
    return limit_lines(task, splits, {name: task.encode(rows, processor) for name, rows in splits.items()})


@pytest.mark.parametrize(
    ("models", "rate"),
    [
        ({}, 1e-3),
        ({"student_num_hidden_layers": 1}, 1e-3),  # of a teacher that is trained here
        ({"student_num_hidden_layers": 1, "teacher_model_name_or_path": ["bert-base-uncased"]}, 5e-5),
        ({"student_num_hidden_layers": 1, "teacher_pretrained_name_or_path": "bert-base-uncased"}, 5e-5),
        ({"student_model_name_or_path": "bert-base-uncased"}, 5e-5),
        ({"teacher_model_name_or_path": ["bert-base-uncased"]}, 1e-3),
    ],
)
def test_the_rate_follows_where_the_students_weights_come_from(models: dict[str, Any], rate: float) -> None:
    args = SimpleNamespace(learning_rate=0, alpha=0.5, temperature=None, objectives=None)
    Defaults(learning_rate=1e-3, pretrained_learning_rate=5e-5).fill_in(ModelArguments(**models), args)
    assert args.learning_rate == rate
    args.learning_rate = 0.7
    Defaults(learning_rate=1e-3).fill_in(ModelArguments(**models), args)
    assert args.learning_rate == 0.7


@pytest.mark.parametrize(
    ("length", "told"), [(8, "1 of 3 (train), 0 of 2 (test)"), (40, None), (4, "3 of 3 (tr")]
)
def test_words_that_are_cut_are_told(length: int, told: str | None) -> None:
    features = Features({"tokens": Sequence(Value("string")), "tags": Sequence(ClassLabel(names=["a", "b"]))})
    rows = {"tokens": [["one", "two"], ["one", "one"], ["one"] * 30], "tags": [[0, 1], [0, 0], [1] * 30]}
    task = TokenClassification(WordDataArguments(max_seq_length=length), TaggerModelArguments())
    found = lines(task, Dataset.from_dict(rows, features=features))
    assert len(found) == (0 if told is None else 1)
    if told:
        assert found[0].startswith(f"Length: --max_seq_length {length} is reached by {told}")
        assert found[0].endswith("; what is longer is cut")


def test_sources_and_targets_have_lengths_of_their_own() -> None:
    rows = Dataset.from_dict({"prompt": ["a"] * 3, "completion": ["b", "b", "b c d e f g h i j k l m n o p"]})
    task = SequenceToSequence(PairDataArguments(max_target_length=6), PairModelArguments())
    (line,) = lines(task, rows)
    assert line.startswith("Length: --max_target_length 6 is reached by 1 of 3 (train), 0 of 2 (test)")


def test_of_packed_text_nothing_is_cut() -> None:
    rows = Dataset.from_dict({"text": ["a b c d e f g h i j k l m n o p q r s t"] * 3})
    for packing, count in ((True, 0), (False, 1)):
        data = LanguageDataArguments(block_size=8, packing=packing)
        assert len(lines(CausalLanguageModelling(data, LanguageModelArguments()), rows)) == count


def test_sounds_that_are_cut_are_told(tmp_path: Path) -> None:
    features = Features({"audio": Sequence(Value("float32")), "label": ClassLabel(names=["a", "b"])})
    sounds = [numpy.sin(numpy.arange(count) / 5) for count in (4000, 2000, 24000)]
    task = AudioClassification(SoundDataArguments(), SoundModelArguments())
    (line,) = lines(task, Dataset.from_dict({"audio": sounds, "label": [0, 1, 0]}, features=features))
    assert line.startswith("Length: --max_seconds 0.5 is reached by 1 of 3 (train), 0 of 2 (test)")


def test_fp16_is_taken_though_bf16_is_the_default(tmp_path: Path) -> None:
    args = RecipeTrainingArguments(output_dir=str(tmp_path), fp16=True, bf16=True)
    assert (args.fp16, args.bf16) == (True, False)
