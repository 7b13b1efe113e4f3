"""docs/adding_an_objective.md is true: its objective trains as a user's file, and keeps the contract as one of ours."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import hf_distill.objectives
from hf_distill.objectives import build_objective, objective_classes
from hf_distill.teachers.signals import DenseSignals
from tests.objectives import test_contract as contract
from tests.test_docs import load

NAME = "squared_hellinger"
BLOCKS = re.compile(r"```(python|text)\n(.*?)```", re.DOTALL)


@pytest.fixture
def blocks(repository: Path) -> list[str]:
    """Return the objective's file, the script that trains with it, and what that prints."""
    page = (repository / "docs" / "adding_an_objective.md").read_text(encoding="utf-8")
    found = [text for _, text in BLOCKS.findall(page)]
    assert len(found) == 3
    return found


@pytest.fixture
def ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blocks: list[str]) -> Iterator[Any]:
    """Put the file among this package's objectives, and forget it afterwards."""
    (tmp_path / f"{NAME}.py").write_text(blocks[0], encoding="utf-8")
    monkeypatch.setattr(hf_distill.objectives, "__path__", [*hf_distill.objectives.__path__, str(tmp_path)])
    objective_classes.cache_clear()
    yield objective_classes()[NAME]
    objective_classes.cache_clear()
    sys.modules.pop(f"hf_distill.objectives.{NAME}")
    vars(hf_distill.objectives).pop(NAME)


def test_a_file_of_the_users_own_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blocks: list[str], capsys: Any
) -> None:
    (tmp_path / f"{NAME}.py").write_text(blocks[0], encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    quiet = 'save_strategy="no", use_cpu=True, report_to="none", disable_tqdm=True'
    try:
        exec(blocks[1].replace('save_strategy="no"', quiet), {})
        with pytest.raises(ValueError, match=r"no setting 'temprature'\. Valid settings: temperature"):
            build_objective(f"{NAME}.SquaredHellinger", {"temprature": 2.0})
    finally:
        sys.modules.pop(NAME, None)
    assert capsys.readouterr().out.splitlines()[-1] + "\n" == blocks[2]


def cases_of(check: Any) -> list[dict[str, Any]]:
    """Return the arguments that a test of the contract is run with for one objective, but for its name."""
    cases: list[dict[str, Any]] = [{}]
    for mark in getattr(check, "pytestmark", []):
        argument, values = mark.args[:2]
        if argument != "name":
            cases = [{**case, argument: value} for case in cases for value in values]
    return cases


def test_it_keeps_the_contract(ours: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(contract.CLASSES, NAME, ours)
    monkeypatch.setattr(contract, "OVER_CLASSES", [*contract.OVER_CLASSES, NAME])
    elsewhere = {  # one is for objectives on functions; the other has listed all settings by now
        contract.test_rows_of_logits_alone_are_refused_where_functions_are_needed,
        contract.test_settings_out_of_range_are_refused_by_name,
    }
    checks = [
        check
        for title, check in vars(contract).items()
        if title.startswith("test_") and "name" in inspect.signature(check).parameters
    ]
    assert len(checks) > 20
    for check in checks:
        if check not in elsewhere:
            for case in cases_of(check):
                check(NAME, **case)
    for value in contract.OUT_OF_RANGE:
        with pytest.raises(ValueError, match=f"{NAME}.*temperature"):
            ours(temperature=value)


def test_its_values_are_the_formulas(ours: Any) -> None:
    student, teacher = contract.random_logits(5, 4, 0), contract.random_logits(5, 4, 1)
    p, q = (torch.softmax(logits.double() / 3, -1) for logits in (teacher, student))
    expected = 1 - (p * q).sqrt().sum(-1)
    received = ours(temperature=3.0)(contract.rows_of(student, teacher))
    torch.testing.assert_close(received.double(), expected, rtol=1e-5, atol=1e-7)
    certain = DenseSignals(torch.tensor([[0.0, -torch.inf]]))
    rows = contract.Rows(torch.tensor([[0.0, 0.0]]), certain)
    assert ours()(rows).item() == pytest.approx(1 - 0.5**0.5)


def test_the_generated_page_has_it(ours: Any, repository: Path) -> None:
    generator = load(repository / "docs" / "generate_objectives.py")
    assert f"\n## {NAME}\n" in generator.render(objective_classes())


def test_its_example_is_true(ours: Any) -> None:
    module = importlib.import_module(ours.__module__)
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
