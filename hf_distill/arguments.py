"""The distillation settings: a mixin over TrainingArguments, and what trains with them."""

from __future__ import annotations

from dataclasses import dataclass, field
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

    Args:
        alpha: weight of the teacher's term, in [0, 1]; 0 is the plain Trainer, 1 needs no labels.
            Default 0.5.
        temperature: T, above 0. Default 2.0.
        objectives: the long form: a list of ``{name, weight, key, ...settings}``; on the command
            line JSON or the path of a YAML file.
        label_weight: weight of the label loss in the long form, at least 0. Default 1.
        projection_learning_rate: learning rate of the matrices that feature objectives train where the widths
            differ. Default: ``learning_rate``.
        teacher_revision: branch, tag or commit of a teacher loaded by name.
        teacher_dtype: dtype of a teacher loaded by name (``auto``, ``float32``, ``bfloat16``, ...).
        teacher_attn_implementation: attention kernel of a teacher loaded by name.
        teacher_text_columns: text columns that ``teacher_processing_class`` encodes for the teacher.

    Example:
        >>> from hf_distill import DistillationTrainingArguments
        >>> args = DistillationTrainingArguments(output_dir="out", alpha=0.7, report_to="none")
        >>> args.alpha, args.temperature
        (0.7, None)
    """

    alpha: float | None = field(
        default=None,
        metadata={
            "help": "Distillation, short form: weight of the teacher's term in [0, 1]; loss = (1 - alpha) * "
            "label loss + alpha * T^2 * KL(teacher || student). 0 is the plain Trainer, 1 needs no labels. "
            "Default: 0.5"
        },
    )
    temperature: float | None = field(
        default=None,
        metadata={
            "help": "Distillation, short form: temperature T, above 0, that softens both. Default: 2.0"
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
    label_weight: float | None = field(
        default=None,
        metadata={
            "help": "Distillation, long form: absolute weight of the label loss, at least 0. Default: 1.0"
        },
    )
    projection_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Distillation: learning rate of the projections that feature objectives train where widths differ. "
            "Default: learning_rate"
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

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Make every subclass a dataclass, so that a pair over other arguments is one line."""
        super().__init_subclass__(**kwargs)
        dataclass(cls)

    def __post_init__(self) -> None:
        """Make numbers floats, so that a search that starts from 0 does not cast its trials to int."""
        for name in ("alpha", "temperature", "label_weight", "projection_learning_rate"):
            value = getattr(self, name)
            if isinstance(value, int) and not isinstance(value, bool):
                setattr(self, name, float(value))
        direction_open = getattr(self, "greater_is_better", None) is None
        parent = getattr(super(), "__post_init__", None)
        if parent is not None:
            parent()
        best = getattr(self, "metric_for_best_model", None)
        if direction_open and best is not None and lower_is_better(best):
            # TrainingArguments takes every name that does not end in "loss" for one of which more is better,
            # and would keep the worst checkpoint by loss/label or mean_kl.
            vars(self)["greater_is_better"] = False


@dataclass
class DistillationTrainingArguments(DistillationArgumentsMixin, TrainingArguments):
    """``transformers.TrainingArguments`` with the settings of :class:`DistillationArgumentsMixin`.

    Example:
        >>> args = DistillationTrainingArguments(output_dir="out", temperature=4, report_to="none")
        >>> args.temperature
        4.0
    """
