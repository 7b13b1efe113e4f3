"""One crop of an image, and of it a view for each model: student and teacher may want other sizes and other pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from PIL import Image

from hf_distill.columns import TEACHER_PREFIX, member_prefix
from hf_distill.masking import ROW

AUGMENTATIONS = ("none", "crop", "crop_flip")
# Of the image's area and of its sides, as in the training of Inception.
_AREA, _SIDES = (0.5, 1.0), (3 / 4, 4 / 3)


@dataclass
class ImageViews:
    """Makes a batch of images: crops and mixes them once, and gives each model that one image in its own form.

    Rows that have their number in ``row`` are training examples, and only those are augmented; the draws depend on
    seed, epoch and row alone, so that a resumed run, workers and processes see the same. With ``mixup`` or ``cutmix``
    images of a batch are mixed, student and teacher see the same mixture, and there are no labels then: the student
    matches the teacher's function (Beyer et al.), and nothing else.

    Args:
        processor: the student's image processor.
        teacher_processors: each teacher's own, or None where it sees what the student does.
        augmentation: ``none``; ``crop``: a random part of at least half of the area; ``crop_flip``: mirrored as well.
        mixup, cutmix: the parameter of the Beta distribution of the share of either image, at least 0; 0 mixes nothing.
            With both, each batch is mixed in the one way or the other.
        seed: of the draws.
        epoch: the present one, which :class:`hf_distill.masking.TellEpoch` sets.

    Raises:
        ValueError: an augmentation that there is not, or a parameter below 0.

    Source: Beyer et al., "Knowledge distillation: A good teacher is patient and consistent", CVPR 2022, arXiv
    2106.05237; Zhang et al., mixup, arXiv 1710.09412; Yun et al., CutMix, arXiv 1905.04899; Szegedy et al. 2015, arXiv
    1409.4842 (random crops).

    Example:
        >>> from transformers import ViTImageProcessor
        >>> small, large = (ViTImageProcessor(size={"height": n, "width": n}) for n in (16, 32))
        >>> views = ImageViews(small, (large,))
        >>> batch = views([{"image": Image.new("RGB", (20, 20)), "labels": 3}])
        >>> batch["pixel_values"].shape[-1], batch["teacher_pixel_values"].shape[-1], batch["labels"].tolist()
        (16, 32, [3])
    """

    processor: Any
    teacher_processors: Sequence[Any] = ()
    augmentation: str = "none"
    mixup: float = 0.0
    cutmix: float = 0.0
    seed: int = 0
    epoch: int = 0

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.augmentation not in AUGMENTATIONS:
            raise ValueError(
                f"augmentation: expected one of {', '.join(AUGMENTATIONS)}, received {self.augmentation!r}."
            )
        for name in ("mixup", "cutmix"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: expected a number of at least 0, received {getattr(self, name)}.")
        own = [one for one in self.teacher_processors if one is not None]
        single = len(self.teacher_processors) == 1
        self._views = {"pixel_values": self.processor} | {
            (TEACHER_PREFIX if single else member_prefix(index)) + "pixel_values": one
            for index, one in enumerate(self.teacher_processors)
            if one is not None and own
        }

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Make a batch."""
        images = [self._augmented(feature) for feature in features]
        batch = {name: pixels(processor, images) for name, processor in self._views.items()}
        rows = [feature.get(ROW) for feature in features]
        if (self.mixup or self.cutmix) and all(row is not None for row in rows):
            return self._mixed(batch, int(rows[0] or 0))
        labels = [feature.get("labels", feature.get("label")) for feature in features]
        if all(label is not None for label in labels):
            batch["labels"] = torch.as_tensor(labels)
        return batch

    def _augmented(self, feature: Mapping[str, Any]) -> Image.Image:
        image = in_colours(feature["image"])
        if self.augmentation == "none" or feature.get(ROW) is None:
            return image
        draw = numpy.random.default_rng([self.seed, self.epoch, int(feature[ROW])])
        image = image.crop(random_box(draw, image.width, image.height))
        if self.augmentation == "crop_flip" and draw.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image

    def _mixed(self, batch: dict[str, torch.Tensor], first: int) -> dict[str, torch.Tensor]:
        """Mix each image with another of the batch, at the same places in every view."""
        draw = numpy.random.default_rng([self.seed, self.epoch, first, 1])
        cuts = bool(self.cutmix) and (not self.mixup or draw.random() < 0.5)
        parameter = self.cutmix if cuts else self.mixup
        share = float(draw.beta(parameter, parameter))
        order = torch.from_numpy(draw.permutation(len(batch["pixel_values"])))
        centre = draw.random(2)
        if not cuts:
            return {name: share * image + (1 - share) * image[order] for name, image in batch.items()}
        half = math.sqrt(1 - share) / 2
        mixed = {}
        for name, image in batch.items():
            box = [
                slice(round(max(at - half, 0) * size), round(min(at + half, 1) * size))
                for at, size in zip(centre, image.shape[-2:], strict=True)
            ]
            mixed[name] = image.clone()
            mixed[name][..., box[0], box[1]] = image[order][..., box[0], box[1]]
        return mixed


def in_colours(image: Image.Image) -> Image.Image:
    """Return an image in red, green and blue: what is transparent is white, and 16 bits of grey are 8.

    Example:
        >>> in_colours(Image.new("RGBA", (1, 1), (0, 0, 0, 0))).getpixel((0, 0))
        (255, 255, 255)
        >>> in_colours(Image.new("I;16", (1, 1), 257 * 100)).getpixel((0, 0))
        (100, 100, 100)
    """
    if image.mode.startswith("I"):
        values = numpy.asarray(image).astype(numpy.int64)
        if values.max() > 255:  # convert() would clip them
            values = values // 257
        return Image.fromarray(values.clip(0, 255).astype(numpy.uint8)).convert("RGB")
    if image.has_transparency_data:
        whole = image.convert("RGBA")
        white = Image.new("RGBA", whole.size, "white")
        return Image.alpha_composite(white, whole).convert("RGB")
    return image.convert("RGB")


def pixels(processor: Any, images: Sequence[Image.Image]) -> torch.Tensor:
    """Return what a model's processor makes of images, ``(images, channels, height, width)``."""
    values: torch.Tensor = processor(list(images), return_tensors="pt")["pixel_values"]
    return values


def random_box(draw: numpy.random.Generator, width: int, height: int) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of a random part of an image.

    Example:
        >>> left, top, right, bottom = random_box(numpy.random.default_rng(0), 20, 10)
        >>> 0 <= left < right <= 20 and 0 <= top < bottom <= 10
        True
    """
    area = draw.uniform(_AREA[0], _AREA[1]) * width * height
    sides = math.exp(draw.uniform(math.log(_SIDES[0]), math.log(_SIDES[1])))
    wide = min(max(round(math.sqrt(area * sides)), 1), width)
    high = min(max(round(math.sqrt(area / sides)), 1), height)
    left, top = int(draw.integers(width - wide + 1)), int(draw.integers(height - high + 1))
    return left, top, left + wide, top + high
