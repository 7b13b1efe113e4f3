"""The short and the long form of the loss: what they resolve to, and what they refuse."""

import json
import math
import sys
import types
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from hf_distill.loss_plan import LossPlan, Term, resolve_loss
from hf_distill.objectives import Objective
from hf_distill.objectives.binary_kl import BinaryKL
from hf_distill.objectives.forward_kl import ForwardKL
from hf_distill.objectives.jensen_shannon import JensenShannon
from hf_distill.objectives.logit_mse import LogitMSE
from hf_distill.objectives.regression import Regression
from hf_distill.schedules import Complement, Schedule

TWO = [
    {"name": "forward_kl", "weight": 0.7, "temperature": 4.0},
    {"name": "logit_mse", "weight": 2, "key": "logits"},
]
TWO_TERMS = (Term(ForwardKL(4.0), 0.7, "forward_kl"), Term(LogitMSE(), 2.0, "logits"))


@dataclass(frozen=True)
class MyLoss(Objective):
    """A user's own objective."""

    name = "my_loss"
    paper = "none"
    cost = "nothing"

    def __call__(self, rows):
        return rows.student_logits.float().sum(-1)


RISING = {"schedule": "linear", "start": 0.0, "end": 1.0}
FALLING = {"schedule": "linear", "start": 4.0, "end": 2.0}


def resolve(head: str = "single_label", **settings) -> LossPlan:
    return resolve_loss(SimpleNamespace(**settings), head)


# ---- short form -------------------------------------------------------------------------


def test_no_setting_at_all_gives_the_defaults():
    assert resolve() == LossPlan(0.5, (Term(ForwardKL(2.0), 0.5, "forward_kl"),))


def test_short_form():
    plan = resolve(alpha=0.25, temperature=3.0)
    assert plan == LossPlan(0.75, (Term(ForwardKL(3.0), 0.25, "forward_kl"),))
    assert plan.needs_teacher


@pytest.mark.parametrize(
    ("head", "objective"),
    [("single_label", ForwardKL(3.0)), ("multi_label", BinaryKL(3.0)), ("regression", Regression())],
)
def test_short_form_takes_the_objective_of_the_head(head, objective):
    (term,) = resolve(head, alpha=0.25, temperature=3.0).terms
    assert term == Term(objective, 0.25, objective.name)


def test_alpha_0_leaves_the_teacher_out():
    plan = resolve(alpha=0.0)
    assert plan == LossPlan(1.0, ())
    assert not plan.needs_teacher


def test_alpha_1_leaves_the_labels_out():
    assert resolve(alpha=1.0).label_weight == 0.0


def test_ints_become_floats():
    plan = resolve(alpha=1, temperature=4)
    assert [plan.label_weight, plan.terms[0].weight, plan.terms[0].objective.temperature] == [0.0, 1.0, 4.0]
    numbers = (plan.label_weight, plan.terms[0].weight, plan.terms[0].objective.temperature)
    assert all(isinstance(number, float) for number in numbers)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan, math.inf, True, "0.5", [0.5]])
def test_alpha_out_of_range(alpha):
    with pytest.raises(ValueError, match=r"alpha: expected .* received"):
        resolve(alpha=alpha)


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan, math.inf, True, "2"])
@pytest.mark.parametrize("head", ["single_label", "multi_label", "regression"])
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_temperature_out_of_range_whatever_the_head_and_alpha(temperature, head, alpha):
    with pytest.raises(ValueError, match=r"temperature.*received"):
        resolve(head, alpha=alpha, temperature=temperature)


def test_label_weight_belongs_to_the_long_form():
    with pytest.raises(ValueError, match=r"label_weight=2.0 belongs to the long form.*alpha"):
        resolve(label_weight=2.0)


# ---- long form ----------------------------------------------------------------------------


def test_long_form_has_absolute_weights_and_label_weight_1():
    assert resolve(objectives=TWO) == LossPlan(1.0, TWO_TERMS)


def test_long_form_from_json():
    assert resolve(objectives=json.dumps(TWO), label_weight=0.5) == LossPlan(0.5, TWO_TERMS)


