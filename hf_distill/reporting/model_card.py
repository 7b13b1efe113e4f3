"""The student's model card: teacher, settings, results, command, and a snippet that runs."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hf_distill.reporting.card_metrics import eval_results, latest_metrics, results_table
from hf_distill.reporting.usage import TASKS, auto_class_name, usage_snippet

TAGS = ("hf-distill", "knowledge-distillation", "generated_from_trainer")

_TEMPLATE = """---
{{ card_data }}
---

# {{ title }}

A student distilled from {{ teacher }} with `hf_distill`.
{%- if started_from %} Its weights started from `{{ started_from }}`.{% endif %}
It has {{ parameters }} parameters{{ teacher_parameters }}, and it loads with plain `transformers`.
{%- if data_sets %} Data: {{ data_sets }}.{% endif %}

## Use

```python
{{ snippet }}
```

## Results
{% if results %}
| metric | student | teacher | retention |
| --- | --- | --- | --- |
{%- for row in results %}
| {{ row | join(" | ") }} |
{%- endfor %}

Retention is the student's metric over the teacher's, or the other way round where lower is better.
{% else %}
The run was not evaluated.
{% endif %}
## Distillation
{% if settings %}
| setting | value |
| --- | --- |
{%- for name, value in settings %}
| {{ name }} | {{ value }} |
{%- endfor %}
{% else %}
The run kept no settings of the distillation.
{% endif %}
## Training

```shell
{{ command }}
```

| argument | value |
| --- | --- |
{%- for name, value in training %}
| {{ name }} | {{ value }} |
{%- endfor %}

Made with {{ versions }}.
"""

_TRAINING_ARGUMENTS = (
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "optim", "max_grad_norm"),
    *("num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps"),
    *("label_smoothing_factor", "bf16", "fp16", "seed"),
)
_LIBRARIES = ("transformers", "torch", "datasets", "huggingface_hub")
_SECRET_FLAG = re.compile(r"^-+(.*[-_])?(token|secret|password|api[-_]?key|credentials?)$", re.IGNORECASE)
_HUB_TOKEN = re.compile(r"hf_[A-Za-z0-9]{6,}|api_org_[A-Za-z0-9]{6,}")


def create_card(
    trainer: Any,
    *,
    language: str | None = None,
    license: str | None = None,
    tags: str | Sequence[str] | None = None,
    model_name: str | None = None,
    started_from: str | None = None,
    tasks: str | Sequence[str] | None = None,
    dataset_tags: str | Sequence[str] | None = None,
    dataset_names: str | Sequence[str] | None = None,
    dataset_configurations: str | Sequence[str] | None = None,
) -> ModelCard:
    """Write the card of a trainer's student.

    A teacher that is not on the Hub, a folder for one, is named in the text and left out of the metadata,
    which the Hub refuses with an id that is not valid.

    Args:
        trainer: a Trainer; ``teacher`` and ``distillation_settings()`` are read where it has them.
        language: the language of the data, an ISO code.
        license: the licence of the student.
        tags: tags beside our own; those of a card that lies in the output folder are kept.
        model_name: the name of the student; the repository's or the folder's by default.
        started_from: the model that the student's weights started from.
        tasks: the pipeline tag; read from the student's class by default.
        dataset_tags: Hub ids of the data sets.
        dataset_names: names of the data sets, for a reader.
        dataset_configurations: their configurations.
    """
    student = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    source = trainer.hub_model_id or str(Path(trainer.args.output_dir).absolute())
    model_name = model_name or source.rstrip("/").split("/")[-1]
    metrics = latest_metrics(trainer.state)
    ids = _listed(dataset_tags)
    names = _listed(dataset_names) or ids
    task = (_listed(tasks) or [TASKS.get(auto_class_name(student), "other")])[0]
    teachers = [_teacher_name(teacher) for teacher in _teachers(getattr(trainer, "teacher", None))]
    on_hub = [name for name in dict.fromkeys(teachers) if name is not None and is_hub_id(name)]
    results = eval_results(metrics, task, names, ids, _listed(dataset_configurations))
    # The Hub takes a model with several bases for a merge of their weights, unless told.
    relation: dict[str, Any] = {"base_model_relation": "finetune"} if len(on_hub) > 1 else {}
    data = ModelCardData(
        base_model=(on_hub[0] if len(on_hub) == 1 else on_hub) or None,
        **relation,
        datasets=ids or None,
        eval_results=results,
        language=language,
        library_name="peft" if hasattr(student, "peft_config") else "transformers",
        license=license,
        model_name=model_name if results else None,  # only the results need it
        pipeline_tag=None if task == "other" else task,
        tags=[*TAGS, *_listed(tags), *_tags_on_disk(Path(trainer.args.output_dir) / "README.md")],
    )
    return ModelCard.from_template(
        data,
        template_str=_TEMPLATE,
        title=model_name,
        started_from=started_from,
        data_sets=", ".join(names),
        snippet=usage_snippet(student, source, trainer.processing_class, trainer.args.hub_revision),
        results=results_table(metrics),
        parameters=f"{sum(weight.numel() for weight in student.parameters()):,}",
        **_facts_of_the_run(trainer),
    )


def _facts_of_the_run(trainer: Any) -> dict[str, Any]:
    teacher = getattr(trainer, "teacher", None)
    settings: dict[str, Any] = getattr(trainer, "distillation_settings", dict)()
    secrets = [value for name, value in vars(trainer.args).items() if name.endswith("_token")]
    return {
        "teacher": _teacher_text(teacher),
        "teacher_parameters": _teacher_size(teacher),
        # Without the teacher, which is named above, and never by the path of a folder.
        "settings": [(name, _cell(value)) for name, value in settings.items() if name != "teacher"],
        "command": command_line(sys.argv, secrets, trainer.args.world_size),
        "training": [*_training_rows(trainer)],
        "versions": ", ".join(f"{name} {version(name)}" for name in _LIBRARIES),
    }


def is_hub_id(name: str | None) -> bool:
    """Tell whether a name can be that of a model on the Hub, and is not that of a folder here.

    Example:
        >>> is_hub_id("google-bert/bert-base-uncased"), is_hub_id("./teacher"), is_hub_id(None)
        (True, False, False)
    """
    if name is None or os.path.exists(name):
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def command_line(argv: Sequence[str], secrets: Iterable[str | None] = (), processes: int = 1) -> str:
    """Give the command of this run with every token taken out.

    Args:
        argv: ``sys.argv``.
        secrets: values that must not be shown; the token logged in with is always one.
        processes: how many processes the run has.

    Example:
        >>> command_line(["distill.py", "--alpha", "0.5", "--hub_token", "hf_abcdefgh"])
        "python distill.py --alpha 0.5 --hub_token '<removed>'"
    """
    if not argv or argv[0] in ("", "-c"):
        return "# an interactive session"
    known = [secret for secret in (*secrets, get_token()) if isinstance(secret, str) and secret]
    words: list[str] = []
    hide_next = False
    for word in argv:
        flag, equals, _ = word.partition("=")
        if hide_next and not word.startswith("--"):
            word = "<removed>"
        elif equals and _SECRET_FLAG.match(flag):
            word = f"{flag}=<removed>"
        hide_next = bool(_SECRET_FLAG.match(word))
        for secret in known:
            word = word.replace(secret, "<removed>")
        words.append(_HUB_TOKEN.sub("<removed>", word))
    launcher = ["python"] if processes == 1 else ["accelerate", "launch", "--num_processes", str(processes)]
    return shlex.join([*launcher, *words])


def _teacher_name(teacher: Any) -> str | None:
    """The teacher's own name; that of a class, which stands in for it elsewhere, is none."""
    name, model = getattr(teacher, "name", None), getattr(teacher, "model", None)
    return None if name is None or str(name) == type(model).__name__ else str(name)


