"""Modules trained beside the student, by the same optimizer, and never saved in it: projections of features."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.utils import logging

from hf_distill.features import ModelShape

if TYPE_CHECKING:
    from transformers import Trainer as _Base

    from hf_distill.objectives.base import Objective
else:
    _Base = object

logger = logging.get_logger(__name__)

PROJECTIONS_NAME = "hf_distill_projections.safetensors"
# An objective's key, and the number of the teacher it follows, None where there is one.
ProjectionKey = tuple[str, int | None]


def to_teachers_width(student: ModelShape, teacher: ModelShape) -> nn.Module | None:
    """Return a matrix from the student's width to the teacher's, or None where they are equal.

    Example:
        >>> to_teachers_width(ModelShape(2, 8, 1), ModelShape(4, 16, 2))
        Linear(in_features=8, out_features=16, bias=False)
    """
    if student.width == teacher.width:
        return None
    return nn.Linear(student.width, teacher.width, bias=False)


def module_name(key: str, teacher: int | None = None) -> str:
    """Return an objective's key as the name of a submodule, which holds no dot and is no method's name.

    Args:
        key: the objective's name in the logs.
        teacher: the number of the teacher it follows, or None where there is one.

    Example:
        >>> module_name("a.b"), module_name("keys"), module_name("keys", 1)
        ('key:a%2Eb', 'key:keys', 'teacher:1:key:keys')
    """
    name = "key:" + key.replace("%", "%25").replace(".", "%2E")
    return name if teacher is None else f"teacher:{teacher}:{name}"


def projection_of(projections: nn.ModuleDict, key: str, teacher: int | None = None) -> nn.Module | None:
    """Return the module that the objective of this key trains to match a teacher, if any."""
    modules: dict[str, nn.Module] = dict(projections.items())
    return modules.get(module_name(key, teacher))


def _keys(projections: Mapping[ProjectionKey, Any]) -> str:
    return ", ".join(dict.fromkeys(key for key, _ in projections))


class ProjectionsMixin(_Base):
    """Trains :attr:`projections` beside the student: optimizer, gradients of all ranks, clipping, resume.

    They hang on the trainer, not on the student, so no ``state_dict``, export or push of the student
    holds them; a checkpoint has them in a file of their own.
    """

    projections: nn.ModuleDict
    # What each projection was made for: its objective, the models' sizes, and the student itself.
    _projected: dict[ProjectionKey, Any]
    _projected_student: nn.Module | None = None

    def make_projections(
        self, wanted: Mapping[ProjectionKey, tuple[Objective, ModelShape, ModelShape]], student: nn.Module
    ) -> None:
        """Make what some objectives train, drawn from the seed: one module for each teacher they follow.

        A projection stays as it is while its objective, the sizes and the student do: a second ``train()`` goes
        on with it, and a new student, of ``model_init`` or a trial, gets a new one.

        Args:
            wanted: the objectives, and the sizes of student and teacher.
            student: the student without wrappers.

        Raises:
            ValueError: a projection under FSDP or DeepSpeed.
        """
        before = self._projected if student is self._projected_student else {}
        dtype = torch.promote_types(next(student.parameters()).dtype, torch.float32)
        modules = {
            key: projection_of(self.projections, *key)
            if before.get(key) == made_for
            else self._new_projection(made_for, dtype)
            for key, made_for in wanted.items()
        }
        trained = {key: module for key, module in modules.items() if module is not None}
        if trained and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise ValueError(
                f"objectives: expected no trained projection under FSDP or DeepSpeed, which own the optimizer's "
                f"parameters, received one for {_keys(trained)}. Use DDP, or a student of the teacher's width."
            )
        self._projected, self._projected_student = dict(wanted), student
        self.projections = nn.ModuleDict({module_name(*key): module for key, module in trained.items()})

    def _new_projection(self, made_for: Any, dtype: torch.dtype) -> nn.Module | None:
        objective, *shapes = made_for
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which seeds the generators of all devices.
            torch.default_generator.manual_seed(self.args.seed)
            made: nn.Module | None = objective.projection(*shapes)
        return None if made is None else made.to(self.args.device, dtype)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Create the optimizer as Trainer does, and give it the projections as one more group."""
        optimizer = super().create_optimizer(model)
        known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        parameters = [one for one in self.projections.parameters() if id(one) not in known]
        if parameters:
            if self.lr_scheduler is not None:
                raise ValueError(
                    f"optimizers: expected an optimizer without a scheduler, which was made before the group of the "
                    f"projections of {_keys(self._projected)}, received both. Give the optimizer alone."
                )
            rate = getattr(self.args, "projection_learning_rate", None)
            optimizer.add_param_group(
                {
                    "params": parameters,
                    "lr": self.args.learning_rate if rate is None else rate,
                    "weight_decay": self.args.weight_decay,
                }
            )
        return optimizer

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Fetch the micro-batches of one step, and clear the gradients of the last, as Trainer clears the model's."""
        self.projections.zero_grad()
        return super().get_batch_samples(*args, **kwargs)

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
                {name: value.cpu().contiguous() for name, value in self.projections.state_dict().items()},
                str(Path(output_dir) / PROJECTIONS_NAME),
            )

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load as Trainer does, after the projections, whose absence the optimizer's state would trip over."""
        if checkpoint is not None:
            self._load_projections(Path(checkpoint, PROJECTIONS_NAME))
        super()._load_optimizer_and_scheduler(checkpoint)

    def _load_best_model(self) -> None:
        """Load the best student as Trainer does, and the projections that it was measured with."""
        super()._load_best_model()
        if not len(self.projections):
            return
        path = Path(str(self.state.best_model_checkpoint), PROJECTIONS_NAME)
        if path.is_file():
            self._load_projections(path)
        else:
            logger.warning(
                f"{path.parent} holds no {PROJECTIONS_NAME}, which save_only_model leaves out: the best student is "
                "there again, beside the projections of the last step, so its losses on features are of neither."
            )

    def _load_projections(self, path: Path) -> None:
        own = self.projections.state_dict()
        saved = load_file(str(path)) if path.is_file() else {}
        shapes = [{name: tuple(value.shape) for name, value in held.items()} for held in (own, saved)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{path.parent}: expected {PROJECTIONS_NAME} with {shapes[0] or 'no projection'}, received "
                f"{shapes[1] or 'none'}. Resume with the objectives and models that wrote the checkpoint, and without "
                "save_only_model, which leaves projections out."
            )
        self.projections.load_state_dict(saved)
