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
