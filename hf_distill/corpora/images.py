"""Images with a class each: scikit-learn's digits, folders of files, and MNIST's archive."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy
from datasets import ClassLabel, Dataset, DatasetDict, Features
from PIL import Image
from sklearn.datasets import load_digits

from hf_distill.corpora.files import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".webp", ".gif", ".tif", ".tiff")


def digit_images(size: int = 32) -> DatasetDict:
    """The built-in images: scikit-learn's handwritten digits, 8 pixels wide, enlarged.

    Args:
        size: their width and height, at least 8.

    Returns:
        Splits `train` (900 images), `validation` (200) and `test` (697), stratified, with the columns `image` and
        `label` (ClassLabel with 10 names).

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI 1998, as scikit-learn has them.

    Example:
        >>> digits = digit_images()
        >>> {name: len(rows) for name, rows in digits.items()}, digits["train"][0]["image"].size
        ({'train': 900, 'validation': 200, 'test': 697}, (32, 32))
    """
    held: Any = load_digits()
    grey = numpy.round(held.images * (255 / 16)).astype(numpy.uint8)
    images = [Image.fromarray(one).resize((size, size), Image.Resampling.BILINEAR) for one in grey]
    whole = _rows(images, [str(label) for label in held.target], [str(digit) for digit in range(10)])
    parts = whole.train_test_split(897, seed=0, stratify_by_column="label")
    rest = parts["test"].train_test_split(697, seed=0, stratify_by_column="label")
    return DatasetDict(train=parts["train"], validation=rest["train"], test=rest["test"])


def read_images(places: Mapping[str, str | os.PathLike[str]]) -> DatasetDict:
    """Read a folder of images, or an ``.npz`` archive, for each split.

    A folder has one folder for each class: ``cat/1.png``, ``dog/2.jpg``. If the one for `train` has the folders
    ``train`` and ``test`` (``validation``, ``val``) these are the splits. An archive has the arrays ``x_train``,
    ``y_train``, ``x_test`` and ``y_test``, as MNIST's.

    Args:
        places: split name -> folder or archive; `train` is needed.

    Returns:
        The splits with the columns `image` and `label`, a ClassLabel named by the folders of `train`.

    Raises:
        DataError: a place that is not there, a folder without images, or a class that `train` does not have.

    Example:
        >>> import pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> for name in ("cat", "dog"):
        ...     (folder / name).mkdir()
        ...     Image.new("RGB", (4, 4)).save(folder / name / "1.png")
        >>> read_images({"train": folder})["train"].features["label"].names
        ['cat', 'dog']
    """
    found: dict[str, tuple[list[Any], list[str]]] = {}
    for split, place in places.items():
        path = Path(place)
        if path.suffix == ".npz":
            found |= {
                name: rows for name, rows in _archive(path).items() if name == split or len(places) == 1
            }
        elif not path.is_dir():
            raise DataError(
                f"{path}: expected a folder of images or an .npz archive, found neither. Name one."
            )
        elif split == "train" and (path / "train").is_dir():
            found |= {name: _folder(place) for name, place in _parts(path).items()}
        else:
            found[split] = _folder(path)
    names = sorted(set(found["train"][1]), key=_by_value)
    if len(names) < 2:
        raise DataError(
            f"{places['train']}: expected at least two classes, found {names}. Give a folder for each."
        )
    for split, (_, labels) in found.items():
        unknown = sorted(set(labels) - set(names))
        if unknown:
            raise DataError(
                f"{places.get(split, places['train'])}: class {unknown[0]!r} of the {split} images is not among the "
                f"training images' ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''}). Add examples, or "
                "remove its folder."
            )
    return DatasetDict({split: _rows(*rows, names) for split, rows in found.items()})


def _by_value(name: str) -> tuple[int, int | str]:
    """Return what puts names into order: whole numbers by value, before all others."""
    return (0, int(name)) if name.isdecimal() else (1, name)


def _rows(images: list[Any], labels: list[str], names: list[str]) -> Dataset:
    features = Features({"image": datasets.Image(), "label": ClassLabel(names=names)})
    return Dataset.from_dict({"image": images, "label": labels}, features=features)


def _parts(path: Path) -> dict[str, Path]:
    names = {
        "train": "train",
        "validation": "validation",
        "val": "validation",
        "valid": "validation",
        "dev": "validation",
        "eval": "validation",
        "test": "test",
    }
    return {split: path / name for name, split in names.items() if (path / name).is_dir()}


def _folder(path: Path) -> tuple[list[Any], list[str]]:
    """Return the files of a folder of folders, and the name of each one's class."""
    files = [file for file in sorted(path.glob("*/*")) if file.suffix.lower() in SUFFIXES]
    if not files:
        raise DataError(
            f"{path}: expected images in a folder for each class, like {path.name}/cat/1.png, found none. Ends of "
            f"names: {', '.join(SUFFIXES)}. Beside a folder train all others are splits, not classes."
        )
    for file in files:
        try:
            with Image.open(file) as image:
                image.load()  # all of it: verify() passes a JPEG that was cut off
        except Exception as error:  # a dozen kinds, one for each way in which a file is no image
            raise DataError(
                f"{file}: expected an image, which can't be read ({error}). Remove or mend it."
            ) from error
    return [str(file) for file in files], [file.parent.name for file in files]


def _archive(path: Path) -> dict[str, tuple[list[Any], list[str]]]:
    try:
        with numpy.load(path, allow_pickle=False) as held:
            arrays = {name: held[name] for name in ("x_train", "y_train", "x_test", "y_test")}
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{path}: expected an archive with x_train, y_train, x_test and y_test, which can't be read ({error})."
        ) from error
    for split in ("train", "test"):
        images, labels = arrays[f"x_{split}"], arrays[f"y_{split}"]
        shaped = images.ndim == 3 or (images.ndim == 4 and images.shape[-1] == 3)
        if images.dtype != numpy.uint8 or not shaped or labels.shape != images.shape[:1]:
            raise DataError(
                f"{path}: expected x_{split} of whole numbers from 0 to 255 (uint8) and of the shape (images, height, "
                f"width), perhaps with 3 colours, and a label for each; received {images.dtype} {images.shape} and "
                f"labels {labels.shape}. Convert them."
            )
    return {
        split: (
            [Image.fromarray(one) for one in arrays[f"x_{split}"]],
            [str(y) for y in arrays[f"y_{split}"]],
        )
        for split in ("train", "test")
    }
