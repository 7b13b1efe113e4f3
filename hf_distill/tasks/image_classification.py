"""Images of one class each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from datasets import Dataset, DatasetDict
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from hf_distill.corpora.files import labelled_media
from hf_distill.corpora.images import digit_images, read_images
from hf_distill.evaluation.measures import Measure
from hf_distill.evaluation.metrics import ClassificationMeasure
from hf_distill.image_views import ImageViews, pixels
from hf_distill.masking import ROW, TellEpoch
from hf_distill.tasks.bert_models import attention_heads, label_names
from hf_distill.tasks.data_arguments import check_sources, complete, given_files, hub_splits
from hf_distill.tasks.image_arguments import ImageDataArguments, ImageModelArguments
from hf_distill.tasks.image_models import ready_to_train, resized
from hf_distill.tasks.task import Role, Task
from hf_distill.tasks.text_classification import summed_loss

_TIMED_IMAGES = 5
# Width and height that models made here read.
_SIZE = 32


class ImageClassification(Task):
    """MobileNetV2 students of a ResNet, a ViT, or any classifier of images."""

    name = "image_classification"
    auto_class = AutoModelForImageClassification
    data_arguments = ImageDataArguments
    model_arguments = ImageModelArguments
    metrics = ("accuracy", "macro_f1", "matthews", "calibration_error")
    counted = "images"
    raw_columns = ("image",)
    remove_unused_columns = False
    teacher_loss = staticmethod(summed_loss)

    def load(self) -> DatasetDict:
        """Return images: built in, folders, an archive or a Hub data set."""
        data = self.data
        check_sources(data)
        if data.train_file:
            splits = read_images(given_files(data))
        elif data.dataset_name:
            splits = self._from_hub()
        else:
            splits = digit_images()
        return complete(splits, data)

    def _from_hub(self) -> DatasetDict:
        found, data = hub_splits(self.data), self.data
        sources = {split: f"{data.dataset_name} ({split})" for split in found}
        return labelled_media(found, sources, "image", data.image_column, data.label_column)

    def label_names(self, splits: DatasetDict) -> list[str]:
        """Return the names of the classes."""
        return label_names(splits)

    @property
    def encoding(self) -> dict[str, Any]:
        """Size and augmentation, which a teacher trained here sees as well."""
        return {
            "image_size": self.data.image_size or _SIZE,
            "augmentation": self.data.augmentation,
            "pretrained_image_size": self.data.pretrained_image_size,
        }

    def encode(
        self, rows: Dataset, processor: Any, keep_raw: bool = False, training: bool = False
    ) -> Dataset:
        """Leave images as they are; a row that may be augmented has its number."""
        encoded = rows.rename_column("label", "labels")
        return encoded.add_column(ROW, list(range(len(encoded)))) if training and self._augments else encoded

    @property
    def _augments(self) -> bool:
        return self.data.augmentation != "none" or self.data.mixup > 0 or self.data.cutmix > 0

    def collator(
        self, processor: Any, teacher_processors: Sequence[Any] = (), labelled: bool = True
    ) -> Callable[[list[Any]], Any]:
        """Crop, mix and give each model its view."""
        mixup, cutmix = (0.0, 0.0) if labelled else (self.data.mixup, self.data.cutmix)
        return ImageViews(processor, teacher_processors, self.data.augmentation, mixup, cutmix)

    def prepare(self, trainer: Any) -> None:
        """Tell the collator the epoch, and the seed that students have."""
        collator = trainer.data_collator
        while not isinstance(collator, ImageViews):
            collator = collator.collator
        collator.seed = trainer.args.seed
        trainer.add_callback(TellEpoch(collator))

    @property
    def uncached_because(self) -> str | None:
        """Augmented images are others in each epoch."""
        return "images are augmented anew each epoch" if self._augments else None

    def new_processor(self, splits: DatasetDict) -> Any:
        """Return a processor to the size of models made here, with pixels in [-1, 1]."""
        size = self.data.image_size or _SIZE
        return ViTImageProcessor(
            size={"height": size, "width": size}, image_mean=[0.5] * 3, image_std=[0.5] * 3
        )

    def load_processor(self, name: str, revision: str | None = None) -> Any:
        """Return the image processor of a named model."""
        try:
            processor = AutoImageProcessor.from_pretrained(name, revision=revision or "main")
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{name!r}: expected an image processor beside the model, received none "
                f"({str(error).splitlines()[0]}). Save the one it was trained with there: "
                "processor.save_pretrained(folder)."
            ) from error
        return processor

    def pretrained_processor(self, name: str) -> Any:
        """Return the image processor of a model that is fine-tuned here, to the size asked for."""
        processor, size = self.load_processor(name), self.data.pretrained_image_size
        return processor if size is None else resized(processor, size)

    def beside(self, teacher: Any) -> Any:
        """Return the teacher's processor, to the student's own size where one is asked for."""
        size = self.data.image_size
        return teacher if size is None else resized(teacher, size)

    def read_alike(self, one: Any, other: Any) -> bool:
        """Whether two processors make the same of an image."""
        from PIL import Image

        gradient = Image.linear_gradient("L").resize((90, 70)).convert("RGB")
        views = [pixels(processor, [gradient]) for processor in (one, other)]
        return views[0].shape == views[1].shape and torch.allclose(views[0], views[1], atol=1e-4)

    def make_student(self, teacher: Any, splits: DatasetDict, processor: Any) -> Any:
        """Return a student whose batch norms and dropout are as training wants them."""
        return ready_to_train(super().make_student(teacher, splits, processor))

    def make_teacher(self, splits: DatasetDict, processor: Any) -> Any:
        """Return a teacher whose batch norms and dropout are as training wants them."""
        return ready_to_train(super().make_teacher(splits, processor))

    def new_model(self, role: Role, splits: DatasetDict, processor: Any) -> Any:
        """Return a ResNet or a ViT as teacher, and a MobileNetV2 as student."""
        names = self.label_names(splits)
        labels: dict[str, Any] = {
            "id2label": dict(enumerate(names)),
            "label2id": {name: i for i, name in enumerate(names)},
        }
        models, size = self.models, self.data.image_size or _SIZE
        if role == "student":
            return MobileNetV2ForImageClassification(
                MobileNetV2Config(
                    image_size=size, depth_multiplier=models.student_width / 32, min_depth=8,
                    classifier_dropout_prob=models.student_dropout, **labels,
                )
            )  # fmt: skip
        width, layers = models.teacher_width, models.teacher_layers
        if models.teacher_kind == "vit":
            return ViTForImageClassification(
                ViTConfig(
                    image_size=size, patch_size=max(size // 8, 1), hidden_size=width, num_hidden_layers=layers,
                    num_attention_heads=attention_heads(width), intermediate_size=4 * width,
                    hidden_dropout_prob=models.teacher_dropout, **labels,
                )
            )  # fmt: skip
        return ResNetForImageClassification(
            ResNetConfig(
                embedding_size=width, hidden_sizes=[width, 2 * width, 4 * width], depths=[layers] * 3,
                layer_type="basic", **labels,
            )
        )  # fmt: skip

    def check(self, args: Any) -> None:
        """Raise for a mixture whose labels the loss would need, and for sizes that can't be."""
        from hf_distill.loss_plan import resolve_loss
        from hf_distill.schedules import highest

        if (self.data.mixup or self.data.cutmix) and highest(
            resolve_loss(args, "single_label").label_weight
        ) > 0:
            raise ValueError(
                "--mixup, --cutmix: expected a loss without labels (--alpha 1), since a mixture of images has none, "
                f"received alpha {args.alpha}. Set --alpha 1, or mix nothing."
            )
        size = self.data.image_size or _SIZE
        if self.models.teacher_kind == "vit" and size % max(size // 8, 1):
            raise ValueError(
                f"--image_size: expected a multiple of 8, of which a ViT's patches are made, received {size}."
            )

    def measure(self, rows: Dataset, encoded: Dataset, processor: Any) -> Measure:
        """Accuracy, macro F1, Matthews correlation and calibration."""
        return ClassificationMeasure()

    def lengths(self, encoded: Dataset) -> list[int]:
        """All images are as large."""
        return []

    def timed_inputs(self, encoded: Dataset, processor: Any) -> list[dict[str, torch.Tensor]]:
        """Return some images, one by one."""
        collate = self.collator(processor)
        few = range(min(_TIMED_IMAGES, len(encoded)))
        return [{"pixel_values": collate([encoded[index]])["pixel_values"]} for index in few]