@pytest.mark.parametrize("wrapped", [False, True])
def test_long_form_from_a_yaml_file(tmp_path, wrapped):
    lines = ["- name: forward_kl", "  weight: 0.7", "  temperature: 4.0"]
    lines += ["- {name: logit_mse, weight: 2, key: logits}"]
    text = "objectives:\n" + "\n".join("  " + line for line in lines) if wrapped else "\n".join(lines)
    path = tmp_path / "objectives.yaml"
    path.write_text(text, encoding="utf-8")
    assert resolve(objectives=str(path)) == LossPlan(1.0, TWO_TERMS)


def test_weight_defaults_to_1_and_key_to_the_name():
    assert resolve(objectives=[{"name": "reverse_kl"}]).terms[0].weight == 1.0
    assert resolve(objectives=[{"name": "reverse_kl"}]).terms[0].key == "reverse_kl"


def test_weight_0_is_left_out_but_checked():
    entries = [{"name": "forward_kl", "weight": 0}, {"name": "logit_mse"}]
    assert [term.key for term in resolve(objectives=entries).terms] == ["logit_mse"]
    with pytest.raises(ValueError, match="no setting 'temprature'"):
        resolve(objectives=[{"name": "forward_kl", "weight": 0, "temprature": 2}, {"name": "logit_mse"}])


def test_the_arguments_are_left_as_they_are():
    entries = [dict(entry) for entry in TWO]
    resolve(objectives=entries)
    assert entries == TWO


def test_a_dotted_path_is_logged_under_the_objectives_name(monkeypatch):
    module = types.ModuleType("users_losses")
    module.MyLoss = MyLoss
    monkeypatch.setitem(sys.modules, "users_losses", module)
    (term,) = resolve(objectives=[{"name": "users_losses.MyLoss", "weight": 3.0}]).terms
    assert term == Term(MyLoss(), 3.0, "my_loss")


@pytest.mark.parametrize("teacher", [0, 3, "average"])
def test_the_teacher_that_is_followed_is_the_terms(teacher):
    entry = {"name": "hidden_states", "teacher": teacher, "weight": RISING}
    plan = resolve(objectives=[entry, {"name": "derivative", "key": "slopes"}])
    assert [term.teacher for term in plan.terms] == [teacher, None]
    assert plan.at(1, max_steps=4).terms[0].teacher == teacher
    told, untold = plan.describe()["objectives"]
    assert told["teacher"] == teacher
    assert "teacher" not in untold


@pytest.mark.parametrize("teacher", [-1, True, 1.0, "mean", "0", [0, 1]])
def test_a_teacher_that_is_no_number_nor_the_average(teacher):
    with pytest.raises(
        ValueError, match=r"objectives\[0\] teacher: expected the number of a teacher, from 0, or"
    ):
        resolve(objectives=[{"name": "rkd", "teacher": teacher}])


def test_objectives_on_the_mixture_follow_no_single_teacher():
    with pytest.raises(ValueError, match=r"objectives\[0\] teacher: expected none for 'forward_kl'"):
        resolve(objectives=[{"name": "forward_kl", "teacher": 0}])


def test_settings_reach_the_objective():
    entry = {"name": "jensen_shannon", "teacher_weight": 0.3, "temperature": 3}
    assert resolve(objectives=[entry]).terms[0].objective == JensenShannon(3, 0.3)


@pytest.mark.parametrize("short", [{"alpha": 0.5}, {"temperature": 2.0}, {"alpha": 0.0, "temperature": 2.0}])
def test_both_forms_are_an_error(short):
    with pytest.raises(ValueError, match=r"received both: .*Drop alpha"):
        resolve(objectives=TWO, **short)


def test_a_key_is_used_once():
    with pytest.raises(ValueError, match=r"objectives\[1\]: the key 'forward_kl' is taken"):
        resolve(objectives=[{"name": "forward_kl"}, {"name": "forward_kl", "temperature": 4.0}])
    plan = resolve(
        objectives=[{"name": "forward_kl"}, {"name": "forward_kl", "key": "warm", "temperature": 4.0}]
    )
    assert [term.key for term in plan.terms] == ["forward_kl", "warm"]


