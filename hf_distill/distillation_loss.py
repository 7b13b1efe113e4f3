"""The loss itself: the label loss and the teacher's terms, blended, scaled and logged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from transformers.training_args import ParallelMode

from hf_distill.cache.teacher_cache import TeacherCache
from hf_distill.example_terms import ExampleTermsMixin, is_active
from hf_distill.feature_terms import FeatureTermsMixin
from hf_distill.features import Features, Observation, observed
from hf_distill.items import count_items, select_rows
from hf_distill.label_loss import zero_with_graph
from hf_distill.loss_plan import LossPlan, Term
from hf_distill.normalisation import Normalisation
from hf_distill.objectives.base import OF_ONE_MODEL, Rows
from hf_distill.schedules import highest, value_at
from hf_distill.spans import END, START
from hf_distill.teachers.finite_check import FiniteCheck
from hf_distill.teachers.online import add_decoder_inputs, logits_of
from hf_distill.teachers.preparation import members_of
from hf_distill.teachers.signals import Teacher, TeacherSignals, member_logits
from hf_distill.teachers.softness import SoftnessMeter
from hf_distill.teachers.sparse import rows_for


def weighted_sum(plan: LossPlan, parts: dict[str, Any]) -> Any:
    """Return the loss from its unweighted parts, or None without any that has a weight above 0."""
    weights: dict[str, Any] = plan.weights
    weighted = [weights[key] * part for key, part in parts.items() if weights[key] > 0]
    return sum(weighted[1:], start=weighted[0]) if weighted else None


class DistillationLossMixin(ExampleTermsMixin, FeatureTermsMixin):
    """``compute_loss`` of a distillation, and the logging of its parts.

    Everything that is logged stays on the device until the Trainer reads its own loss.
    """

    plan: LossPlan
    _plan_of_step: tuple[LossPlan, int, int, LossPlan] | None = None
    teacher: Teacher
    _finite: FiniteCheck
    _softness: SoftnessMeter | None = None
    _part_sums: dict[str, torch.Tensor]
    _pending_parts: dict[str, float]

    def _resolve(self) -> LossPlan:
        """Resolve the arguments into the loss of this run."""
        raise TypeError("DistillationLossMixin is one layer of DistillationMixin, which resolves the loss.")

    def _student(self) -> Any:
        """Return the student without wrappers."""
        model = self._unwrapped()
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    def _unwrapped(self) -> Any:
        """Return the student, or the PEFT model around it, without wrappers."""
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    # ---- training ----------------------------------------------------------------------

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Resolve the loss now that a trial has set the arguments, and start the counts afresh."""
        self._let_training_wrap_the_model()
        self.plan = self._resolve()
        self._prepare_features()
        self._normalisation, self._totals = Normalisation.UNKNOWN, None
        self._part_sums, self._pending_parts = {}, {}
        # Of spans each text has its own number of classes, and so its own highest entropy.
        watched = self.is_world_process_zero() and not self.head.spans
        self._softness = SoftnessMeter(self.head.kind) if watched else None
        try:
            return super()._inner_training_loop(*args, **kwargs)
        finally:
            self._totals = self._softness = None

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

    def step_plan(self) -> LossPlan:
        """Return the loss of the optimizer step under way, the same for all of its micro-batches.

        It follows from the steps done and all steps alone, so a resumed run goes on where it was.
        """
        step, max_steps = self.state.global_step, self.state.max_steps
        known = self._plan_of_step
        if known is None or known[0] is not self.plan or known[1:3] != (step, max_steps):
            known = self._plan_of_step = (self.plan, step, max_steps, self.plan.at(step, max_steps))
        return known[3]

    def _uses_label_loss(self, batches: list[Any]) -> bool:
        return self.step_plan().needs_labels and super()._uses_label_loss(batches)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return ``label_weight * label loss + sum_i weight_i * sum(values_i) / count(level_i)``.

        The counts are those of the whole accumulated batch over all ranks; outside of training,
        those of the batch. The weights and temperatures are those of the step: a term whose weight
        is 0 is left out, and without any term the teacher is not asked.
        """
        plan = self.step_plan()
        parts: dict[str, torch.Tensor] = {}
        with self.watched_student() as seen:
            if plan.needs_labels:
                if inputs.get("labels") is None:
                    raise ValueError(
                        f"labels: expected labels in the batch, because the label loss has the weight "
                        f"{plan.label_weight}, received {sorted(inputs)}. Add them, or set alpha=1."
                    )
                parts["label"], outputs = self.label_loss(model, inputs, num_items_in_batch)
            else:
                outputs = self.student_outputs(model, inputs)
        in_training = self._totals is not None
        terms = [t for t in plan.terms if not in_training or is_active(t, self.state.global_step)]
        if terms:
            signals = self.teacher_signals(inputs)
            features = self.student_features(seen, outputs, inputs)
            examples = self.next_examples(inputs) if in_training else (0, 0)
            sums = self.example_sums(model, outputs, signals, inputs, terms, *examples)
            sums.update(self.objective_sums(outputs, signals, inputs, terms, features))
            for key, (total, count) in sums.items():
                level = next(term.objective.level for term in plan.terms if term.key == key)
                share = self._share(level, count)
                parts[key] = total * (share if isinstance(share, float) else share.to(total.dtype))
        loss = weighted_sum(plan, parts)
        if loss is None:
            loss = zero_with_graph(logits_of(outputs, "student"))
        elif self.accelerator.num_processes > 1 and not self._matches_logits(parts):
            # DDP takes every parameter behind the outputs for used, and waits for its gradient.
            loss = loss + zero_with_graph(logits_of(outputs, "student")).to(loss.dtype)
        if self._totals is not None:
            for key, part in parts.items():
                self._part_sums[key] = self._part_sums.get(key, 0.0) + part.detach()
        return (loss, outputs) if return_outputs else loss

    def _matches_logits(self, parts: Mapping[str, Any]) -> bool:
        """Whether any of these parts is taken from the student's logits."""
        inside = {term.key for term in self.plan.terms if OF_ONE_MODEL & term.objective.needs}
        return bool(set(parts) - inside)

    def student_outputs(self, model: nn.Module, batch: dict[str, Any]) -> Any:
        """Run the student without labels."""
        inputs = self.columns.for_student(batch)
        labels = inputs.pop("labels", None)
        for name in (START, END):
            inputs.pop(name, None)
        add_decoder_inputs(self._student(), inputs, labels)
        return model(**inputs)

    def teacher_signals(self, batch: dict[str, Any]) -> TeacherSignals:
        """Ask the teacher about a batch, with the columns it accepts."""
        return self.teacher(self.teacher_columns(batch))

    def teacher_columns(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return what the teacher is given of a batch."""
        columns = self.columns.for_teacher(batch)
        if (
            "labels" in batch and not self.head.spans
        ):  # read by no forward: a decoder's inputs are made from them
            columns["labels"] = batch["labels"]
        return columns

    def watched_student(self) -> AbstractContextManager[Observation]:
        """Keep what active objectives need of the student's inside, in the forwards of this context."""
        return observed(self._unwrapped(), self._student_needs)

    def student_features(self, seen: Observation, outputs: Any, batch: dict[str, Any]) -> Features | None:
        """Return what was kept of the student's inside, if anything was asked for."""
        return seen.features(self._unwrapped(), outputs, self.columns.for_student(batch))

    def objective_sums(
        self,
        outputs: Any,
        signals: TeacherSignals,
        batch: dict[str, Any],
        terms: Iterable[Term],
        features: Features | None = None,
    ) -> dict[str, tuple[torch.Tensor, torch.Tensor | int]]:
        """Return each term's sum over its rows and their number; none without rows, or of the input."""
        rows = select_rows(logits_of(outputs, "student", batch), signals, batch, self.head)
        terms = list(terms)
        sums = self.sums_over(rows, signals, batch, terms, features)
        if self._softness is not None:
            self._softness.see(rows, terms)
        return sums

    def sums_over(
        self,
        items: Rows,
        signals: TeacherSignals,
        batch: dict[str, Any],
        terms: Iterable[Term],
        features: Features | None,
    ) -> dict[str, tuple[torch.Tensor, torch.Tensor | int]]:
        """Return each term's sum over its rows and their number, from the aligned items."""
        self._check_shapes(items)
        if items.student_logits.shape[0] > 0:
            self._look_for_bad_rows(items)
        sums: dict[str, tuple[torch.Tensor, torch.Tensor | int]] = {}
        for term in terms:
            level = term.objective.level
            if "input_gradient" in term.objective.needs:
                continue  # example_sums has them
            if level == "item":
                if items.student_logits.shape[0] > 0:
                    rows = rows_for(term.objective, items)
                    sums[term.key] = term.objective(rows).sum(), items.student_logits.shape[0]
                continue
            total = self.feature_sum(term, items, signals, batch, features)
            sums[term.key] = total, count_items(batch, self.head, level)
        return sums

    @staticmethod
    def _check_shapes(rows: Rows) -> None:
        student, teachers = rows.student_logits, member_logits(rows.teacher)
        for index, teacher in enumerate(teachers):
            if teacher is not None and student.shape != teacher.shape:
                which = f"teacher[{index}]'s" if len(teachers) > 1 else "teacher's"
                raise ValueError(
                    f"logits: expected the {which} to have the student's shape {tuple(student.shape)}, received "
                    f"{tuple(teacher.shape)}. Student and teacher must read the same examples and share their classes."
                )

    def _look_for_bad_rows(self, rows: Rows) -> None:
        """Watch the logits of each teacher: a mixture would not tell whose NaN it is."""
        for index, logits in enumerate(member_logits(rows.teacher)):
            if logits is not None:
                self._finite.see(logits, self.state.global_step, rows.student_logits, index)

    # ---- logging -----------------------------------------------------------------------

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Read the parts and the flag of bad logits where the Trainer reads the loss anyway."""
        if self._softness is not None and self._softness.complete:
            self._report_softness()
        if self.control.should_log and self.state.global_step > self._globalstep_last_logged:
            self._collect_parts(self.state.global_step - self._globalstep_last_logged)
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _collect_parts(self, steps: int) -> None:
        """Average the parts over the logging window and all ranks: one gather for all of them.

        A part whose weight is 0 at some steps is averaged over the others. The scheduled values are
        those of the last step made.
        """
        self._raise_on_bad_teacher()
        active = self._active_steps(steps)
        # A rank whose batches had no rows of a level has no such part, and gathers must agree.
        alone = self.accelerator.num_processes == 1
        keys = [key for key in active if key in self._part_sums or not alone]
        sums = [self._part_sums.get(key, 0.0) for key in keys]
        self._pending_parts = {}
        if keys:
            stacked = torch.stack(
                [torch.as_tensor(s, dtype=torch.float32, device=self.args.device) for s in sums]
            )
            means = self.accelerator.gather(stacked).reshape(-1, len(keys)).mean(0)
            means /= torch.tensor([active[key] for key in keys], device=means.device)
            self._pending_parts = {f"loss/{k}": v for k, v in zip(keys, means.tolist(), strict=True)}
        self._pending_parts |= self._scheduled_values(self.state.global_step - 1)
        self._part_sums = {}

    def _active_steps(self, steps: int) -> dict[str, int]:
        """Return in how many of the last steps each part was taken, if in any."""
        of_key = {term.key: term for term in self.plan.terms}
        if not self.plan.schedules and not any(
            hasattr(t.objective, "every_n_steps") for t in self.plan.terms
        ):
            return {key: steps for key, weight in self.plan.weights.items() if highest(weight) > 0}
        counts = dict.fromkeys(self.plan.weights, 0)
        done, max_steps = self.state.global_step, self.state.max_steps
        for moment in range(done - steps, done):
            for key, weight in self.plan.weights.items():
                due = key not in of_key or is_active(of_key[key], moment)
                counts[key] += due and value_at(weight, moment, max_steps) > 0
        return {key: count for key, count in counts.items() if count}

    def _scheduled_values(self, step: int) -> dict[str, float]:
        """Return the values of all schedules at a step, by their names in the logs."""
        return {name: s.at(step, self.state.max_steps) for name, s in self.plan.schedules.items()}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as Trainer does, with the parts of the loss beside it."""
        if "loss" in logs and self._pending_parts:
            logs.update(self._pending_parts)
            self._pending_parts = {}
        super().log(logs, start_time)

    def _raise_on_bad_teacher(self) -> None:
        """Stop the run, on all ranks, if a teacher's answer was not finite, or one model ruled out a class alone."""
        states = self.accelerator.gather(self._finite.state(self.args.device))
        names = [member.name for member in getattr(self.teacher, "members", ())]
        self._finite.raise_if_bad(states.reshape(-1, 5).tolist(), names)

    def _report_softness(self) -> None:
        """Say once how soft the teacher is: after the first batches, or at the end of a shorter training."""
        if self._softness is not None:
            self._softness.report()
        self._softness = None

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        """Look at the flag of bad logits once more before the run counts as done."""
        self._raise_on_bad_teacher()
        self._report_softness()
        self._keep_added_answers()
        return super()._finalize_training(*args, **kwargs)

    def _keep_added_answers(self) -> None:
        """Let caches write what their models were asked for."""
        for member in members_of(self.teacher):
            if isinstance(member, TeacherCache):
                member.keep_added()
