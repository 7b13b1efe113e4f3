"""One crop, a view for each model, drawn from seed, epoch and row alone; mixtures at the same places in every view."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from transformers import ViTImageProcessor

from hf_distill.image_views import ImageViews, random_box


def processor(size: int, mean: float = 0.0, std: float = 1.0) -> Any:
    return ViTImageProcessor(size={"height": size, "width": size}, image_mean=[mean] * 3, image_std=[std] * 3)


def images(count: int) -> list[dict[str, Any]]:
    draw = numpy.random.default_rng(0)
    return [
        {
            "image": Image.fromarray(draw.integers(0, 255, size=(24, 30, 3), dtype=numpy.uint8)),
            "labels": i % 3,
        }
        for i in range(count)
    ]


def training(count: int) -> list[dict[str, Any]]:
    return [{**one, "row": number} for number, one in enumerate(images(count))]


def test_each_model_has_its_own_view_of_the_same_crop() -> None:
    views = ImageViews(processor(16), (processor(16, 0.5, 0.25),), "crop_flip")
    batch = views(training(6))
    assert torch.allclose(batch["teacher_pixel_values"], (batch["pixel_values"] - 0.5) / 0.25, atol=1e-5)
    assert batch["labels"].tolist() == [0, 1, 2, 0, 1, 2]
    several = ImageViews(processor(16), (None, processor(8)), "crop")(training(2))
    assert {name: tuple(value.shape) for name, value in several.items()} == {
        "pixel_values": (2, 3, 16, 16), "teacher_1_pixel_values": (2, 3, 8, 8), "labels": (2,),
    }  # fmt: skip


def test_views_depend_on_seed_epoch_and_row_alone() -> None:
    rows = training(5)
    views = ImageViews(processor(16), augmentation="crop_flip", seed=1)
    whole = views(rows)["pixel_values"]
    turned = views(rows[::-1])["pixel_values"]
    assert torch.equal(whole, turned.flip(0))
    assert torch.equal(views(rows[3:4])["pixel_values"][0], whole[3])
    for other in ({"seed": 2}, {"seed": 1, "epoch": 1}):
        changed = ImageViews(processor(16), augmentation="crop_flip", **other)(rows)["pixel_values"]
        assert not torch.allclose(changed, whole)


def test_rows_without_a_number_are_left_whole() -> None:
    rows = images(4)
    plain = ImageViews(processor(16))(rows)["pixel_values"]
    assert torch.equal(ImageViews(processor(16), (), "crop_flip", mixup=1.0)(rows)["pixel_values"], plain)
    assert torch.equal(ImageViews(processor(16))(training(4))["pixel_values"], plain)
    assert not torch.equal(ImageViews(processor(16), augmentation="crop")(training(4))["pixel_values"], plain)


def test_mixup_by_hand() -> None:
    rows = training(8)
    plain = ImageViews(processor(16), (processor(16, 0.5, 0.5),))(rows)
    mixed = ImageViews(processor(16), (processor(16, 0.5, 0.5),), mixup=1.0, seed=4)(rows)
    assert "labels" not in mixed, "a mixture of images has no label"
    flat, before = mixed["pixel_values"].flatten(1).double(), plain["pixel_values"].flatten(1).double()
    # Each is share * own + (1 - share) * another's, with one share for the whole batch.
    shares = set()
    for place in range(8):
        pairs = torch.stack([before[place].expand_as(before), before], -1)
        solved = [torch.linalg.lstsq(pair, flat[place].unsqueeze(-1)) for pair in pairs]
        fits = [
            (float((pair @ s.solution - flat[place].unsqueeze(-1)).abs().max()), s.solution.flatten())
            for pair, s in zip(pairs, solved, strict=True)
        ]
        error, weights = min(fits, key=lambda fit: fit[0])
        assert error < 1e-5
        if abs(float(weights.sum()) - 1) < 1e-4 and fits.index((error, weights)) != place:
            shares.add(round(float(weights[0]), 4))
    assert len(shares) == 1
    assert torch.allclose(mixed["teacher_pixel_values"], (mixed["pixel_values"] - 0.5) / 0.5, atol=1e-5)


def test_cutmix_takes_a_part_of_another_at_the_same_place_in_every_view() -> None:
    rows = training(6)
    views = ImageViews(processor(16), (processor(32),), cutmix=1.0, seed=2)
    plain, mixed = ImageViews(processor(16), (processor(32),))(rows), views(rows)
    own = (mixed["pixel_values"] == plain["pixel_values"]).all(1)
    changed = ~own
    assert changed.any()
    rows_changed, columns_changed = changed[0].any(1).nonzero(), changed[0].any(0).nonzero()
    box = (
        slice(int(rows_changed[0]), int(rows_changed[-1]) + 1),
        slice(int(columns_changed[0]), int(columns_changed[-1]) + 1),
    )
    inside = mixed["pixel_values"][0, :, box[0], box[1]]
    assert any(torch.equal(inside, other[:, box[0], box[1]]) for other in plain["pixel_values"])
    large = (mixed["teacher_pixel_values"] != plain["teacher_pixel_values"]).any(1)[0]
    assert abs(int(large.any(1).sum()) - 2 * (box[0].stop - box[0].start)) <= 1
    assert torch.equal(mixed["pixel_values"], views(rows)["pixel_values"])


def test_boxes_are_at_least_half_of_an_image() -> None:
    draw = numpy.random.default_rng(0)
    areas = []
    for _ in range(300):
        left, top, right, bottom = random_box(draw, 40, 30)
        assert 0 <= left < right <= 40
        assert 0 <= top < bottom <= 30
        areas.append((right - left) * (bottom - top) / 1200)
    assert min(areas) > 0.42, "rounding and the image's border apart"
    assert max(areas) > 0.9


def test_settings_that_can_not_be() -> None:
    with pytest.raises(ValueError, match="expected one of none, crop, crop_flip, received 'flip'"):
        ImageViews(processor(8), augmentation="flip")
    with pytest.raises(ValueError, match="mixup: expected a number of at least 0, received -1"):
        ImageViews(processor(8), mixup=-1)
