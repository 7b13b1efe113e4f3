"""The terms on features: what both models are asked to show, and the objectives' values against each teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from hf_distill.columns import BatchColumns
from hf_distill.features import FeatureNeeds, Features, ModelShape, shape_of
from hf_distill.items import token_weights
from hf_distill.loss_plan import LossPlan, Term
from hf_distill.objectives.base import Rows, check_not_negative
from hf_distill.projections import ProjectionsMixin, projection_of
from hf_distill.teachers.following import Followed, followed
from hf_distill.teachers.preparation import members_of
from hf_distill.teachers.signals import Teacher, TeacherSignals


class FeatureTermsMixin(ProjectionsMixin):
    """Asks student and teachers for the features of active objectives, and sums these over their rows."""

    plan: LossPlan
    teacher: Teacher
    columns: BatchColumns
    _student_needs: FeatureNeeds

    def _student(self) -> Any:
        raise TypeError("FeatureTermsMixin is one layer of DistillationMixin, which knows the student.")

    # ---- construction --------------------------------------------------------------------

    def _prepare_features(self) -> None:
        """Find out what the objectives need of the models' insides, and make the projections they train."""
        rate = getattr(self.args, "projection_learning_rate", None)
        check_not_negative("projection_learning_rate", 0.0 if rate is None else rate, "arguments")
        members: Sequence[Any] = members_of(self.teacher)
        needs = {id(member): FeatureNeeds() for member in members}
        self._student_needs = FeatureNeeds()
        wanted = {}
        for term in self.plan.terms:
            if "features" not in term.objective.needs:
                continue
            student = shape_of(self._student(), "student")
            for one in followed(self.teacher, term.teacher, term.key):
                with one.naming():
                    shapes = student, _shape_of(one)
                    self._check_positions(term, one)
                    own, other = term.objective.feature_needs(*shapes)
                self._student_needs = self._student_needs | own
                needs[id(one.teacher)] = needs[id(one.teacher)] | other
                wanted[term.key, one.place] = (term.objective, *shapes)
        self.make_projections(wanted, self._student())
        for member in members:
            if hasattr(member, "feature_needs"):
                member.feature_needs = needs[id(member)]

    def _check_positions(self, term: Term, one: Followed) -> None:
        """Raise for an objective that compares positions of two encodings."""
        if term.objective.level == "token" and one.has_own_encoding(self.columns):
            raise ValueError(
                f"objective {term.key!r}: expected student and teacher to read the same tokens, received "
                "teacher_processing_class. Use an objective with one vector per example, such as patient, "
                "similarity or rkd."
            )

    # ---- one micro-batch -----------------------------------------------------------------

    def feature_sum(
        self,
        term: Term,
        items: Rows,
        signals: TeacherSignals,
        batch: dict[str, Any],
        features: Features | None,
    ) -> torch.Tensor:
        """Return an objective's sum over the examples or tokens of a batch, averaged over whom it follows."""
        total: torch.Tensor | None = None
        for one in followed(self.teacher, term.teacher, term.key):
            with one.naming():
                rows = self._feature_rows(term, one, items, signals, features)
                # Mixed precision would multiply matrices of features in 16 bits.
                with torch.autocast(items.student_logits.device.type, enabled=False):
                    values = term.objective(rows)
            if term.objective.level == "token":
                weights = token_weights(rows.features()[0].attended, batch)
                values = values if weights is None else values * weights.to(values.dtype)
            part = one.weight * values.sum()
            total = part if total is None else total + part
        assert total is not None, "weights sum to 1"
        return total

    def _feature_rows(
        self, term: Term, one: Followed, items: Rows, signals: TeacherSignals, features: Features | None
    ) -> Rows:
        """Return the rows of an objective against one teacher: the examples or tokens of the batch."""
        theirs = getattr(one.signals(signals), "features", None)
        if features is None or theirs is None:
            raise ValueError(
                f"objective {term.key!r}: expected features of student and teacher, received none from "
                f"{'the student' if features is None else one.teacher.name}."
            )
        if term.objective.level == "token" and features.attended.shape != theirs.attended.shape:
            raise ValueError(
                f"objective {term.key!r}: expected student and teacher to have the same positions, received "
                f"{tuple(features.attended.shape)} and {tuple(theirs.attended.shape)} (examples, positions). Use an "
                "objective with one vector per example, such as patient, similarity or rkd."
            )
        return replace(
            items,
            teacher=one.signals(items.teacher),
            level=term.objective.level,
            student_features=features,
            teacher_features=theirs,
            projection=projection_of(self.projections, term.key, one.place),
        )


def _shape_of(one: Followed) -> ModelShape:
    """Return the sizes of a teacher that says it gives features: a cache's manifest has them, or its model."""
    teacher: Any = one.teacher
    kept = getattr(teacher, "shape", None)
    return kept if isinstance(kept, ModelShape) else shape_of(_observable(teacher), "teacher")


def _observable(teacher: Any) -> Any:
    """Return the model of a teacher that says it gives features."""
    if not (hasattr(teacher, "model") and hasattr(teacher, "feature_needs")):
        raise ValueError(
            f"teacher: expected one that gives features to have a model, for its sizes, and feature_needs, which "
            f"the trainer sets, received {teacher.name}. Derive it from hf_distill.teachers.online.OnlineTeacher."
        )
    return teacher.model
