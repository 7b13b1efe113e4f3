"""Sounds of one class each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch
from datasets import Dataset, DatasetDict
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
)

from hf_distill.corpora.sounds import RATE, hub_sounds, name_pattern, read_sounds, tones
from hf_distill.evaluation.measures import Measure
from hf_distill.evaluation.metrics import ClassificationMeasure
from hf_distill.tasks.bert_models import attention_heads, check_widths, initializer_range, label_names
from hf_distill.tasks.data_arguments import DataArguments, check_sources, complete, given_files, hub_splits
from hf_distill.tasks.model_arguments import ModelArguments, sizes_of
from hf_distill.tasks.task import Role, Task
from hf_distill.tasks.text_classification import summed_loss

# Bands of a spectrogram, frames of 10 ms and the patches of them that are a token.
_BANDS, _PATCH = 32, 8


@dataclass
class SoundDataArguments(DataArguments):
    """Which sounds to train and report on; without any of them tones made on the spot."""

    train_file: str | None = field(
        default=None,
        metadata={
            "help": "A folder with your training sounds, a folder for each class, or train/ and test/ above "
            "these. Default: built-in tones"
        },
    )
    validation_file: str | None = field(
        default=None,
        metadata={"help": "A folder of validation sounds. Default: a tenth of the training sounds"},
    )
    test_file: str | None = field(
        default=None, metadata={"help": "A folder of sounds to report on. Default: the validation sounds"}
    )
    audio_column: str = field(
        default="audio", metadata={"help": "The column of a Hub data set with the sound"}
    )
    label_column: str = field(
        default="label", metadata={"help": "The column of a Hub data set with the class"}
    )
    label_pattern: str | None = field(
        default=None,
        metadata={"help": "The class is in a file's name: a pattern with it as its group, '([0-9])_'"},
    )
    test_pattern: str | None = field(
        default=None,
        metadata={"help": "Files of the training folder to report on, by a pattern of their names"},
    )
    sampling_rate: int = field(
        default=RATE, metadata={"help": "Samples per second that models made here read"}
    )
    max_seconds: float = field(default=0.5, metadata={"help": "Sounds are cut at this length"})


@dataclass
class SoundModelArguments(ModelArguments):
    """Which teacher and student of sounds; sizes are those of models trained from random weights."""

    teacher_layers: int = field(default=3, metadata={"help": "Layers of a teacher trained here"})
    teacher_width: int = field(default=192, metadata={"help": "Width of a teacher trained here"})
    teacher_epochs: float = field(default=30.0, metadata={"help": "Epochs of a teacher trained here"})
    teacher_batch_size: int = field(
        default=32, metadata={"help": "Sounds per step of a teacher trained here"}
    )
    student_layers: int = field(default=1, metadata={"help": "Layers of a student from random weights"})
    student_width: int = field(default=64, metadata={"help": "Width of a student from random weights"})


class AudioClassification(Task):
    """Audio spectrogram transformers, wav2vec2 and the like."""

    name = "audio_classification"
    auto_class = AutoModelForAudioClassification
    data_arguments = SoundDataArguments
    model_arguments = SoundModelArguments
    metrics = ("accuracy", "macro_f1", "matthews", "calibration_error")
    counted = "sounds"
    teacher_loss = staticmethod(summed_loss)

    def load(self) -> DatasetDict:
        """Return sounds: built in, or folders of the user's."""
        data = self.data
        check_sources(data)
        if data.dataset_name:
            columns = (data.audio_column, data.label_column)
            return complete(
                hub_sounds(hub_splits(data), data.dataset_name, data.sampling_rate, *columns), data
            )
        if not data.train_file:
            return complete(tones(), data)
        splits = read_sounds(given_files(data), data.sampling_rate, data.label_pattern)
        if data.test_pattern:
            whole = splits["train"]
            pattern = name_pattern(data.test_pattern, "--test_pattern")
            told = [bool(pattern.search(name)) for name in whole["file"]]
            splits["test"] = whole.select([row for row, is_test in enumerate(told) if is_test])
            splits["train"] = whole.select([row for row, is_test in enumerate(told) if not is_test])
            if not len(splits["test"]) or not len(splits["train"]):
                raise ValueError(
                    f"--test_pattern: expected one that some of the files match, received {data.test_pattern!r}, which "
                    f"{sum(told)} of {len(told)} do."
                )
        return complete(splits, data)

    def label_names(self, splits: DatasetDict) -> list[str]:
        """Return the names of the classes."""
        return label_names(splits)

    @property
    def encoding(self) -> dict[str, Any]:
        """Rate and length."""
        return {"sampling_rate": self.data.sampling_rate, "max_seconds": self.data.max_seconds}

    def encode(
        self, rows: Dataset, processor: Any, keep_raw: bool = False, training: bool = False
    ) -> Dataset:
        """Make what models read of a sound."""
        longest = int(self.data.max_seconds * self.data.sampling_rate)

        def extract(batch: dict[str, list[Any]]) -> dict[str, Any]:
            sounds = [numpy.asarray(one, dtype=numpy.float32)[:longest] for one in batch["audio"]]
            return {
                **dict(processor(sounds, sampling_rate=self.data.sampling_rate)),
                "labels": batch["label"],
            }

        return rows.map(
            extract, batched=True, batch_size=100, remove_columns=rows.column_names, desc="Listening"
        )

    def collator(
        self, processor: Any, teacher_processors: Sequence[Any] = (), labelled: bool = True
    ) -> Callable[[list[Any]], Any]:
        """Stack spectrograms, and pad waveforms as their processor does."""
        return SoundCollator(processor)

    def new_processor(self, splits: DatasetDict) -> Any:
        """Return an extractor of spectrograms whose scale is that of the training sounds."""
        frames = max(int(self.data.max_seconds * 100) // _PATCH, 1) * _PATCH
        sizes = {"sampling_rate": self.data.sampling_rate, "num_mel_bins": _BANDS, "max_length": frames}
        few = [numpy.asarray(one, dtype=numpy.float32) for one in splits["train"][:100]["audio"]]
        plain = ASTFeatureExtractor(**sizes, do_normalize=False)
        seen = numpy.asarray(plain(few, sampling_rate=self.data.sampling_rate)["input_values"])
        # The extractor divides by twice the deviation.
        return ASTFeatureExtractor(**sizes, mean=float(seen.mean()), std=float(seen.std() / 2))

    def load_processor(self, name: str, revision: str | None = None) -> Any:
        """Return the feature extractor of a named model.

        Raises:
            ValueError: where there is none, or one for another rate.
        """
        try:
            processor = AutoFeatureExtractor.from_pretrained(name, revision=revision or "main")
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{name!r}: expected a feature extractor beside the model, received none "
                f"({str(error).splitlines()[0]}). Save the one it was trained with there."
            ) from error
        if processor.sampling_rate != self.data.sampling_rate:
            raise ValueError(
                f"--sampling_rate: expected {processor.sampling_rate}, which {name!r} was trained with, received "
                f"{self.data.sampling_rate}. Sounds are resampled to it."
            )
        return processor

    def read_alike(self, one: Any, other: Any) -> bool:
        """Whether two extractors have the same settings."""
        return bool(one.to_dict() == other.to_dict())

    def new_model(self, role: Role, splits: DatasetDict, processor: Any) -> Any:
        """Return an audio spectrogram transformer."""
        layers, width, dropout = sizes_of(self.models, role)
        names = self.label_names(splits)
        if not hasattr(processor, "num_mel_bins"):
            raise ValueError(
                "student: expected a teacher that reads spectrograms, as a student made here does, received one with a "
                f"{type(processor).__name__}. Cut a student out of it (--student_num_hidden_layers), or name one."
            )
        labels: dict[str, Any] = {"id2label": dict(enumerate(names))}
        labels["label2id"] = {name: number for number, name in enumerate(names)}
        return ASTForAudioClassification(
            ASTConfig(
                hidden_size=width, num_hidden_layers=layers, num_attention_heads=attention_heads(width),
                intermediate_size=4 * width, hidden_dropout_prob=dropout, initializer_range=initializer_range(width),
                patch_size=_PATCH, frequency_stride=_PATCH, time_stride=_PATCH, num_mel_bins=_BANDS,
                max_length=processor.max_length, **labels,
            )
        )  # fmt: skip

    def check(self, args: Any) -> None:
        """Raise for widths and lengths that can't be."""
        check_widths(self.models)
        if not math.inf > self.data.max_seconds >= _PATCH / 100:
            raise ValueError(
                f"--max_seconds: expected a number of at least {_PATCH / 100}, received {self.data.max_seconds}."
            )

    def measure(self, rows: Dataset, encoded: Dataset, processor: Any) -> Measure:
        """Accuracy, macro F1, Matthews correlation and calibration."""
        return ClassificationMeasure()

    def reached(self, rows: Dataset, encoded: Dataset) -> dict[str, int]:
        """Return how many sounds are longer than what is read of them."""
        longest = int(self.data.max_seconds * self.data.sampling_rate)
        return {"max_seconds": sum(len(sound) > longest for sound in rows.with_format("numpy")["audio"])}

    def lengths(self, encoded: Dataset) -> list[int]:
        """All spectrograms are as long."""
        return []

    def timed_inputs(self, encoded: Dataset, processor: Any) -> list[dict[str, torch.Tensor]]:
        """Return some sounds, one by one."""
        collate = self.collator(processor)
        batches = [collate([encoded[index]]) for index in range(min(5, len(encoded)))]
        return [{name: value for name, value in batch.items() if name != "labels"} for batch in batches]


@dataclass
class SoundCollator:
    """Makes a batch of what a feature extractor gave.

    Args:
        processor: pads where sounds have other lengths.
    """

    processor: Any

    def __call__(self, features: list[Any]) -> dict[str, torch.Tensor]:
        """Make a batch."""
        labels = torch.tensor([feature["labels"] for feature in features])
        inputs = [{name: value for name, value in one.items() if name != "labels"} for one in features]
        lengths = {len(next(iter(one.values()))) for one in inputs}
        if len(lengths) > 1:
            return {**dict(self.processor.pad(inputs, return_tensors="pt")), "labels": labels}
        names = inputs[0]
        stacked = {
            name: torch.from_numpy(numpy.stack([numpy.asarray(one[name]) for one in inputs]))
            for name in names
        }
        floats = {
            name: value.float() if value.is_floating_point() else value for name, value in stacked.items()
        }
        return {**floats, "labels": labels}
