"""The objectives: one file each, found by name; adding a file here is all that it takes."""

from hf_distill.objectives.base import Objective, Rows
from hf_distill.objectives.registry import build_objective, objective_classes

__all__ = ["Objective", "Rows", "build_objective", "objective_classes"]
