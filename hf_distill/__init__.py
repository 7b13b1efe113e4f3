"""Knowledge distillation for Hugging Face models: one Trainer, any head, one teacher or many."""

from hf_distill.arguments import DistillationArgumentsMixin, DistillationTrainingArguments
from hf_distill.cache.errors import CacheError
from hf_distill.cache.teacher_cache import TeacherCache
from hf_distill.seq2seq import DistillationSeq2SeqTrainer, DistillationSeq2SeqTrainingArguments
from hf_distill.students import evenly_spaced_layers, student_from_teacher
from hf_distill.teachers.ensemble import TeacherEnsemble
from hf_distill.trainer import DistillationMixin, DistillationTrainer
from hf_distill.uploads import PushError
from hf_distill.whole_checkpoints import last_whole_checkpoint

__all__ = [
    "CacheError",
    "DistillationArgumentsMixin",
    "DistillationMixin",
    "DistillationSeq2SeqTrainer",
    "DistillationSeq2SeqTrainingArguments",
    "DistillationTrainer",
    "DistillationTrainingArguments",
    "PushError",
    "TeacherCache",
    "TeacherEnsemble",
    "evenly_spaced_layers",
    "last_whole_checkpoint",
    "student_from_teacher",
]
