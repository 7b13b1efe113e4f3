"""DistillationTrainer: a transformers Trainer whose loss blends the labels with a teacher."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.utils import logging

from hf_distill import compatibility, data_checks
from hf_distill.arguments import DistillationArgumentsMixin
from hf_distill.cache.collation import FIRST_ANSWERS, CachedAnswersCollator, caches_of
from hf_distill.cache.teacher_cache import TeacherCache
from hf_distill.checkpointing import CheckpointingMixin
from hf_distill.columns import (
    SPECIAL_TOKENS,
    TEACHER_PREFIX,
    BatchColumns,
    DistillationCollator,
    accepted_columns,
)
from hf_distill.evaluation.loop import EvaluationMixin
from hf_distill.features import FeatureNeeds
from hf_distill.items import Head, head_of
from hf_distill.launch import check_launch
from hf_distill.loss_plan import DEFAULT_ALPHA, DEFAULT_TEMPERATURE, LossPlan, Term, resolve_loss
from hf_distill.normalisation import Normalisation, untouched_randomness
from hf_distill.objectives.base import OF_ONE_MODEL
from hf_distill.projections import ProjectionKey
from hf_distill.publishing import PublishingMixin
from hf_distill.span_checks import check_spans
from hf_distill.spans import SpanLabels
from hf_distill.students import warn_about_random_start
from hf_distill.support import check_supported
from hf_distill.teachers.ensemble import TeacherEnsemble
from hf_distill.teachers.finite_check import FiniteCheck
from hf_distill.teachers.following import Followed, followed
from hf_distill.teachers.online import OnlineTeacher
from hf_distill.teachers.preparation import (
    TeacherLike,
    TeacherPreparation,
    check_settings,
    members_of,
    naming,
    own_processing_classes,
    teacher_encodings,
)
from hf_distill.teachers.signals import Teacher
from hf_distill.teachers.sparse import SPARSE, check_sparse

logger = logging.get_logger(__name__)

# Objectives may need it, and no teacher gives it.
_FROM_THE_DATA = frozenset({"labels"})


class DistillationMixin(EvaluationMixin, CheckpointingMixin, PublishingMixin):
    """Distillation over any ``Trainer``; :class:`DistillationTrainer` documents the arguments."""

    def __init__(
        self,
        model: nn.Module | None = None,
        teacher: TeacherLike | Sequence[TeacherLike] | None = None,
        args: TrainingArguments | None = None,
        *trainer_args: Any,
        teacher_processing_class: Any = None,
        **trainer_kwargs: Any,
    ) -> None:
        if args is not None and not isinstance(args, TrainingArguments):
            raise ValueError(
                f"args: expected TrainingArguments, received {type(args).__name__}. The order is model, teacher, args; "
                "name them to be sure."
            )
        if args is not None:
            # Both must be found before Trainer creates a process group's files or a repository.
            processes = check_launch(args)
            if args.process_index == 0:
                print(processes, file=sys.stderr)
            check_supported(args, model)
        self._normalisation = Normalisation.UNKNOWN
        self._totals: dict[str, torch.Tensor] | None = None
        self._matches_functional_loss: bool | None = None
        self._part_sums: dict[str, torch.Tensor] = {}
        self._pending_parts: dict[str, float] = {}
        self._task_metrics = {}
        self._finite = FiniteCheck()
        self._student_needs = FeatureNeeds()
        self.projections = nn.ModuleDict()
        self._projected: dict[ProjectionKey, Any] = {}
        self._space_of: dict[int | None, Any] = {}
        super().__init__(model, args, *trainer_args, **trainer_kwargs)
        if isinstance(teacher_processing_class, (list, tuple)) and len(teacher_processing_class) == 1:
            teacher_processing_class = teacher_processing_class[0]
        self.teacher_processing_class = teacher_processing_class
        data_checks.check_splits(self.train_dataset, self.eval_dataset)
        data_checks.check_label_names(self.args.label_names)
        compatibility.check_has_config(self._student())
        self.head = self._head()
        self.teacher = self._make_teacher(teacher)
        self.encodings = teacher_encodings(self.teacher, teacher_processing_class)
        self.columns = self._make_columns()
        self._check_compatibility()
        self._check_data()
        self._wrap_collator()
        self.plan = self._resolve()
        self._prepare_features()
        self._mend_direction_of_best()
        if self.train_dataset is not None:
            warn_about_random_start(self._student(), _length(self.train_dataset))

    # ---- construction ------------------------------------------------------------------

    def _example_label(self) -> Any:
        """Return the label of one training or evaluation example, where one can be had without cost."""
        # Trainer has seeded by now, and a data set that augments draws random numbers.
        with untouched_randomness():
            return self._first_label()

    def _head(self) -> Head:
        """Return what the student's outputs mean, and which positions the teacher's items are."""
        head = head_of(self._student(), self._example_label())
        chosen = getattr(self.args, "distill_on", None) or "labels"
        if chosen not in ("labels", "attended"):
            raise ValueError(f"distill_on: expected labels or attended, received {chosen!r}.")
        if chosen == "labels":
            return head
        if not head.positions or head.spans:
            raise ValueError(
                "distill_on: expected a head with a prediction per position for 'attended', received one whose every "
                "example is an item already, labelled or not. Drop distill_on."
            )
        tokenizer = self.processing_class or getattr(self.data_collator, "tokenizer", None)
        special = set(getattr(tokenizer, "all_special_ids", ())) - {getattr(tokenizer, "mask_token_id", None)}
        # What a causal model is to say next may well be the end.
        return replace(head, attended=True, special_ids=() if head.shift else tuple(sorted(special)))

    def _first_label(self) -> Any:
        for dataset in self._datasets():
            streamed = isinstance(
                dataset, torch.utils.data.IterableDataset
            )  # some have a length, none an index
            if not streamed and hasattr(dataset, "__getitem__") and (_length(dataset) or 0) > 0:
                example = dataset[0]
                if isinstance(example, dict):
                    return next(
                        (example[name] for name in ("labels", "label", "label_ids") if name in example), None
                    )
        return None

    def _mend_direction_of_best(self) -> None:
        """Keep the lowest where the best model is chosen by an error of ours; Trainer would keep the highest."""
        best = self.args.metric_for_best_model or ""
        # Agreement of numbers is the root of their mean squared difference.
        is_error = self.head.kind == "regression" and best.endswith("agreement")
        if not isinstance(
            self.args, DistillationArgumentsMixin
        ):  # which knows the others, and what was asked for
            is_error = is_error or best.endswith("mean_kl") or "loss/" in best
        if is_error and self.args.greater_is_better:
            logger.warning(
                f"{best} is an error: the checkpoint with the lowest is kept (greater_is_better=False)."
            )
            self.args.greater_is_better = False

    def _datasets(self) -> list[Any]:
        evaluation = self.eval_dataset
        sets = list(evaluation.values()) if isinstance(evaluation, dict) else [evaluation]
        return [dataset for dataset in [self.train_dataset, *sets] if dataset is not None]

    def _make_teacher(self, teacher: Any) -> Teacher:
        """Return a teacher from a model, a name, a teacher or several, checked against the student."""
        preparation = TeacherPreparation(
            self._student(), self.head, self.args, self.args.device, lambda: self.accelerator.autocast()
        )
        return preparation.prepare(teacher, self.teacher_processing_class)

    def _make_columns(self) -> BatchColumns:
        prefixes = tuple(encoding.prefix for encoding in self.encodings)
        shared = prefixes == (TEACHER_PREFIX,)
        return BatchColumns(
            accepted_columns(self._student()), self.teacher.columns, shared, () if shared else prefixes
        )

    def _check_compatibility(self) -> None:
        """Raise where student, teacher, tokenizer and data can't work together."""
        members = members_of(self.teacher)
        own = own_processing_classes(self.teacher_processing_class, len(members))
        tokenizer = self.processing_class or getattr(self.data_collator, "tokenizer", None)
        for index, member in enumerate(members):
            reads_ids = "input_ids" in self.columns.student and "input_ids" in member.columns
            if isinstance(member, TeacherCache) and "input_ids" in member.columns:
                member.check_tokenizer(own[index] or tokenizer)
            if isinstance(member, OnlineTeacher) and "input_ids" in member.columns:
                compatibility.align_padding(own[index] or tokenizer, member.model)
            if isinstance(member, OnlineTeacher) and own[index] is None and reads_ids:
                with naming(self.teacher, index):
                    compatibility.check_vocabulary(tokenizer, member.model)
                    compatibility.check_lengths(
                        self._student(), member.model, self.processing_class, self._datasets()
                    )

    def _check_data(self) -> None:
        """Raise for labels that the head can't take, or no text for a teacher that reads its own."""
        for dataset in self._datasets():
            if any(encoding.reads_text for encoding in self.encodings):
                data_checks.check_text_columns(dataset, self._teacher_text_columns())
            # A collator of the user's own may make inputs and labels out of anything.
            if getattr(self.data_collator, "__module__", "").startswith("transformers."):
                data_checks.check_input_columns(dataset, self.columns.student)
                data_checks.check_labels(dataset, self._student(), self.head)
                if self.head.spans:
                    check_spans(dataset)

    def _teacher_text_columns(self) -> list[str]:
        return getattr(self.args, "teacher_text_columns", None) or ["text", "text_pair"]

    def _wrap_collator(self) -> None:
        """Let the collator encode for the teacher, mark unlabelled rows, and look answers up, where it is needed."""
        if self.head.spans:
            self.data_collator = SpanLabels(self.data_collator)
        if self.encodings or self.head.kind != "single_label":
            self.data_collator = DistillationCollator(
                self.data_collator,
                text_columns=tuple(self._teacher_text_columns()),
                encodings=self.encodings,
                numeric_labels=self.head.kind != "single_label",
            )
        caches = caches_of(self.teacher, self.columns.own_encoding)
        if caches:
            self.data_collator = CachedAnswersCollator(self.data_collator, caches)
            self._ask_for_first_answers()

    def _ask_for_first_answers(self) -> None:
        """Raise now, and not after the first epoch, where a cache was captured of other data."""
        with untouched_randomness():
            for dataset in self._datasets():
                if hasattr(dataset, "__getitem__") and (_length(dataset) or 0) > 0:
                    rows = [dataset[index] for index in range(min(len(dataset), FIRST_ANSWERS))]
                    self.data_collator(self._without_unused(rows))

    def _without_unused(self, rows: list[Any]) -> list[Any]:
        """Return rows with the columns that Trainer hands to the collator."""
        if not self.args.remove_unused_columns or not all(isinstance(row, dict) for row in rows):
            return rows
        self._set_signature_columns_if_needed()
        kept: set[str] = set(self._signature_columns or ())
        return [{name: value for name, value in row.items() if name in kept} for row in rows]

    def _resolve(self) -> LossPlan:
        """Resolve the arguments into the loss, and check that the teacher can answer for it."""
        plan = resolve_loss(self.args, self.head.kind)
        check_settings(self.teacher, self.args)  # which a trial may have set
        for term in plan.terms:
            self._check_given(term)
            if "input_gradient" in term.objective.needs:
                self.check_differentiable(term)
        readers = [term.key for term in plan.terms if "labels" in term.objective.needs]
        if not data_checks.makes_labels(self.data_collator):
            data_checks.check_label_column(self.train_dataset, plan.label_weight, readers)
        return plan

    def _check_given(self, term: Term) -> None:
        """Raise where a teacher does not give what an objective needs, or it is not said which teacher is to."""
        inside = term.objective.needs & OF_ONE_MODEL
        asked = followed(self.teacher, term.teacher, term.key) if inside else (Followed(self.teacher),)
        for one in asked:
            missing = term.objective.needs - one.teacher.provides - _FROM_THE_DATA
            if missing == {"log_probs"} and one.teacher.provides & SPARSE:
                check_sparse(term.key, term.objective, bool(term.temperatures), one.teacher)
            elif missing:
                with one.naming():
                    raise ValueError(
                        f"objective {term.key!r}: expected a teacher that gives {', '.join(sorted(missing))}, "
                        f"received {one.teacher.name}, which gives {', '.join(sorted(one.teacher.provides))}."
                    )

    def distillation_settings(self) -> dict[str, Any]:
        """Return the loss of this run as plain values: the short form if it was given, and all weights."""
        short = {name: getattr(self.args, name, None) for name in ("alpha", "temperature")}
        if getattr(self.args, "objectives", None) is None:
            given = {"alpha": DEFAULT_ALPHA, "temperature": DEFAULT_TEMPERATURE}
            given |= {name: value for name, value in short.items() if value is not None}
            short = {
                name: dict(value) if isinstance(value, Mapping) else float(value)
                for name, value in given.items()
            }
        mixture = self.teacher.describe() if isinstance(self.teacher, TeacherEnsemble) else {}
        return {**short, **self.plan.describe(), **mixture, "teacher": self.teacher.name}

    def checkpoint_settings(self) -> dict[str, Any]:
        """Return the loss, which a run that goes on from a checkpoint should share with the one that wrote it."""
        return {"loss": resolve_loss(self.args, self.head.kind).describe()}

    def before_checkpoint(self) -> None:
        """Write no checkpoint of a student that a broken teacher has taught."""
        self._raise_on_bad_teacher()
        super().before_checkpoint()

    # ---- columns -----------------------------------------------------------------------

    def _set_signature_columns_if_needed(self) -> None:
        """Keep the union of what both forwards accept, and the text that the teacher encodes itself."""
        if self._signature_columns is None:
            super()._set_signature_columns_if_needed()
            extra = set(self.columns.teacher - {"labels"})
            if self.head.positions:
                extra.add(SPECIAL_TOKENS)
            if self.columns.own_encoding:
                extra = {TEACHER_PREFIX + name for name in extra}
            if self.encodings:
                extra |= set(self._teacher_text_columns())
            columns: Any = self._signature_columns
            columns += sorted(extra - set(columns))


