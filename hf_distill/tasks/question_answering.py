"""Questions whose answers are parts of a text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset, DatasetDict
from transformers import AutoModelForQuestionAnswering, DataCollatorWithPadding

from hf_distill.corpora.signature_questions import signature_questions
from hf_distill.corpora.squad import checked_questions, read_questions
from hf_distill.evaluation.measures import Measure
from hf_distill.evaluation.question_answering import SpanMeasure, TextFeature
from hf_distill.tasks.bert_models import MODERN, WordModelArguments, check_widths, encoder_config
from hf_distill.tasks.data_arguments import DataArguments, check_sources, complete, given_files, hub_splits
from hf_distill.tasks.model_arguments import sizes_of
from hf_distill.tasks.task import Role, Task
from hf_distill.tasks.word_dropout import WordHiding
from hf_distill.tasks.wordpiece import train_tokenizer


@dataclass
class QuestionDataArguments(DataArguments):
    """Which questions to train and report on; without any of them those about signatures of the installed libraries."""

    train_file: str | None = field(
        default=None,
        metadata={
            "help": "Your training questions: SQuAD's JSON, JSON lines or Parquet. Default: built-in questions"
        },
    )
    validation_file: str | None = field(
        default=None, metadata={"help": "Your validation questions. Default: those of some articles"}
    )
    test_file: str | None = field(
        default=None, metadata={"help": "Questions to report on. Default: those of other articles"}
    )
    max_seq_length: int = field(
        default=160, metadata={"help": "Tokens of a question and a window of its text"}
    )
    doc_stride: int = field(default=48, metadata={"help": "Tokens that two windows of a longer text share"})
    lowercase: bool = field(
        default=True, metadata={"help": "A tokenizer trained here reads capitals as small letters"}
    )


class QuestionAnswering(Task):
    """BERT-like models that point at the start and the end of an answer."""

    name = "question_answering"
    auto_class = AutoModelForQuestionAnswering
    data_arguments = QuestionDataArguments
    model_arguments = WordModelArguments
    metrics = ("f1", "exact_match")
    counted = "questions"

    def load(self) -> DatasetDict:
        """Return questions: built in, the user's files or a Hub data set."""
        data = self.data
        check_sources(data)
        if data.train_file:
            splits = read_questions(given_files(data))
        elif data.dataset_name:
            found = hub_splits(data)
            splits = DatasetDict(
                {
                    name: checked_questions(rows, f"{data.dataset_name} ({name})")
                    for name, rows in found.items()
                }
            )
        else:
            splits = signature_questions()
        return complete(splits, data)

    @property
    def encoding(self) -> dict[str, Any]:
        """Windows."""
        data = self.data
        return {
            "max_seq_length": data.max_seq_length,
            "doc_stride": data.doc_stride,
            "lowercase": data.lowercase,
        }

    def few(self, rows: Dataset) -> Dataset:
        """Return some questions, and the longest, which is the first to have no room."""
        lengths = [len(question) for question in rows["question"]]
        longest = max(range(len(rows)), key=lengths.__getitem__)
        return rows.select(sorted({*range(min(len(rows), 8)), longest}))

    def encode(
        self, rows: Dataset, processor: Any, keep_raw: bool = False, training: bool = False
    ) -> Dataset:
        """Tokenize into windows; an answer that is not in one points at its first token."""

        def tokenize(batch: dict[str, list[Any]]) -> dict[str, Any]:
            windows, features = self._windows(batch, processor)
            places = [token_span(one, batch["answers"][one.example]) for one in features]
            columns = {name: windows[name] for name in processor.model_input_names if name in windows}
            starts, ends = [start for start, _ in places], [end for _, end in places]
            return {**columns, "start_positions": starts, "end_positions": ends}

        return rows.map(tokenize, batched=True, remove_columns=rows.column_names, desc="Tokenizing")

    def _windows(self, batch: Any, processor: Any) -> tuple[Any, list[TextFeature]]:
        """Return windows as models read them, and where their tokens are in the context."""
        self._check_questions(batch["question"], processor)
        windows = processor(
            list(batch["question"]),
            list(batch["context"]),
            truncation="only_second",
            max_length=self.data.max_seq_length,
            stride=self.data.doc_stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        features = []
        for window, example in enumerate(windows["overflow_to_sample_mapping"]):
            sides = windows.sequence_ids(window)
            offsets = windows["offset_mapping"][window]
            kept = [tuple(at) if side == 1 else None for at, side in zip(offsets, sides, strict=True)]
            features.append(TextFeature(example, kept))
        return windows, features

    def _check_questions(self, questions: Sequence[str], processor: Any) -> None:
        """Raise for a question that leaves no room for the text: all of it is in each window."""
        room = (
            self.data.max_seq_length
            - processor.num_special_tokens_to_add(pair=True)
            - self.data.doc_stride
            - 1
        )
        lengths = [len(ids) for ids in processor(list(questions), add_special_tokens=False)["input_ids"]]
        longest = max(range(len(lengths)), key=lengths.__getitem__)
        if lengths[longest] > room:
            raise ValueError(
                f"--max_seq_length: expected windows with room for a question and more of the text than --doc_stride "
                f"({self.data.doc_stride}), received {self.data.max_seq_length} and a question of {lengths[longest]} "
                f"tokens ({questions[longest][:60]!r}). Raise it, lower --doc_stride, or remove the question."
            )

    def collator(
        self, processor: Any, teacher_processors: Sequence[Any] = (), labelled: bool = True
    ) -> Callable[[list[Any]], Any]:
        """Pad."""
        return DataCollatorWithPadding(processor)

    def teacher_collator(self, processor: Any) -> Callable[[list[Any]], Any]:
        """Pad, and hide words."""
        return WordHiding(processor, self.models.teacher_word_dropout, self.collator(processor))

    def new_processor(self, splits: DatasetDict) -> Any:
        """Train a tokenizer on the training questions and their texts."""
        train = splits["train"]
        texts = [text for name in ("question", "context") for text in train[name]]
        models = self.models
        return train_tokenizer(
            texts,
            models.vocabulary_size,
            self.data.lowercase,
            token_types=models.model_kind != MODERN,
            longest=self.data.max_seq_length,
        )

    def new_model(self, role: Role, splits: DatasetDict, processor: Any) -> Any:
        """Return a ModernBERT or a BERT that points at spans."""
        layers, width, dropout = sizes_of(self.models, role)
        length = self.data.max_seq_length
        config = encoder_config(self.models.model_kind, layers, width, processor, length, dropout)
        return self.auto_class.from_config(config)

    def check(self, args: Any) -> None:
        """Raise for windows that can't be, and for an order in which windows could not be put together."""
        check_widths(self.models)
        data = self.data
        if not 0 <= data.doc_stride < data.max_seq_length - 8:
            raise ValueError(
                f"--doc_stride: expected a number of at least 0 and less than --max_seq_length - 8 "
                f"({data.max_seq_length - 8}), received {data.doc_stride}."
            )
        if args.train_sampling_strategy == "group_by_length" and args.eval_strategy != "no":
            raise ValueError(
                "--train_sampling_strategy: expected random or sequential beside --eval_strategy, since windows of one "
                "text are put together in their order, received group_by_length. Set --train_sampling_strategy random."
            )

    def measure(self, rows: Dataset, encoded: Dataset, processor: Any) -> Measure:
        """F1 and exact match over questions."""
        _, features = self._windows(rows[:], processor)
        return SpanMeasure(rows["context"][:], [one["text"] for one in rows["answers"]], features)


def token_span(feature: TextFeature, answers: dict[str, Any]) -> tuple[int, int]:
    """Return the first and the last token of the first answer, or 0 and 0 where the window has not all of it.

    Example:
        >>> feature = TextFeature(0, [None, None, (0, 3), (4, 7), None])
        >>> token_span(feature, {"text": ["sky"], "answer_start": [4]})
        (3, 3)
        >>> token_span(feature, {"text": ["sky is"], "answer_start": [4]})
        (0, 0)
    """
    start = answers["answer_start"][0]
    end = start + len(answers["text"][0])
    inside = [(place, at) for place, at in enumerate(feature.offsets) if at is not None and at[0] < at[1]]
    touched = [place for place, (first, last) in inside if first < end and last > start]
    if not touched or inside[0][1][0] > start or inside[-1][1][1] < end:
        return 0, 0
    return touched[0], touched[-1]
