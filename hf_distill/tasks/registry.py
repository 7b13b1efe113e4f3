"""The tasks by name, imported where one is asked for."""

from __future__ import annotations

import importlib

from hf_distill.tasks.task import Task

_TASKS = {
    "text_classification": "TextClassification",
    "token_classification": "TokenClassification",
    "question_answering": "QuestionAnswering",
    "masked_lm": "MaskedLanguageModelling",
    "causal_lm": "CausalLanguageModelling",
    "seq2seq": "SequenceToSequence",
    "image_classification": "ImageClassification",
    "audio_classification": "AudioClassification",
}
TASKS = tuple(_TASKS)


def task_named(name: str) -> type[Task]:
    """Return the class of a task.

    Raises:
        ValueError: a name that no task has.

    Example:
        >>> task_named("causal_lm").__name__
        'CausalLanguageModelling'
    """
    if name not in _TASKS:
        raise ValueError(f"task: expected one of {', '.join(TASKS)}, received {name!r}.")
    found: type[Task] = getattr(importlib.import_module(f"hf_distill.tasks.{name}"), _TASKS[name])
    return found