@pytest.mark.parametrize("key", ["label", "agreement", "mean_kl"])
def test_a_key_that_the_logs_already_have_is_refused(key):
    with pytest.raises(ValueError, match=f"the key '{key}' is taken"):
        resolve(objectives=[{"name": "forward_kl", "key": key}])


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf, True, "1.0", None])
def test_weights_out_of_range(weight):
    with pytest.raises(ValueError, match=r"objectives\[0\] weight: expected a finite number"):
        resolve(objectives=[{"name": "forward_kl", "weight": weight}])


@pytest.mark.parametrize("label_weight", [-1.0, math.nan, math.inf, True, "1.0"])
def test_label_weight_out_of_range(label_weight):
    with pytest.raises(ValueError, match="label_weight: expected a finite number"):
        resolve(objectives=TWO, label_weight=label_weight)


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan, math.inf, True, "2", None])
def test_temperature_of_an_objective_out_of_range(temperature):
    with pytest.raises(ValueError, match="forward_kl: expected a finite temperature above 0"):
        resolve(objectives=[{"name": "forward_kl", "temperature": temperature}])


def test_an_objective_without_meaning_for_the_head_names_the_one_that_has():
    with pytest.raises(ValueError, match=r"'forward_kl' is defined for single_label heads.*'binary_kl'"):
        resolve("multi_label", objectives=[{"name": "forward_kl"}])
    with pytest.raises(ValueError, match=r"'binary_kl'.*Use 'regression'"):
        resolve("regression", objectives=[{"name": "binary_kl"}])
    assert resolve("regression", objectives=[{"name": "logit_mse"}]).terms[0].key == "logit_mse"


def test_unknown_names_and_settings_list_the_valid_ones():
    with pytest.raises(ValueError, match=r"unknown objective 'kl'.*forward_kl.*reverse_kl"):
        resolve(objectives=[{"name": "kl"}])
    with pytest.raises(ValueError, match=r"no setting 't'. Valid settings: temperature"):
        resolve(objectives=[{"name": "forward_kl", "t": 2.0}])


@pytest.mark.parametrize("entry", ["forward_kl", {"weight": 1.0}, {"name": 3}, None])
def test_an_entry_without_a_name(entry):
    with pytest.raises(ValueError, match=r"objectives\[0\]: expected a mapping with a name"):
        resolve(objectives=[entry])


@pytest.mark.parametrize("objectives", [[], {}, {"name": "forward_kl"}, 3, '{"name": "forward_kl"}', "[]"])
def test_what_is_no_list(objectives):
    with pytest.raises(ValueError, match="objectives: expected a list with at least one entry"):
        resolve(objectives=objectives)


def test_text_that_is_neither_json_nor_a_file(tmp_path):
    with pytest.raises(ValueError, match="not readable as JSON"):
        resolve(objectives='[{"name": ')
    with pytest.raises(
        ValueError, match=r"expected a JSON list or the path of a YAML file, received 'none.yaml'"
    ):
        resolve(objectives="none.yaml")
    path = tmp_path / "broken.yaml"
    path.write_text("- {name: [", encoding="utf-8")
    with pytest.raises(ValueError, match=r"broken\.yaml: not readable as YAML"):
        resolve(objectives=str(path))
    path.write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match="expected a list with at least one entry, received None"):
        resolve(objectives=str(path))


def test_nothing_to_train_on():
    with pytest.raises(ValueError, match="nothing to train on"):
        resolve(objectives=[{"name": "forward_kl", "weight": 0}], label_weight=0)
    assert resolve(objectives=[{"name": "forward_kl", "weight": 0}]) == LossPlan(1.0, ())


# ---- as plain values ------------------------------------------------------------------


def test_describe_is_json_that_resolves_to_the_same_plan():
    plan = resolve(objectives=TWO, label_weight=0.25)
    described = json.loads(json.dumps(plan.describe()))
    again = resolve(objectives=described["objectives"], label_weight=described["label_weight"])
    assert again == plan


# ---- schedules ------------------------------------------------------------------------------


def test_a_plan_of_numbers_is_its_own_plan_at_every_step():
    plan = resolve(objectives=TWO)
    assert plan.at(3, max_steps=10) is plan
    assert plan.schedules == {}


