"""Measuring a model: how good it is, and what it costs."""

from hf_distill.evaluation.cost import ModelCost, measure_cost
from hf_distill.evaluation.metrics import classification_metrics, expected_calibration_error

__all__ = ["ModelCost", "classification_metrics", "expected_calibration_error", "measure_cost"]
