"""Routes the columns of a batch: each model gets what its own forward accepts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from hf_distill.items import IGNORED

TEACHER_PREFIX = "teacher_"
UNLABELLED_ROWS = "unlabelled_rows"
# Tells which positions are items; no forward reads it.
SPECIAL_TOKENS = "special_tokens_mask"
LABEL_COLUMNS = frozenset({"labels", "label", "label_ids", "start_positions", "end_positions"})


def accepted_columns(model: Any) -> frozenset[str]:
    """Return the named arguments of a model's forward; ``**kwargs`` accepts nothing by name.

    Example:
        >>> from transformers import DistilBertModel
        >>> "token_type_ids" in accepted_columns(DistilBertModel)
        False
    """
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(model.forward).parameters
    return frozenset(name for name, p in parameters.items() if p.kind in named) - {"self"}


def columns_for(batch: Mapping[str, Any], accepted: frozenset[str], prefix: str = "") -> dict[str, Any]:
    """Return the columns that a forward accepts, and never a label.

    Args:
        batch: the whole batch.
        accepted: names that the forward accepts.
        prefix: what the names in the batch start with; taken off.

    Example:
        >>> columns_for({"teacher_1_ids": 1, "ids": 2, "labels": 3}, frozenset({"ids", "labels"}), "teacher_1_")
        {'ids': 1}
    """
    wanted = accepted - LABEL_COLUMNS
    return {
        key.removeprefix(prefix): value
        for key, value in batch.items()
        if key.startswith(prefix) and key.removeprefix(prefix) in wanted
    }


def member_prefix(index: int) -> str:
    """Return what the columns of one of several teachers start with, where it reads the text in its own way.

    Example:
        >>> member_prefix(1) + "input_ids"
        'teacher_1_input_ids'
    """
    return f"{TEACHER_PREFIX}{index}_"


@dataclass(frozen=True)
class BatchColumns:
    """Which columns of a batch go to whom.

    Args:
        student: what the student's forward accepts.
        teacher: what the teacher's forward accepts; for an ensemble what any member's does, with its prefix.
        own_encoding: the teacher reads ``teacher_*`` columns instead of the student's.
        own_prefixes: what the columns start with that are there for one member of an ensemble each.
    """

    student: frozenset[str]
    teacher: frozenset[str]
    own_encoding: bool = False
    own_prefixes: tuple[str, ...] = ()

    def for_student(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return a batch without what is there for the teacher alone."""
        # A forward(*args, **kwargs) names nothing, and takes what plain Trainer would give it.
        teacher_only = self.teacher - self.student - LABEL_COLUMNS if self.student else frozenset()
        # What is in labels is in the positions that such a head reads.
        reads_positions = "start_positions" in self.student and "labels" not in self.student
        prefixes = (TEACHER_PREFIX,) if self.own_encoding else self.own_prefixes
        return {
            key: value
            for key, value in batch.items()
            if key != UNLABELLED_ROWS
            and (key != "labels" or not reads_positions)
            and (key != SPECIAL_TOKENS or key in self.student)
            and key not in teacher_only
            and not key.startswith(prefixes)
        }

    def for_teacher(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the columns that the teacher accepts, and never a label."""
        return columns_for(batch, self.teacher, TEACHER_PREFIX if self.own_encoding else "")


@dataclass(frozen=True)
class TeacherEncoding:
    """How one teacher reads the text in its own way.

    Args:
        processing_class: its tokenizer.
        prefix: what its columns start with in the batch.
        max_length: longest encoding that it accepts, in tokens.
    """

    processing_class: Any
    prefix: str = TEACHER_PREFIX
    max_length: int | None = None

    @property
    def reads_text(self) -> bool:
        """Whether it is a tokenizer; of an image or a sound the data collator makes each view itself."""
        names = getattr(self.processing_class, "model_input_names", ())
        return not {"pixel_values", "input_values", "input_features"} & set(names)


@dataclass
class DistillationCollator:
    """Wraps a data collator: encodes the text for the teacher, and marks rows without float labels.

    Marking happens here, on the CPU and in the data loader's workers, so that the training loop
    knows of unlabelled rows by the presence of a key, and never waits for the device to ask.

    Args:
        collator: the collator that makes the student's batch.
        teacher_processing_class: the teacher's tokenizer, where it reads the text in its own way.
        text_columns: the columns it encodes: one, or two for pairs.
        max_length: longest encoding that the teacher accepts, in tokens.
        encodings: those of several teachers, instead of one ``teacher_processing_class``.
        numeric_labels: labels are numbers even where they are integers, as for a regression head.

    Raises:
        ValueError: no text to encode, or a row of which only some labels are NaN.
    """

    collator: Callable[[list[Any]], Any]
    teacher_processing_class: Any = None
    text_columns: tuple[str, ...] = ()
    max_length: int | None = None
    encodings: tuple[TeacherEncoding, ...] = ()
    numeric_labels: bool = False

    def __post_init__(self) -> None:
        """Take the one teacher's tokenizer for the only encoding."""
        if self.teacher_processing_class is not None:
            only = TeacherEncoding(self.teacher_processing_class, TEACHER_PREFIX, self.max_length)
            self.encodings = (only, *self.encodings)

    @property
    def tokenizer(self) -> Any:
        """The wrapped collator's tokenizer, which Trainer saves when it has no processing class."""
        return getattr(self.collator, "tokenizer", None)

    def __call__(self, features: list[Any]) -> Any:
        """Make a batch."""
        encoded: Mapping[str, Any] = {}
        if any(encoding.reads_text for encoding in self.encodings):
            features = [dict(feature) for feature in features]
            encoded = self._encode(features)
        batch = self.collator(features)
        for key, value in encoded.items():
            batch[key] = value
        for encoding in self.encodings:
            if not any(key.startswith(encoding.prefix) for key in batch):
                raise ValueError(
                    f"data_collator: expected it to make the teacher's own view, columns like "
                    f"{encoding.prefix}pixel_values, received {sorted(batch)}. Use "
                    "hf_distill.image_views.ImageViews, or add them in your collator."
                )
        labels = batch.get("labels")
        if isinstance(labels, torch.Tensor) and (self.numeric_labels or labels.is_floating_point()):
            if bool((labels == IGNORED).any()):
                raise ValueError(
                    f"labels: expected NaN for a row without labels, received {IGNORED}, a target where labels "
                    "are numbers. Make the column floats, and mark unlabelled rows with NaN."
                )
            missing = labels.isnan().reshape(labels.shape[0], -1)
            unlabelled = missing.any(-1)
            if not torch.equal(unlabelled, missing.all(-1)):
                row = int((unlabelled & ~missing.all(-1)).nonzero()[0])
                raise ValueError(
                    f"labels: expected a row of labels or a row of NaN (unlabelled), received row {row} of a "
                    f"batch with both: {labels[row].tolist()}. Fill the missing labels, or set all to NaN."
                )
            if unlabelled.any():
                batch[UNLABELLED_ROWS] = unlabelled
        return batch

    def _encode(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Take the teachers' views out of the features: their own columns, or the text encoded now."""
        columns = {column: [f.get(column) for f in features] for column in self.text_columns}
        texts = [rows for rows in columns.values() if any(text is not None for text in rows)]
        views = {
            encoding.prefix + key: value
            for encoding in self.encodings
            if encoding.reads_text
            for key, value in self._view(encoding, features, texts).items()
        }
        for feature in features:
            for column in self.text_columns:
                feature.pop(column, None)
        return views

    def _view(self, encoding: TeacherEncoding, features: list[dict[str, Any]], texts: list[Any]) -> Any:
        """Return what one teacher reads, and take its ready columns out of the features."""
        prefix = encoding.prefix
        ready = [
            {k.removeprefix(prefix): f.pop(k) for k in list(f) if k.startswith(prefix)} for f in features
        ]
        if any(ready):
            return encoding.processing_class.pad(ready, return_tensors="pt")
        if not texts:
            raise ValueError(
                "teacher_processing_class: expected a text column to encode for the teacher "
                f"({' or '.join(self.text_columns)}) or ready {prefix}input_ids, received {sorted(features[0])}. "
                "Keep the text in the dataset, or name its columns in teacher_text_columns."
            )
        return encoding.processing_class(
            *texts, padding=True, truncation=True, max_length=encoding.max_length, return_tensors="pt"
        )
