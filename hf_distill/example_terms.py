"""The terms of level ``example``: objectives over both models as functions of their input."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from hf_distill.directions import example_keys
from hf_distill.input_functions import InputFunctions, functions_of_batch
from hf_distill.input_space import check_double_backward, check_input_space, warn_about_rounding
from hf_distill.items import batch_size
from hf_distill.label_loss import LabelLossMixin
from hf_distill.loss_plan import Term
from hf_distill.objectives.base import Rows
from hf_distill.teachers.following import Followed, followed
from hf_distill.teachers.online import OnlineTeacher, logits_of
from hf_distill.teachers.signals import Teacher, TeacherSignals

# No optimizer step has this number: what is drawn in evaluation is the same at every evaluation.
_EVALUATION = -1


def is_active(term: Term, step: int) -> bool:
    """Return whether a term is taken in a step, counted from 0: objectives may say ``every_n_steps``."""
    return step % int(getattr(term.objective, "every_n_steps", 1)) == 0


class ExampleTermsMixin(LabelLossMixin):
    """Makes the rows of objectives that differentiate to the input, and sums them over examples.

    Random directions are drawn by the seed, the step and the example's index in the whole
    accumulated batch over all processes, so that a split batch and a resumed run draw the same.
    """

    teacher: Teacher
    _micro_batch: int = 0
    # The student whose input each teacher's was found to share.
    _space_of: dict[int | None, Any]

    def _student(self) -> Any:
        raise TypeError("ExampleTermsMixin is one layer of DistillationMixin, which knows the student.")

    def teacher_columns(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return what the teacher is given of a batch."""
        raise TypeError("ExampleTermsMixin is one layer of DistillationMixin, which knows the columns.")

    def student_outputs(self, model: nn.Module, batch: dict[str, Any]) -> Any:
        """Run the student without labels."""
        raise TypeError("ExampleTermsMixin is one layer of DistillationMixin, which runs the student.")

    # ---- construction --------------------------------------------------------------------

    def check_differentiable(self, term: Term) -> None:
        """Raise where a derivative to the input can't be taken, or is not one in a shared space.

        Raises:
            ValueError: a teacher without a model, spaces that are not shared, or a setting of the
                run under which the student's forward can't be replaced or differentiated.
        """
        if self.head.spans:
            raise ValueError(
                f"objective {term.key!r}: expected a head with an answer per example or position, received one that "
                "points at spans, whose classes are the positions of the input itself. Use objectives on values."
            )
        models = [self._student()]
        for one in followed(self.teacher, term.teacher, term.key):
            with one.naming():
                models.append(self._sharing_the_input(term, one))
        if getattr(self.args, "torch_compile", False):
            raise ValueError(
                f"objective {term.key!r}: expected a student that is not compiled, whose input can be replaced, "
                "received torch_compile=True. Set torch_compile=False."
            )
        if getattr(term.objective, "method", None) == "finite_difference":
            dtypes = [next(model.parameters()).dtype for model in models]
            dtypes += [torch.bfloat16] * bool(self.args.bf16) + [torch.float16] * bool(self.args.fp16)
            coarsest = max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)
            warn_about_rounding(term.key, float(getattr(term.objective, "epsilon", 1.0)), coarsest)
        else:
            features = {
                "FSDP": self.is_fsdp_enabled,
                "DeepSpeed": self.is_deepspeed_enabled,
                "use_liger_kernel": self.args.use_liger_kernel,
            }
            check_double_backward(term.key, features)

    def _sharing_the_input(self, term: Term, one: Followed) -> nn.Module:
        """Return the model of a teacher whose input is the student's."""
        if not isinstance(one.teacher, OnlineTeacher):
            raise ValueError(
                f"objective {term.key!r}: expected a teacher that is one model, received {one.teacher.name}. Give the "
                "model itself as teacher."
            )
        student = self._student()
        # Once per student: training moves its embeddings, and a resumed run is no other run.
        if self._space_of.get(one.place) is not student:
            check_input_space(student, one.teacher.model, one.has_own_encoding(self.columns))
            self._space_of[one.place] = student
        return one.teacher.model

    # ---- one micro-batch -----------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | int | None]:
        """Fetch the micro-batches of one optimizer step, and count them from 0."""
        self._micro_batch = 0
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def next_examples(self, batch: dict[str, Any]) -> tuple[int, int]:
        """Return where this micro-batch starts in the accumulated batch over all processes, and the step."""
        place = self._micro_batch * self.accelerator.num_processes + self.accelerator.process_index
        self._micro_batch += 1
        return place * max(self._train_batch_size or 0, batch_size(batch)), self.state.global_step

    def example_sums(
        self,
        model: nn.Module,
        outputs: Any,
        signals: TeacherSignals,
        batch: dict[str, Any],
        terms: Sequence[Term],
        first: int,
        step: int | None,
        kept: int | None = None,
    ) -> dict[str, tuple[torch.Tensor, torch.Tensor | int]]:
        """Return the sum of each objective over the examples, and their number.

        Args:
            model: the wrapped student.
            outputs: the student's outputs for the batch.
            signals: the teacher's.
            batch: a prepared batch.
            terms: the terms of this step, whatever their level.
            first: index of the batch's first example, over all processes.
            step: the optimizer's step, or None in evaluation.
            kept: how many leading examples count; all unless given.
        """
        terms = [term for term in terms if "input_gradient" in term.objective.needs]
        if not terms:
            return {}
        step = _EVALUATION if step is None else step
        count = batch_size(batch) if kept is None else kept
        sums: dict[str, tuple[torch.Tensor, torch.Tensor | int]] = {}
        for term in terms:
            total: torch.Tensor | None = None
            for one in followed(self.teacher, term.teacher, term.key):
                with one.at_work():
                    functions = self._functions(model, batch, first, step, one)
                    logits, theirs = logits_of(outputs, "student"), one.signals(signals)
                    rows = Rows(logits, theirs, level="example", functions=functions)
                    part = one.weight * term.objective(rows)[:count].sum()
                total = part if total is None else total + part
            assert total is not None, "weights sum to 1"
            sums[term.key] = total, count
        return sums if count else {}

    def _functions(
        self, model: nn.Module, batch: dict[str, Any], first: int, step: int, one: Followed
    ) -> InputFunctions:
        """Return student and teacher as functions of a batch's input, the student through its wrappers."""
        assert isinstance(one.teacher, OnlineTeacher)
        teacher, seed = one.teacher, int(self.args.seed)

        def run_student(replaced: dict[str, Any]) -> torch.Tensor:
            return logits_of(self.student_outputs(model, replaced), "student")

        def run_teacher(replaced: dict[str, Any]) -> torch.Tensor:
            return teacher.raw_logits(one.columns(self.teacher_columns(replaced)))

        return functions_of_batch(
            batch,
            self._student(),
            teacher.model,
            self.head,
            example_keys(seed, step, first, batch_size(batch), self.args.device),
            run_student,
            run_teacher,
            random.Random(f"{seed} {step} {first}").getrandbits(63),
        )
