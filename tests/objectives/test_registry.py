"""Objectives are found by name or dotted path, and mistakes are answered with what is valid."""

import sys
import types
from dataclasses import dataclass

import pytest

import hf_distill.objectives
from hf_distill.objectives import Objective, build_objective, objective_classes
from hf_distill.objectives.forward_kl import ForwardKL


@dataclass(frozen=True)
class MyLoss(Objective):
    """A user's own objective."""

    strength: float = 1.0

    name = "my_loss"
    paper = "none"
    cost = "nothing"

    def __call__(self, rows):
        return self.strength * rows.student_logits.float().sum(-1)


class NotAnObjective:
    """Any other class."""


@pytest.fixture
def user_module(monkeypatch):
    module = types.ModuleType("users_losses")
    module.MyLoss, module.NotAnObjective = MyLoss, NotAnObjective
    monkeypatch.setitem(sys.modules, "users_losses", module)


@pytest.fixture
def extra_file(tmp_path, monkeypatch):
    """Put one more file among the objectives, and forget it afterwards."""

    def write(name: str, text: str) -> None:
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
        monkeypatch.setattr(
            hf_distill.objectives, "__path__", [*hf_distill.objectives.__path__, str(tmp_path)]
        )
        objective_classes.cache_clear()

    before = set(sys.modules)
    yield write
    objective_classes.cache_clear()
    for module in set(sys.modules) - before:
        if module.startswith("hf_distill.objectives."):
            sys.modules.pop(module)
            vars(hf_distill.objectives).pop(module.rpartition(".")[2], None)


def objective_source(class_name: str, name: str) -> str:
    return (
        "from dataclasses import dataclass\n"
        "from hf_distill.objectives.base import Objective\n\n"
        "@dataclass(frozen=True)\n"
        f"class {class_name}(Objective):\n"
        f"    name = {name!r}\n"
        "    def __call__(self, rows):\n"
        "        return rows.student_logits.sum(-1)\n"
    )


def test_builds_by_name_with_settings():
    assert build_objective("forward_kl", {"temperature": 3.0}) == ForwardKL(temperature=3.0)
    assert build_objective("forward_kl", {}) == ForwardKL()


def test_an_unknown_name_lists_the_valid_ones():
    with pytest.raises(ValueError, match="unknown objective 'nonsense'") as caught:
        build_objective("nonsense", {})
    for name in objective_classes():
        assert name in str(caught.value)


def test_a_near_miss_is_suggested():
    with pytest.raises(ValueError, match="Did you mean 'forward_kl'"):
        build_objective("foward_kl", {})


def test_an_unknown_setting_lists_the_valid_ones():
    with pytest.raises(ValueError, match=r"'temprature'.*Valid settings: temperature, teacher_weight"):
        build_objective("jensen_shannon", {"temprature": 2.0})
    with pytest.raises(ValueError, match=r"'temperature'.*Valid settings: none"):
        build_objective("logit_mse", {"temperature": 2.0})


def test_a_dotted_path_loads_a_users_own(user_module):
    found = build_objective("users_losses.MyLoss", {"strength": 3.0})
    assert found == MyLoss(strength=3.0)
    with pytest.raises(ValueError, match="no setting 'strenght'"):
        build_objective("users_losses.MyLoss", {"strenght": 3.0})


@pytest.mark.parametrize("path", ["no_such_package.Loss", "users_losses.NoSuchClass"])
def test_a_dotted_path_that_leads_nowhere(user_module, path):
    with pytest.raises(ValueError, match="expected the dotted path of an importable class"):
        build_objective(path, {})


def test_a_dotted_path_to_another_class(user_module):
    with pytest.raises(ValueError, match="expected a dataclass derived from"):
        build_objective("users_losses.NotAnObjective", {})


def test_one_more_file_is_one_more_objective(extra_file):
    extra_file("brand_new", objective_source("BrandNew", "brand_new"))
    assert "brand_new" in objective_classes()
    assert type(build_objective("brand_new", {})).__name__ == "BrandNew"


def test_a_file_with_another_name_than_its_objective(extra_file):
    extra_file("one_name", objective_source("Other", "another_name"))
    with pytest.raises(
        ImportError, match=r"one_name\.py: expected one Objective named 'one_name'.*another_name"
    ):
        objective_classes()


def test_a_file_without_an_objective(extra_file):
    extra_file("empty_file", "x = 1\n")
    with pytest.raises(ImportError, match=r"empty_file\.py: expected one Objective"):
        objective_classes()


def test_a_file_with_two_objectives(extra_file):
    extra_file("twins", objective_source("First", "twins") + objective_source("Second", "second"))
    with pytest.raises(ImportError, match=r"twins\.py: expected one Objective"):
        objective_classes()
