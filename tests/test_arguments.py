"""The distillation arguments: in Python, on the command line, in --help, as JSON, and over Seq2Seq."""

import dataclasses
import json
from dataclasses import dataclass

import pytest
from transformers import HfArgumentParser, Seq2SeqTrainingArguments, TrainingArguments

from hf_distill import DistillationArgumentsMixin, DistillationTrainingArguments
from hf_distill.loss_plan import LossPlan, Term, resolve_loss
from hf_distill.objectives.forward_kl import ForwardKL
from hf_distill.schedules import Schedule

NEW_FIELDS = [field.name for field in dataclasses.fields(DistillationArgumentsMixin)]
OBJECTIVES = [{"name": "forward_kl", "weight": 0.5, "temperature": 4}]
RISING = {"schedule": "linear", "start": 0.0, "end": 1.0}
# Read more than once below; the values are those that the command line has to give.
COMMAND_LINE = {
    "alpha": ("0.3", 0.3),
    "temperature": ("4", 4.0),
    "objectives": (json.dumps(OBJECTIVES), json.dumps(OBJECTIVES)),
    "label_weight": ("2", 2.0),
    "projection_learning_rate": ("1e-3", 1e-3),
    "distill_on": ("attended", "attended"),
    "teacher_revision": ("v1", "v1"),
    "teacher_dtype": ("bfloat16", "bfloat16"),
    "teacher_attn_implementation": ("eager", "eager"),
    "teacher_weights": ("confidence", "confidence"),
    "teacher_combine": ("logits", "logits"),
    "offload_teachers": ("True", True),
}


@dataclass
class Seq2SeqDistillationArguments(DistillationArgumentsMixin, Seq2SeqTrainingArguments):
    """The Seq2Seq pair's arguments, in two lines."""


@pytest.fixture
def output_dir(tmp_path) -> str:
    return str(tmp_path / "out")


def make(output_dir: str, **settings) -> DistillationTrainingArguments:
    return DistillationTrainingArguments(output_dir=output_dir, report_to="none", use_cpu=True, **settings)


def parse(output_dir: str, *flags: str, arguments=DistillationTrainingArguments):
    common = ["--output_dir", output_dir, "--report_to", "none", "--use_cpu"]
    return HfArgumentParser(arguments).parse_args_into_dataclasses([*common, *flags])[0]


def test_nothing_is_resolved_at_construction(output_dir):
    args = make(output_dir)
    assert {name: getattr(args, name) for name in NEW_FIELDS} == {
        **dict.fromkeys(NEW_FIELDS),
        "offload_teachers": False,
    }


def test_every_new_field_is_tested_on_the_command_line():
    assert set(NEW_FIELDS) == {*COMMAND_LINE, "teacher_text_columns"}


def test_ints_become_floats_so_that_a_trial_is_not_cast(output_dir):
    args = make(output_dir, alpha=0, temperature=4)
    assert isinstance(args.alpha, float)
    assert isinstance(args.temperature, float)
    assert isinstance(make(output_dir, objectives=OBJECTIVES, label_weight=1).label_weight, float)
    assert isinstance(make(output_dir, projection_learning_rate=0).projection_learning_rate, float)


def test_a_trial_may_set_the_arguments_later(output_dir):
    args = make(output_dir, alpha=0)
    args.alpha, args.temperature = 1, 3
    assert resolve_loss(args, "single_label") == LossPlan(0.0, (Term(ForwardKL(3.0), 1.0, "forward_kl"),))


def test_plain_training_arguments_give_the_defaults(output_dir):
    args = TrainingArguments(output_dir=output_dir, report_to="none", use_cpu=True)
    assert resolve_loss(args, "single_label") == LossPlan(0.5, (Term(ForwardKL(2.0), 0.5, "forward_kl"),))


# ---- command line -------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(COMMAND_LINE))
def test_each_field_is_read_from_the_command_line(output_dir, name):
    text, expected = COMMAND_LINE[name]
    value = getattr(parse(output_dir, f"--{name}", text), name)
    assert value == expected
    assert type(value) is type(expected)


