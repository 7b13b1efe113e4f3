"""The recipe that learns a function: it runs, and derivatives help where points are few."""

from __future__ import annotations

from typing import Any

import pytest

from recipes.learn_function import main


@pytest.mark.slow
def test_a_small_run_prints_the_table_and_derivatives_help(capsys: Any) -> None:
    main(["--points", "16", "--times", "2", "--steps", "150", "--seeds", "1"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| values")]
    errors = {line.split(" | ")[0].removeprefix("| "): float(line.split(" | ")[1]) for line in lines}
    assert errors["values and derivatives at 16 points"] < errors["values at 16 points"]
