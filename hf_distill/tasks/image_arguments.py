"""Flags of the recipe on images: which data, and which models."""

from __future__ import annotations

from dataclasses import dataclass, field

from hf_distill.image_views import AUGMENTATIONS
from hf_distill.tasks.data_arguments import DataArguments
from hf_distill.tasks.model_arguments import ModelArguments


@dataclass
class ImageDataArguments(DataArguments):
    """Which images to train and report on; without any of them scikit-learn's digits."""

    train_file: str | None = field(
        default=None,
        metadata={
            "help": "A folder with your training images, a folder for each class (or train/ and test/ above these), or "
            "an .npz archive. Default: built-in digits"
        },
    )
    validation_file: str | None = field(
        default=None,
        metadata={"help": "A folder of validation images. Default: a tenth of the training images"},
    )
    test_file: str | None = field(
        default=None, metadata={"help": "A folder of images to report on. Default: the validation images"}
    )
    image_column: str = field(
        default="image", metadata={"help": "The column of a Hub data set with the image"}
    )
    label_column: str = field(
        default="label", metadata={"help": "The column of a Hub data set with the label"}
    )
    image_size: int | None = field(
        default=None,
        metadata={
            "help": "Width and height that models from random weights read. Default: the teacher's where one is named, "
            "or 32"
        },
    )
    pretrained_image_size: int | None = field(
        default=None,
        metadata={
            "help": "Width and height that pretrained models are fine-tuned at (convolutional ones: any). Default: as "
            "their processor says"
        },
    )
    augmentation: str = field(
        default="none",
        metadata={
            "help": "What training images are cut out of: a random part (crop), mirrored too (crop_flip), or all",
            "choices": list(AUGMENTATIONS),
        },
    )
    mixup: float = field(
        default=0.0,
        metadata={
            "help": "Mix training images (Beta parameter); the student then learns from the teacher alone"
        },
    )
    cutmix: float = field(
        default=0.0, metadata={"help": "Put parts of training images into others; as --mixup"}
    )


@dataclass
class ImageModelArguments(ModelArguments):
    """Which teacher and student of images; sizes are those of models trained from random weights."""

    teacher_kind: str = field(
        default="resnet",
        metadata={"help": "The architecture of a teacher trained here", "choices": ["resnet", "vit"]},
    )
    teacher_layers: int = field(
        default=1, metadata={"help": "Blocks of each stage (resnet), or layers (vit)"}
    )
    teacher_width: int = field(
        default=32, metadata={"help": "Channels of the first stage (resnet), or width (vit)"}
    )
    teacher_epochs: float = field(default=10.0, metadata={"help": "Epochs of a teacher trained here"})
    teacher_batch_size: int = field(
        default=32, metadata={"help": "Images per step of a teacher trained here"}
    )
    teacher_learning_rate: float = field(
        default=2e-3, metadata={"help": "Learning rate of a teacher trained here"}
    )
    student_layers: int = field(default=0, init=False)
    student_width: int = field(
        default=8,
        metadata={"help": "Channels of a MobileNetV2's first layer: 32 is a width of 1.0, 8 one of 0.25"},
    )
