"""Layer stacks: where an architecture keeps its layers, and how its config is cut to fewer of them."""

from __future__ import annotations

import copy
import itertools
import operator
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

# What configs call the depth; the first that moves a list counts (`num_hidden_layers` follows `attribute_map`).
_ENCODER_DEPTHS = ("encoder_layers", "num_encoder_layers")
_DECODER_DEPTHS = ("decoder_layers", "num_decoder_layers")
_DEPTHS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer", "depth")
_STAGES = ("depths", "block_sizes", "num_block_repeats", "stage_numb_of_layers", "layer_depths")
# Lists with one entry per layer: every list as long as the stack with "layer" in its name, and these. Any
# list of that length would be too much: wav2vec2 has seven convolutions, and a student of seven layers is
# possible.
_PER_LAYER = frozenset(
    {
        "attention_window",
        "sliding_windows",
        "swiglu_limits",
        "swiglu_limits_shared",
        "indexer_types",
        "kv_sharing_modes",
        "moe_topk",
        "num_experts",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "activation_sparsity_pattern",
    }
)
# Lists of layer indices.
_LAYER_INDICES = frozenset(
    {
        "mlp_only_layers",
        "moe_layers",
        "subsample_layers",
        "cross_attention_layers",
        "rope_scaling_layers",
        "window_block_indexes",
        "window_block_indices",
        "global_attn_indexes",
        "residual_block_indices",
        "deepstack_visual_indexes",
        "look_ahead_layers",
        "look_backward_layers",
        "attn_layer_indices",
    }
)
_COUNTS_FROM_THE_FIRST = ("first_k_dense_replace", "num_dense_layers", "num_first_full_attention_layers")
_COUNTS_FROM_THE_LAST = ("num_kv_shared_layers", "num_last_full_attention_layers")


@dataclass(frozen=True)
class LayerStack:
    """One stack of layers: its name, where the config keeps its depth, and the module lists that hold it."""

    role: str
    config_path: tuple[str, ...]
    field: str
    depth: int
    lists: tuple[str, ...] = ()

    def config_of(self, config: PreTrainedConfig) -> Any:
        """The config, or sub-config, that holds the depth of this stack."""
        for name in self.config_path:
            config = getattr(config, name)
        return config

    @property
    def is_second_in_its_config(self) -> bool:
        """Whether one config describes an encoder and a decoder, and this is the decoder."""
        return self.field in _DECODER_DEPTHS


