"""Pairs in a recipe: what is written is compared, halves are cut apart, and the teacher's own texts teach."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from hf_distill import DistillationSeq2SeqTrainingArguments
from hf_distill.jobs.comparison import prepare_comparison
from hf_distill.jobs.rehearsal import rehearse
from hf_distill.tasks.model_arguments import check_models
from hf_distill.tasks.seq2seq import PairDataArguments, PairModelArguments, SequenceToSequence

pytestmark = pytest.mark.filterwarnings(
    "ignore:The student .* seems to start from random", "ignore:The teacher is nearly uniform"
)
pytest.importorskip("sacrebleu")


@pytest.fixture
def splits() -> DatasetDict:
    rows = Dataset.from_dict(
        {
            "prompt": [f"say {n % 5} again" for n in range(40)],
            "completion": [f"{n % 5} {n % 5}" for n in range(40)],
        }
    )
    return DatasetDict(train=rows.select(range(32)), validation=rows.select(range(32, 40)))


def task_of(models: dict[str, Any] | None = None, **data: Any) -> SequenceToSequence:
    sizes = {
        "vocabulary_size": 300,
        "teacher_layers": 2,
        "teacher_width": 16,
        "teacher_epochs": 1,
        "student_width": 8,
    }
    settings = PairDataArguments(**{"report_on": "validation", "max_target_length": 8, **data})
    task = SequenceToSequence(settings, PairModelArguments(**{**sizes, **(models or {})}))
    task.fill_in()
    return task


def arguments(folder: Path, **settings: Any) -> DistillationSeq2SeqTrainingArguments:
    quiet = {
        "report_to": "none", "use_cpu": True, "disable_tqdm": True, "num_train_epochs": 1, "save_strategy": "no",
        "predict_with_generate": True, "alpha": 0.5, "temperature": 2.0,
    }  # fmt: skip
    return DistillationSeq2SeqTrainingArguments(str(folder), **{**quiet, **settings})


@pytest.mark.parametrize("cached", [False, True])
def test_a_run_compares_what_is_written(tmp_path: Path, splits: DatasetDict, cached: bool) -> None:
    task = task_of()
    args = arguments(tmp_path)
    task.check(args)
    rehearse(task, splits, args)
    job = prepare_comparison(task, splits, args, lambda line: None)
    if cached:
        job.cache_teachers(1)
        assert job.caches is not None
    results = job.run([0], baseline=True)
    assert results["measure"]["headline"] == "rouge_l"
    # The teacher's row is of what it writes.
    (teacher,) = job.teachers
    collate = task.collator(job.processor)
    ids = []
    for row in job.encoded["validation"]:
        batch = collate([row])
        ids.append(
            teacher.generate(batch["input_ids"], attention_mask=batch["attention_mask"], max_length=8)[0]
        )
    said = [job.processor.decode(one, skip_special_tokens=True) for one in ids]
    exact = [
        one.split() == true.split()
        for one, true in zip(said, splits["validation"]["completion"], strict=True)
    ]
    assert results["teacher"]["exact_match"] == sum(exact) / len(exact)


@pytest.mark.parametrize(
    ("kind", "names"),
    [("bart", ("encoder_layers", "decoder_layers")), ("t5", ("num_layers", "num_decoder_layers"))],
)
def test_halves_are_cut_apart(splits: DatasetDict, kind: str, names: tuple[str, str]) -> None:
    task = task_of({"student_encoder_layers": 2, "student_decoder_layers": 1, "model_kind": kind})
    tokenizer = task.new_processor(splits)
    teacher = task.new_model("teacher", splits, tokenizer)
    student = task.make_student(teacher, splits, tokenizer)
    assert tuple(getattr(student.config, name) for name in names) == (2, 1)
    assert task_of({"student_num_hidden_layers": 1}).models.student_decoder_layers == 1
    with pytest.raises(ValueError, match="expected --student_encoder_layers and --student_decoder_layers"):
        task_of({"student_encoder_layers": 2}).check(arguments(Path("out")))
    deep = task_of({"student_encoder_layers": 1, "student_decoder_layers": 3})
    with pytest.raises(ValueError, match="--student_decoder_layers: expected at most the teacher's 2 layers"):
        check_models(deep.models)


def test_what_the_teacher_writes_teaches_the_distilled_student(tmp_path: Path, splits: DatasetDict) -> None:
    said: list[str] = []
    for _ in range(2):
        task = task_of(sequence_level=True, sequence_level_beams=2)
        job = prepare_comparison(task, splits, arguments(tmp_path), said.append)
        (teacher,) = job.teachers
        trainer = job._trainer(0, "distilled", publish=False)
        row = trainer.train_dataset[3]
        batch = task.collator(job.processor)([job.encoded["train"][3]])
        ids = teacher.generate(
            batch["input_ids"], attention_mask=batch["attention_mask"], num_beams=2, max_length=8
        )
        written = job.processor.decode(ids[0], skip_special_tokens=True)
        assert row["labels"] == job.processor(text_target=written, truncation=True, max_length=8)["input_ids"]
        alone = job._trainer(0, "alone", publish=False)
        assert job.processor.decode(alone.train_dataset[3]["labels"], skip_special_tokens=True) == "3 3"
    assert [
        ("writing answers to 32" in line, "kept from an earlier run" in line)
        for line in said
        if "answers" in line
    ][-2:] == [(True, False), (False, True)]


def test_answers_are_kept_to_what_the_teacher_wrote(tmp_path: Path, splits: DatasetDict) -> None:
    """They were kept to the data's own texts, of which the distilled student then read none."""
    task = task_of(sequence_level=True, sequence_level_beams=2)
    job = prepare_comparison(task, splits, arguments(tmp_path), lambda line: None)
    job.cache_teachers(1)
    assert job.caches is not None
    losses = []
    for _ in range(2):
        trainer = job._trainer(0, "distilled", publish=False)
        batch = task.collator(job.processor)([trainer.train_dataset[row] for row in range(4)])
        losses.append(trainer.compute_loss(trainer.model.eval(), batch).item())
        job.caches = None  # the teacher itself
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_several_references_of_one_text(splits: DatasetDict) -> None:
    task = task_of()
    rows = splits["validation"].add_column(
        "references", [[one, "other"] for one in splits["validation"]["completion"]]
    )
    tokenizer = task.new_processor(splits)
    measure = task.measure(rows, task.encode(rows, tokenizer), tokenizer)
    assert measure.references[0] == ["2 2", "other"]


def test_several_teachers_write_together_and_each(tmp_path: Path, splits: DatasetDict) -> None:
    task = task_of({"teachers_from_seeds": 2}, sequence_level=True, sequence_level_beams=2)
    args = arguments(tmp_path, teacher_weights=[0.0, 1.0])
    task.check(args)
    rehearse(task, splits, args)
    job = prepare_comparison(task, splits, args, lambda line: None)
    results = job.run([0], baseline=True)
    assert results["teacher"]["exact_match"] == results["teachers"][1]["exact_match"]
    row = job._trainer(0, "distilled", publish=False).train_dataset[3]
    batch = task.collator(job.processor)([job.encoded["train"][3]])
    ids = job.teachers[1].generate(
        batch["input_ids"], attention_mask=batch["attention_mask"], num_beams=2, max_length=8
    )
    text = job.processor.decode(ids[0], skip_special_tokens=True)
    assert row["labels"] == job.processor(text_target=text, truncation=True, max_length=8)["input_ids"]
    # Other weights write other texts, which are kept beside.
    args.teacher_weights = [1.0, 0.0]
    assert not task._kept_writing(splits["train"], job.teachers, args).exists()
