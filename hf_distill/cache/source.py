"""Whose answers a cache holds: a teacher told by its weights, its settings and how it was asked."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from hf_distill import compatibility
from hf_distill.cache.errors import CacheError
from hf_distill.cache.formats import FullLogits, SignalFormat
from hf_distill.cache.manifest import Source, check_same_settings, tokenizer_hash, weights_hash
from hf_distill.columns import LABEL_COLUMNS
from hf_distill.features import shape_of
from hf_distill.items import chooses, head_of
from hf_distill.teachers.online import OnlineTeacher

#: The dtype of weights in float32 that were computed with in bfloat16.
AUTOCAST = "bfloat16 autocast"
# How far two answers to the same text may differ, relative to the largest logit.
_ALIKE = 5e-2


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
        CacheError: hidden states beside sparse logits, of an encoder-decoder, or of a model without one stack of
            layers.
    """
    signals = signals or FullLogits()
    model: Any = online.model
    config = model.config
    head = head_of(model)
    if head.spans and not isinstance(signals, FullLogits):
        raise CacheError(
            "signals: expected FullLogits of a head that points at spans, whose classes are the positions of each "
            f"text, received {type(signals).__name__}."
        )
    if chooses(model):
        raise CacheError(
            f"teacher: expected a head with the same classes for every example, received {type(model).__name__}, whose "
            "classes are the choices that an example has. Ask it at every step: give the model as the teacher."
        )
    # Its input is made from labels, which it predicts one by one.
    decodes = bool(getattr(config, "is_encoder_decoder", False)) and head.positions and not head.spans
    if decodes and hidden_states:
        raise CacheError(
            f"hidden_states: expected a model of one stack of layers, received {type(model).__name__}, an "
            "encoder-decoder. Keep logits alone."
        )
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
        columns=tuple(
            sorted((online.columns - LABEL_COLUMNS - _ANSWERS_ONLY) | ({"labels"} if decodes else set()))
        ),
        labels=None if tokens or head.spans else names,
        # Of spans each position has two numbers, as a start and as an end.
        classes=2 if head.spans else config.vocab_size if tokens else config.num_labels,
        head=head.meaning,
        signals=signals.describe(),
        hidden_states=tuple(sorted(hidden_states)),
        shape=shape,
        dtype=AUTOCAST if bf16 else str(next(model.parameters()).dtype).removeprefix("torch."),
        attention=getattr(config, "_attn_implementation", None),
        longest=compatibility.longest_input(model),
        settings=_settings_of(config),
        **_ways_of_position(online, head.positions and not decodes),
    )


# Arguments of a forward that say in which form to answer, and no input.
_ANSWERS_ONLY = frozenset(
    "return_dict output_attentions output_hidden_states use_cache past_key_values logits_to_keep cache_position".split()
)


# Settings that no answer in evaluation depends on, or that the manifest has elsewhere.
_NO_SETTING = re.compile(
    r"dropout|initializer|^_|architectures|id2label|label2id|dtype|transformers_version|pad_token_id|problem_type"
    r"|use_cache|return_dict|output_|distilled_from|gradient_checkpointing|attn_implementation|layerdrop|^mask_"
)


def _settings_of(config: Any) -> dict[str, Any]:
    """Return the settings of a config that have no weights and may still change an answer, as plain values."""

    def kept(held: dict[str, Any]) -> dict[str, Any]:
        return {
            name: kept(value) if isinstance(value, dict) else value
            for name, value in sorted(held.items())
            if not _NO_SETTING.search(name)
        }

    plain: dict[str, Any] = json.loads(json.dumps(kept(config.to_diff_dict()), default=str))
    return plain


_PROBED = (5, 8)


@torch.no_grad()
def _ways_of_position(online: OnlineTeacher, by_position: bool) -> dict[str, bool | None]:
    """Find out by two made-up documents how a model counts positions, and whether it keeps packed documents apart."""
    if not {"input_ids", "position_ids"} <= online.columns:
        return {"counts_from_zero": True if "input_ids" in online.columns else None, "isolates": None}
    try:
        return _probe_positions(online, by_position)
    except (
        RuntimeError,
        ValueError,
        TypeError,
        LookupError,
    ):  # it can't read made-up text of ids and positions alone
        return {"counts_from_zero": False, "isolates": None}


def _probe_positions(online: OnlineTeacher, by_position: bool) -> dict[str, bool | None]:
    model: Any = online.model
    device, draw = next(model.parameters()).device, torch.Generator().manual_seed(0)
    classes = model.config.get_text_config().vocab_size
    documents = [torch.randint(classes, (1, length), generator=draw).to(device) for length in _PROBED]
    places = [torch.arange(length, device=device).unsqueeze(0) for length in _PROBED]
    alone = [online.raw_logits({"input_ids": ids}).float() for ids in documents]
    placed = online.raw_logits({"input_ids": documents[0], "position_ids": places[0]}).float()
    counts = _alike(placed, alone[0])
    if not (by_position and counts):
        return {"counts_from_zero": counts, "isolates": None}
    packed = {"input_ids": torch.cat(documents, 1), "position_ids": torch.cat(places, 1)}
    return {
        "counts_from_zero": True,
        "isolates": _alike(online.raw_logits(packed).float(), torch.cat(alone, 1)),
    }


def _alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    largest = float(other.abs().max()) or 1.0
    return float((one - other).abs().max()) <= _ALIKE * largest


def check_same_teacher(source: Source, online: OnlineTeacher, folder: Path) -> None:
    """Raise where a model is not the one that answered: by its weights, its settings, and its precision.

    Raises:
        CacheError: naming both sides.
    """
    own = weights_hash(online.model)
    if own != source.weights:
        raise CacheError(
            f"teacher: expected the one that {folder} was captured from ({source.teacher}, weights "
            f"{source.weights}), received {online.name} (weights {own}). Give that one, or another folder."
        )
    check_same_settings(_settings_of(online.model.config), source.settings, online.name, str(folder))
    dtype = str(next(online.model.parameters()).dtype).removeprefix("torch.")
    if source.dtype != AUTOCAST and source.dtype != dtype:
        raise CacheError(
            f"teacher: expected one that computes in {source.dtype}, as the answers in {folder} were, received "
            f"{online.name} in {dtype}. Load it with dtype={source.dtype!r}, or capture into another folder."
        )


def default_folder(base: str | Path, source: Source) -> Path:
    """Return the folder of a teacher's cache under a base: another teacher, or another format, has another."""
    text = json.dumps(source.identity(), sort_keys=True, default=list)
    return Path(base) / f"cache-{hashlib.blake2b(text.encode(), digest_size=6).hexdigest()}"
