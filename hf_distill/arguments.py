"""The distillation settings: a mixin over TrainingArguments, and what trains with them."""

from __future__ import annotations

import json
from dataclasses import Field, dataclass, field
from typing import Any

from transformers import TrainingArguments

from hf_distill.evaluation.retention import lower_is_better


@dataclass
class DistillationArgumentsMixin:
    """The settings that distillation adds to any ``TrainingArguments``.

    Short form: ``loss = (1 - alpha) * label loss + alpha * T^2 * KL(teacher ‖ student)``.
    Long form: ``loss = label_weight * label loss + sum_i weight_i * objective_i``.
    Giving both is an error. Nothing is resolved here: a hyper-parameter trial may still set them,
    so :func:`hf_distill.loss_plan.resolve_loss` reads them when training starts.

    ``alpha``, ``temperature``, ``label_weight``, and any weight or temperature in ``objectives`` may be
    a schedule instead of a number, a mapping like ``{"schedule": "linear", "start": 0.0, "end": 1.0}``
    (:func:`hf_distill.schedules.read_schedule`); on the command line it is JSON.

    Args:
        alpha: weight of the teacher's term, in [0, 1]; 0 is the plain Trainer, 1 needs no labels.
            Default 0.5. A schedule moves both terms.
        temperature: T, above 0. Default 2.0.
        objectives: the long form: a list of ``{name, weight, key, ...settings}``; on the command
            line JSON or the path of a YAML file. Over several teachers, objectives on features or
            derivatives also need ``teacher``: the number of the one they follow, from 0, or ``"average"``.
        label_weight: weight of the label loss in the long form, at least 0. Default 1.
        projection_learning_rate: learning rate of the matrices that feature objectives train where the widths
            differ. Default: ``learning_rate``.
        distill_on: of heads with a prediction per position, at which the teacher is matched: those with a ``labels``
            (default), or all ``attended`` ones but special tokens; the label loss is over labels in both cases.
        teacher_revision: branch, tag or commit of a teacher loaded by name.
        teacher_dtype: dtype of a teacher loaded by name (``auto``, ``float32``, ``bfloat16``, ...).
        teacher_attn_implementation: attention kernel of a teacher loaded by name.
        teacher_text_columns: text columns that ``teacher_processing_class`` encodes for the teacher.
        teacher_weights: of several teachers: a number of at least 0 for each (divided by their sum),
            ``"confidence"`` or ``"label_loss"``. Default: equal.
        teacher_combine: of several teachers: average their ``"probabilities"`` (default) or ``"logits"``.
        offload_teachers: of several teachers: keep those not at work in the CPU's memory.

    Example:
        >>> from hf_distill import DistillationTrainingArguments
        >>> args = DistillationTrainingArguments(output_dir="out", alpha=0.7, report_to="none")
        >>> args.alpha, args.temperature
        (0.7, None)
    """

    # HfArgumentParser takes a union for text if str is its second type; __post_init__ reads the text.
    alpha: float | str | dict[str, Any] | None = field(
        default=None,
        metadata={
            "help": "Distillation, short form: weight of the teacher's term in [0, 1]; loss = (1 - alpha) * "
            "label loss + alpha * T^2 * KL(teacher || student). 0 is the plain Trainer, 1 needs no labels. A "
            "number, or a schedule as JSON, e.g. "
            '\'{"schedule": "linear", "start": 0, "end": 1}\'. Default: 0.5'
        },
    )
    temperature: float | str | dict[str, Any] | None = field(
        default=None,
        metadata={
            "help": "Distillation, short form: temperature T, above 0, that softens both; a number or a schedule. "
            "Default: 2.0"
        },
    )
    objectives: list[dict[str, Any]] | str | None = field(
        default=None,
        metadata={
            "help": "Distillation, long form, instead of alpha and temperature: a list of {name, weight, key, "
            "...settings} with absolute weights, as JSON or the path of a YAML file, e.g. "
            '\'[{"name": "forward_kl", "weight": 0.5, "temperature": 4}]\''
        },
    )
    label_weight: float | str | dict[str, Any] | None = field(
        default=None,
        metadata={
            "help": "Distillation, long form: absolute weight of the label loss, at least 0; a number or a schedule. "
            "Default: 1.0"
        },
    )
    projection_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Distillation: learning rate of the projections that feature objectives train where widths differ. "
            "Default: learning_rate"
        },
    )
    distill_on: str | None = field(
        default=None,
        metadata={
            "help": "Distillation, heads with a prediction per position: match the teacher at positions with a label, "
            "or at all that are attended and no special token. Default: labels",
            "choices": ["labels", "attended"],
        },
    )
    teacher_revision: str | None = field(
        default=None,
        metadata={"help": "Teacher: branch, tag or commit when it is loaded by name. Default: main"},
    )
    teacher_dtype: str | None = field(
        default=None,
        metadata={
            "help": "Teacher: dtype when it is loaded by name: auto, float32, bfloat16 or float16. Default: auto"
        },
    )
    teacher_attn_implementation: str | None = field(
        default=None,
        metadata={
            "help": "Teacher: attention kernel when it is loaded by name, e.g. sdpa, eager, flash_attention_2. "
            "Default: the model's own"
        },
    )
    teacher_text_columns: list[str] | None = field(
        default=None,
        metadata={
            "help": "Teacher: text columns that its own tokenizer encodes, where it differs from the student's. "
            "Default: text, and text_pair if there is one"
        },
    )
    teacher_weights: list[float] | str | None = field(
        default=None,
        metadata={
            "nargs": "+",  # the parser sees a str, of which this takes several
            "help": "Teachers, several: a number of at least 0 for each, e.g. 2 1 1 (divided by their sum), or "
            "weights per example: confidence (low entropy; needs no label), label_loss (low loss on the label). "
            "Default: equal",
        },
    )
    teacher_combine: str | None = field(
        default=None,
        metadata={
            "help": "Teachers, several: what is averaged, probabilities or logits. Default: probabilities"
        },
    )
    offload_teachers: bool = field(
        default=False,
        metadata={
            "help": "Teachers, several: keep the weights of those not at work in the CPU's memory: less memory on the "
            "device, more time. Default: False"
        },
    )

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Make every subclass a dataclass, so that a pair over other arguments is one line."""
        super().__init_subclass__(**kwargs)
        declared = {name: value for name, value in vars(cls).items() if isinstance(value, Field)}
        dataclass(cls)
        for name, value in declared.items():  # @dataclass written above it would else lose help and factories
            setattr(cls, name, value)

    def __post_init__(self) -> None:
        """Make numbers floats, so that a search that starts from 0 does not cast its trials to int."""
        for name in ("alpha", "temperature", "label_weight", "projection_learning_rate"):
            value = getattr(self, name)
            if isinstance(value, str) and name != "projection_learning_rate":  # which has no schedule
                setattr(self, name, _from_text(name, value))
            elif isinstance(value, int) and not isinstance(value, bool):
                setattr(self, name, float(value))
        self.teacher_weights = _numbers_or_name(self.teacher_weights)
        direction_open = getattr(self, "greater_is_better", None) is None
        parent = getattr(super(), "__post_init__", None)
        if parent is not None:
            parent()
        best = getattr(self, "metric_for_best_model", None)
        if direction_open and best is not None and lower_is_better(best):
            # TrainingArguments takes every name that does not end in "loss" for one of which more is better,
            # and would keep the worst checkpoint by loss/label or mean_kl.
            vars(self)["greater_is_better"] = False


def _from_text(name: str, text: str) -> float | dict[str, Any]:
    """Return the number or the schedule that the command line gives."""
    try:
        value = json.loads(text) if text.lstrip().startswith("{") else float(text)
    except ValueError:
        raise ValueError(
            f"{name}: expected a number, or a schedule as JSON like "
            f'{{"schedule": "linear", "start": 0.0, "end": 1.0}}, received {text!r}.'
        ) from None
    return value


def _numbers_or_name(given: Any) -> Any:
    """Return the numbers or the one name that a command line gives as a list of words; else what came."""
    if not isinstance(given, (list, tuple)) or not all(isinstance(word, str) for word in given):
        return given
    try:
        return [float(word) for word in given]
    except ValueError:
        return given[0] if len(given) == 1 else given


@dataclass
class DistillationTrainingArguments(DistillationArgumentsMixin, TrainingArguments):
    """``transformers.TrainingArguments`` with the settings of :class:`DistillationArgumentsMixin`.

    Example:
        >>> args = DistillationTrainingArguments(output_dir="out", temperature=4, report_to="none")
        >>> args.temperature
        4.0
    """
