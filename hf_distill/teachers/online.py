"""A teacher that is a model: frozen, in eval mode, asked batch by batch."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import nn

from hf_distill.columns import accepted_columns
from hf_distill.features import FeatureNeeds, observed
from hf_distill.spans import span_logits, without_padding
from hf_distill.teachers.signals import DenseSignals, TeacherSignals

_AUTO_CLASSES = tuple(
    name for name in dir(transformers) if name.startswith("AutoModelFor") and not name.endswith("Backbone")
)


class OnlineTeacher:
    """One model as a teacher.

    Its parameters are frozen and it stays in eval mode. It runs under ``no_grad``, without a
    key-value cache, and never sees a label: an encoder-decoder gets decoder inputs made from them.

    Args:
        model: any model whose output has ``logits``.
        name: the Hub id or folder it came from, or None.
        label_order: ``label_order[c]`` is the teacher's index of the student's class ``c``.
        autocast: makes the context the forward runs in, e.g. ``accelerator.autocast``.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
        >>> model = BertForSequenceClassification(BertConfig(vocab_size=10, num_labels=3, **sizes))
        >>> OnlineTeacher(model)({"input_ids": torch.tensor([[1, 2]])}).logits.shape
        torch.Size([1, 3])
    """

    provides = frozenset({"logits", "log_probs", "features", "input_gradient"})
    # What the trainer's active objectives ask for, besides logits.
    feature_needs = FeatureNeeds()

    def __init__(
        self,
        model: nn.Module,
        name: str | None = None,
        label_order: list[int] | None = None,
        autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    ) -> None:
        self.model = model.requires_grad_(False).eval()
        self.name = name or getattr(model, "name_or_path", "") or type(model).__name__
        self.columns = accepted_columns(model)
        self.label_order = label_order
        self.autocast = autocast
        self._order: torch.Tensor | None = None

    def to(self, device: torch.device) -> OnlineTeacher:
        """Move the weights, unless they were placed by a device map or are quantised."""
        placed = getattr(self.model, "hf_device_map", None) or getattr(self.model, "is_quantized", False)
        if not placed:
            self.model.to(device)
        return self

    def __call__(self, batch: dict[str, Any]) -> TeacherSignals:
        """Answer for a batch whose columns this model accepts; ``labels`` only feed a decoder."""
        with torch.no_grad(), observed(self.model, self.feature_needs) as seen:
            logits, outputs, inputs = self._run(batch)
        return DenseSignals(logits, seen.features(self.model, outputs, inputs))

    def raw_logits(self, batch: dict[str, Any]) -> torch.Tensor:
        """Return the logits of a batch in the current grad mode, for a derivative to the model's input."""
        return self._run(batch)[0]

    def _run(self, batch: dict[str, Any]) -> tuple[torch.Tensor, Any, dict[str, Any]]:
        """Return the logits in the student's order of classes, all outputs, and what the model was given."""
        if self.model.training:
            self.model.eval()
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        add_decoder_inputs(self.model, inputs, batch.get("labels"))
        if "use_cache" in self.columns:
            inputs["use_cache"] = False
        with self.autocast():
            outputs = self.model(**inputs)
        logits = logits_of(outputs, "teacher", inputs)
        if self.label_order is not None:
            if self._order is None or self._order.device != logits.device:
                self._order = torch.tensor(self.label_order, device=logits.device)
            logits = logits.index_select(-1, self._order)
        return logits, outputs, inputs


def decoder_input_maker(model: Any) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """Return what makes an encoder-decoder's decoder inputs of labels; None for a model without such inputs.

    Example:
        >>> from transformers import T5Config, T5ForConditionalGeneration
        >>> sizes = dict(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=1, vocab_size=9)
        >>> model = T5ForConditionalGeneration(T5Config(decoder_start_token_id=0, pad_token_id=0, **sizes))
        >>> decoder_input_maker(model)(torch.tensor([[5, 6, -100]])).tolist()
        [[0, 5, 6]]
    """
    prepare = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if prepare is not None:
        return lambda labels: prepare(labels=labels)
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()
    # M2M-100, NLLB-MoE, Blenderbot and SeamlessM4T shift labels in their forward, and offer no method for it. Heads
    # that classify, BART's among them, make their decoder's input of the text.
    shift = getattr(sys.modules[type(model).__module__], "shift_tokens_right", None)
    if shift is None or not type(model).__name__.endswith(("ForConditionalGeneration", "ForTextToText")):
        return None
    config = model.config
    return lambda labels: shift(labels, config.pad_token_id, config.decoder_start_token_id)


def add_decoder_inputs(model: Any, inputs: dict[str, Any], labels: torch.Tensor | None) -> None:
    """Give an encoder-decoder its decoder inputs, made from labels that it must not see itself."""
    if labels is None or "decoder_input_ids" in inputs:
        return
    make = decoder_input_maker(model)
    if make is not None:
        inputs["decoder_input_ids"] = make(labels)


def logits_of(outputs: Any, who: str, inputs: Mapping[str, Any] | None = None) -> torch.Tensor:
    """Return the logits of a model's output, or say what the output holds instead.

    Args:
        outputs: of a model's forward.
        who: gave it, for the message.
        inputs: what the model was given: of starts and ends of spans, padding is ruled out by it.

    Raises:
        ValueError: an output without logits.
    """
    spans = span_logits(outputs)
    if spans is not None:
        return spans if inputs is None else without_padding(spans, inputs)
    logits = outputs.get("logits") if isinstance(outputs, dict) else getattr(outputs, "logits", None)
    if logits is None and isinstance(outputs, tuple) and outputs:
        logits = outputs[1] if outputs[0].dim() == 0 and len(outputs) > 1 else outputs[0]
    if not isinstance(logits, torch.Tensor):
        held = list(outputs) if isinstance(outputs, dict) else type(outputs).__name__
        raise ValueError(
            f"{who}: expected an output with one tensor of logits, received {held}. Use a model with a "
            "classification or language-modelling head, like AutoModelForSequenceClassification."
        )
    return logits


