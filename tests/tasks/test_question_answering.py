"""Questions in a recipe: windows, where answers are in them, and a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from hf_distill.corpora.signature_questions import SQUAD
from hf_distill.jobs.comparison import prepare_comparison
from hf_distill.jobs.rehearsal import rehearse
from hf_distill.tasks.bert_models import WordModelArguments
from hf_distill.tasks.question_answering import QuestionAnswering, QuestionDataArguments
from tests.jobs.test_comparison import arguments

pytestmark = pytest.mark.filterwarnings("ignore:The student .* seems to start from random")


def rows(count: int) -> Dataset:
    found = []
    for number in range(count):
        context = " ".join(f"word{place % 7}" for place in range(12)) + f" here it is{number}"
        answer = f"it is{number}"
        answers = {"text": [answer], "answer_start": [context.index(answer)]}
        found.append(
            {
                "id": str(number),
                "title": "t",
                "context": context,
                "question": "what is it?",
                "answers": answers,
            }
        )
    return Dataset.from_list(found, features=SQUAD)


@pytest.fixture
def splits() -> DatasetDict:
    return DatasetDict(train=rows(24), validation=rows(8))


def task_of(**data: Any) -> QuestionAnswering:
    settings = QuestionDataArguments(
        **{"report_on": "validation", "max_seq_length": 20, "doc_stride": 4, **data}
    )
    sizes = {
        "teacher_layers": 1,
        "teacher_width": 16,
        "teacher_epochs": 1,
        "student_layers": 1,
        "student_width": 8,
    }
    return QuestionAnswering(settings, WordModelArguments(vocabulary_size=80, **sizes))


def test_answers_point_at_their_tokens_or_at_the_first(splits: DatasetDict) -> None:
    task = task_of()
    tokenizer = task.new_processor(splits)
    encoded = task.encode(splits["train"], tokenizer)
    _, features = task._windows(splits["train"][:], tokenizer)
    assert len(encoded) == len(features) > len(splits["train"]), "texts are longer than a window"
    found = 0
    for row, feature in zip(encoded, features, strict=True):
        start, end = row["start_positions"], row["end_positions"]
        if (start, end) == (0, 0):
            continue
        found += 1
        said = tokenizer.decode(row["input_ids"][start : end + 1]).replace(" ##", "")
        assert said == splits["train"][feature.example]["answers"]["text"][0]
    assert found >= 24, "every answer is whole in some window"
    assert {"start_positions", "end_positions", "input_ids"} <= set(encoded.column_names)


@pytest.mark.parametrize("cached", [False, True])
def test_a_run(tmp_path: Path, splits: DatasetDict, cached: bool) -> None:
    task = task_of()
    args = arguments(tmp_path, train_sampling_strategy="random", max_steps=-1, num_train_epochs=1)
    task.check(args)
    rehearse(task, splits, args)
    said: list[str] = []
    job = prepare_comparison(task, splits, args, said.append)
    if cached:
        job.cache_teachers(1)
        assert job.caches is not None
    results = job.run([0], baseline=True)
    assert results["settings"]["test_texts"] == 8
    assert results["measure"]["headline"] == "f1"
    assert set(results["teacher"]) >= {"f1", "exact_match"}
    said_by_evaluation = [line for line in said if "teacher_f1" in line]
    assert f"teacher_f1 {100 * results['teacher']['f1']:.2f} %" in said_by_evaluation[0]


def test_settings_that_can_not_be(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--doc_stride: expected a number"):
        task_of(doc_stride=15).check(arguments(tmp_path))
    with pytest.raises(ValueError, match="windows of one text are put together in their order"):
        task_of().check(arguments(tmp_path, train_sampling_strategy="group_by_length", eval_strategy="epoch"))


def test_a_question_without_room_for_the_text_is_refused(tmp_path: Path) -> None:
    """Tokenizers ended the run with an error of theirs, once a teacher had been trained."""
    questions = ["what?"] * 20 + ["which of these and those words " * 20]
    rows = Dataset.from_dict(
        {
            "id": [str(n) for n in range(21)], "title": [""] * 21, "question": questions, "context": ["blue sky"] * 21,
            "answers": [{"text": ["blue"], "answer_start": [0]}] * 21,
        }
    )  # fmt: skip
    task = QuestionAnswering(QuestionDataArguments(max_seq_length=64, doc_stride=8), WordModelArguments())
    few = task.few(rows)
    assert len(few) == 9
    assert few["question"][-1] == questions[-1]
    tokenizer = task.new_processor(DatasetDict(train=rows))
    with pytest.raises(
        ValueError,
        match=r"--max_seq_length: expected .* question of 120 tokens \('which of",
    ):
        task.encode(few, tokenizer)
    task.encode(rows.select(range(8)), tokenizer)
