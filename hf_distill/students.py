"""Students from teachers: cut some layers out of a trained model and keep everything else."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_distill.layer_stacks import (
    LayerStack,
    check_that_config_survives_saving,
    cut_config,
    evenly_spaced_layers,
    find_stacks,
    layer_maps,
    place_in_stack,
    source_name,
)

__all__ = ["RANDOM_START_EXAMPLES", "evenly_spaced_layers", "student_from_teacher", "warn_about_random_start"]

#: Below this many training examples a student that starts from random weights draws a warning.
RANDOM_START_EXAMPLES = 10_000

# Attributes of a layer that may differ from the teacher's: they say where it stands, or matter to training only.
_PLACE = ("_idx", "_id", "_index", "layer_number", "cache_key", "num_hidden_layers", "seed", "training")


def student_from_teacher(
    teacher: PreTrainedModel,
    num_hidden_layers: int | dict[str, int] | None = None,
    layers: Sequence[int] | dict[str, Sequence[int]] | None = None,
) -> PreTrainedModel:
    """Build a shallower model of the teacher's class from the teacher's own weights.

    Embeddings, head and the chosen layers are copied, with dtype, device, tied weights and generation config.
    A part that exists only in the teacher's first layer (T5's relative attention bias) comes with the
    student's first layer, whichever that is; a part that a first layer can't hold (ModernBERT's
    ``attn_norm``) is left out with a warning. The student is in eval mode, like a model from
    ``from_pretrained``, is trainable, and shares no memory with the teacher, which stays as it was.
    ``student.config.distilled_from_layers`` records the teacher's layer of each student layer (a list; a dict
    of lists where the model has several stacks), and ``student.config.distilled_from_model`` the teacher's
    name, if any; both are saved with the config.

    Args:
        teacher: Any model of ``transformers`` with one flat list of layers per stack.
        num_hidden_layers: Layers of the student, from 1 to the teacher's depth, placed by
            :func:`evenly_spaced_layers`. An int holds for encoder and decoder alike; a dict such as
            ``{"encoder": 3, "decoder": 2}`` sets each, and a stack that it does not name keeps its depth. A
            model of several unlike stacks takes a dict by the names of its sub-configs: ``{"text": 6}``.
        layers: In place of ``num_hidden_layers``: the teacher's layers to keep, strictly ascending,
            counted from 0; a list or a dict in the same way.

    Returns:
        The student, of the teacher's class.

    Raises:
        ValueError: Not a ``PreTrainedModel``; layers shared (ALBERT) or in stages (Swin, ResNet); both or
            neither of the two arguments given; depths or indices out of range; a layer that the architecture
            can't hold at its new place.

    Source: DistilBERT (Sanh et al. 2019, arXiv 1910.01108): a student that starts from the teacher's layers.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(vocab_size=30, hidden_size=8, num_attention_heads=2, intermediate_size=16)
        >>> student = student_from_teacher(BertForSequenceClassification(config), num_hidden_layers=6)
        >>> type(student).__name__, len(student.bert.encoder.layer)
        ('BertForSequenceClassification', 6)
        >>> student.config.distilled_from_layers
        [0, 2, 4, 7, 9, 11]
    """
    _refuse_unless_copyable(teacher)
    if (num_hidden_layers is None) == (layers is None):
        raise ValueError(
            "Expected exactly one of num_hidden_layers and layers, received "
            f"{'neither' if layers is None else 'both'}. Give num_hidden_layers=6 for evenly spaced "
            "layers, or layers=[0, 2, 4] to name them."
        )
    stacks = find_stacks(teacher)
    maps = layer_maps(stacks, num_hidden_layers, layers)
    config = copy.deepcopy(teacher.config)
    for stack in stacks:
        cut_config(config, stack, maps[stack.role])
    config._name_or_path = ""  # the student is not what the teacher's name loads
    config.distilled_from_layers = maps[stacks[0].role] if len(stacks) == 1 else maps
    config.distilled_from_model = getattr(teacher.config, "_name_or_path", "") or None
    check_that_config_survives_saving(config, stacks, maps)
    # Every random number drawn here is overwritten below: leave the caller's stream where it was.
    with torch.random.fork_rng(devices=[]):
        student = type(teacher)(config)
    _copy_tensors(teacher, student, stacks, maps)
    _compare_layers(teacher, student, stacks, maps)
    if getattr(teacher, "generation_config", None) is not None:
        student.generation_config = copy.deepcopy(teacher.generation_config)
    return student.eval()


def warn_about_random_start(student: nn.Module, num_examples: int | None) -> bool:
    """Warn when a student seems to start from random weights on too little data, and offer a better start.

    Too little is fewer than ``RANDOM_START_EXAMPLES``. It "seems to" when its config names no checkpoint
    (``_name_or_path``, which ``from_pretrained`` sets) and no teacher (``distilled_from_layers``, which
    :func:`student_from_teacher` sets); no weight is looked at. So weights loaded by hand with
    ``load_state_dict`` warn without need, and ``AutoModel.from_config(AutoConfig.from_pretrained(name))`` is
    missed, because that config carries the name.

    Args:
        student: The model to be trained.
        num_examples: Training examples, or None where that is unknown (no warning then).

    Returns:
        Whether it warned.

    Source: the symptom of TextBrewer issue 33; the threshold of 10,000 is ours.

    Example:
        >>> import warnings
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(vocab_size=9, hidden_size=4, num_attention_heads=1, num_hidden_layers=1)
        >>> warn_about_random_start(BertModel(config), num_examples=50_000)
        False
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     warn_about_random_start(BertModel(config), num_examples=500)
        True
    """
    config = getattr(student, "config", None)
    if config is None or num_examples is None or num_examples >= RANDOM_START_EXAMPLES:
        return False
    if getattr(config, "_name_or_path", "") or getattr(config, "distilled_from_layers", None):
        return False
    warnings.warn(
        f"The student {type(student).__name__} seems to start from random weights, with {num_examples:,} "
        f"training examples (fewer than {RANDOM_START_EXAMPLES:,}): it will probably stay far from the "
        "teacher. Start it from the teacher's layers, "
        "hf_distill.student_from_teacher(teacher, num_hidden_layers=...), or from a pretrained "
        "checkpoint, or add unlabelled examples. If you loaded its weights by hand, ignore this.",
        UserWarning,
        stacklevel=2,
    )
    return True


def _refuse_unless_copyable(teacher: Any) -> None:
    """Raise unless the teacher is a plain ``PreTrainedModel`` whose weights can be read."""
    if not isinstance(teacher, PreTrainedModel):
        raise ValueError(
            f"Expected a transformers PreTrainedModel as teacher, received {type(teacher).__name__}. Load "
            "one with from_pretrained; unwrap a PEFT model with merge_and_unload(), a parallel one with .module."
        )
    if getattr(teacher, "hf_quantizer", None) is not None:
        raise ValueError(
            "Expected a teacher in a floating-point dtype, received a quantised one, whose packed weights "
            "can't be rebuilt. Load it without quantization_config to cut a student from it."
        )
    if any(parameter.is_meta for parameter in teacher.parameters()):
        raise ValueError(
            "Expected a teacher whose weights are in memory, received one with weights on the meta "
            "device. Load it without offloading (no device_map, or one that fits) to cut a student from it."
        )
    if getattr(teacher.config, "is_heterogeneous", False):
        raise ValueError(
            "Expected one config for all layers, received a config with per_layer_config. Build a smaller "
            "student from a config of its own."
        )


def _all_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer of the model by name, tied ones under each of their names."""
    return dict(model.named_parameters(remove_duplicate=False)) | dict(
        model.named_buffers(remove_duplicate=False)
    )