def test_a_scheduled_alpha_moves_both_terms():
    plan = resolve(alpha=RISING, temperature=3)
    assert plan.at(0, 4) == LossPlan(1.0, ())
    assert plan.at(1, 4) == LossPlan(0.75, (Term(ForwardKL(3.0), 0.25, "forward_kl"),))
    assert plan.at(4, 4) == LossPlan(0.0, (Term(ForwardKL(3.0), 1.0, "forward_kl"),))
    assert plan.at(0, 4, keep_idle=True) == LossPlan(1.0, (Term(ForwardKL(3.0), 0.0, "forward_kl"),))
    assert plan.needs_teacher
    assert plan.needs_labels


def test_the_plan_of_a_step_is_that_of_a_constant_alpha_to_the_last_bit():
    plan = resolve(alpha={"schedule": "cosine", "start": 0.1, "end": 0.9})
    for step in range(50):
        alpha = plan.terms[0].weight.at(step, 49)
        assert plan.at(step, 49) == resolve(alpha=alpha)


@pytest.mark.parametrize(
    ("head", "objective"), [("single_label", ForwardKL), ("multi_label", BinaryKL), ("regression", None)]
)
def test_a_scheduled_temperature_of_the_short_form(head, objective):
    plan = resolve(head, alpha=0.25, temperature=FALLING)
    (term,) = plan.at(1, 4).terms
    assert term.objective == (Regression() if objective is None else objective(3.5))
    assert bool(plan.schedules) == (objective is not None)


def test_every_weight_and_temperature_of_the_long_form():
    entries = [
        {"name": "forward_kl", "weight": 2, "temperature": FALLING},
        {"name": "logit_mse", "weight": {"schedule": "warmup", "value": 8, "steps": 2}, "key": "logits"},
    ]
    plan = resolve(objectives=entries, label_weight=RISING)
    assert plan.at(0, 4) == LossPlan(0.0, (Term(ForwardKL(4.0), 2.0, "forward_kl"),))
    assert plan.at(1, 4) == LossPlan(
        0.25, (Term(ForwardKL(3.5), 2.0, "forward_kl"), Term(LogitMSE(), 4.0, "logits"))
    )
    assert list(plan.schedules) == [
        "schedule/label/weight",
        "schedule/logits/weight",
        "schedule/forward_kl/temperature",
    ]
    assert resolve(objectives=json.dumps(entries), label_weight=RISING) == plan


def test_other_names_of_temperatures_can_be_scheduled(monkeypatch):
    @dataclass(frozen=True)
    class TwoTemperatures(MyLoss):
        """A user's objective with a temperature for each model."""

        teacher_temperature: float = 1.0
        student_temperature: float = 1.0

    module = types.ModuleType("users_losses")
    module.TwoTemperatures = TwoTemperatures
    monkeypatch.setitem(sys.modules, "users_losses", module)
    entry = {
        "name": "users_losses.TwoTemperatures",
        "teacher_temperature": FALLING,
        "student_temperature": 3.0,
    }
    plan = resolve(objectives=[entry])
    assert plan.at(2, 4).terms[0].objective == TwoTemperatures(3.0, 3.0)
    assert list(plan.schedules) == ["schedule/my_loss/teacher_temperature"]


def test_schedules_from_a_yaml_file(tmp_path):
    path = tmp_path / "objectives.yaml"
    path.write_text(
        "- name: forward_kl\n  weight: {schedule: warmup, value: 0.5, steps: 0.1}\n"
        "  temperature:\n    schedule: cosine\n    start: 4\n    end: 1\n    delay_steps: 100\n",
        encoding="utf-8",
    )
    (term,) = resolve(objectives=str(path)).terms
    assert term.weight == Schedule("warmup", 0.0, 0.5, steps=0.1)
    assert term.temperatures == (("temperature", Schedule("cosine", 4.0, 1.0, delay_steps=100)),)


def test_what_is_0_at_every_step_is_left_out():
    never = {"schedule": "constant", "value": 0}
    assert resolve(alpha=never) == LossPlan(Complement(Schedule("constant", 0.0, 0.0)), ())
    assert not resolve(alpha={"schedule": "constant", "value": 1}).needs_labels
    assert resolve(objectives=[{"name": "forward_kl", "weight": never}]).terms == ()
    with pytest.raises(ValueError, match="nothing to train on"):
        resolve(objectives=[{"name": "forward_kl", "weight": never}], label_weight=never)


