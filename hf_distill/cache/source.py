"""Whose answers a cache holds: a teacher told by its weights, and compared by what it answers now."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from hf_distill import compatibility
from hf_distill.cache.errors import CacheError
from hf_distill.cache.formats import FullLogits, SignalFormat
from hf_distill.cache.manifest import Source, tokenizer_hash, weights_hash
from hf_distill.columns import LABEL_COLUMNS
from hf_distill.features import shape_of
from hf_distill.items import head_of
from hf_distill.teachers.online import OnlineTeacher

# How far two runs of the same teacher may differ, relative to the largest logit.
_TOLERANCE, _HALF_TOLERANCE = 1e-3, 5e-2


def source_of(
    online: OnlineTeacher,
    revision: str | None = None,
    processing_class: Any = None,
    signals: SignalFormat | None = None,
    hidden_states: Sequence[int] = (),
    bf16: bool = False,
) -> Source:
    """Return what a cache says of a teacher and of how it was asked.

    Raises:
        CacheError: an encoder-decoder, hidden states beside sparse logits, or of a model without one stack of layers.
    """
    signals = signals or FullLogits()
    model: Any = online.model
    config = model.config
    if getattr(config, "is_encoder_decoder", False):
        raise CacheError(
            f"teacher: expected a model whose answer depends on its inputs alone, received {type(model).__name__}, an "
            "encoder-decoder, which reads labels. Ask it online."
        )
    head = head_of(model)
    tokens = compatibility.predicts_tokens(model)
    names = tuple(str(config.id2label[number]) for number in range(config.num_labels))
    shape = None
    if hidden_states:
        if not isinstance(signals, FullLogits):
            raise CacheError("hidden_states: expected full logits beside them, received sparse ones.")
        found = shape_of(model, "teacher")
        shape = {**asdict(found), "cut_from": None if found.cut_from is None else list(found.cut_from)}
        if max(hidden_states) > found.layers or min(hidden_states) < 0:
            raise CacheError(
                f"hidden_states: expected numbers from 0 to {found.layers}, received {list(hidden_states)}."
            )
    return Source(
        teacher=online.name,
        revision=revision or getattr(config, "_commit_hash", None),
        weights=weights_hash(model),
        tokenizer=None if processing_class is None else tokenizer_hash(processing_class),
        columns=tuple(sorted(online.columns - LABEL_COLUMNS - _ANSWERS_ONLY)),
        labels=None if tokens else names,
        classes=config.vocab_size if tokens else config.num_labels,
        head={"kind": head.kind, "positions": head.positions},
        signals=signals.describe(),
        hidden_states=tuple(sorted(hidden_states)),
        shape=shape,
        dtype="bfloat16 autocast" if bf16 else str(next(model.parameters()).dtype).removeprefix("torch."),
        attention=getattr(config, "_attn_implementation", None),
        longest=compatibility.longest_input(model),
    )


# Arguments of a forward that say in which form to answer, and no input.
_ANSWERS_ONLY = frozenset(
    "return_dict output_attentions output_hidden_states use_cache past_key_values logits_to_keep cache_position".split()
)


def check_same_weights(source: Source, online: OnlineTeacher, folder: Path) -> None:
    """Raise where a model is not the one that answered, by its weights.

    Raises:
        CacheError: naming both hashes.
    """
    own = weights_hash(online.model)
    if own != source.weights:
        raise CacheError(
            f"teacher: expected the one that {folder} was captured from ({source.teacher}, weights "
            f"{source.weights}), received {online.name} (weights {own}). Give that one, or another folder."
        )


def check_same_answers(source: Source, kept: torch.Tensor, now: torch.Tensor, folder: Path) -> None:
    """Raise where a model answers otherwise than it did.

    Args:
        source: of the cache.
        kept: logits of some rows from the cache.
        now: what the model says of them.
        folder: of the cache.

    Raises:
        CacheError: naming both answers.
    """
    exact = source.dtype in ("float32", "float64") and source.signals.get("dtype") == "float32"
    tolerance = (_TOLERANCE if exact else _HALF_TOLERANCE) * max(float(now.abs().max()), 1.0)
    differs = (kept.float() - now.float()).abs().flatten(1).amax(-1) > tolerance
    if bool(differs.any()):
        row = int(differs.nonzero()[0])
        raise CacheError(
            f"{folder}: expected the teacher to answer as it did, received {now[row].flatten()[:4].tolist()} for "
            f"{kept[row].flatten()[:4].tolist()} in row {row}: other inputs or another precision. Capture anew."
        )


def default_folder(base: str | Path, source: Source) -> Path:
    """Return the folder of a teacher's cache under a base: another teacher, or another format, has another."""
    text = json.dumps(source.identity(), sort_keys=True, default=list)
    return Path(base) / f"cache-{hashlib.blake2b(text.encode(), digest_size=6).hexdigest()}"
