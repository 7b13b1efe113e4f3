"""Teachers: whatever answers ``teacher(batch) -> TeacherSignals``."""

from hf_distill.teachers.signals import DenseSignals, Teacher, TeacherSignals

__all__ = ["DenseSignals", "Teacher", "TeacherSignals"]
