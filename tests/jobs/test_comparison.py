"""The comparison itself: what it measures, on which models, and what it tries out before a teacher is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from transformers import BertConfig, BertForSequenceClassification

from hf_distill import DistillationTrainingArguments
from hf_distill.jobs import comparison_report
from hf_distill.jobs.comparison import prepare_comparison
from hf_distill.jobs.rehearsal import rehearse, rehearse_student
from hf_distill.tasks.bert_models import TextModelArguments, new_bert
from hf_distill.tasks.teacher_answers import answers_by_logits
from hf_distill.tasks.text_classification import TextClassification
from hf_distill.tasks.text_data import TextDataArguments
from tests.tiny import perturbed

TINY = {
    "vocabulary_size": 40, "teacher_layers": 1, "teacher_width": 16, "teacher_epochs": 1, "student_layers": 1,
    "student_width": 8,
}  # fmt: skip


def task_of(models: TextModelArguments) -> TextClassification:
    return TextClassification(TextDataArguments(report_on="validation"), models)


@pytest.fixture
def splits() -> DatasetDict:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["cat", "dog"])})
    rows = {"text": ["a meow", "the bark", "meow meow", "a bark"] * 4, "label": [0, 1, 0, 1] * 4}
    one = Dataset.from_dict(rows, features=features)
    return DatasetDict({"train": one, "validation": one})


def arguments(folder: Path, **settings: Any) -> DistillationTrainingArguments:
    quiet = {
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "max_steps": 2,
        "save_strategy": "no",
    }
    return DistillationTrainingArguments(str(folder), **{**quiet, **settings})


@pytest.mark.filterwarnings(
    "ignore:The student .* seems to start from random", "ignore:The teacher is nearly uniform"
)
def test_models_are_timed_as_a_user_loads_them(
    tmp_path: Path, splits: DatasetDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = []
    measure = comparison_report.measure_cost

    def spy(model: Any, folder: Any, texts: Any) -> Any:
        timed.append(model)
        return measure(model, folder, texts)

    monkeypatch.setattr(comparison_report, "measure_cost", spy)
    models = TextModelArguments(**TINY)
    job = prepare_comparison(task_of(models), splits, arguments(tmp_path, bf16=True), lambda line: None)
    results = job.run([0], baseline=True)
    assert {"teacher", "student_alone", "student_distilled"} <= set(results)
    assert len(timed) == 3
    for model in timed:
        # Accelerate leaves this on the trainer's own copy, which computes in bf16 and turns its outputs back.
        assert not hasattr(model, "_original_forward")


@pytest.mark.parametrize(
    ("objective", "message"),
    [("patient", "at least 2 layers"), ("derivative", "word embeddings of the teacher's width 16")],
)
def test_what_does_not_fit_is_said_before_a_teacher_is_trained(
    tmp_path: Path, splits: DatasetDict, capsys: Any, objective: str, message: str
) -> None:
    args = arguments(tmp_path, objectives=[{"name": objective}])
    with pytest.raises(SystemExit):
        rehearse(task_of(TextModelArguments(**TINY)), splits, args)
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("*teacher*"))


@pytest.mark.filterwarnings("ignore:The student .* seems to start from random")
def test_a_student_cut_out_of_a_teacher_with_another_order_of_labels(
    tmp_path: Path, splits: DatasetDict
) -> None:
    tokenizer = task_of(TextModelArguments(**TINY)).new_processor(splits)
    teacher = perturbed(new_bert(2, 16, splits, tokenizer, 64)).eval()
    teacher.config.id2label, teacher.config.label2id = {0: "dog", 1: "cat"}, {"dog": 0, "cat": 1}
    for part in (teacher, tokenizer):
        part.save_pretrained(str(tmp_path / "teacher"))
    models = TextModelArguments(
        teacher_model_name_or_path=[str(tmp_path / "teacher")], student_num_hidden_layers=2
    )
    job = prepare_comparison(task_of(models), splits, arguments(tmp_path), lambda line: None)
    trainer = job._trainer(0, "distilled", publish=False)
    batch = tokenizer(splits["validation"]["text"][:], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = teacher(**batch).logits[:, [1, 0]]
        assert torch.allclose(trainer.model(**batch).logits, expected, atol=1e-6), (
            "all layers: it is the teacher"
        )
    # The teacher's row of the table.
    assert torch.allclose(torch.tensor(answers_by_logits(trainer, 1)[0].predictions), expected, atol=1e-6)
    assert trainer.model.config.id2label == {0: "cat", 1: "dog"}


def test_a_rehearsal_that_goes_well_is_silent_and_leaves_nothing(
    tmp_path: Path, splits: DatasetDict, capsys: Any, recwarn: pytest.WarningsRecorder
) -> None:
    models = TextModelArguments(**TINY, teachers_from_seeds=2)
    rehearse(
        task_of(models),
        splits,
        arguments(tmp_path, objectives=[{"name": "hidden_states", "teacher": 1}]),
    )
    assert capsys.readouterr().err.replace("hf_distill trains on 1 process (cpu)\n", "") == ""
    assert not recwarn.list
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("classes", "fits"), [(2, True), (5, False)])
def test_the_student_of_a_named_teacher_is_tried_out_before_it_is_asked_about_every_text(
    tmp_path: Path, splits: DatasetDict, capsys: Any, classes: int, fits: bool
) -> None:
    tokenizer = task_of(TextModelArguments(**TINY)).new_processor(splits)
    teacher, student = new_bert(1, 16, splits, tokenizer, 64), new_bert(1, 8, splits, tokenizer, 64)
    if not fits:
        names = {number: f"class {number}" for number in range(classes)}
        config = BertConfig(**{**student.config.to_diff_dict(), "id2label": names, "label2id": None})
        student = BertForSequenceClassification(config)
    for name, model in (("teacher", teacher), ("student", student)):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    models = TextModelArguments(
        teacher_model_name_or_path=[str(tmp_path / "teacher")],
        student_model_name_or_path=str(tmp_path / "student"),
    )
    job = prepare_comparison(task_of(models), splits, arguments(tmp_path / "out"), lambda line: None)
    capsys.readouterr()
    if fits:
        rehearse_student(job, 0)
        assert not (tmp_path / "out").exists()
    else:
        with pytest.raises(SystemExit):
            rehearse_student(job, 0)
        assert "expected a model for the data's 2 classes" in capsys.readouterr().err


def test_how_a_named_teacher_is_loaded_is_as_the_flags_say(tmp_path: Path, splits: DatasetDict) -> None:
    models = TextModelArguments(**TINY)
    tokenizer = task_of(models).new_processor(splits)
    new_bert(1, 16, splits, tokenizer, 64).save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    models.teacher_model_name_or_path = [str(tmp_path / "teacher")]
    args = arguments(tmp_path / "out", teacher_dtype="bfloat16", teacher_attn_implementation="eager")
    (teacher,) = prepare_comparison(task_of(models), splits, args, print).teachers
    assert teacher.dtype == torch.bfloat16
    assert teacher.config._attn_implementation == "eager"
    args.teacher_dtype = "float33"
    with pytest.raises(SystemExit):
        prepare_comparison(task_of(models), splits, args, print)


@pytest.mark.filterwarnings(
    "ignore:The student .* seems to start from random", "ignore:The teacher is nearly uniform"
)
def test_a_checkpoint_of_another_loss_is_not_resumed_from(
    tmp_path: Path, splits: DatasetDict, capsys: pytest.CaptureFixture[str]
) -> None:
    models = TextModelArguments(**TINY)
    saved = {"save_strategy": "steps", "save_steps": 1, "resume_from_checkpoint": "True"}

    def run(alpha: float) -> None:
        args = arguments(tmp_path, alpha=alpha, **saved)
        prepare_comparison(task_of(models), splits, args, lambda line: None).run([0], baseline=False)

    run(0.2)
    run(0.2)  # goes on
    told = splits["train"]
    splits["train"] = told.select(range(len(told) - 1))
    with pytest.raises(SystemExit):
        run(0.2)
    assert "to be trained on these examples, lengths and labels" in capsys.readouterr().err
    splits["train"] = told
    with pytest.raises(SystemExit) as ended:
        run(0.8)
    assert ended.value.code == 2
    assert "--resume_from_checkpoint: expected" in capsys.readouterr().err
