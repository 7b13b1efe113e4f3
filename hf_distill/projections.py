"""Modules trained beside the student, by the same optimizer, and never saved in it: projections of features."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hf_distill.features import ModelShape

if TYPE_CHECKING:
    from transformers import Trainer as _Base
else:
    _Base = object

PROJECTIONS_NAME = "hf_distill_projections.safetensors"


def to_teachers_width(student: ModelShape, teacher: ModelShape) -> nn.Module | None:
    """Return a matrix from the student's width to the teacher's, or None where they are equal.

    Example:
        >>> to_teachers_width(ModelShape(2, 8, 1), ModelShape(4, 16, 2))
        Linear(in_features=8, out_features=16, bias=False)
    """
    if student.width == teacher.width:
        return None
    return nn.Linear(student.width, teacher.width, bias=False)


class ProjectionsMixin(_Base):
    """Trains :attr:`projections` beside the student: optimizer, gradients of all ranks, clipping, resume.

    They hang on the trainer, not on the student, so no ``state_dict``, export or push of the student
    holds them; a checkpoint has them in a file of their own.
    """

    projections: nn.ModuleDict

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Create the optimizer as Trainer does, and give it the projections as one more group."""
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(model)
        parameters = list(self.projections.parameters())
        if fresh and parameters:
            self._check_that_projections_can_train()
            rate = getattr(self.args, "projection_learning_rate", None)
            optimizer.add_param_group(
                {
                    "params": parameters,
                    "lr": self.args.learning_rate if rate is None else rate,
                    "weight_decay": self.args.weight_decay,
                }
            )
        return optimizer

    def _check_that_projections_can_train(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                f"objectives: expected no trained projection under FSDP or DeepSpeed, which own the optimizer's "
                f"parameters, received one for {', '.join(self.projections)}. Use DDP, or a student "
                "of the teacher's width."
            )

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Train one micro-batch; with the last of a step, average the projections' gradients over all ranks."""
        loss = super().training_step(*args, **kwargs)
        if self.accelerator.sync_gradients and self.accelerator.num_processes > 1:
            for parameter in self.projections.parameters():  # DDP averages the student's in the same way
                if parameter.grad is None:  # a rank without rows must take part all the same
                    parameter.grad = torch.zeros_like(parameter)
                parameter.grad = self.accelerator.reduce(parameter.grad, "mean")
        return loss

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Clip the student as Trainer does, and the projections apart, so that neither weakens the other."""
        norm = super()._clip_grad_norm(model)  # under fp16 this unscales all gradients of the optimizer
        parameters = list(self.projections.parameters())
        if parameters:
            nn.utils.clip_grad_norm_(parameters, self.args.max_grad_norm)
        return norm

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if len(self.projections) and self.args.should_save:
            save_file(
                {
                    name: value.detach().cpu().contiguous()
                    for name, value in self.projections.state_dict().items()
                },
                str(Path(output_dir) / PROJECTIONS_NAME),
            )

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or not len(self.projections):
            return
        path = Path(checkpoint) / PROJECTIONS_NAME
        if not path.is_file():
            raise ValueError(
                f"{checkpoint}: expected {PROJECTIONS_NAME} with the projections of "
                f"{', '.join(self.projections)}, received none. Resume with the objectives that wrote it."
            )
        self.projections.load_state_dict(load_file(str(path)))