@pytest.mark.parametrize("schedule", [{"start": 0, "end": 1.5}, {"start": 1.5, "end": 1}])
def test_alpha_above_1_at_any_step(schedule):
    with pytest.raises(
        ValueError, match=r"alpha: expected a number in \[0, 1\] at every step, received .*1.5"
    ):
        resolve(alpha={"schedule": "cosine", **schedule})


@pytest.mark.parametrize("head", ["single_label", "regression"])
@pytest.mark.parametrize(
    ("schedule", "point"),
    [
        ({"schedule": "linear", "start": 0, "end": 2}, "start"),
        ({"schedule": "linear", "start": 2, "end": 0}, "end"),
        ({"schedule": "warmup", "value": 2, "steps": 0.1}, "start"),
    ],
)
def test_temperatures_that_are_0_at_any_step(head, schedule, point):
    match = (
        rf"temperature, at the {point} of its schedule: expected a finite temperature above 0, received 0.0"
    )
    with pytest.raises(ValueError, match=match):
        resolve(head, temperature=schedule)
    with pytest.raises(ValueError, match=rf"objectives\[0\] {match}"):
        resolve(objectives=[{"name": "forward_kl", "temperature": schedule}])


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"alpha": {"schedule": "exponential"}}, "alpha"),
        ({"temperature": {"schedule": "exponential"}}, "temperature"),
        ({"objectives": TWO, "label_weight": {"schedule": "exponential"}}, "label_weight"),
        (
            {"objectives": [{"name": "forward_kl", "weight": {"schedule": "exponential"}}]},
            r"objectives\[0\] weight",
        ),
        (
            {"objectives": [*TWO, {"name": "reverse_kl", "temperature": {"start": 1}}]},
            r"objectives\[2\] temperature",
        ),
    ],
)
def test_an_unknown_schedule_is_named_by_its_place(settings, where):
    with pytest.raises(ValueError, match=rf"^{where}: expected a schedule that is one of constant, linear"):
        resolve(**settings)


def test_negative_weights_are_found_before_training():
    with pytest.raises(
        ValueError, match=r"objectives\[0\] weight: end: expected a finite number of at least 0"
    ):
        resolve(objectives=[{"name": "forward_kl", "weight": {"schedule": "linear", "start": 1, "end": -1}}])


def test_other_settings_cannot_be_scheduled():
    with pytest.raises(
        ValueError, match=r"objectives\[0\] teacher_weight: expected a number, .*Only weights"
    ):
        resolve(objectives=[{"name": "jensen_shannon", "teacher_weight": RISING}])
    with pytest.raises(ValueError, match="no setting 'temperature'"):
        resolve(objectives=[{"name": "logit_mse", "temperature": FALLING}])


def test_both_ends_of_a_temperature_are_what_its_objective_accepts(monkeypatch):
    @dataclass(frozen=True)
    class Hot(MyLoss):
        """A user's objective for temperatures from 2."""

        temperature: float = 2.0

        def __post_init__(self):
            if self.temperature < 2:
                raise ValueError(f"hot: expected at least 2, received {self.temperature}.")

    module = types.ModuleType("users_losses")
    module.Hot = Hot
    monkeypatch.setitem(sys.modules, "users_losses", module)
    for ends in ((1, 3), (3, 1)):
        with pytest.raises(ValueError, match=r"hot: expected at least 2, received 1.0"):
            resolve(
                objectives=[
                    {
                        "name": "users_losses.Hot",
                        "temperature": {"schedule": "linear", "start": ends[0], "end": ends[1]},
                    }
                ]
            )


def test_describe_keeps_schedules_and_resolves_to_the_same_plan():
    entries = [
        {"name": "forward_kl", "weight": RISING, "key": "kd", "temperature": {**FALLING, "steps": 0.5}}
    ]
    plan = resolve(objectives=entries, label_weight={"schedule": "constant", "value": 0.5})
    described = json.loads(json.dumps(plan.describe()))
    assert described["objectives"] == entries
    again = resolve(objectives=described["objectives"], label_weight=described["label_weight"])
    assert again == plan
    assert resolve(alpha=RISING).describe()["label_weight"] == {
        "schedule": "linear",
        "start": 1.0,
        "end": 0.0,
    }
