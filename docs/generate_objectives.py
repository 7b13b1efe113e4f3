"""Writes docs/objectives.md from the objectives' docstrings and class attributes, or checks that it is current."""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, not an installed copy

from hf_distill.objectives import Objective, objective_classes

TARGET = Path(__file__).resolve().parent / "objectives.md"
COMMAND = "python docs/generate_objectives.py"

SCHEDULES = """## Schedules

Any `weight`, `label_weight`, `alpha` (which moves both terms) and any temperature may be a schedule instead of a
number, in Python, JSON or YAML; on the command line `--alpha '{"schedule": "linear", "start": 0, "end": 1}'`:

| `schedule` | Keys | Value |
| --- | --- | --- |
| `constant` | `value` | the number itself, but logged |
| `linear` | `start`, `end`, perhaps `steps`, `delay_steps` | `start + (end - start) * f` |
| `cosine` | `start`, `end`, perhaps `steps`, `delay_steps` | `start + (end - start) * (1 - cos(pi f)) / 2` |
| `warmup` | `value`, `steps`, perhaps `delay_steps` | `value * f`; it starts at 0, so it is for weights |

f rises from 0 to 1 over `steps` and then stays; before, the start is held for `delay_steps`. Both are a share of
training, rounded up to whole steps, or a whole number of steps above 1, as `TrainingArguments.warmup_steps` has it but
that 1 is the whole training. Without `steps` f takes the rest of training. As with learning rates, the first step has
f = 0, and the last one is a step short of 1. What would be out of range at any step is refused before training.

```python
objectives = [
    {
        "name": "forward_kl",
        "weight": {"schedule": "warmup", "value": 0.5, "steps": 0.1},
        "temperature": {"schedule": "cosine", "start": 4.0, "end": 1.0},
    }
]
```

logs, with `max_steps=100` and `logging_steps=25`, the values of the step just made beside the parts, which stay
unweighted:

```
{'loss': 0.6408, ..., 'loss/label': 1.15, 'loss/forward_kl': 0.1874, 'schedule/forward_kl/weight': 0.5,
 'schedule/forward_kl/temperature': 3.593, 'epoch': 0.25}
{'loss': 0.617, ..., 'loss/label': 1.149, 'loss/forward_kl': 0.08499, 'schedule/forward_kl/weight': 0.5,
 'schedule/forward_kl/temperature': 2.547, 'epoch': 0.5}
```

A term is left out of the steps where its weight is 0, its logged part is the mean over the others, and a step without
any term does not run the teacher. Values follow from the steps done and `max_steps` alone, so a resumed run goes on
where it was. Evaluation takes the values after the steps done, so `eval_loss`, and a part with a scheduled temperature,
move with them: choose the best model by a metric that does not (`loss/label`, `mean_kl`, `agreement` or your own).
"""

HEADER = f"""# Objectives

<!-- Written by `{COMMAND}` from hf_distill/objectives/*.py. Edit the docstrings there, not this file. -->

An objective is one way of matching a teacher. `alpha` and `temperature` choose the one that fits the head
(`forward_kl`, `binary_kl` for multi-label heads, `regression` for regression heads); any other, or several, are named
in the long form:

```python
DistillationTrainingArguments(
    output_dir="out",
    label_weight=0.5,
    objectives=[{{"name": "forward_kl", "weight": 0.5, "temperature": 4.0}}],
)
```

Each gives one value per row of its level, in float32 or better; the trainer takes the mean over the rows of the whole
accumulated batch on all processes, and multiplies by the weight. Level `item` is a supervised position (an example, or
a token with a label), `example` is an example, `token` an attended position. "Needs" is what the teacher must give;
`labels` come from the data, which then must have them. Weights and temperatures may move while training goes on: see
[schedules](#schedules).

`features` is what both models compute inside. Where the widths differ, `hidden_states`, `patient` and `contrastive`
train a matrix beside the student, at `projection_learning_rate`; it is saved in checkpoints and never in the student.
`token` objectives compare the same tokens, so they need one tokenizer; encoder-decoders have no one stack of layers.

Of several teachers a mixture has distributions, but no features and no input to differentiate to. Objectives that need
`features` or `input_gradient` therefore say which teacher they follow, in a setting beside `weight` and `key`:

```python
objectives = [
    {{"name": "forward_kl"}},  # against the mixture of all teachers
    {{"name": "hidden_states", "teacher": 0}},  # against the first one
    {{"name": "rkd", "teacher": "average"}},  # the mean of its values against each
]
```

`average` takes the teachers' fixed weights, and equal ones where `teacher_weights` sets them per row. Without the
setting several teachers are an error. Only what the followed teachers are asked for is computed and kept, and each one
followed whose width differs from the student's has a matrix of its own.
"""

_SECTIONS = ("Formula", "Batches", "Cost", "Shapes", "Units", "Args", "Raises", "Source", "Example")
_SHOWN = ("Formula", "Batches", "Cost", "Shapes", "Units")


def render(classes: Mapping[str, type[Objective]]) -> str:
    """Return the whole page for some objectives by name."""
    parts = [
        HEADER,
        by_signal(classes),
        table(classes),
        SCHEDULES,
        *(section(name, cls) for name, cls in sorted(classes.items())),
    ]
    return "\n".join(parts)


