"""Where a derivative to the input is taken, and what two models must share for it to be the same place."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

# Of two random tables it is about 1.4; of a student after a fine-tuning a few hundredths.
LARGEST_DISTANCE = 0.5
# Their embeddings are (length, batch, width): a point of ours, (batch, length, width), is not theirs.
_LENGTH_FIRST = ("xlnet",)
_INPUTS = ("input_ids", "pixel_values", "input_values", "input_features")


def input_name(model: nn.Module) -> str:
    """Return the batch column that a model's derivative is taken to; ``input_ids`` stands for its embeddings.

    Raises:
        ValueError: a model that reads something else.

    Example:
        >>> from transformers import ViTConfig, ViTModel
        >>> sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
        >>> input_name(ViTModel(ViTConfig(**sizes)))
        'pixel_values'
    """
    name = getattr(model, "main_input_name", None)
    if name in _INPUTS:
        return str(name)
    raise ValueError(
        f"derivative: expected a model whose main input is {', '.join(_INPUTS)}, received {type(model).__name__}, "
        f"whose is {name!r}. Take the derivative objective out for this architecture."
    )


def embedding_layer(model: Any) -> Any:
    """Return the layer that embeds ``input_ids``: an encoder-decoder's encoder has it.

    Raises:
        ValueError: a model without one.
    """
    if getattr(model.config, "is_encoder_decoder", False):
        model = model.get_encoder()
    try:
        layer = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        layer = None
    if isinstance(layer, nn.Module) and isinstance(getattr(layer, "weight", None), torch.Tensor):
        return layer
    raise ValueError(
        f"derivative: expected a model whose get_input_embeddings() is a table of word embeddings, received "
        f"{type(model).__name__}, whose is {type(layer).__name__}."
    )


def check_input_space(student: nn.Module, teacher: nn.Module, own_encoding: bool = False) -> None:
    """Raise unless a point of the student's input is the same point of the teacher's.

    Pixels and audio values are shared as they are. Word embeddings are where the tables are about
    the same, ``‖E_s - E_t‖_F <= 0.5 ‖E_t‖_F`` over the tokens both have: measured, so that a student
    cut from its teacher passes, now or after some training, however it came here. (Two random tables
    are 1.4 apart. What :func:`hf_distill.student_from_teacher` records in the config tells which layers
    a student has, and not whether this is the teacher it has them from.)

    Args:
        student: the student without wrappers.
        teacher: the teacher's model.
        own_encoding: the teacher reads another encoding of the text.

    Raises:
        ValueError: other inputs, another tokenizer, another width or another table.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> def bert(width):
        ...     sizes = dict(vocab_size=9, num_attention_heads=1, num_hidden_layers=1)
        ...     return BertModel(BertConfig(hidden_size=width, **sizes))
        >>> check_input_space(bert(4), bert(8))
        Traceback (most recent call last):
            ...
        ValueError: derivative: expected word embeddings of the teacher's width 8, received a student of width 4. ...
    """
    names = input_name(student), input_name(teacher)
    if names[0] != names[1]:
        raise ValueError(
            f"derivative: expected a teacher that reads {names[0]}, as the student does, received one that reads "
            f"{names[1]}. Use models of the same modality."
        )
    if names[0] != "input_ids":
        return
    remedy = (
        "Cut the student from the teacher with student_from_teacher, which keeps the embeddings, or leave the "
        "derivative objective out."
    )
    if own_encoding:
        raise ValueError(
            "derivative: expected student and teacher to read the same tokens, received a teacher_processing_class of "
            f"the teacher's own, whose positions are others. {remedy}"
        )
    for model in (student, teacher):
        if getattr(getattr(model, "config", None), "model_type", None) in _LENGTH_FIRST:
            raise ValueError(
                f"derivative: expected models that embed texts as (examples, length, width), received "
                f"{type(model).__name__}, which embeds them as (length, examples, width). Leave the derivative "
                "objective out for this architecture."
            )
    ours, theirs = (embedding_layer(model).weight for model in (student, teacher))
    if ours.numel() == 0 or theirs.numel() == 0:  # sharded by ZeRO-3: the first forward will tell
        return
    if ours.shape[1] != theirs.shape[1]:
        raise ValueError(
            f"derivative: expected word embeddings of the teacher's width {theirs.shape[1]}, received a student of "
            f"width {ours.shape[1]}. The two inputs can't be compared without a projection, which is not built in. "
            f"{remedy}"
        )
    distance = _distance(ours, theirs)
    if distance > LARGEST_DISTANCE:
        raise ValueError(
            f"derivative: expected the student's word embeddings to be about the teacher's (a relative distance of at "
            f"most {LARGEST_DISTANCE}), received tables {distance:.2f} apart, where a step in one space is no step in "
            f"the other. {remedy}"
        )


@torch.no_grad()
def _distance(ours: Any, theirs: Any) -> float:
    shared = min(ours.shape[0], theirs.shape[0])
    theirs = theirs[:shared].float().cpu()
    return float((ours[:shared].float().cpu() - theirs).norm() / theirs.norm().clamp(min=1e-30))


def check_double_backward(key: str, features: dict[str, bool]) -> None:
    """Raise for a run in which the student can't be differentiated twice.

    Args:
        key: the objective's name in the logs.
        features: settings of the run, by name, and whether they are on.

    Raises:
        ValueError: naming the setting.

    Example:
        >>> check_double_backward("derivative", {"use_liger_kernel": True})
        Traceback (most recent call last):
            ...
        ValueError: objective 'derivative': method 'vjp' differentiates the student twice, which use_liger_kernel ...
    """
    for name, is_on in features.items():
        if is_on:
            raise ValueError(
                f"objective {key!r}: method 'vjp' differentiates the student twice, which {name} does not allow. Turn "
                f"{name} off, or use method 'finite_difference'."
            )


def warn_about_rounding(key: str, epsilon: float, dtype: torch.dtype) -> bool:
    """Warn where the logits are rounded more coarsely than a finite difference of this step can bear.

    Returns:
        Whether it warned.

    Example:
        >>> warn_about_rounding("derivative", 1e-3, torch.float32)
        False
    """
    rounding = torch.finfo(dtype).eps
    if rounding / epsilon < 0.01:
        return False
    warnings.warn(
        f"objective {key!r}: method 'finite_difference' with epsilon={epsilon} divides logits rounded in {dtype} by "
        f"epsilon: each difference carries an error of about {rounding / epsilon:.1g} times a logit. Use method 'vjp', "
        "which takes no differences, or train in float32.",
        UserWarning,
        stacklevel=3,
    )
    return True