def _cut_tensor(
    tensor: torch.Tensor, shape: torch.Size, stacks: list[LayerStack], maps: dict[str, list[int]]
) -> torch.Tensor | None:
    """Cut a tensor with one block per layer, or per hidden state, to the kept layers; None if it does not fit.

    Such tensors stand outside the layers: wav2vec2's weighted layer sum, Gemma 3n's embeddings per layer.
    """
    if tensor.shape == shape or tensor.dim() != len(shape):
        return tensor if tensor.shape == shape else None
    differing = [dim for dim in range(len(shape)) if tensor.shape[dim] != shape[dim]]
    dim, (old, new) = differing[0], (tensor.shape[differing[0]], shape[differing[0]])
    for stack in stacks if len(differing) == 1 else ():
        kept, width = maps[stack.role], old // stack.depth
        if (old, new) == (stack.depth + 1, len(kept) + 1):  # the embeddings, then the output of every layer
            index = [0, *(layer + 1 for layer in kept)]
        elif (old, new) == (stack.depth * width, len(kept) * width):
            index = [layer * width + i for layer in kept for i in range(width)]
        else:
            continue
        return tensor.index_select(dim, torch.tensor(index, device=tensor.device))
    return None


def _copy_tensors(
    teacher: PreTrainedModel, student: PreTrainedModel, stacks: list[LayerStack], maps: dict[str, list[int]]
) -> None:
    """Give the student a copy of the teacher's tensor under every name, tied where the teacher's are tied."""
    modules_there = dict(teacher.named_modules())
    for name in [name for name, _ in student.named_modules() if name and not place_in_stack(name, stacks)]:
        above, _, leaf = name.rpartition(".")
        if above in modules_there and getattr(modules_there[above], leaf, name) is None:
            setattr(
                student.get_submodule(above), leaf, None
            )  # such as BertModel(config, add_pooling_layer=False)
    sources, targets = _all_tensors(teacher), _all_tensors(student)
    saved = student.state_dict().keys()
    used: set[str] = set()
    copies: dict[int, torch.Tensor] = {}
    for name, target in targets.items():
        name_there = source_name(name, sources, stacks, maps)
        parent, leaf = student.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
        if name_there is None and name not in saved:
            setattr(parent, leaf, target.to(teacher.device))  # a buffer that the constructor computed
            continue
        source = None if name_there is None else sources[name_there]
        cut = None if source is None else _cut_tensor(source.detach(), target.shape, stacks, maps)
        if source is None or name_there is None or cut is None:
            raise ValueError(
                f"Expected a tensor of shape {tuple(target.shape)} in the teacher for {name}, received "
                f"{'none' if source is None else tuple(source.shape)}. Keep layers that are built alike "
                f"where they stand, merge adapters, and give the teacher the parts that "
                f"{type(teacher).__name__} builds from its config."
            )
        used.add(name_there)
        if id(source) not in copies:
            is_parameter = isinstance(target, nn.Parameter)
            copies[id(source)] = (
                nn.Parameter(cut.clone(), target.requires_grad) if is_parameter else cut.clone()
            )
        setattr(parent, leaf, copies[id(source)])
    _account_for_the_rest(teacher.state_dict().keys() - used, stacks, maps)