def load_teacher_model(
    name: str | Path,
    student: nn.Module,
    revision: str | None = None,
    dtype: str | None = None,
    attn_implementation: str | None = None,
) -> nn.Module:
    """Load a teacher by Hub id or folder, with the kind of head that the student has.

    Args:
        name: a Hub id or a folder written by ``save_pretrained``.
        student: decides the Auto class.
        revision: branch, tag or commit.
        dtype: ``auto`` (default), or a torch dtype's name.
        attn_implementation: attention kernel.

    Raises:
        ValueError: a folder or id that is not there, or a model whose head was never trained.
    """
    options = loading_options(revision, dtype, attn_implementation)
    return load_trained_model(name, _auto_class(student), **options)


def loading_options(
    revision: str | None = None, dtype: str | None = None, attn_implementation: str | None = None
) -> dict[str, Any]:
    """Return what ``from_pretrained`` is told of a teacher; the arguments are those of :func:`load_teacher_model`.

    Raises:
        ValueError: a dtype that is none.

    Example:
        >>> loading_options("main", "bfloat16")
        {'dtype': 'bfloat16', 'revision': 'main'}
    """
    kind = getattr(torch, dtype or "float32", None)
    if dtype != "auto" and not (isinstance(kind, torch.dtype) and kind.is_floating_point):
        raise ValueError(
            f"teacher_dtype: expected auto, float32, bfloat16, float16 or float64, received {dtype!r}."
        )
    options: dict[str, Any] = {"dtype": dtype or "auto"}
    if revision is not None:
        options["revision"] = revision
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    return options


def load_trained_model(name: str | Path, auto_class: Any, **options: Any) -> Any:
    """Load a teacher whose weights are all there, its head's included.

    Args:
        name: a Hub id or a folder written by ``save_pretrained``.
        auto_class: the Auto class of its head, such as ``AutoModelForSequenceClassification``.
        options: passed to ``from_pretrained``.

    Raises:
        ValueError: a folder or id that is not there, weights that can't be read, or a model whose head was never
            trained.
    """
    expected = (
        f"teacher: expected the id of a Hub model or a folder with a saved model, received {str(name)!r}"
    )
    if not Path(name).expanduser().is_dir() and (
        str(name).startswith((".", "/", "~")) or str(name).count("/") > 1
    ):
        raise ValueError(f"{expected}, a folder that is not there.")
    try:
        model, loading = auto_class.from_pretrained(str(name), output_loading_info=True, **options)
    except SafetensorError as error:
        raise ValueError(
            f"{expected}, whose weights can't be read ({error}). Save or download it again."
        ) from error
    except (OSError, ValueError, RuntimeError) as error:
        # RuntimeError: weights of other shapes than its config says.
        raise ValueError(f"{expected}: {str(error).splitlines()[0]}") from error
    missing = sorted(loading["missing_keys"])
    if missing:
        raise ValueError(
            f"teacher: {str(name)!r} has no trained weights for {', '.join(missing[:4])}; a head that was never "
            "trained has nothing to teach. Fine-tune the teacher on the task first."
        )
    _check_head(model, auto_class, str(name))
    return model


def _check_head(model: Any, auto_class: Any, name: str) -> None:
    """Raise where a model was saved with the head of another task: the weights of some fit each other by name."""
    saved = {str(one) for one in getattr(model.config, "architectures", None) or ()}
    wanted = {one.__name__ for one in _classes(auto_class, model.config)}
    # Models before any task have the head of masked ones, and more.
    tasks = (getattr(transformers, other) for other in _AUTO_CLASSES if other != "AutoModelForPreTraining")
    others = {one.__name__ for task in tasks for one in _classes(task, model.config)}
    if wanted and not saved & wanted and saved & others:  # none wanted: code of its own, from the Hub
        raise ValueError(
            f"teacher: expected {name!r} to be a {' or '.join(sorted(wanted))}, received a "
            f"{', '.join(sorted(saved))}, which was trained for another task. Name a teacher that was fine-tuned on "
            "this one."
        )


def _classes(auto_class: Any, config: Any) -> tuple[Any, ...]:
    """Return the classes that an Auto class builds of a configuration, of which most have one."""
    mapping = getattr(auto_class, "_model_mapping", None)
    if mapping is None or type(config) not in mapping:
        return ()
    found = mapping[type(config)]
    return found if isinstance(found, tuple) else (found,)


def _auto_class(student: nn.Module) -> Any:
    """Return the Auto class that builds models with the student's kind of head."""
    base = student.get_base_model() if hasattr(student, "get_base_model") else student  # type: ignore[operator]
    for name in _AUTO_CLASSES:
        auto_class = getattr(transformers, name)
        if type(base) in _classes(auto_class, getattr(base, "config", None)):
            return auto_class
    raise ValueError(
        f"teacher: no Auto class has the head of {type(base).__name__}, so a teacher can't be loaded by name. "
        "Load it yourself, and give the model as teacher."
    )