def test_text_columns_are_a_list(output_dir):
    args = parse(output_dir, "--teacher_text_columns", "question", "sentence")
    assert args.teacher_text_columns == ["question", "sentence"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["2", "1", "1.5"], [2.0, 1.0, 1.5]),
        (["label_loss"], "label_loss"),
        (["0.5"], [0.5]),
        (["0.5", "most"], ["0.5", "most"]),  # refused where the number of teachers is known
    ],
)
def test_weights_of_teachers_are_numbers_or_a_name(output_dir, words, expected):
    assert parse(output_dir, "--teacher_weights", *words).teacher_weights == expected


def test_weights_of_teachers_in_python_and_yaml(output_dir, tmp_path):
    assert make(output_dir, teacher_weights=[2, 1]).teacher_weights == [2, 1]
    assert make(output_dir, teacher_weights="confidence").teacher_weights == "confidence"
    path = tmp_path / "run.yaml"
    path.write_text(f"output_dir: {output_dir}\nuse_cpu: true\nteacher_weights: [0.75, 0.25]\n")
    (args,) = HfArgumentParser(DistillationTrainingArguments).parse_yaml_file(str(path))
    assert args.teacher_weights == [0.75, 0.25]


def test_offloading_is_a_bare_flag(output_dir):
    assert parse(output_dir, "--offload_teachers").offload_teachers is True


def test_short_form_on_the_command_line_resolves(output_dir):
    plan = resolve_loss(parse(output_dir, "--alpha", "0.3", "--temperature", "4"), "single_label")
    assert plan.terms == (Term(ForwardKL(4.0), 0.3, "forward_kl"),)


@pytest.mark.parametrize("name", ["alpha", "temperature", "label_weight"])
def test_a_schedule_is_json_on_the_command_line(output_dir, name):
    assert getattr(parse(output_dir, f"--{name}", json.dumps(RISING)), name) == RISING
    assert getattr(make(output_dir, **{name: RISING}), name) == RISING


def test_a_schedule_on_the_command_line_resolves(output_dir):
    plan = resolve_loss(parse(output_dir, "--alpha", json.dumps(RISING)), "single_label")
    assert plan.terms[0].weight == Schedule("linear", 0.0, 1.0)


@pytest.mark.parametrize("text", ["half", "", '{"schedule": ', "1,5"])
def test_text_that_is_neither_a_number_nor_json(output_dir, text):
    with pytest.raises(ValueError, match=r"alpha: expected a number, or a schedule as JSON .*, received"):
        parse(output_dir, "--alpha", text)


def test_long_form_as_json_on_the_command_line_resolves(output_dir):
    args = parse(output_dir, "--objectives", json.dumps(OBJECTIVES), "--label_weight", "0")
    assert resolve_loss(args, "single_label") == LossPlan(0.0, (Term(ForwardKL(4), 0.5, "forward_kl"),))


def test_long_form_as_a_yaml_path_on_the_command_line_resolves(output_dir, tmp_path):
    path = tmp_path / "objectives.yaml"
    path.write_text("- {name: forward_kl, weight: 0.5, temperature: 4}\n", encoding="utf-8")
    plan = resolve_loss(parse(output_dir, "--objectives", str(path)), "single_label")
    assert plan.terms == (Term(ForwardKL(4), 0.5, "forward_kl"),)


def test_both_forms_on_the_command_line_are_an_error_when_resolved(output_dir):
    args = parse(output_dir, "--alpha", "0.3", "--objectives", json.dumps(OBJECTIVES))
    with pytest.raises(ValueError, match="received both"):
        resolve_loss(args, "single_label")


def test_one_yaml_file_with_everything(output_dir, tmp_path):
    path = tmp_path / "run.yaml"
    lines = [f"output_dir: {output_dir}", "report_to: none", "use_cpu: true", "objectives:"]
    path.write_text(
        "\n".join([*lines, "- {name: forward_kl, weight: 0.5, temperature: 4}"]), encoding="utf-8"
    )
    (args,) = HfArgumentParser(DistillationTrainingArguments).parse_yaml_file(str(path))
    assert resolve_loss(args, "single_label").terms == (Term(ForwardKL(4), 0.5, "forward_kl"),)


@pytest.mark.parametrize("name", NEW_FIELDS)
def test_help_tells_of_each_field(name):
    (help_of,) = [
        action.help
        for action in HfArgumentParser(DistillationTrainingArguments)._actions
        if f"--{name}" in action.option_strings
    ]
    assert help_of.startswith(("Distillation", "Teacher"))
    assert "Default" in help_of or name == "objectives"


