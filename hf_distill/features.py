"""What models compute inside, for objectives that match more than logits: hidden states and attention inputs."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

Pooling = Literal["cls", "mean", "last"]
POOLINGS = ("cls", "mean", "last")
_RECORDABLE = ("eager", "sdpa")


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a model that feature objectives ask for.

    Args:
        layers: number of layers; hidden state 0 is the embeddings' and ``i`` the output of layer ``i``.
        width: of a hidden state.
        heads: attention heads of a layer.
        cut_from: the teacher's layer (from 0) of each layer, of a student cut from its teacher, else None.
    """

    layers: int
    width: int
    heads: int
    cut_from: tuple[int, ...] | None = None


def shape_of(model: Any, who: str) -> ModelShape:
    """Read a model's sizes from its config.

    Raises:
        ValueError: an encoder-decoder, or a model in stages, which has no one list of layers of one width.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> sizes = dict(vocab_size=9, hidden_size=4, num_attention_heads=1, intermediate_size=4)
        >>> shape_of(BertModel(BertConfig(num_hidden_layers=3, **sizes)), "student")
        ModelShape(layers=3, width=4, heads=1, cut_from=None)
    """
    config = getattr(model, "config", None)
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads")
    sizes = [size for name in names if isinstance(size := getattr(config, name, None), int)]
    if getattr(config, "is_encoder_decoder", False) or len(sizes) < len(names):
        raise ValueError(
            f"{who}: expected a model with one stack of layers of one width for a feature objective, received "
            f"{type(model).__name__}. Match its logits instead."
        )
    cut_from = getattr(config, "distilled_from_layers", None)
    recorded = tuple(cut_from) if isinstance(cut_from, list) and len(cut_from) == sizes[0] else None
    return ModelShape(sizes[0], sizes[1], sizes[2], recorded)


@dataclass(frozen=True)
class FeatureNeeds:
    """What is to be kept of one model's forward: nothing unless an active objective asks.

    Args:
        hidden_states: which hidden states; 0 is the embeddings'.
        attention: the layers, from 1, whose queries, keys and values are kept.
    """

    hidden_states: frozenset[int] = frozenset()
    attention: frozenset[int] = frozenset()

    def __or__(self, other: FeatureNeeds) -> FeatureNeeds:
        """Return what both ask for."""
        return FeatureNeeds(self.hidden_states | other.hidden_states, self.attention | other.attention)

    def __bool__(self) -> bool:
        """Whether anything is asked for."""
        return bool(self.hidden_states or self.attention)


@dataclass(frozen=True)
class AttentionInputs:
    """What one attention layer was given.

    Shapes: ``query``, ``key``, ``value`` are ``(examples, heads, length, head width)``, the keys' heads
    repeated where queries share them; ``allowed`` is ``(examples, 1, length, length)``: which key each
    query may look at.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    scaling: float
    allowed: torch.Tensor

    def select(self, rows: slice) -> AttentionInputs:
        """Return those of some examples."""
        return AttentionInputs(
            self.query[rows], self.key[rows], self.value[rows], self.scaling, self.allowed[rows]
        )

    def scores(self) -> torch.Tensor:
        """Return ``Q K^T * scaling``, ``(examples, heads, length, length)``, before mask and softmax."""
        query, key = _full(self.query), _full(self.key)
        return query @ key.transpose(-1, -2) * self.scaling


@dataclass(frozen=True)
class Features:
    """What one model computed inside for the examples of a batch.

    Args:
        hidden_states: ``(examples, length, width)`` each, by number.
        attention: by layer, from 1.
        attended: ``(examples, length)``: which positions are no padding.
        shape: the model's sizes.
    """

    hidden_states: Mapping[int, torch.Tensor]
    attention: Mapping[int, AttentionInputs]
    attended: torch.Tensor
    shape: ModelShape

    def select(self, rows: slice) -> Features:
        """Return those of some examples."""
        return Features(
            {number: states[rows] for number, states in self.hidden_states.items()},
            {layer: inputs.select(rows) for layer, inputs in self.attention.items()},
            self.attended[rows],
            self.shape,
        )

    def tokens(self, number: int) -> torch.Tensor:
        """Return a hidden state at the attended positions, ``(tokens, width)``, in float32 or better."""
        return _full(self.hidden_states[number][self.attended])

    def pooled(self, number: int, pooling: Pooling) -> torch.Tensor:
        """Return one vector per example, ``(examples, width)``, in float32 or better.

        ``cls`` is the first attended position, ``last`` the last one, ``mean`` the mean over all.
        """
        states, attended = _full(self.hidden_states[number]), self.attended
        if pooling == "mean":
            weights = attended.to(states.dtype).unsqueeze(-1)
            # A pad's state may be anything, NaN included: leave it out rather than multiply it by 0.
            kept = states.masked_fill(~attended.unsqueeze(-1), 0.0)
            return kept.sum(1) / weights.sum(1).clamp(min=1)
        at = attended.int().argmax(-1) if pooling == "cls" else _last(attended)
        return states[torch.arange(states.shape[0], device=states.device), at]


def _last(attended: torch.Tensor) -> torch.Tensor:
    positions = torch.arange(attended.shape[1], device=attended.device)
    return torch.where(attended, positions, -1).amax(-1).clamp(min=0)


def _full(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


@dataclass
class Observation:
    """What was seen of a model's forwards within :func:`observed`."""

    needs: FeatureNeeds
    attention: dict[int, AttentionInputs] = field(default_factory=dict)

    def features(self, model: Any, outputs: Any, batch: Mapping[str, Any]) -> Features | None:
        """Return the features of the first forward, or None where nothing was asked for.

        Raises:
            ValueError: a model that gave no hidden states, or whose attention could not be recorded.
        """
        if not self.needs:
            return None
        states: Any = outputs.get("hidden_states") if isinstance(outputs, Mapping) else None
        if self.needs.hidden_states and states is None:
            raise ValueError(
                f"hidden states: expected {type(model).__name__} to return them, received an output with "
                f"{list(outputs)}. Use objectives on logits."
            )
        kept = {number: states[number] for number in self.needs.hidden_states}
        missing = self.needs.attention - set(self.attention)
        if missing:
            raise ValueError(
                f"attention: expected queries and keys of layers {sorted(missing)} of {type(model).__name__}, received "
                "none: its attention does not go through transformers' AttentionInterface. Use hidden_states instead."
            )
        example = next(iter(kept.values()), None)
        length = (
            example.shape[1] if example is not None else next(iter(self.attention.values())).query.shape[2]
        )
        attended = attended_positions(model, batch, length)
        allowed = attended[:, None, None, :]
        inputs = {
            layer: AttentionInputs(seen.query, seen.key, seen.value, seen.scaling, seen.allowed & allowed)
            for layer, seen in self.attention.items()
        }
        return Features(kept, inputs, attended, shape_of(model, type(model).__name__))


