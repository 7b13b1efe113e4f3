"""Evaluation of a student beside its teacher: exact sums over items, agreement and retention."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from transformers import EvalPrediction
from transformers.trainer_pt_utils import EvalLoopContainer
from transformers.utils import logging

from hf_distill.distillation_loss import DistillationLossMixin, weighted_sum
from hf_distill.evaluation.agreement import agreement_sums, finish_agreement, teacher_scores
from hf_distill.evaluation.retention import retention
from hf_distill.evaluation.search import SearchMixin
from hf_distill.features import Features
from hf_distill.items import IGNORED, batch_size, count_labelled, select_rows, slice_batch
from hf_distill.loss_plan import LossPlan
from hf_distill.spans import span_loss_sums
from hf_distill.teachers.online import decoder_input_maker, logits_of
from hf_distill.teachers.signals import label_free

logger = logging.get_logger(__name__)
# Starts and ends of spans, whose label losses have each a count.
_SPAN_PARTS = ("label_start", "label_end")


@dataclass
class _Pass:
    """What one pass over an evaluation set has summed up so far."""

    keep_teacher: bool
    key: str | None
    batches: int = 0
    sums: dict[str, torch.Tensor] = field(default_factory=dict)
    concatenate: bool = True
    teacher: EvalLoopContainer = field(init=False)
    content: Any = field(default_factory=hashlib.sha256)

    def __post_init__(self) -> None:
        """Keep the teacher's logits as Trainer keeps the student's: one array, or a list of batches."""
        self.teacher = EvalLoopContainer(self.concatenate, padding_index=-100)

    def add(self, key: str, total: torch.Tensor, count: torch.Tensor | int) -> None:
        """Add a sum over rows and their number, on the device and in float64."""
        pair = torch.stack([total.detach().double(), torch.as_tensor(count, device=total.device).double()])
        self.sums[key] = self.sums[key] + pair if key in self.sums else pair


class EvaluationMixin(SearchMixin, DistillationLossMixin):
    """Evaluates over items, so that neither batch size nor the number of processes changes a value.

    Plain ``Trainer`` averages batch means, and counts again the examples that fill up the last
    batch of several processes. Here every part is a sum over items divided by their number.
    """

    _pass: _Pass | None = None
    # The names of what compute_metrics gave, under each evaluation set's own prefix; a dict keeps their order.
    _task_metrics: dict[str, None]

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """Evaluate as Trainer does, and add the parts of the loss, agreement, teacher and retention."""
        known = self._known_teacher_metrics()
        key = getattr(getattr(dataloader, "dataset", None), "_fingerprint", None)
        wanted = self.compute_metrics is not None and not self.args.batch_eval_metrics
        # The student's metric is then of texts it wrote, the teacher's would be of logits.
        wanted = wanted and not getattr(self.args, "predict_with_generate", False)
        if self.compute_metrics is not None and (
            self.args.batch_eval_metrics or self.args.include_for_metrics
        ):
            logger.warning_once(
                "The teacher's metric and retention are left out: compute_metrics is called batch by batch, or with "
                "more than logits and labels (batch_eval_metrics, include_for_metrics)."
            )
        self._pass = _Pass(
            keep_teacher=wanted and (key is None or key not in known),
            key=key,
            concatenate=self.args.eval_do_concat_batches,
        )
        try:
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
            self._raise_on_bad_teacher()
            self._keep_added_answers()
            metrics: dict[str, Any] = output.metrics or {}
            task = self._task_values(metrics, metric_key_prefix)
            self._task_metrics |= {f"{metric_key_prefix}_{name}": None for name in task}
            extra = self._summed_metrics()
            if wanted and task:
                extra.update(self._against_teacher(task, output.label_ids, known, metric_key_prefix))
            metrics.pop(f"{metric_key_prefix}_loss", None)  # a mean of batch means, of zeros without labels
            metrics.update({f"{metric_key_prefix}_{name}": value for name, value in extra.items()})
        finally:
            self._pass = None
        return output

    def _task_values(self, metrics: dict[str, Any], prefix: str) -> dict[str, float]:
        """Return what the user's compute_metrics gave, without its prefix."""
        ours = {f"{prefix}_loss", f"{prefix}_model_preparation_time"}
        return {
            name.removeprefix(f"{prefix}_"): float(value)
            for name, value in metrics.items()
            if name not in ours and isinstance(value, (int, float))
        }

    # ---- one batch -------------------------------------------------------------------

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, Any, Any]:
        """Return the loss, the student's logits and nothing else of the outputs, and the labels."""
        batch = self._prepare_inputs(inputs)
        labels = batch.get("labels")
        if self._lacks_decoder_inputs(batch):
            return self._generated(model, batch, ignore_keys)
        with torch.no_grad(), self.compute_loss_context_manager():
            with self.watched_student() as seen:
                parts, outputs = self._label_part(model, batch)
            signals = self.teacher_signals(batch)
            features = self.student_features(seen, outputs, batch)
            parts.update(self._teacher_parts(model, outputs, signals, batch, features))
        # Never None, and of one dtype: Trainer gathers the losses, and a process whose batch only fills up has no part.
        loss = weighted_sum(self._plan_now(), parts)
        loss = torch.zeros((), device=self.args.device) if loss is None else loss.float()
        if prediction_loss_only:
            return loss, None, None
        logits = self._shown(logits_of(outputs, "student").detach())
        labels = self._shown(labels)
        if self._pass is not None and self._pass.keep_teacher:
            scores = teacher_scores(label_free(signals), self.head)
            if scores is not None:
                self._keep_teacher_logits(self._shown(scores), labels, batch)
        if getattr(self.args, "predict_with_generate", False):
            return loss, self._generated(model, batch, ignore_keys)[1], labels
        return loss, logits, labels

    def _shown(self, values: Any) -> Any:
        """Return logits or labels as plain Trainer hands them on: of spans, starts and ends apart."""
        return tuple(values.unbind(1)) if self.head.spans and values is not None else values

    def _plan_now(self) -> LossPlan:
        """Return the loss as it is at this step, with the terms whose weight is 0 there.

        Their part is shown all the same, so that a metric to choose the best model by is there at every step.
        """
        return self.plan.at(self.state.global_step, self.state.max_steps, keep_idle=True)

    def _lacks_decoder_inputs(self, batch: dict[str, Any]) -> bool:
        """Whether an encoder-decoder has nothing to predict the next token from: no labels to shift."""
        if self.head.spans:
            return False
        makes_them = decoder_input_maker(self._student()) is not None
        return makes_them and batch.get("labels") is None and "decoder_input_ids" not in batch

    def _generated(self, model: nn.Module, batch: dict[str, Any], ignore_keys: list[str] | None) -> Any:
        """Return what Seq2SeqTrainer does where ``predict_with_generate`` is set: the texts written."""
        if not getattr(self.args, "predict_with_generate", False):
            raise ValueError(
                f"labels: expected labels or decoder_input_ids, because an encoder-decoder predicts each token from "
                f"the ones before, received {sorted(batch)}. Add one of them, or set predict_with_generate=True "
                "to have the student write the texts itself."
            )
        generated = super().prediction_step(model, self.columns.for_student(batch), False, ignore_keys)[1]
        # Never None: a process that waits to gather the losses of the others would wait for ever.
        return torch.zeros((), device=self.args.device), generated, batch.get("labels")

    def _label_part(self, model: nn.Module, batch: dict[str, Any]) -> tuple[dict[str, torch.Tensor], Any]:
        """Return the label loss of the batch's own rows, if it has labels, and all outputs."""
        if batch.get("labels") is None:
            return {}, self.student_outputs(model, batch)
        loss, outputs, _ = self.unscaled_label_loss(model, batch, self.own_count(batch))
        own, labelled = batch, count_labelled(batch, self.head)
        if self._filled_up():
            # The last batch holds examples twice; the model's mean is over all of them, so ask it again.
            # All processes do, so that sharded models keep in step.
            rows = self._own_rows(batch)
            own = slice_batch(batch, slice(0, max(rows, 1)))
            loss, _, _ = self.unscaled_label_loss(model, own, self.own_count(own))
            labelled = count_labelled(own, self.head) if rows else 0
        if self._pass is not None and self.head.spans:
            sums = span_loss_sums(logits_of(outputs, "student")[: batch_size(own)], own["labels"])
            told = (own["labels"] != IGNORED).sum(0)
            kept = (0, 0) if self._filled_up() and not self._own_rows(batch) else told
            for which, name in enumerate(_SPAN_PARTS):
                self._pass.add(name, sums[which] * bool(self._own_rows(batch)), kept[which])
        elif self._pass is not None:
            self._pass.add("label", loss.double() * labelled, labelled)
        return {"label": loss}, outputs

    def _teacher_parts(
        self, model: nn.Module, outputs: Any, signals: Any, batch: dict[str, Any], features: Features | None
    ) -> dict[str, torch.Tensor]:
        """Add up the objectives and the agreement over the batch's own rows."""
        rows_kept = slice(0, self._own_rows(batch))
        # Over all rows, so that sharded models keep in step; the others are dropped from the sum.
        plan, place = self._plan_now(), self._place_of_batch()
        by_example = self.example_sums(
            model, outputs, signals, batch, plan.terms, place, None, rows_kept.stop
        )
        if rows_kept.stop == 0:
            return {}
        own, signals = slice_batch(batch, rows_kept), signals.select(rows_kept)
        logits = logits_of(outputs, "student", batch)[rows_kept]
        rows = select_rows(logits, signals, own, self.head)
        # As the label loss, an objective that reads labels is left out where a set to predict has none.
        terms = [t for t in plan.terms if rows.labels is not None or "labels" not in t.objective.needs]
        inside = None if features is None else features.select(rows_kept)
        sums = {**by_example, **self.sums_over(rows, signals, own, terms, inside)}
        if self._pass is not None:
            unaided = replace(rows, teacher=label_free(rows.teacher))
            agreement = agreement_sums(unaided, self.head) if rows.student_logits.shape[0] > 0 else {}
            for key, (total, number) in {**sums, **agreement}.items():
                self._pass.add(key, total, number)
        return {key: total / number for key, (total, number) in sums.items()}

    def _place_of_batch(self) -> int:
        """Return the index of the batch's first example in the whole set over all processes."""
        if self._pass is None:
            return 0
        place = self._pass.batches * self.accelerator.num_processes + self.accelerator.process_index
        self._pass.batches += 1
        return place * self.args.eval_batch_size

    def _filled_up(self) -> bool:
        """Whether this is a last batch that several processes filled up with examples seen before."""
        state = self.accelerator.gradient_state
        return bool(self.accelerator.num_processes > 1 and state.end_of_dataloader and state.remainder > 0)

    def _own_rows(self, batch: dict[str, Any]) -> int:
        """Return how many leading rows of this process's batch are not there to fill it up."""
        size = batch_size(batch)
        if not self._filled_up():
            return size
        before = self.accelerator.process_index * size
        return min(max(self.accelerator.gradient_state.remainder - before, 0), size)

    def _keep_teacher_logits(self, logits: torch.Tensor, labels: Any, batch: dict[str, Any]) -> None:
        """Keep what the teacher's own metric needs, gathered like the student's logits."""
        assert self._pass is not None
        logits = self.accelerator.pad_across_processes(logits, dim=1, pad_index=-100)
        if self.preprocess_logits_for_metrics is not None:
            logits = self.preprocess_logits_for_metrics(logits, labels)
        self._pass.teacher.add(self.accelerator.gather_for_metrics(logits))
        self._pass.teacher.to_cpu_and_numpy()
        if self._pass.key is None:
            for value in batch.values():
                if isinstance(value, torch.Tensor):
                    gathered = self.accelerator.gather(self.accelerator.pad_across_processes(value, dim=1))
                    self._pass.content.update(gathered.detach().float().cpu().numpy().tobytes())

    # ---- the whole set -------------------------------------------------------------------

    def _summed_metrics(self) -> dict[str, float]:
        """Return the loss, its parts, agreement and mean KL, over the items of all processes."""
        assert self._pass is not None
        plan = self._plan_now()
        keys = [*plan.weights, "agreement", "mean_kl", *_SPAN_PARTS]
        nothing = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        table = torch.stack([self._pass.sums.get(key, nothing).to(self.args.device) for key in keys])
        if self.accelerator.num_processes > 1:
            table = self.accelerator.reduce(table, "sum")
        means = {
            key: total / count for key, (total, count) in zip(keys, table.tolist(), strict=True) if count
        }
        halves = [means.pop(name) for name in _SPAN_PARTS if name in means]
        if halves:  # the models' own loss: the mean of both
            means["label"] = sum(halves) / len(_SPAN_PARTS)
        parts = {key: value for key, value in means.items() if key not in ("agreement", "mean_kl")}
        result = {}
        loss = weighted_sum(plan, parts)
        if loss is not None:
            result["loss"] = loss
        result.update({f"loss/{key}": value for key, value in parts.items()})
        if "agreement" in means:
            result["agreement"] = finish_agreement(means["agreement"], self.head)
        if "mean_kl" in means:
            result["mean_kl"] = means["mean_kl"]
        return result

    def _known_teacher_metrics(self) -> dict[str, dict[str, float]]:
        """Return the teacher's metrics of each evaluation set seen, by its content; anew where others are computed."""
        if not hasattr(self, "_teacher_metrics") or self._measured_by is not self.compute_metrics:
            self._teacher_metrics: dict[str, dict[str, float]] = {}
            self._measured_by: Any = self.compute_metrics
        return self._teacher_metrics

    def _against_teacher(
        self, task: dict[str, float], labels: Any, known: dict[str, dict[str, float]], prefix: str
    ) -> dict[str, float]:
        """Return the teacher's own metrics, computed once per evaluation set, and the retention."""
        assert self._pass is not None
        key = self._pass.key or self._pass.content.hexdigest()
        if key not in known:
            predictions = self._pass.teacher.get_arrays()
            if predictions is None or labels is None or self.args.include_for_metrics:
                return {}
            compute: Any = self.compute_metrics
            metrics = compute(EvalPrediction(predictions=predictions, label_ids=labels))
            named = {name.removeprefix(f"{prefix}_"): value for name, value in metrics.items()}
            known[key] = {name: float(value) for name, value in named.items() if name in task}
        teacher = known[key]
        result = {f"teacher_{name}": value for name, value in teacher.items()}
        for name, value in teacher.items():
            kept = retention(name, task[name], value)
            if kept is not None:
                result[f"retention_{name}"] = kept
        return result
