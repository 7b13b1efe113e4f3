"""Images: the built-in digits, folders, archives, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
from PIL import Image

from hf_distill.corpora.files import DataError
from hf_distill.corpora.images import digit_images, read_images


def draw(folder: Path, name: str, count: int = 2, shade: int = 9) -> None:
    (folder / name).mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (4, 5), (shade, number, 0)).save(folder / name / f"{number}.png")


def test_digits_are_all_there_once_and_stratified() -> None:
    digits = digit_images(16)
    assert sum(len(rows) for rows in digits.values()) == 1797
    assert digits["test"][0]["image"].size == (16, 16)
    for rows in digits.values():
        counts = numpy.bincount(rows["label"], minlength=10) / len(rows)
        assert counts.min() > 0.08
        assert counts.max() < 0.12
    assert digits["train"]["label"][:] == digit_images(16)["train"]["label"][:]


def test_a_folder_of_classes_and_folders_of_splits(tmp_path: Path) -> None:
    for name in ("dog", "cat"):
        draw(tmp_path / "flat", name)
        draw(tmp_path / "parts" / "train", name)
        draw(tmp_path / "parts" / "val", name, 1)
    flat = read_images({"train": tmp_path / "flat", "test": tmp_path / "parts" / "val"})
    assert flat["train"].features["label"].names == ["cat", "dog"]
    assert flat["train"]["label"][:] == [0, 0, 1, 1]
    assert len(flat["test"]) == 2
    parts = read_images({"train": tmp_path / "parts"})
    assert {name: len(rows) for name, rows in parts.items()} == {"train": 4, "validation": 2}
    assert parts["train"][3]["image"].getpixel((0, 0)) == (9, 1, 0)


def test_an_archive(tmp_path: Path) -> None:
    arrays = {f"x_{name}": numpy.full((n, 6, 6), 7, numpy.uint8) for name, n in (("train", 4), ("test", 2))}
    labels = {"y_train": numpy.array([3, 1, 3, 1]), "y_test": numpy.array([1, 3])}
    numpy.savez(tmp_path / "a.npz", **arrays, **labels)
    found = read_images({"train": tmp_path / "a.npz"})
    assert found["test"].features["label"].names == ["1", "3"]
    assert found["test"]["label"][:] == [0, 1]
    assert found["train"][0]["image"].getpixel((0, 0)) == 7


def test_classes_that_are_numbers_are_in_their_order(tmp_path: Path) -> None:
    for name in ("10", "9", "other"):
        draw(tmp_path, name, 1)
    assert read_images({"train": tmp_path})["train"].features["label"].names == ["9", "10", "other"]


@pytest.mark.parametrize(
    "change",
    [
        {"x_train": numpy.zeros((2, 16), numpy.uint8)},
        {"x_train": numpy.zeros((2, 4, 4, 2), numpy.uint8)},
        {"x_test": numpy.zeros((1, 4, 4), numpy.float64)},
        {"y_train": numpy.array([0, 1, 1])},
        {"y_test": numpy.array([[1]])},
    ],
    ids=["flat", "two colours", "floats", "lengths", "columns"],
)
def test_arrays_that_are_no_images(tmp_path: Path, change: dict[str, numpy.ndarray]) -> None:
    arrays = {"x_train": numpy.zeros((2, 4, 4), numpy.uint8), "y_train": numpy.array([0, 1])}
    arrays |= {"x_test": numpy.zeros((1, 4, 4, 3), numpy.uint8), "y_test": numpy.array([1])}
    numpy.savez(tmp_path / "a.npz", **arrays)
    assert len(read_images({"train": tmp_path / "a.npz"})["test"]) == 1
    numpy.savez(tmp_path / "a.npz", **arrays | change)
    with pytest.raises(DataError, match=r"a.npz: expected x_(train|test) of whole numbers from 0 to 255"):
        read_images({"train": tmp_path / "a.npz"})


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected a folder of images or an .npz archive, found neither"):
        read_images({"train": tmp_path / "none"})
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="expected images in a folder for each class"):
        read_images({"train": tmp_path / "empty"})
    draw(tmp_path / "one", "cat")
    with pytest.raises(DataError, match="at least two classes"):
        read_images({"train": tmp_path / "one"})
    draw(tmp_path / "one", "dog")
    draw(tmp_path / "other", "hen")
    with pytest.raises(DataError, match="class 'hen' of the test images is not among"):
        read_images({"train": tmp_path / "one", "test": tmp_path / "other"})
    (tmp_path / "one" / "cat" / "0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"cat/0.png: expected an image, which can't be read"):
        read_images({"train": tmp_path / "one"})
    draw(tmp_path / "cut", "cat")
    draw(tmp_path / "cut", "dog")
    noise = numpy.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=numpy.uint8)
    Image.fromarray(noise).save(tmp_path / "cut" / "dog" / "2.jpg")
    whole = (tmp_path / "cut" / "dog" / "2.jpg").read_bytes()
    (tmp_path / "cut" / "dog" / "2.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"dog/2.jpg: expected an image, which can't be read"):
        read_images({"train": tmp_path / "cut"})
    (tmp_path / "bad.npz").write_bytes(b"zip")
    with pytest.raises(DataError, match="expected an archive with x_train"):
        read_images({"train": tmp_path / "bad.npz"})
