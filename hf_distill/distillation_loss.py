"""The loss itself: the label loss and the teacher's terms, blended, scaled and logged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers.training_args import ParallelMode

from hf_distill.example_terms import ExampleTermsMixin, is_active
from hf_distill.items import select_rows
from hf_distill.label_loss import zero_with_graph
from hf_distill.loss_plan import LossPlan, Term
from hf_distill.normalisation import Normalisation
from hf_distill.teachers.finite_check import FiniteCheck
from hf_distill.teachers.online import add_decoder_inputs, logits_of
from hf_distill.teachers.signals import Teacher, TeacherSignals


class DistillationLossMixin(ExampleTermsMixin):
    """``compute_loss`` of a distillation, and the logging of its parts.

    Everything that is logged stays on the device until the Trainer reads its own loss.
    """

    plan: LossPlan
    teacher: Teacher
    _finite: FiniteCheck
    _part_sums: dict[str, torch.Tensor]
    _pending_parts: dict[str, float]

    def _resolve(self) -> LossPlan:
        """Resolve the arguments into the loss of this run."""
        raise TypeError("DistillationLossMixin is one layer of DistillationMixin, which resolves the loss.")

    def _student(self) -> Any:
        """Return the student without wrappers."""
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    # ---- training ----------------------------------------------------------------------

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Resolve the loss now that a trial has set the arguments, and start the counts afresh."""
        self._let_training_wrap_the_model()
        self.plan = self._resolve()
        self._normalisation, self._totals = Normalisation.UNKNOWN, None
        self._part_sums, self._pending_parts = {}, {}
        try:
            return super()._inner_training_loop(*args, **kwargs)
        finally:
            self._totals = None

    def _let_training_wrap_the_model(self) -> None:
        """Undo what an evaluation before training did to the model, so that DDP gets to wrap it.

        Accelerate marks a model that it prepared for evaluation as prepared for good, and on several
        processes plain Trainer then trains each process apart, in silence.
        """
        in_ddp = self.args.parallel_mode == ParallelMode.DISTRIBUTED and not (
            self.is_fsdp_enabled or self.is_deepspeed_enabled
        )
        model: Any = self.model
        if in_ddp and self.model_wrapped is model and getattr(model, "_is_accelerate_prepared", False):
            self.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
            vars(model)["_is_accelerate_prepared"] = False

    def _uses_label_loss(self, batches: list[Any]) -> bool:
        return self.plan.label_weight > 0 and super()._uses_label_loss(batches)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return ``label_weight * label loss + sum_i weight_i * sum(values_i) / count(level_i)``.

        The counts are those of the whole accumulated batch over all ranks; outside of training,
        those of the batch.
        """
        parts: dict[str, torch.Tensor] = {}
        if self.plan.label_weight > 0:
            if inputs.get("labels") is None:
                raise ValueError(
                    f"labels: expected labels in the batch, because the label loss has the weight "
                    f"{self.plan.label_weight}, received {sorted(inputs)}. Add them, or set alpha=1."
                )
            parts["label"], outputs = self.label_loss(model, inputs, num_items_in_batch)
        else:
            outputs = self.student_outputs(model, inputs)
        in_training = self._totals is not None
        terms = [t for t in self.plan.terms if not in_training or is_active(t, self.state.global_step)]
        if terms:
            signals = self.teacher_signals(inputs)
            examples = self.next_examples(inputs) if in_training else (0, 0)
            sums = self.example_sums(model, outputs, signals, inputs, terms, *examples)
            sums.update(self.objective_sums(outputs, signals, inputs, terms))
            for key, (total, count) in sums.items():
                level = next(term.objective.level for term in self.plan.terms if term.key == key)
                share = self._share(level, count)
                parts[key] = total * (share if isinstance(share, float) else share.to(total.dtype))
        loss = self.weighted_sum(parts)
        if loss is None:
            loss = zero_with_graph(logits_of(outputs, "student"))
        if self._totals is not None:
            for key, part in parts.items():
                self._part_sums[key] = self._part_sums.get(key, 0.0) + part.detach()
        return (loss, outputs) if return_outputs else loss

    def weighted_sum(self, parts: dict[str, Any]) -> Any:
        """Return the loss from its unweighted parts, or None without any."""
        weights = {"label": self.plan.label_weight, **{term.key: term.weight for term in self.plan.terms}}
        weighted = [weights[key] * part for key, part in parts.items()]
        return sum(weighted[1:], start=weighted[0]) if weighted else None

    def student_outputs(self, model: nn.Module, batch: dict[str, Any]) -> Any:
        """Run the student without labels."""
        inputs = self.columns.for_student(batch)
        labels = inputs.pop("labels", None)
        add_decoder_inputs(self._student(), inputs, labels)
        return model(**inputs)

    def teacher_signals(self, batch: dict[str, Any]) -> TeacherSignals:
        """Ask the teacher about a batch, with the columns it accepts."""
        return self.teacher(self.teacher_columns(batch))

    def teacher_columns(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return what the teacher is given of a batch."""
        columns = self.columns.for_teacher(batch)
        if "labels" in batch:  # read by no forward: a decoder's inputs are made from them
            columns["labels"] = batch["labels"]
        return columns

    def objective_sums(
        self, outputs: Any, signals: TeacherSignals, batch: dict[str, Any], terms: Sequence[Term]
    ) -> dict[str, tuple[torch.Tensor, int]]:
        """Return the sum of each objective over items, and their number; none without items."""
        rows = select_rows(logits_of(outputs, "student"), signals, batch, self.head)
        self._check_shapes(rows.student_logits, rows.teacher.logits)
        if rows.student_logits.shape[0] == 0:
            return {}
        if rows.teacher.logits is not None:
            self._finite.see(rows.teacher.logits, self.state.global_step)
        return {
            term.key: (term.objective(rows).sum(), rows.student_logits.shape[0])
            for term in terms
            if term.objective.level == "item"
        }

    @staticmethod
    def _check_shapes(student: torch.Tensor, teacher: torch.Tensor | None) -> None:
        if teacher is not None and student.shape != teacher.shape:
            raise ValueError(
                f"logits: expected the teacher's to have the student's shape {tuple(student.shape)}, received "
                f"{tuple(teacher.shape)}. Student and teacher must read the same examples and share their classes."
            )

    # ---- logging -----------------------------------------------------------------------

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Read the parts and the teacher's flag where the Trainer reads the loss anyway."""
        if self.control.should_log and self.state.global_step > self._globalstep_last_logged:
            self._collect_parts(self.state.global_step - self._globalstep_last_logged)
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _collect_parts(self, steps: int) -> None:
        """Average the parts over the logging window and all ranks: one gather for all of them."""
        self._raise_on_bad_teacher()
        keys = [key for key in ["label", *(term.key for term in self.plan.terms)] if key in self._part_sums]
        if self.accelerator.num_processes > 1:
            # A rank whose batches had no rows of a level has no such part, and gathers must agree.
            weights = {"label": self.plan.label_weight, **{term.key: term.weight for term in self.plan.terms}}
            keys = [key for key, weight in weights.items() if weight > 0]
        of_key = {term.key: term for term in self.plan.terms}
        first = self._globalstep_last_logged
        taken = {  # how many of the steps since the last log had this part
            key: sum(key == "label" or is_active(of_key[key], step) for step in range(first, first + steps))
            for key in keys
        }
        keys = [key for key in keys if taken[key]]
        sums = [self._part_sums.get(key, 0.0) * (steps / taken[key]) for key in keys]
        if keys:
            stacked = torch.stack(
                [torch.as_tensor(s, dtype=torch.float32, device=self.args.device) for s in sums]
            )
            means = self.accelerator.gather(stacked).reshape(-1, len(keys)).mean(0) / steps
            self._pending_parts = {f"loss/{k}": v for k, v in zip(keys, means.tolist(), strict=True)}
        self._part_sums = {}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as Trainer does, with the parts of the loss beside it."""
        if "loss" in logs and self._pending_parts:
            logs.update(self._pending_parts)
            self._pending_parts = {}
        super().log(logs, start_time)

    def _raise_on_bad_teacher(self) -> None:
        """Stop the run, on all ranks, if any teacher's answer was not finite."""
        states = self.accelerator.gather(self._finite.state(self.args.device))
        self._finite.raise_if_bad(states.reshape(-1, 2).tolist())

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        """Look at the teacher's flag once more before the run counts as done."""
        self._raise_on_bad_teacher()
        return super()._finalize_training(*args, **kwargs)
