"""The generated and the measured pages in docs/: current, and checked to be so."""

import ast
import importlib.util
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest

from hf_distill.loss_plan import resolve_loss
from hf_distill.objectives import Objective, objective_classes


def load(path: Path):
    """Import a script of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(f"docs_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def generator(repository):
    return load(repository / "docs" / "generate_objectives.py")


@pytest.fixture(scope="module")
def normalisation(repository):
    return load(repository / "docs" / "normalisation.py")


def test_objectives_page_is_current(generator, capsys):
    assert generator.main(["--check"]) == 0, capsys.readouterr().err


def test_check_notices_a_changed_page(generator, tmp_path, capsys):
    page = tmp_path / "objectives.md"
    assert generator.main([], target=page) == 0
    assert generator.main(["--check"], target=page) == 0
    page.write_text(
        page.read_text(encoding="utf-8").replace("temperature=2.0", "temperature=3.0"), encoding="utf-8"
    )
    assert generator.main(["--check"], target=page) == 1
    assert "python docs/generate_objectives.py" in capsys.readouterr().err
    page.unlink()
    assert generator.main(["--check"], target=page) == 1


def test_check_notices_a_changed_docstring(generator, tmp_path, monkeypatch):
    page = tmp_path / "objectives.md"
    generator.main([], target=page)
    forward_kl = objective_classes()["forward_kl"]
    monkeypatch.setattr(
        forward_kl, "__doc__", forward_kl.__doc__.replace("weighting classes", "weighing classes")
    )
    assert generator.main(["--check"], target=page) == 1


def test_every_objective_stands_once_beside_what_it_needs(generator):
    found = re.findall(r"\[`(\w+)`\]", generator.by_signal(objective_classes()))
    assert sorted(found) == sorted(objective_classes())

    class NeedsMore(objective_classes()["forward_kl"]):
        needs = frozenset({"thoughts"})

    with pytest.raises(ValueError, match="thoughts"):
        generator.by_signal({"needs_more": NeedsMore})


@dataclass(frozen=True)
class Undocumented(Objective):
    """Match nothing | in particular."""

    name: ClassVar[str] = "undocumented"
    paper: ClassVar[str] = "none"
    cost: ClassVar[str] = "none"

    def __call__(self, rows):
        return rows.student_logits.sum(-1)


def test_every_objective_has_a_row_and_a_section(generator):
    page = generator.render(objective_classes())
    for name, cls in objective_classes().items():
        assert f"\n## {name}\n" in page
        row = next(line for line in page.splitlines() if line.startswith(f"| [`{name}`]"))
        assert row.count(" | ") == 8
        assert cls.paper in row
        assert cls.cost in row
        for setting in generator.settings(cls):
            assert f"`{setting}=" in row
            assert "not described" not in generator.section(name, cls), f"Args of {name} lacks {setting}"
    assert not re.search("(?<!`)``(?!`)", page), "reStructuredText's double backticks"


def test_an_objective_without_a_formula_is_an_error(generator):
    with pytest.raises(ValueError, match=r"Undocumented: expected .* 'Formula:'"):
        generator.render({"undocumented": Undocumented})


def test_the_example_of_schedules_gives_the_values_on_the_page(generator):
    text = generator.SCHEDULES
    objectives = ast.literal_eval(re.search(r"objectives = (\[.*?\n\])", text, re.DOTALL)[1])
    plan = resolve_loss(SimpleNamespace(objectives=objectives), "single_label")
    for step, entry in zip((24, 49), text.split("\n{'loss'")[1:], strict=True):
        for name, schedule in plan.schedules.items():
            assert f"'{name}': {schedule.at(step, max_steps=100):.4g}" in entry


def test_normalisation_script_measures_what_the_page_says(normalisation, repository):
    """One row, measured anew, is the row on the page but for the columns of two processes."""
    page = (repository / "docs" / "normalisation.md").read_text(encoding="utf-8")
    measured = normalisation.measure(normalisation.CASES[0])
    assert measured.ratios["Trainer, 4 steps"] == pytest.approx(4.0, abs=0.01)
    assert measured.ratios["alpha=0, 4 steps"] == pytest.approx(1.0, abs=1e-5)
    assert measured.ratios["alpha=0.5, 4 steps"] == pytest.approx(1.0, abs=1e-5)
    assert str(measured).removesuffix(" |") in page


def test_normalisation_page_has_every_case(normalisation, repository):
    page = (repository / "docs" / "normalisation.md").read_text(encoding="utf-8")
    rows = [line.split(" | ")[0].removeprefix("| ") for line in page.splitlines() if line.startswith("| ")]
    assert [case.name for case in normalisation.CASES] == [row for row in rows if row not in ("Model", "---")]