def test_help_prints_and_names_the_loss():
    text = " ".join(HfArgumentParser(DistillationTrainingArguments).format_help().split())
    assert "loss = (1 - alpha) * label loss + alpha * T^2 * KL(teacher || student)" in text
    assert all(f"--{name}" in text for name in NEW_FIELDS)


# ---- JSON ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"alpha": 0.3, "temperature": 4.0},
        {"objectives": OBJECTIVES, "label_weight": 0.5},
        {"alpha": RISING},
        {"objectives": [{"name": "forward_kl", "weight": RISING}], "label_weight": RISING},
        {"objectives": json.dumps(OBJECTIVES), "teacher_text_columns": ["text"], "teacher_dtype": "float32"},
    ],
)
def test_json_round_trip(output_dir, settings):
    args = make(output_dir, **settings)
    stored = json.loads(json.dumps(args.to_dict()))
    again = make(output_dir, **{name: stored[name] for name in NEW_FIELDS})
    assert {n: getattr(again, n) for n in NEW_FIELDS} == {n: getattr(args, n) for n in NEW_FIELDS}
    assert resolve_loss(again, "single_label") == resolve_loss(args, "single_label")


def test_json_text_and_sanitized_values_are_written(output_dir):
    args = make(output_dir, objectives=OBJECTIVES)
    assert json.loads(args.to_json_string())["objectives"] == OBJECTIVES
    assert "objectives" in args.to_sanitized_dict()


# ---- Seq2Seq ---------------------------------------------------------------------------


def test_the_seq2seq_pair_has_both_sets_of_fields(output_dir):
    args = Seq2SeqDistillationArguments(
        output_dir=output_dir,
        report_to="none",
        use_cpu=True,
        predict_with_generate=True,
        alpha=1,
        temperature=3,
    )
    assert isinstance(args, Seq2SeqTrainingArguments)
    assert args.predict_with_generate
    assert isinstance(args.alpha, float)
    assert resolve_loss(args, "single_label").terms == (Term(ForwardKL(3.0), 1.0, "forward_kl"),)


def test_the_seq2seq_pair_on_the_command_line(output_dir):
    flags = ("--alpha", "0.3", "--predict_with_generate")
    args = parse(output_dir, *flags, arguments=Seq2SeqDistillationArguments)
    assert (args.alpha, args.predict_with_generate) == (0.3, True)


@pytest.mark.parametrize(
    ("metric", "given", "expected"),
    [
        ("mean_kl", None, False),
        ("eval_loss/label", None, False),
        ("accuracy", None, True),
        ("mean_kl", True, True),
    ],
)
def test_the_best_model_is_the_one_with_less_of_an_error(tmp_path, metric, given, expected):
    args = DistillationTrainingArguments(
        str(tmp_path), metric_for_best_model=metric, greater_is_better=given, report_to="none"
    )
    assert args.greater_is_better is expected


@dataclasses.dataclass
class Decorated(DistillationTrainingArguments):
    """Arguments of a user's own, written as transformers' are."""

    learning_rate: float = dataclasses.field(default=1e-3, metadata={"help": "The rate of this task"})
    colours: list[str] = dataclasses.field(default_factory=lambda: ["red"], metadata={"help": "Any"})


class Undecorated(DistillationTrainingArguments):
    """The same without the decorator, which is applied by itself."""

    learning_rate: float = dataclasses.field(default=1e-3, metadata={"help": "The rate of this task"})
    colours: list[str] = dataclasses.field(default_factory=lambda: ["red"], metadata={"help": "Any"})


@pytest.mark.parametrize("kind", [Decorated, Undecorated])
def test_a_subclass_keeps_the_help_and_the_defaults_of_its_fields(output_dir, kind):
    args = parse(output_dir, arguments=kind)
    assert (args.learning_rate, args.colours) == (1e-3, ["red"])
    assert parse(output_dir, "--colours", "blue", "green", arguments=kind).colours == ["blue", "green"]
    helps = {field.name: field.metadata.get("help") for field in dataclasses.fields(kind)}
    assert helps["learning_rate"] == "The rate of this task"
    assert kind(output_dir=output_dir, report_to="none", use_cpu=True).colours == ["red"]