def _length(dataset: Any) -> int | None:
    try:
        return len(dataset)
    except TypeError:
        return None


class DistillationTrainer(DistillationMixin, Trainer):
    """A ``transformers.Trainer`` that makes a small model imitate a large one.

    Formula: ``loss = (1 - alpha) * label loss + alpha * T^2 * KL(teacher ‖ student)``, or the long
    form of :class:`hf_distill.DistillationTrainingArguments`. The label loss is the Trainer's own,
    whatever it is; the teacher's term is a mean over the items of the whole accumulated batch.

    Args:
        model: the student; or ``model_init``.
        teacher: a model, a Hub id, a folder, or anything that answers ``teacher(batch)``; a list of
            those is a :class:`hf_distill.TeacherEnsemble` with the arguments' settings.
        args: DistillationTrainingArguments, or a plain TrainingArguments for the defaults.
        teacher_processing_class: the teacher's own tokenizer, where it differs from the student's;
            the text columns it reads stay in the dataset. With several teachers one for all of them,
            or a list with one for each, None where it reads the student's encoding; their columns
            are then ``teacher_0_input_ids``, ``teacher_1_input_ids`` and so on.
        trainer_args, trainer_kwargs: everything else that ``transformers.Trainer`` takes.

    Raises:
        ValueError: labels, label names, heads, vocabulary, lengths or settings that do not fit; the
            message says what was expected, what came, and what to do.

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531.

    Example:
        >>> import warnings
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> def bert(layers):
        ...     sizes = dict(hidden_size=8, num_attention_heads=1, intermediate_size=8, vocab_size=20)
        ...     return BertForSequenceClassification(BertConfig(num_hidden_layers=layers, **sizes))
        >>> data = [{"input_ids": [i, i + 1], "labels": i % 2} for i in range(8)]
        >>> args = TrainingArguments("out", num_train_epochs=1, report_to="none", save_strategy="no",
        ...     disable_tqdm=True, use_cpu=True, logging_strategy="no")
        >>> with warnings.catch_warnings():  # a toy: few examples and random weights
        ...     warnings.simplefilter("ignore")
        ...     trainer = DistillationTrainer(bert(1), teacher=bert(2), args=args, train_dataset=data)
        >>> trainer.distillation_settings()["alpha"], trainer.distillation_settings()["temperature"]
        (0.5, 2.0)
    """
