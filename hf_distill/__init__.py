"""Knowledge distillation for Hugging Face models: one Trainer, any head, one teacher or many."""

from hf_distill.arguments import DistillationArgumentsMixin, DistillationTrainingArguments
from hf_distill.students import evenly_spaced_layers, student_from_teacher
from hf_distill.trainer import DistillationMixin, DistillationTrainer

__all__ = [
    "DistillationArgumentsMixin",
    "DistillationMixin",
    "DistillationTrainer",
    "DistillationTrainingArguments",
    "evenly_spaced_layers",
    "student_from_teacher",
]
