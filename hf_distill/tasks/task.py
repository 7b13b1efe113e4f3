"""What a recipe is about: its data, its models and how they are measured; all else is the same for every recipe."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from datasets import Dataset, DatasetDict

from hf_distill.evaluation.measures import Measure
from hf_distill.students import student_from_teacher
from hf_distill.tasks.label_names import follow_label_names
from hf_distill.tasks.model_arguments import ModelArguments
from hf_distill.tasks.named_models import load_pretrained, load_tokenizer
from hf_distill.tasks.teacher_answers import TeacherAnswers, answers_by_logits
from hf_distill.trainer import DistillationTrainer

Role = Literal["teacher", "student"]
# Where, among the examples sorted by length, those lie that a model is timed on.
_TIMED_AT = (0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass
class Task(ABC):
    """One kind of head, with data, models and measure.

    A processor is what makes a model's input: a tokenizer, an image processor, a feature extractor.

    Args:
        data: the recipe's arguments that say which data.
        models: those that say which teacher and student.
    """

    data: Any
    models: Any

    #: Stands in the name of a kept teacher, so that no other task finds it.
    name: ClassVar[str]
    auto_class: ClassVar[Any]
    data_arguments: ClassVar[type]
    model_arguments: ClassVar[type[ModelArguments]] = ModelArguments
    trainer_class: ClassVar[Any] = DistillationTrainer
    #: Whether Trainer drops columns that no forward accepts; a collator may need them.
    remove_unused_columns: ClassVar[bool] = True
    #: The names of its metrics, the headline first.
    metrics: ClassVar[tuple[str, ...]]
    #: What is counted in messages and under the table.
    counted: ClassVar[str] = "texts"
    #: What is loaded and chosen from (--max_train_samples), where that is not what is counted; None: the same.
    loaded: ClassVar[str | None] = None
    #: The raw columns that a teacher with a processor of its own reads; none where it must read as the student does.
    raw_columns: ClassVar[tuple[str, ...]] = ()

    #: Columns that are cut at a length, and the flag that sets it.
    limits: ClassVar[Mapping[str, str]] = {}

    # ---- data ---------------------------------------------------------------------------

    def few(self, rows: Dataset) -> Dataset:
        """Return some rows to try a run out on."""
        return rows.select(range(min(len(rows), 8)))

    @abstractmethod
    def load(self) -> DatasetDict:
        """Return the splits ``train``, ``validation``, ``test`` and perhaps ``unlabeled``, as raw examples.

        Raises:
            DataError: for settings that contradict each other, and for data that can't be used.
        """

    def describe(self, splits: DatasetDict) -> str:
        """Return what else is said beside the sizes of the splits: ``8 classes``."""
        names = self.label_names(splits)
        return "" if names is None else f"{len(names)} classes"

    def label_names(self, splits: DatasetDict) -> list[str] | None:
        """Return the names of the classes, in the order of their numbers; None for a head without classes."""
        return None

    @abstractmethod
    def encode(
        self, rows: Dataset, processor: Any, keep_raw: bool = False, training: bool = False
    ) -> Dataset:
        """Return a split as models read it.

        Args:
            rows: raw examples.
            processor: makes the model's input.
            keep_raw: leave the raw columns for a teacher that encodes them itself.
            training: it is trained on, so that inputs may be masked or augmented anew each time they are read.
        """

    @property
    def encoding(self) -> dict[str, Any]:
        """The settings that an encoding depends on, beside the processor."""
        return {}

    @abstractmethod
    def collator(
        self, processor: Any, teacher_processors: Sequence[Any] = (), labelled: bool = True
    ) -> Callable[[list[Any]], Any]:
        """Return what makes a batch, in training and in evaluation, as the examples themselves say.

        Args:
            processor: makes the model's input.
            teacher_processors: of each teacher its own, or None, where the collator makes its view as well.
            labelled: the loss reads labels, so that no input may be mixed of several.
        """

    def teacher_collator(self, processor: Any) -> Callable[[list[Any]], Any]:
        """Return what makes a batch where a teacher is trained here."""
        return self.collator(processor)

    def prepare(self, trainer: Any) -> None:  # noqa: B027 - most tasks need nothing
        """Add to a trainer, of a student or of a teacher, what the task needs beside: callbacks, say."""

    def with_unlabelled(self, train: Dataset, unlabelled: Dataset) -> Dataset:
        """Append encoded examples without labels to encoded training examples."""
        raise NotImplementedError(f"{self.name}: no unlabelled examples")

    # ---- models -------------------------------------------------------------------------

    @abstractmethod
    def new_processor(self, splits: DatasetDict) -> Any:
        """Return the processor of models trained here."""

    def load_processor(self, name: str, revision: str | None = None) -> Any:
        """Return the processor saved beside a named model.

        Raises:
            ValueError: where there is none that can be used.
        """
        return load_tokenizer(name, revision)

    def read_alike(self, one: Any, other: Any) -> bool:
        """Whether two processors make the same of an example."""
        if one.get_vocab() != other.get_vocab():
            return False
        texts = ("One text, in Two CASES.", "And another: 12 naïve words!")
        return all(dict(one(*given)) == dict(other(*given)) for given in (texts[:1], texts))

    @abstractmethod
    def new_model(self, role: Role, splits: DatasetDict, processor: Any) -> Any:
        """Return a teacher or a student with random weights, drawn from the global seed."""

    def make_student(self, teacher: Any, splits: DatasetDict, processor: Any) -> Any:
        """Return a student: pretrained, cut out of the teacher, or of random weights from the global seed.

        Its classes are in the data's order, whatever the teacher's is.

        Raises:
            ValueError: a student cut out of a teacher of other classes, or a named one that can't be loaded for these.
        """
        models, names = self.models, self.label_names(splits)
        if models.student_num_hidden_layers is not None:
            student = student_from_teacher(teacher, num_hidden_layers=models.student_num_hidden_layers)
            if names is not None:
                follow_label_names(student, names)
            return student
        if models.student_model_name_or_path is None:
            return self.new_model("student", splits, processor)
        return self._pretrained("student_model_name_or_path", names)

    def make_teacher(self, splits: DatasetDict, processor: Any) -> Any:
        """Return a teacher to be trained here: pretrained, or of random weights from the global seed.

        Raises:
            ValueError: a named model that can't be loaded for the data's classes.
        """
        if self.models.teacher_pretrained_name_or_path is None:
            return self.new_model("teacher", splits, processor)
        return self._pretrained("teacher_pretrained_name_or_path", self.label_names(splits))

    def _pretrained(self, flag: str, names: list[str] | None) -> Any:
        name, new_head = getattr(self.models, flag), self.models.ignore_mismatched_sizes
        return load_pretrained(f"--{flag}", name, names, self.auto_class, new_head)

    def teacher_processor(self, splits: DatasetDict) -> Any:
        """Return the processor of a teacher trained here: that of the model it starts from, or a new one."""
        name = self.models.teacher_pretrained_name_or_path
        return self.new_processor(splits) if name is None else self.pretrained_processor(name)

    def pretrained_processor(self, name: str) -> Any:
        """Return the processor of a model that is fine-tuned here."""
        return self.load_processor(name)

    def beside(self, teacher: Any) -> Any:
        """Return the processor of a student from random weights: that of its teacher."""
        return teacher

    #: The loss of a teacher trained here where it is not its model's own.
    teacher_loss: ClassVar[Callable[..., Any] | None] = None

    # ---- checks and measures ------------------------------------------------------------

    def fill_in(self) -> None:  # noqa: B027 - most tasks leave flags as they are
        """Set those of its own flags that depend on others."""

    def check(self, args: Any) -> None:  # noqa: B027 - most tasks take all
        """Raise for arguments that this task can't take, before any data is read.

        Args:
            args: the student's training arguments.

        Raises:
            ValueError: naming the flag.
        """

    @property
    def uncached_because(self) -> str | None:
        """Why a teacher's answers can't be kept for any run of this task, or None."""
        return None

    @abstractmethod
    def measure(self, rows: Dataset, encoded: Dataset, processor: Any) -> Measure:
        """Return how predictions for some examples are measured.

        Args:
            rows: the raw examples.
            encoded: the same, as models read them.
            processor: of the student.
        """

    def teacher_answers(self, trainer: Any, teachers: list[Any]) -> list[TeacherAnswers]:
        """Return what all teachers together, and each, say of the examples reported on.

        Args:
            trainer: of a distilled student.
            teachers: the models.
        """
        return answers_by_logits(trainer, len(teachers))

    def taught_rows(
        self, rows: Dataset, teachers: list[Any], processor: Any, args: Any, say: Callable[[str], None]
    ) -> Dataset | None:
        """Return the raw examples that a distilled student is trained on, where they are others than the data's.

        Args:
            rows: the raw training examples.
            teachers: the models.
            processor: of the student.
            args: the recipe's training arguments.
            say: tells the user what is being done.
        """
        return None

    def lengths(self, encoded: Dataset) -> list[int]:
        """Return how long each encoded example is."""
        return [len(ids) for ids in encoded["input_ids"]]

    def reached(self, rows: Dataset, encoded: Dataset) -> dict[str, int]:
        """Return how many examples are as long as a flag allows, by flag: what is longer is cut."""
        return {
            flag: sum(len(one) >= getattr(self.data, flag) for one in encoded[column])
            for column, flag in self.limits.items()
        }

    def timed_inputs(self, encoded: Dataset, processor: Any) -> list[dict[str, torch.Tensor]]:
        """Return inputs of typical lengths, one example each, on which models are timed."""
        lengths = self.lengths(encoded)
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        collate = self.collator(processor)
        batches = [collate([encoded[order[int(len(order) * share)]]]) for share in _TIMED_AT]
        return [
            {name: value for name, value in batch.items() if name in ("input_ids", "attention_mask")}
            for batch in batches
        ]


def processors_of(
    task: Task, teacher_folders: list[str], revision: str | None = None
) -> tuple[Any, list[Any]]:
    """Return the student's processor, and of each teacher its own where it differs, else None.

    Args:
        task: loads them.
        teacher_folders: folders or Hub ids.
        revision: branch, tag or commit of the teachers.

    Raises:
        ValueError: where a teacher can't be asked through its own.
    """
    teachers = [task.load_processor(folder, revision) for folder in teacher_folders]
    return student_processor(task, teachers, teacher_folders)


def student_processor(
    task: Task, teachers: Sequence[Any], named: Sequence[str] = ("trained here",)
) -> tuple[Any, list[Any]]:
    """Return the student's processor, and of each teacher its own where it differs, else None.

    Args:
        task: loads the student's.
        teachers: those of the teachers.
        named: the teachers, for the message.

    Raises:
        ValueError: where a teacher can't be asked through its own.
    """
    name, cut = task.models.student_model_name_or_path, task.models.student_num_hidden_layers is not None
    if name is not None:
        student = task.pretrained_processor(name)
    else:
        student = teachers[0] if cut else task.beside(teachers[0])
    own = [None if task.read_alike(one, student) else one for one in teachers]
    if not task.raw_columns and any(one is not None for one in own):
        raise ValueError(
            f"expected teacher and student to read their input alike, since their answers are compared position by "
            f"position, received other processors (teacher {', '.join(named)}; student {name or named[0]}). Take a "
            "student of the teacher's family, or --student_num_hidden_layers to cut one out of it."
        )
    return student, own
