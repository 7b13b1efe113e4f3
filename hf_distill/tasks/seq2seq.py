"""Encoder-decoders that write an answer to a text."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset, DatasetDict
from transformers import (
    AutoModelForSeq2SeqLM,
    DataCollatorForSeq2Seq,
    LogitsProcessorList,
)

from hf_distill.cache.manifest import weights_hash
from hf_distill.corpora.plain_text import completions, read_completions
from hf_distill.corpora.signatures import docstring_signatures
from hf_distill.evaluation.generation import HEADLINES, GenerationMeasure
from hf_distill.evaluation.measures import Measure
from hf_distill.evaluation.writing import MixedWriting, Writer, mixture_of, read_of
from hf_distill.items import IGNORED
from hf_distill.seq2seq import DistillationSeq2SeqTrainer
from hf_distill.students import student_from_teacher
from hf_distill.tasks.bert_models import check_widths
from hf_distill.tasks.byte_pairs import train_byte_pairs
from hf_distill.tasks.data_arguments import DataArguments, check_sources, complete, given_files, hub_splits
from hf_distill.tasks.model_arguments import ModelArguments, sizes_of
from hf_distill.tasks.seq2seq_models import bart_config, t5_config
from hf_distill.tasks.task import Role, Task
from hf_distill.tasks.teacher_answers import TeacherAnswers

_FLAGS = ("source_column", "target_column")


@dataclass
class PairDataArguments(DataArguments):
    """Which texts and answers to train and report on; without any of them docstrings and signatures."""

    train_file: str | None = field(
        default=None,
        metadata={"help": "Your training pairs: CSV, JSON lines or Parquet. Default: built-in docstrings"},
    )
    source_column: str = field(default="source", metadata={"help": "The column with the text that is read"})
    target_column: str = field(
        default="target", metadata={"help": "The column with the text that is written"}
    )
    source_prefix: str = field(
        default="", metadata={"help": "Put before each text, as T5 wants: 'summarize: '"}
    )
    max_source_length: int = field(default=96, metadata={"help": "Texts are cut at this many tokens"})
    max_target_length: int = field(default=32, metadata={"help": "Answers are cut at this many tokens"})
    headline: str = field(
        default="rouge_l",
        metadata={"help": "The metric that students are compared by", "choices": list(HEADLINES)},
    )
    sequence_level: bool = field(
        default=False,
        metadata={
            "help": "The distilled student learns what the teacher writes in place of the answers (sequence-level "
            "distillation); it is written once and kept"
        },
    )
    sequence_level_beams: int = field(default=4, metadata={"help": "Beams of the teacher that writes for it"})


@dataclass
class PairModelArguments(ModelArguments):
    """Which teacher and student; encoder and decoder are as deep as each other unless cut apart."""

    model_kind: str = field(
        default="bart",
        metadata={
            "help": "The architecture of models trained here; from random weights T5 learns to copy words much later",
            "choices": ["bart", "t5"],
        },
    )
    vocabulary_size: int = field(default=2000, metadata={"help": "Vocabulary of a tokenizer trained here"})
    teacher_layers: int = field(default=2, metadata={"help": "Layers of each half of a teacher trained here"})
    teacher_width: int = field(default=128, metadata={"help": "Width of a teacher trained here"})
    teacher_epochs: float = field(default=10.0, metadata={"help": "Epochs of a teacher trained here"})
    teacher_batch_size: int = field(
        default=16, metadata={"help": "Pairs per step and process of a teacher trained here"}
    )
    teacher_learning_rate: float = field(
        default=1e-3, metadata={"help": "Learning rate of a teacher trained here"}
    )
    student_layers: int = field(default=1, metadata={"help": "Layers of each half of a student made here"})
    student_width: int = field(default=64, metadata={"help": "Width of a student from random weights"})
    student_dropout: float = field(default=0.0, metadata={"help": "Dropout of a student from random weights"})
    student_encoder_layers: int | None = field(
        default=None,
        metadata={"help": "Cut the student out of the (first) teacher: so many layers of its encoder"},
    )
    student_decoder_layers: int | None = field(
        default=None, metadata={"help": "And so many layers of its decoder"}
    )


class SequenceToSequence(Task):
    """T5-, BART- and the like models, compared by what they write."""

    name = "seq2seq"
    auto_class = AutoModelForSeq2SeqLM
    limits = {"input_ids": "max_source_length", "labels": "max_target_length"}  # noqa: RUF012
    data_arguments = PairDataArguments
    model_arguments = PairModelArguments
    trainer_class = DistillationSeq2SeqTrainer
    metrics = HEADLINES

    def load(self) -> DatasetDict:
        """Return pairs: built in, the user's files or a Hub data set."""
        data = self.data
        check_sources(data)
        if data.train_file:
            columns = (data.source_column, data.target_column)
            splits = read_completions(given_files(data), *columns, flags=_FLAGS)
        elif data.dataset_name:
            splits = DatasetDict(
                {
                    name: completions(
                        rows,
                        f"{data.dataset_name} ({name})",
                        data.source_column,
                        data.target_column,
                        name != "train",
                        _FLAGS,
                    )
                    for name, rows in hub_splits(data).items()
                }
            )
        else:
            splits = docstring_signatures()
        return complete(splits, data)

    def fill_in(self) -> None:
        """Take one number of layers for both halves, where only one is given."""
        models = self.models
        if models.student_num_hidden_layers is not None:
            models.student_encoder_layers = models.student_encoder_layers or models.student_num_hidden_layers
            models.student_decoder_layers = models.student_decoder_layers or models.student_num_hidden_layers
        if models.student_encoder_layers and models.student_decoder_layers:
            models.student_num_hidden_layers = models.student_encoder_layers

    def check(self, args: Any) -> None:
        """Raise for half a cut, and an order in which texts could not be compared."""
        models = self.models
        if (models.student_encoder_layers is None) != (models.student_decoder_layers is None):
            raise ValueError(
                "expected --student_encoder_layers and --student_decoder_layers, received one of them. Give both, or "
                "--student_num_hidden_layers for as many of each."
            )
        if args.train_sampling_strategy == "group_by_length" and args.eval_strategy != "no":
            raise ValueError(
                "--train_sampling_strategy: expected random or sequential beside --eval_strategy, since texts are "
                "compared with their references in order, received group_by_length. Set random."
            )
        check_widths(models)

    @property
    def encoding(self) -> dict[str, Any]:
        """Lengths and prefix."""
        data = self.data
        lengths = {"source": data.max_source_length, "target": data.max_target_length}
        return {**lengths, "prefix": data.source_prefix}

    def encode(
        self, rows: Dataset, processor: Any, keep_raw: bool = False, training: bool = False
    ) -> Dataset:
        """Tokenize texts and answers, each with an end."""
        data = self.data

        def tokenize(batch: dict[str, list[Any]]) -> dict[str, Any]:
            sources = [data.source_prefix + text for text in batch["prompt"]]
            encoded = processor(sources, truncation=True, max_length=data.max_source_length)
            targets = processor(
                text_target=batch["completion"], truncation=True, max_length=data.max_target_length
            )
            read = {name: encoded[name] for name in ("input_ids", "attention_mask")}
            return {**read, "labels": targets["input_ids"]}

        return rows.map(tokenize, batched=True, remove_columns=rows.column_names, desc="Tokenizing")

    def collator(
        self, processor: Any, teacher_processors: Sequence[Any] = (), labelled: bool = True
    ) -> Callable[[list[Any]], Any]:
        """Pad both, the labels with -100."""
        return DataCollatorForSeq2Seq(processor)

    def new_processor(self, splits: DatasetDict) -> Any:
        """Train a byte-level tokenizer on texts and answers, which ends each of them."""
        train = splits["train"]
        texts = (text for name in ("prompt", "completion") for text in train[name])
        return train_byte_pairs(texts, self.models.vocabulary_size, ends=True, longest=self._longest)

    @property
    def _longest(self) -> int:
        return max(self.data.max_source_length, self.data.max_target_length)

    def new_model(self, role: Role, splits: DatasetDict, processor: Any) -> Any:
        """Return a BART or a T5."""
        layers, width, dropout = sizes_of(self.models, role)
        config = (bart_config if self.models.model_kind == "bart" else t5_config)(
            layers, width, processor, self._longest, dropout
        )
        model = self.auto_class.from_config(config)
        model.generation_config.max_length = self.data.max_target_length
        return model

    def make_student(self, teacher: Any, splits: DatasetDict, processor: Any) -> Any:
        """Return a student, perhaps of some layers of the teacher's encoder and others of its decoder."""
        models = self.models
        if models.student_encoder_layers is None:
            return super().make_student(teacher, splits, processor)
        layers = {"encoder": models.student_encoder_layers, "decoder": models.student_decoder_layers}
        return student_from_teacher(teacher, num_hidden_layers=layers)

    def measure(self, rows: Dataset, encoded: Dataset, processor: Any) -> Measure:
        """ROUGE-L, BLEU and exact match of what is written."""
        several = "references" in rows.column_names
        references = rows["references"][:] if several else [[text] for text in rows["completion"]]
        return GenerationMeasure(processor, references, self.data.headline)

    def teacher_answers(self, trainer: Any, teachers: list[Any]) -> list[TeacherAnswers]:
        """Let the teachers write, as their students did: all together, and each."""
        args, processor = trainer.args, trainer.processing_class

        def written(teacher: Any, ensemble: Any = None) -> Any:
            given = {"data_collator": self.collator(processor), "processing_class": processor}
            return Writer(teacher, args, ensemble, **given).predict(trainer.eval_dataset).predictions

        each = [written(teacher) for teacher in teachers]
        together = each[0] if len(each) == 1 else written(teachers[0], self._mixture(teachers, args))
        return [TeacherAnswers(together), *map(TeacherAnswers, each)]

    def _mixture(self, teachers: list[Any], args: Any) -> Any:
        combine = args.teacher_combine or "probabilities"
        return mixture_of(teachers, args.teacher_weights, combine, args.device)

    def taught_rows(
        self, rows: Dataset, teachers: list[Any], processor: Any, args: Any, say: Callable[[str], None]
    ) -> Dataset | None:
        """Return the training texts with what the teacher writes to them, where that is wanted.

        Source: Kim and Rush 2016, Sequence-Level Knowledge Distillation, arXiv 1606.07947, section 3.2.
        """
        if not self.data.sequence_level:
            return None
        path = self._kept_writing(rows, teachers, args)
        state = PartialState()
        with state.main_process_first():
            if not path.is_file():
                say(f"Teacher: writing answers to {len(rows):,} texts into {path} ...")
                texts = self._written(rows, teachers, processor, args)
                unfinished = path.with_suffix(".unfinished")
                unfinished.write_text(json.dumps(texts, ensure_ascii=False), encoding="utf-8")
                os.replace(unfinished, path)
            else:
                say(f"Teacher: its answers are kept from an earlier run in {path}")
        texts = json.loads(path.read_text(encoding="utf-8"))
        return Dataset.from_dict({"prompt": rows["prompt"][:], "completion": texts})

    def _kept_writing(self, rows: Dataset, teachers: list[Any], args: Any) -> Path:
        who: list[Any] = [weights_hash(teacher) for teacher in teachers]
        if len(teachers) > 1:
            who += [args.teacher_weights, args.teacher_combine]
        described = json.dumps([*who, self.encoding, self.data.sequence_level_beams, rows["prompt"][:]])
        digest = hashlib.blake2b(described.encode(), digest_size=6).hexdigest()
        return Path(str(args.output_dir)) / f"written-{digest}.json"

    @torch.no_grad()
    def _written(self, rows: Dataset, teachers: list[Any], processor: Any, args: Any) -> list[str]:
        """Return what teachers write to each text, the longest first so that batches are alike."""
        encoded, collate = self.encode(rows, processor), self.collator(processor)
        order = sorted(range(len(encoded)), key=lambda row: -len(encoded[row]["input_ids"]))
        texts = [""] * len(rows)
        ensemble = self._mixture(teachers, args) if len(teachers) > 1 else None
        teachers[0].to(args.device).eval()
        size = args.per_device_eval_batch_size
        for start in range(0, len(order), size):
            places = order[start : start + size]
            batch = collate([encoded[place] for place in places])
            read = {name: value.to(args.device) for name, value in read_of(batch).items()}
            chosen = [] if ensemble is None else [MixedWriting(ensemble, read)]
            ids = teachers[0].generate(
                **read, logits_processor=LogitsProcessorList(chosen), num_beams=self.data.sequence_level_beams,
                max_length=self.data.max_target_length,
            )  # fmt: skip
            for place, text in zip(
                places, processor.batch_decode(ids, skip_special_tokens=True), strict=True
            ):
                texts[place] = text
        return texts

    def timed_inputs(self, encoded: Dataset, processor: Any) -> list[dict[str, torch.Tensor]]:
        """Return pairs of typical lengths: one pass through encoder and decoder, and no writing."""
        lengths = self.lengths(encoded)
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        places = [order[int(len(order) * share)] for share in (0.1, 0.3, 0.5, 0.7, 0.9)]
        batches = [self.collator(processor)([encoded[place]]) for place in places]
        return [
            {
                "input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"],
                "decoder_input_ids": batch["labels"].masked_fill(batch["labels"] == IGNORED, processor.pad_token_id),
            }
            for batch in batches
        ]  # fmt: skip