def evenly_spaced_layers(teacher_depth: int, student_depth: int) -> list[int]:
    """Choose the teacher's layers that a shallower student keeps, evenly spaced from the first to the last.

    Formula: ``round(i * (teacher_depth - 1) / (student_depth - 1))`` for i in 0 .. student_depth - 1, halves
    rounded up. A student of one layer keeps layer 0, the layer that was trained to read the embeddings.

    Args:
        teacher_depth: Number of layers of the teacher, at least 1.
        student_depth: Number of layers of the student, from 1 to ``teacher_depth``.

    Returns:
        Strictly ascending layer indices, ``student_depth`` of them.

    Raises:
        ValueError: A depth is out of range.

    Source: DistilBERT (Sanh et al. 2019, arXiv 1910.01108) keeps [0, 2, 4, 7, 9, 11] of BERT's 12 layers; the
    rule for other depths is ours.

    Example:
        >>> evenly_spaced_layers(12, 6)
        [0, 2, 4, 7, 9, 11]
        >>> evenly_spaced_layers(12, 3)
        [0, 6, 11]
    """
    if not 1 <= student_depth <= teacher_depth:
        raise ValueError(
            f"Expected a student depth from 1 to the teacher's {teacher_depth}, received {student_depth}. "
            "Layers can only be taken away: ask for fewer, or train a deeper model from its own config."
        )
    if student_depth == 1:
        return [0]
    gaps = student_depth - 1
    # Whole numbers, so that a half never depends on how a float was rounded.
    return [(2 * i * (teacher_depth - 1) + gaps) // (2 * gaps) for i in range(student_depth)]


def find_stacks(teacher: PreTrainedModel) -> list[LayerStack]:
    """Find the module lists that follow each depth in the config: those that change when it does.

    Nothing is guessed from module names. The model is built once per depth, on the meta device and so without
    memory, with one layer less.
    """
    lengths = _list_lengths(teacher)
    stacks: list[LayerStack] = []
    candidates = list(_depth_fields(teacher.config))
    for candidate in candidates:
        if candidate.role in {stack.role for stack in stacks}:
            continue  # another name for the depth that was just found
        config = copy.deepcopy(teacher.config)
        cut_config(config, candidate, list(range(candidate.depth - 1)) or [0, 0])
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            probed = _list_lengths(type(teacher)(config))
        claimed = {name for stack in stacks for name in stack.lists}
        moved = [
            name for name in lengths.keys() - claimed if probed.get(name, lengths[name]) != lengths[name]
        ]
        lists = sorted(name for name in moved if not any(name.startswith(f"{outer}.") for outer in moved))
        if lists and all(lengths[name] == candidate.depth for name in lists):
            stacks.append(replace(candidate, lists=tuple(lists)))
    if stacks:
        return stacks
    name, fields = type(teacher).__name__, ", ".join(f"{found.field}={found.depth}" for found in candidates)
    if candidates:
        raise ValueError(
            f"Expected a list of layers as long as the depth in the config ({fields}), received {name}, "
            "which has none: its layers are shared (as in ALBERT) or are not one flat list. Build a smaller "
            "student from a config of its own."
        )
    raise ValueError(
        f"Expected one flat list of layers, received {name}, whose {type(teacher.config).__name__} has "
        "stages of layers (as in Swin or ResNet) or no depth that can be set. Build a smaller student from a "
        "config of its own."
    )


def _depth_fields(config: PreTrainedConfig, path: tuple[str, ...] = ()) -> Iterator[LayerStack]:
    """Yield every depth that the config and its sub-configs name, inner ones first."""
    for name in type(config).sub_configs or {}:
        inner = getattr(config, name, None)
        if isinstance(inner, PreTrainedConfig):
            yield from _depth_fields(inner, (*path, name))
    if any(isinstance(getattr(config, name, None), (list, tuple)) for name in _STAGES):
        return
    prefix = ".".join(name.removesuffix("_config") for name in path)
    decoders = [name for name in _DECODER_DEPTHS if isinstance(getattr(config, name, None), int)]
    aliases = [name for name, target in (config.attribute_map or {}).items() if target in decoders]
    names = (*_ENCODER_DEPTHS, *_DEPTHS) if decoders else (*_DEPTHS, *_ENCODER_DEPTHS)
    firsts = [name for name in names if name not in aliases and isinstance(getattr(config, name, None), int)]
    for side, fields in (("encoder" if decoders else "", firsts), ("decoder", decoders)):
        for field in fields:
            if (depth := int(getattr(config, field))) > 0:
                yield LayerStack(".".join(part for part in (prefix, side) if part), path, field, depth)


def _list_lengths(model: nn.Module) -> dict[str, int]:
    """Length of every list of modules in the model, by name."""
    lists = (nn.ModuleList, nn.Sequential)
    return {name: len(part) for name, part in model.named_modules() if isinstance(part, lists)}


def layer_maps(
    stacks: list[LayerStack],
    num_hidden_layers: int | dict[str, int] | None,
    layers: Sequence[int] | dict[str, Sequence[int]] | None,
) -> dict[str, list[int]]:
    """Turn what the caller asked for into the teacher's layers to keep, per stack."""
    asked: Any = layers if num_hidden_layers is None else num_hidden_layers
    depths = ", ".join(f"{stack.role or 'layers'}: {stack.depth}" for stack in stacks)
    roles = [stack.role for stack in stacks]
    if not isinstance(asked, dict):
        if len(roles) > 1 and set(roles) != {"encoder", "decoder"}:
            raise ValueError(
                "Expected a dict that names the stacks to cut, since this model has several unlike ones "
                f"({depths}), received {asked!r}. Give {{{roles[0]!r}: {asked!r}}}, for example."
            )
        asked = dict.fromkeys(roles, asked)
    elif unknown := sorted(set(asked) - set(roles)):
        raise ValueError(
            f"Expected names among those of the stacks ({depths}), received {unknown}. Use those."
        )
    maps = {}
    for stack in stacks:
        if stack.role not in asked:
            maps[stack.role] = list(range(stack.depth))
        elif layers is None:
            maps[stack.role] = evenly_spaced_layers(stack.depth, _whole(asked[stack.role]))
        else:
            chosen = [_whole(layer) for layer in asked[stack.role]]
            ascending = all(low < high for low, high in itertools.pairwise(chosen))
            if not chosen or not ascending or chosen[0] < 0 or chosen[-1] >= stack.depth:
                raise ValueError(
                    f"Expected strictly ascending layer indices from 0 to {stack.depth - 1}, received "
                    f"{chosen}. "
                    "Name each of the teacher's layers to keep once, in the teacher's order."
                )
            maps[stack.role] = chosen
    return maps


def _whole(number: Any) -> int:
    try:
        return operator.index(number)
    except TypeError as error:
        raise ValueError(
            f"num_hidden_layers and layers: expected whole numbers, received {number!r}. Give 6, for example."
        ) from error


def cut_config(config: PreTrainedConfig, stack: LayerStack, layer_map: list[int]) -> None:
    """Set the stack's depth and cut what the config says layer by layer, in place."""
    inner, depth = stack.config_of(config), stack.depth
    if len(layer_map) != depth:  # ProphetNet's refuses to be set at all
        setattr(inner, stack.field, len(layer_map))
        if not stack.is_second_in_its_config and getattr(inner, "num_hidden_layers", None) == depth:
            inner.num_hidden_layers = len(layer_map)  # beside encoder_layers in some configs
    for name, value in list(vars(inner).items()):
        if name.startswith("decoder") != stack.is_second_in_its_config:
            continue  # in a config of two stacks, the decoder's lists say so in their names
        if isinstance(value, (list, tuple)):
            if name in _LAYER_INDICES:
                kept = [place for place, layer in enumerate(layer_map) if layer in value]
                setattr(inner, name, type(value)(kept))
            elif len(value) == depth and ("layer" in name or name in _PER_LAYER):
                setattr(inner, name, type(value)(value[layer] for layer in layer_map))
        elif isinstance(value, int) and name in _COUNTS_FROM_THE_FIRST:
            setattr(inner, name, sum(layer < value for layer in layer_map))
        elif isinstance(value, int) and name in _COUNTS_FROM_THE_LAST:
            setattr(inner, name, sum(layer >= depth - value for layer in layer_map))
    if getattr(inner, "attention_types", None) and hasattr(inner, "attention_layers"):
        inner.attention_types = [
            [list(inner.attention_layers), 1]
        ]  # GPT-Neo makes one of the other on loading
    if len(getattr(inner, "stage_names", None) or ()) == depth + 1:  # a backbone's: the stem, then each layer
        places = {0: 0} | {layer + 1: place + 1 for place, layer in enumerate(layer_map)}
        wanted = [places[i] for i in inner.out_indices or () if i in places]
        inner.stage_names = inner.stage_names[: len(layer_map) + 1]
        inner.set_output_features_output_indices(out_features=None, out_indices=wanted or None)


def check_that_config_survives_saving(
    config: PreTrainedConfig, stacks: list[LayerStack], maps: dict[str, list[int]]
) -> None:
    """Raise when loading the config would undo the cut, as a config that derives its own lists could."""
    try:
        loaded = type(config).from_dict(config.to_dict())
    except Exception as error:
        raise ValueError(
            f"Expected a config that loads after layers {maps} were kept, received from {type(config).__name__}: "
            f"{error} Choose others, say the first ones."
        ) from error
    for stack in stacks:
        before, after = stack.config_of(config), stack.config_of(loaded)
        for name, value in vars(before).items():
            is_list = isinstance(value, (list, tuple)) and len(value) == len(maps[stack.role])
            read = getattr(after, name, None)
            same = list(read or ()) == list(value) if is_list else read == value
            if (is_list or name == stack.field) and not same:
                raise ValueError(
                    f"Expected {type(before).__name__}.{name} to be {value} after saving and loading, "
                    f"received {read}: this config can't describe these layers. Choose others, say every second one."
                )


def place_in_stack(name: str, stacks: list[LayerStack]) -> tuple[str, str, int, str] | None:
    """Split the name of a layer's part into its stack's role, the list, the index of the layer and the "
    "rest."""
    for stack in stacks:
        for prefix in stack.lists:
            if name.startswith(f"{prefix}."):
                index, _, rest = name[len(prefix) + 1 :].partition(".")
                return stack.role, prefix, int(index), rest
    return None


def source_name(
    name: str, names: Container[str], stacks: list[LayerStack], maps: dict[str, list[int]]
) -> str | None:
    """Give the teacher's name for a part of the student, None where the teacher has none."""
    source, place = name, place_in_stack(name, stacks)
    if place is not None:
        role, prefix, index, rest = place
        source = f"{prefix}.{maps[role][index]}.{rest}".rstrip(".")
        if source not in names and index == 0:
            # What only the teacher's first layer has belongs to the student's first.
            source = f"{prefix}.0.{rest}"
    return source if source in names else None