def _account_for_the_rest(names: set[str], stacks: list[LayerStack], maps: dict[str, list[int]]) -> None:
    """Warn of parts that a first layer can't hold; refuse when any other kept part found no place."""
    left_out, lost = [], []
    for name in sorted(names):
        place = place_in_stack(name, stacks)
        if place is None or place[2] in maps[place[0]][1:]:
            lost.append(name)
        elif place[2] == maps[place[0]][0]:
            left_out.append(name)
    if lost:
        raise ValueError(
            f"Expected a place in the student for all that is kept, received {len(lost)} tensors without one "
            f"({', '.join(lost[:3])}). Keep layers that are built alike where they stand, and merge adapters."
        )
    if left_out:
        warnings.warn(
            f"A first layer of this architecture has no place for {', '.join(left_out)}: left out. Keep "
            "layer 0 to lose nothing.",
            UserWarning,
            stacklevel=4,
        )


def _compare_layers(
    teacher: PreTrainedModel, student: PreTrainedModel, stacks: list[LayerStack], maps: dict[str, list[int]]
) -> None:
    """Raise or warn where a layer at its new place is not built like the layer that it was copied from."""
    parts = dict(teacher.named_modules())
    changed: list[str] = []
    for name, part in student.named_modules():
        place, name_there = place_in_stack(name, stacks), source_name(name, parts, stacks, maps)
        if place is None or name_there is None:
            continue
        source = parts[name_there]
        # What only a first layer is or has comes with its place.
        first = parts.get(f"{place[1]}.0.{place[3]}".rstrip("."), source) if place[2] == 0 else source
        if type(part) not in (type(source), type(first)):
            raise ValueError(
                f"Expected {name} to be a {type(source).__name__} like the teacher's {name_there}, "
                f"received a {type(part).__name__}. Keep layers that are built alike where they stand."
            )
        for key, value in vars(part).items():
            if key.startswith("_") or key.endswith(_PLACE) or "drop" in key:
                continue
            if not isinstance(value, (int, float, str)):
                continue
            if value not in (vars(source).get(key), vars(first).get(key)):
                changed.append(f"{name}.{key} from {vars(source).get(key)!r} to {value!r}")
    if changed:
        warnings.warn(
            f"{len(changed)} settings follow the new place of their layer ({'; '.join(changed[:3])}): "
            "these layers compute something else than in the teacher until training adapts them.",
            UserWarning,
            stacklevel=3,
        )