def attended_positions(model: Any, batch: Mapping[str, Any], length: int) -> torch.Tensor:
    """Return which positions of hidden states of this length are no padding, ``(examples, length)``.

    Raises:
        ValueError: a mask of another length that the model can't translate.
    """
    mask = batch.get("attention_mask")
    if mask is not None and mask.shape[1] != length and hasattr(model, "_get_feature_vector_attention_mask"):
        mask = model._get_feature_vector_attention_mask(length, mask)  # audio: many samples a position
    if mask is None:
        tensors = [value for value in batch.values() if isinstance(value, torch.Tensor) and value.dim() > 0]
        return torch.ones(tensors[0].shape[0], length, dtype=torch.bool, device=tensors[0].device)
    if mask.shape[1] != length:
        raise ValueError(
            f"attention_mask: expected one entry for each of the {length} positions, received {mask.shape[1]}."
        )
    return mask.bool()


@contextlib.contextmanager
def observed(model: Any, needs: FeatureNeeds) -> Iterator[Observation]:
    """Keep what is needed of the forwards inside; leave config and attention as they were.

    Args:
        model: a transformers model without wrappers; the forward may go through a wrapper.
        needs: what to keep; with nothing, nothing is touched.

    Raises:
        ValueError: an attention kernel that hides queries and masks.
    """
    seen = Observation(needs)
    with contextlib.ExitStack() as stack:
        if needs.hidden_states:
            stack.enter_context(_config_set(model.config, "output_hidden_states", True))
        if needs.attention:
            stack.enter_context(_attention_recorded(model, needs.attention, seen.attention))
        yield seen


@contextlib.contextmanager
def _config_set(config: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(config, name)
    setattr(config, name, value)
    try:
        yield
    finally:
        setattr(config, name, before)


@contextlib.contextmanager
def _attention_recorded(
    model: Any, layers: frozenset[int], into: dict[int, AttentionInputs]
) -> Iterator[None]:
    """Stand in for the model's attention function: note its inputs, and call it."""
    kernel = model.config._attn_implementation
    if kernel not in _RECORDABLE:
        raise ValueError(
            f"attn_implementation: expected {' or '.join(_RECORDABLE)} for an objective on attention, received "
            f"{kernel!r}, whose masks can't be read. Load the model with attn_implementation='sdpa'."
        )
    members: dict[int, int] = {}

    def record(module: Any, query: Any, key: Any, value: Any, mask: Any, *args: Any, **options: Any) -> Any:
        if not members:
            alike = [one for one in model.modules() if type(one) is type(module)]
            members.update({id(one): number for number, one in enumerate(alike, start=1)})
        layer = members.get(id(module))
        if layer in layers and layer not in into:  # of the first forward
            into[layer] = _inputs(module, query, key, value, mask, options)
        return _original(kernel, own, module)(module, query, key, value, mask, *args, **options)

    own = ALL_ATTENTION_FUNCTIONS._local_mapping.get(kernel)
    ALL_ATTENTION_FUNCTIONS[kernel] = record
    try:
        yield
    finally:
        del ALL_ATTENTION_FUNCTIONS[kernel]
        if own is not None:
            ALL_ATTENTION_FUNCTIONS[kernel] = own


def _original(kernel: str, own: Callable[..., Any] | None, module: Any) -> Callable[..., Any]:
    """Return what the model would have called: eager attention lies in the model's own file."""
    if own is not None:
        return own
    registered = ALL_ATTENTION_FUNCTIONS._global_mapping.get(kernel)
    if registered is None:
        registered = vars(sys.modules[type(module).__module__])["eager_attention_forward"]
    return registered


def _inputs(module: Any, query: Any, key: Any, value: Any, mask: Any, options: Any) -> AttentionInputs:
    shared = query.shape[1] // key.shape[1]
    if shared > 1:  # grouped queries
        key, value = key.repeat_interleave(shared, dim=1), value.repeat_interleave(shared, dim=1)
    scaling = options.get("scaling")
    scaling = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    length = query.shape[2]
    if mask is None:
        allowed = torch.ones(query.shape[0], 1, length, length, dtype=torch.bool, device=query.device)
        causal = options.get("is_causal")
        if getattr(module, "is_causal", False) if causal is None else causal:
            allowed = allowed.tril()
    else:
        allowed = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
        allowed = allowed.expand(query.shape[0], -1, -1, -1)[:, :1]
    return AttentionInputs(query, key, value, scaling, allowed.expand(-1, -1, length, -1))
