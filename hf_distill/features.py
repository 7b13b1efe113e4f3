"""What models compute inside, for objectives that match more than logits: hidden states and attention inputs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from hf_distill.attention_inputs import AttentionInputs, attention_recorded, full_precision

Pooling = Literal["cls", "mean", "last"]
POOLINGS = ("cls", "mean", "last")


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a model that feature objectives ask for.

    Args:
        layers: number of layers; hidden state 0 is the embeddings' and ``i`` the output of layer ``i``.
        width: of a hidden state.
        heads: attention heads of a layer.
        cut_from: the teacher's layer (from 0) of each layer, of a student cut from its teacher, else None.
        head_width: of a head's queries, where the config has another one than ``width / heads``, else None.
    """

    layers: int
    width: int
    heads: int
    cut_from: tuple[int, ...] | None = None
    head_width: int | None = None

    @property
    def attention_width(self) -> int:
        """The width of all heads' queries side by side."""
        return self.width if self.head_width is None else self.heads * self.head_width


def shape_of(model: Any, who: str) -> ModelShape:
    """Read a model's sizes from its config.

    Raises:
        ValueError: an encoder-decoder, or a model in stages, which has no one list of layers of one width.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> sizes = dict(vocab_size=9, hidden_size=4, num_attention_heads=1, intermediate_size=4)
        >>> shape_of(BertModel(BertConfig(num_hidden_layers=3, **sizes)), "student")
        ModelShape(layers=3, width=4, heads=1, cut_from=None, head_width=None)
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
    head_width = getattr(config, "head_dim", None)
    layers, width, heads = sizes
    return ModelShape(layers, width, heads, recorded, head_width if isinstance(head_width, int) else None)


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
        return full_precision(self.hidden_states[number][self.attended])

    def pooled(self, number: int, pooling: Pooling) -> torch.Tensor:
        """Return one vector per example, ``(examples, width)``, in float32 or better.

        ``cls`` is the first attended position, ``last`` the last one, ``mean`` the mean over all.
        """
        states, attended = full_precision(self.hidden_states[number]), self.attended
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


@dataclass
class Observation:
    """What was seen of a model's forwards within :func:`observed`."""

    needs: FeatureNeeds
    attention: dict[int, AttentionInputs] = field(default_factory=dict)
    attention_numbers: dict[int, int] = field(default_factory=dict)

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
            found = len(self.attention_numbers)
            reason = (
                f"its layers share {found} attention modules"
                if found
                else "its attention does not go through transformers' AttentionInterface"
            )
            raise ValueError(
                f"attention: expected queries and keys of layers {sorted(missing)} of {type(model).__name__}, received "
                f"none: {reason}. Use hidden_states instead."
            )
        example = next(iter(kept.values()), None)
        length = (
            example.shape[1] if example is not None else next(iter(self.attention.values())).query.shape[2]
        )
        attended = attended_positions(model, batch, length)
        allowed = attended[:, None, None, :]
        inputs = {layer: seen.within(allowed) for layer, seen in self.attention.items()}
        _check_graph(model, inputs)
        return Features(kept, inputs, attended, shape_of(model, type(model).__name__))


def _check_graph(model: Any, inputs: Mapping[int, AttentionInputs]) -> None:
    """Raise where gradient checkpointing ran the layers without a graph, so that nothing would be learnt."""
    trains = torch.is_grad_enabled() and model.training
    if not (trains and inputs) or any(seen.query.requires_grad for seen in inputs.values()):
        return
    checkpointing = getattr(model, "is_activation_checkpointing", None)  # its name since transformers 5.2x
    if checkpointing is None:
        checkpointing = getattr(model, "is_gradient_checkpointing", False)
    if checkpointing:
        raise ValueError(
            "gradient_checkpointing: expected use_reentrant=False for an objective on attention, received True, which "
            "runs the layers without a graph. Set gradient_checkpointing_kwargs={'use_reentrant': False}."
        )


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
        model: a transformers or PEFT model without wrappers; the forward may go through a wrapper.
        needs: what to keep; with nothing, nothing is touched.

    Raises:
        ValueError: an attention kernel that hides queries and masks.
    """
    seen = Observation(needs)
    with contextlib.ExitStack() as stack:
        if needs.hidden_states:
            stack.enter_context(_config_set(model.config, "output_hidden_states", True))
            stack.enter_context(_asked_of_adapters(model))
        if needs.attention:
            stack.enter_context(
                attention_recorded(model, needs.attention, seen.attention, seen.attention_numbers)
            )
        yield seen


@contextlib.contextmanager
def _asked_of_adapters(model: Any) -> Iterator[None]:
    """Ask a PEFT model as well, whose forward hands its own ``output_hidden_states=None`` on over the config."""
    if not hasattr(model, "get_base_model"):
        yield
        return

    def ask(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "output_hidden_states": True}

    hook = model.register_forward_pre_hook(ask, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


@contextlib.contextmanager
def _config_set(config: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(config, name)
    setattr(config, name, value)
    try:
        yield
    finally:
        setattr(config, name, before)