def _teachers(teacher: Any) -> list[Any]:
    """The teachers of an ensemble, or the only one."""
    members = getattr(teacher, "members", None)
    return [teacher] if members is None else [one for member in members for one in _teachers(member)]


def _teacher_text(teacher: Any) -> str:
    *first, last = [_one_teacher_text(one) for one in _teachers(teacher)]
    return f"{', '.join(first)} and {last}" if first else last


def _one_teacher_text(teacher: Any) -> str:
    name = _teacher_name(teacher)
    if is_hub_id(name):
        return f"[{name}](https://huggingface.co/{name})"
    model = getattr(teacher, "model", None)
    shown = f"`{Path(name).name}`, a local model" if name else "a teacher without a name"
    return shown if model is None else f"{shown} (`{type(model).__name__}`)"


def _teacher_size(teacher: Any) -> str:
    models = [getattr(one, "model", None) for one in _teachers(teacher)]
    sizes = [
        f"{sum(weight.numel() for weight in model.parameters()):,}" for model in models if model is not None
    ]
    if not sizes:
        return ""
    *first, last = sizes
    return f", its teachers {', '.join(first)} and {last}" if first else f", its teacher {last}"


def _training_rows(trainer: Any) -> Iterable[tuple[str, str]]:
    unused = "num_train_epochs" if trainer.args.max_steps > 0 else "max_steps"
    for name in _TRAINING_ARGUMENTS:
        if hasattr(trainer.args, name) and name != unused:
            yield name, _cell(getattr(trainer.args, name))
    yield "processes", str(trainer.args.world_size)
    yield "steps trained", str(trainer.state.global_step)


def _cell(value: Any) -> str:
    value = _rounded(getattr(value, "value", value))  # enumerations have one
    text = json.dumps(value, default=str) if isinstance(value, dict | list) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _rounded(value: Any) -> Any:
    """Round floats to six digits wherever they stand: 0.3, not 0.30000000000000004."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {name: _rounded(entry) for name, entry in value.items()}
    return [_rounded(entry) for entry in value] if isinstance(value, list | tuple) else value


def _listed(value: str | Sequence[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else [item for item in value or () if item]


def _tags_on_disk(path: Path) -> list[str]:
    return list(ModelCard.load(path, ignore_metadata_errors=True).data.tags or []) if path.is_file() else []
