"""The label loss: the Trainer's own, scaled so that one batch has one gradient however it is split."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss
from transformers.utils import logging

from hf_distill.columns import UNLABELLED_ROWS, BatchColumns
from hf_distill.compatibility import has_named_classes
from hf_distill.items import IGNORED, Head, count_items, count_labelled, count_span_labels, labelled_mask
from hf_distill.normalisation import Normalisation, probe_normalisation, undisturbed
from hf_distill.objectives.base import at_least_float32
from hf_distill.span_label_loss import SpanLabelLossMixin
from hf_distill.spans import END, START
from hf_distill.teachers.online import logits_of

if TYPE_CHECKING:
    from transformers import Trainer as _Base
else:
    _Base = object

logger = logging.get_logger(__name__)

# Starts and ends of spans have each a count of their labels.
_LEVELS = ("label", "item", "example", "token", "start", "end")


class LabelLossMixin(SpanLabelLossMixin, _Base):
    """Counts the items of the accumulated batch on all ranks, and scales the label loss by them.

    Plain ``Trainer`` believes that every model whose forward takes ``**kwargs`` has divided its
    loss by ``num_items_in_batch``. Many take a plain mean and ignore it, and get a gradient too
    large by the number of accumulation steps and processes. Here the loss that is really used is
    probed on the first real batch, and a mean is weighted by its share of the labelled items.
    """

    # compute_loss scales everything itself, so the Trainer must not divide once more.
    loss_is_scaled_for_ga = True
    head: Head
    columns: BatchColumns
    _normalisation: Normalisation
    _totals: dict[str, torch.Tensor] | None
    _matches_functional_loss: bool | None

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | int | None]:
        """Fetch the micro-batches of one optimizer step, and count their items on all ranks."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches:
            self._totals = self._count(batches, device)
            if self._normalisation is Normalisation.UNKNOWN and self._uses_label_loss(batches):
                self._normalisation = self._probe(batches)
        return batches, num_items

    def _uses_label_loss(self, batches: list[Any]) -> bool:
        """Whether this step has a label loss whose normalisation matters."""
        return "labels" in batches[0]

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """Count as Trainer does, but a NaN label is no item, and of spans it counts nothing."""
        if self.head.spans:
            return None
        if self.head.kind != "single_label" and any(UNLABELLED_ROWS in batch for batch in batch_samples):
            batch_samples = [
                {**batch, "labels": batch["labels"].masked_fill(batch["labels"].isnan(), IGNORED)}
                for batch in batch_samples
            ]
        return super()._get_num_items_in_batch(batch_samples, device)

    def _count(self, batches: list[Any], device: torch.device) -> dict[str, torch.Tensor]:
        """Return the items of each level in the accumulated batch, over all ranks, on the device."""
        counts = torch.zeros(len(_LEVELS), dtype=torch.float64, device=device)
        for batch in batches:
            self._check_labels(batch)
            local = (
                count_labelled(batch, self.head),
                count_items(batch, self.head),
                count_items(batch, self.head, "example"),
                count_items(batch, self.head, "token"),
                *count_span_labels(batch, self.head),
            )
            counts += torch.stack([torch.as_tensor(c, dtype=torch.float64).to(device) for c in local])
        if self.accelerator.num_processes > 1:
            counts = self.accelerator.reduce(counts, "sum")
        return dict(zip(_LEVELS, counts.clamp(min=1).unbind(), strict=True))

    # ---- the loss ---------------------------------------------------------------------

    def label_loss(
        self, model: nn.Module, batch: dict[str, Any], num_items: torch.Tensor | int | None
    ) -> tuple[torch.Tensor, Any]:
        """Return the label loss, scaled over the accumulated batch, and the student's outputs."""
        loss, outputs, normalisation = self.unscaled_label_loss(model, batch, num_items)
        loss = at_least_float32(loss)
        if self.head.spans and self._matches_functional_loss is not False:
            return self._loss_of_spans(outputs, batch), outputs
        scale = self._label_scale(batch, count_labelled(batch, self.head), normalisation)
        return loss * scale.to(loss.dtype), outputs

    def unscaled_label_loss(
        self, model: nn.Module, batch: dict[str, Any], num_items: torch.Tensor | int | None
    ) -> tuple[torch.Tensor, Any, Normalisation]:
        """Return the loss as the model or the user's function gives it, and how that is normalised.

        Given the batch's own count, or None, it is the mean over the batch's labelled items.
        """
        if isinstance(num_items, torch.Tensor):
            num_items = num_items.clamp(min=1)
        if UNLABELLED_ROWS in batch:
            return self._loss_of_labelled_rows(model, batch, num_items)
        inputs = self.columns.for_student(batch)
        if self.head.spans:
            labels, places = batch["labels"], {START: 0, END: 1}
            for name, which in places.items():  # as below
                none = (labels[:, which] == IGNORED).all()
                inputs[name] = torch.where(none, torch.zeros_like(inputs[name]), inputs[name])
        elif self.head.kind == "single_label":
            # A batch without one label is 0 / 0 in the model's own mean, and 0 * NaN is NaN: give it
            # labels, and the loss the weight 0. Asking first whether it is so would wait for the device.
            labels = inputs["labels"]
            none = torch.as_tensor(count_labelled(batch, self.head)) == 0
            inputs["labels"] = torch.where(none, torch.zeros_like(labels), labels)
        return *self._trainers_loss(model, inputs, num_items), self._normalisation

    def _label_scale(
        self, batch: dict[str, Any], labelled: torch.Tensor | int, normalisation: Normalisation
    ) -> torch.Tensor:
        """Return what the unscaled loss has to be multiplied by: 1 in one unsplit batch."""
        labelled = torch.as_tensor(labelled)
        if normalisation in (Normalisation.MEAN, Normalisation.UNKNOWN):
            return labelled * self._share("label", labelled)
        scale = (labelled > 0).to(torch.float64)
        if self._totals is None:
            return scale
        if normalisation is Normalisation.NEITHER and not self._counts_are_used():
            return scale / self.current_gradient_accumulation_steps
        return scale * self.accelerator.num_processes if self._multiplies_by_processes() else scale

    def _check_labels(self, batch: dict[str, Any]) -> None:
        """Raise where the labels are not of the kind that the head was taken for.

        Raises:
            ValueError: float labels for a head of one class out of several.
        """
        labels = batch.get("labels")
        if self.head.kind == "multi_label" and labels is not None and not labels.is_floating_point():
            raise ValueError(
                f"labels: expected floats, 0.0 or 1.0 for each class of a multi-label head, received {labels.dtype} of "
                f"shape {tuple(labels.shape)}. Cast the column to floats; for one class out of several set the "
                "student's config.problem_type to 'single_label_classification'."
            )
        if self.head.kind == "single_label" and labels is not None and labels.is_floating_point():
            raise ValueError(
                "labels: expected integers, because the head is taken for one class out of several, received "
                f"{labels.dtype}. Set the student's config.problem_type to 'multi_label_classification' or "
                "'regression', for both models."
            )

    def _share(self, level: str, local: torch.Tensor | int) -> torch.Tensor | float:
        """Return what one item of this level weighs: 1 over the count of the whole batch.

        Outside a training loop there is no accumulated batch, and the batch itself is the whole.
        """
        if self._totals is not None:
            return self.accelerator.num_processes / self._totals[level]
        return 1.0 / max(local, 1) if isinstance(local, int) else 1.0 / local.clamp(min=1).double()

    def own_count(self, batch: dict[str, Any]) -> torch.Tensor | None:
        """Return the batch's own ``num_items_in_batch``, as Trainer counts it, or None if it hands none over."""
        if self.head.spans or not self._counts_are_used():
            return None
        labels = batch["labels"]
        if labels.is_floating_point():
            labels = labels.masked_fill(labels.isnan(), IGNORED)
        return (labels[..., 1:] if self.head.shift else labels).ne(IGNORED).sum()

    def _counts_are_used(self) -> bool:
        """Whether the Trainer hands ``num_items_in_batch`` to the loss at all."""
        return bool(self.model_accepts_loss_kwargs or self.compute_loss_func is not None)

    def _multiplies_by_processes(self) -> bool:
        """Whether the Trainer multiplies a loss by the number of processes, on that belief."""
        return bool(self.args.average_tokens_across_devices and self._counts_are_used())

    def _trainers_loss(
        self, model: nn.Module, inputs: dict[str, Any], num_items: Any
    ) -> tuple[torch.Tensor, Any]:
        """Return the Trainer's own loss, without its factor for the number of processes."""
        loss, outputs = super().compute_loss(
            model, dict(inputs), return_outputs=True, num_items_in_batch=num_items
        )
        if num_items is not None and self._multiplies_by_processes():
            loss = loss / (self.accelerator.num_processes // self.get_tp_size())
        return loss, outputs

    def _loss_of_labelled_rows(
        self, model: nn.Module, batch: dict[str, Any], num_items: Any
    ) -> tuple[torch.Tensor, Any, Normalisation]:
        """Return the label loss over the rows that have float labels, and the outputs of all rows.

        One forward without labels serves both; a model's own MSE or BCE would take NaN for a target.
        """
        inputs = self.columns.for_student(batch)
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        all_logits, rows = logits_of(outputs, "student"), ~batch[UNLABELLED_ROWS]
        logits, labels = all_logits[rows], labels[rows]
        if labels.shape[0] == 0:
            return zero_with_graph(all_logits), outputs, Normalisation.MEAN
        if self.compute_loss_func is not None:
            selected = copy.copy(outputs)
            selected["logits"] = logits
            return (
                self.compute_loss_func(selected, labels, num_items_in_batch=num_items),
                outputs,
                self._normalisation,
            )
        if self._matches_functional_loss is False:
            raise ValueError(
                f"labels: some rows are NaN (unlabelled), but the label loss of {type(self.model).__name__} is not "
                f"the usual one for {self.head.kind} heads, so it can't be taken over the others alone. Drop the "
                "unlabelled rows, or give a compute_loss_func."
            )
        return functional_loss(logits, labels, self.head), outputs, Normalisation.MEAN

    # ---- the probe ---------------------------------------------------------------------

    def _probe(self, batches: list[Any]) -> Normalisation:
        """Ask the label loss that is used how it is normalised, and agree on it over all ranks."""
        batch = self._prepare_inputs(
            next((b for b in batches if int(count_labelled(b, self.head)) > 0), batches[0])
        )
        if UNLABELLED_ROWS in batch:
            rows = ~batch[UNLABELLED_ROWS]
            batch = {
                key: value[rows]
                if isinstance(value, torch.Tensor) and value.shape[:1] == rows.shape
                else value
                for key, value in batch.items()
                if key != UNLABELLED_ROWS
            }
        inputs, tolerance = self.columns.for_student(batch), self._tolerance()
        if self.head.spans:
            return self._probe_spans(batch, tolerance)
        with undisturbed(self._probed_model()), self.compute_loss_context_manager():
            answer = Normalisation.UNKNOWN
            if inputs["labels"].shape[0] > 0:
                classes = self._number_of_classes()
                answer = probe_normalisation(self._loss_under_count, inputs, self.head, tolerance, classes)
                self._matches_functional_loss = self._has_functional_loss(inputs, tolerance)
        return self._agree(answer)

    def _number_of_classes(self) -> int | None:
        """Return how many classes the labels have, unless they are tokens or choices, whose weights nobody sets."""
        model: Any = self._probed_model()
        named = has_named_classes(model)
        return getattr(getattr(model, "config", None), "num_labels", None) if named else None

    def _tolerance(self) -> float:
        """Return how far forwards of the same rows in other batches may differ, relative to the loss."""
        parameter = next(self._probed_model().parameters())
        if self.args.bf16 or self.args.fp16 or parameter.dtype not in _FULL:
            return 3e-2
        return 1e-4 if parameter.device.type == "cpu" else 1e-2  # TF32 keeps 10 bits

    def _probed_model(self) -> nn.Module:
        """Return the model that the probe asks: not wrapped by DDP, whose forwards must keep in step."""
        assert self.model is not None
        return self.model

    def _loss_under_count(self, inputs: dict[str, Any], count: float) -> torch.Tensor:
        """Return the label loss of a batch given a count of items, as Trainer would hand it over."""
        labels = inputs["labels"]
        num_items = torch.tensor(count, device=labels.device) if self._counts_are_used() else None
        if not bool(labelled_mask(labels, self.head).any()):
            inputs = {**inputs, "labels": torch.zeros_like(labels)}  # no label: any finite answer will do
        return self._trainers_loss(self._probed_model(), inputs, num_items)[0]

    def _has_functional_loss(self, inputs: dict[str, Any], tolerance: float) -> bool | None:
        """Whether the label loss is the usual one of its head, so that it can be taken row by row."""
        if self.head.kind == "single_label" or self.compute_loss_func is not None:
            return None
        loss, outputs = self._trainers_loss(self._probed_model(), inputs, None)
        usual = functional_loss(logits_of(outputs, "student"), inputs["labels"], self.head)
        return bool((loss - usual).abs() <= tolerance * usual.abs())

    def _agree(self, answer: Normalisation) -> Normalisation:
        """Return one answer for all ranks; a rank without a label has none to give."""
        answers = torch.tensor([answer.value], device=self.args.device)
        found = set(self.accelerator.gather(answers).tolist()) - {Normalisation.UNKNOWN.value}
        if not found:
            return Normalisation.UNKNOWN
        agreed = Normalisation(found.pop()) if len(found) == 1 else Normalisation.NEITHER
        if agreed is Normalisation.NEITHER:
            logger.warning(
                "The label loss is neither a mean over the labelled items nor divided by num_items_in_batch (an "
                "auxiliary loss or class weights, perhaps). It is left as Trainer scales it: with gradient "
                "accumulation or several processes its gradient may depend on how the batch is split."
            )
        else:
            logger.info(f"The label loss is {agreed.name.lower()}; see docs/normalisation.md.")
        return agreed


_FULL = (torch.float32, torch.float64)


def functional_loss(logits: torch.Tensor, labels: torch.Tensor, head: Head) -> torch.Tensor:
    """Return the usual loss of a float-labelled head: BCE with logits, or MSE; the mean over rows.

    Shapes: ``(rows, outputs)`` logits; labels ``(rows, outputs)``, or ``(rows,)`` for one output.

    Example:
        >>> functional_loss(torch.tensor([[1.0]]), torch.tensor([3.0]), Head("regression"))
        tensor(4.)
    """
    logits = at_least_float32(logits)
    labels = labels.to(logits.dtype)
    if head.kind == "multi_label":
        return binary_cross_entropy_with_logits(logits, labels)
    return mse_loss(logits.reshape(labels.shape), labels)


def zero_with_graph(logits: torch.Tensor) -> torch.Tensor:
    """Return 0 with a live graph to the logits, whatever they hold.

    Example:
        >>> logits = torch.tensor([float("nan")], requires_grad=True)
        >>> zero_with_graph(logits).backward()
        >>> logits.grad
        tensor([0.])
    """
    return torch.where(torch.isfinite(logits), logits, torch.zeros_like(logits)).sum() * 0.0