_SIGNALS = {
    frozenset({"log_probs"}): "its probabilities, of one model or of an ensemble",
    frozenset({"log_probs", "labels"}): "its probabilities, and a label for each example",
    frozenset({"logits"}): "its logits (an ensemble's are the weighted mean)",
    frozenset({"features"}): "the model itself, whose layers can be read",
    frozenset(
        {"input_gradient"}
    ): "the model itself, which can be differentiated to an input that both models share",
}


def by_signal(classes: Mapping[str, type[Objective]]) -> str:
    """Return the table that leads from what one has of the teacher to the objectives for it.

    Raises:
        ValueError: an objective whose needs have no words here.
    """
    groups: dict[frozenset[str], list[str]] = {needs: [] for needs in _SIGNALS}
    for name, cls in sorted(classes.items()):
        if cls.needs not in groups:
            raise ValueError(
                f"{name}: expected needs that _SIGNALS has words for, received {sorted(cls.needs)}."
            )
        groups[cls.needs].append(name)
    lines = ["| What you have of the teacher | Objectives |", "| --- | --- |"]
    for needs, words in _SIGNALS.items():
        lines.append(f"| {words} | {', '.join(f'[`{name}`](#{name})' for name in groups[needs])} |")
    return "\n".join(lines) + "\n"


def table(classes: Mapping[str, type[Objective]]) -> str:
    """Return one table row per objective."""
    rows = [
        ("Objective", "In one sentence", "Level", "Heads", "Needs", "Settings", "Cost", "Source", "File"),
        ("---",) * 9,
    ]
    for name, cls in sorted(classes.items()):
        row = (
            f"[`{name}`](#{name})",
            docstring_sections(cls)[""],
            cls.level,
            _code(cls.heads),
            _code(cls.needs),
            ", ".join(f"`{key}={value}`" for key, value in settings(cls).items()) or "none",
            cls.cost,
            cls.paper,
            f"[{name}.py]({_file(name)})",
        )
        rows.append(tuple(cell.replace("|", "\\|") for cell in row))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def section(name: str, cls: type[Objective]) -> str:
    """Return the short section of one objective."""
    doc = docstring_sections(cls)
    lines = [f"## {name}", "", doc[""], ""]
    lines += [f"- **{title}**: {doc[title]}" for title in _SHOWN if title in doc]
    explained = _arguments(doc.get("Args", ""))
    lines += [
        f"- **`{key}`** (default {value}): {explained.get(key, 'not described')}"
        for key, value in settings(cls).items()
    ]
    lines += [f"- **Source**: {doc['Source']}"] if "Source" in doc else []
    return "\n".join(lines) + "\n"


def settings(cls: type[Objective]) -> dict[str, str]:
    """Return an objective's settings with their defaults, as they are written in Python."""
    found = {}
    for field in fields(cls):  # type: ignore[arg-type]
        if field.default is not MISSING:
            found[field.name] = repr(field.default)
        elif field.default_factory is not MISSING:
            found[field.name] = repr(field.default_factory())
        else:
            found[field.name] = "required"
    return found


def docstring_sections(cls: type[Objective]) -> dict[str, str]:
    """Return the docstring's parts by title, each on one line but for Args; the sentence it opens with under ''.

    Raises:
        ValueError: no docstring, or one without a formula.
    """
    text = inspect.cleandoc(cls.__doc__ or "").replace("``", "`")
    pattern = re.compile(rf"^({'|'.join(_SECTIONS)}):", re.MULTILINE)
    pieces = pattern.split(text)
    found = {"": " ".join(pieces[0].split())}
    for title, body in zip(pieces[1::2], pieces[2::2], strict=True):
        found[title] = body if title in ("Args", "Example") else " ".join(body.split())
    if not found[""] or "Formula" not in found:
        raise ValueError(f"{cls.__name__}: expected a docstring with a first sentence and a 'Formula:' part.")
    return found


def _arguments(text: str) -> dict[str, str]:
    """Return the descriptions in an Args part, by name."""
    found = re.split(r"^    (\w+):", text, flags=re.MULTILINE)
    return {name: " ".join(body.split()) for name, body in zip(found[1::2], found[2::2], strict=True)}


def _code(values: frozenset[str]) -> str:
    return ", ".join(f"`{value}`" for value in sorted(values)) or "nothing"


def _file(name: str) -> str:
    return f"../hf_distill/objectives/{name}.py"


def main(arguments: list[str] | None = None, target: Path = TARGET) -> int:
    """Write the page, or with --check return 1 if it is not what would be written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 if the page is not current"
    )
    options = parser.parse_args(arguments)
    page = render(objective_classes())
    if not options.check:
        target.write_text(page, encoding="utf-8")
        print(f"wrote {target} ({len(objective_classes())} objectives)")
        return 0
    if target.is_file() and target.read_text(encoding="utf-8") == page:
        print(f"{target} is current")
        return 0
    print(
        f"{target} is not what the docstrings in hf_distill/objectives say. Run: {COMMAND}", file=sys.stderr
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
