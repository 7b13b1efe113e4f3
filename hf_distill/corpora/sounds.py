"""Sounds with a class each: tones made on the spot, folders of files, and data sets of the Hub."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy
from datasets import Audio, ClassLabel, Dataset, DatasetDict, Features, Sequence, Value
from numpy.typing import NDArray
from scipy.signal import resample_poly

from hf_distill.corpora.files import DataError, labelled_media

RATE, SECONDS = 8000, 0.5
SOUNDS = {"train": 1600, "validation": 300, "test": 800}
_SHORTEST = 0.025  # seconds
SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff", ".au")
# libsndfile's note on a header that promises more than there is.
_SHORTER = re.compile(r"data +: \d+ \(should be \d+\)")
Waveform = NDArray[numpy.float32]


def _steady(
    time: NDArray[numpy.float64], pitch: float, draw: numpy.random.Generator
) -> NDArray[numpy.float64]:
    return numpy.full_like(time, pitch)


def _glide(direction: float) -> Callable[..., NDArray[numpy.float64]]:
    def pitch_at(
        time: NDArray[numpy.float64], pitch: float, draw: numpy.random.Generator
    ) -> NDArray[numpy.float64]:
        octaves = direction * draw.uniform(0.4, 1.2)
        return pitch * 2 ** (octaves * (time / SECONDS - 0.5))

    return pitch_at


def _vibrato(
    time: NDArray[numpy.float64], pitch: float, draw: numpy.random.Generator
) -> NDArray[numpy.float64]:
    return pitch * (1 + draw.uniform(0.06, 0.15) * numpy.sin(2 * numpy.pi * draw.uniform(5, 9) * time))


def _jump(time: NDArray[numpy.float64], pitch: float, draw: numpy.random.Generator) -> NDArray[numpy.float64]:
    step = 2 ** draw.choice([-0.6, 0.6])
    return numpy.where(time < SECONDS * draw.uniform(0.35, 0.65), pitch, pitch * step)


# How the pitch of each kind of sound moves; the last two are heard by their loudness and their timbre.
KINDS: dict[str, Callable[..., NDArray[numpy.float64]]] = {
    "steady": _steady, "rising": _glide(1.0), "falling": _glide(-1.0), "vibrato": _vibrato, "jump": _jump,
    "tremolo": _steady, "harmonics": _steady,
}  # fmt: skip


def tones() -> DatasetDict:
    """The built-in sounds: tones, glides, trills and the like in noise, half a second each at 8 kHz.

    Pitch, phase, loudness and noise are drawn anew for each, by the number of the sound alone.

    Returns:
        Splits `train` (1,600 sounds), `validation` (300) and `test` (800), with the columns `audio` (floats) and
        `label` (ClassLabel with 7 names).

    Example:
        >>> sounds = tones()
        >>> {name: len(rows) for name, rows in sounds.items()}, len(sounds["test"][0]["audio"])
        ({'train': 1600, 'validation': 300, 'test': 800}, 4000)
    """
    names, start, splits = list(KINDS), 0, {}
    for name, count in SOUNDS.items():
        labels = [number % len(names) for number in range(count)]
        waves = [tone(names[label], start + number) for number, label in enumerate(labels)]
        splits[name] = _rows(waves, [names[label] for label in labels], names)
        start += count
    return DatasetDict(splits)


def tone(kind: str, number: int) -> Waveform:
    """Return one sound of a kind, the same for the same number.

    Example:
        >>> bool((tone("rising", 3) == tone("rising", 3)).all()), bool((tone("rising", 3) == tone("rising", 4)).all())
        (True, False)
    """
    draw = numpy.random.default_rng([2, number])
    time = numpy.arange(int(RATE * SECONDS)) / RATE
    pitch = KINDS[kind](time, 220 * 2 ** draw.uniform(0, 2), draw)
    phase = 2 * numpy.pi * (numpy.cumsum(pitch) / RATE + draw.random())
    sound = numpy.sin(phase)
    if kind == "harmonics":
        sound = sound + 0.5 * numpy.sin(2 * phase) + 0.3 * numpy.sin(3 * phase)
    if kind == "tremolo":
        sound = sound * (1 + draw.uniform(0.4, 0.8) * numpy.sin(2 * numpy.pi * draw.uniform(5, 9) * time))
    sound = sound / numpy.abs(sound).max() * draw.uniform(0.3, 1.0)
    noise = draw.normal(size=len(time)) * draw.uniform(0.02, 0.2)
    return ((sound + noise) / 3).astype(numpy.float32)


def name_pattern(pattern: str, flag: str) -> re.Pattern[str]:
    """Return a pattern for names of files.

    Args:
        pattern: a regular expression.
        flag: the flag that gave it.

    Raises:
        DataError: where it is none.

    Example:
        >>> name_pattern("([0-9]", "--label_pattern")
        Traceback (most recent call last):
            ...
        hf_distill.corpora.files.DataError: --label_pattern: expected a regular expression, received '([0-9]' (missing
        ), unterminated subpattern at position 0). Mend it.
    """
    try:
        return re.compile(pattern)
    except re.error as error:
        raise DataError(
            f"{flag}: expected a regular expression, received {pattern!r} ({error}). Mend it."
        ) from error


def read_sounds(
    places: Mapping[str, str | os.PathLike[str]], rate: int = RATE, label_pattern: str | None = None
) -> DatasetDict:
    """Read a folder of sounds for each split: WAV, FLAC, Ogg, MP3 and what else libsndfile reads.

    A folder has one folder for each class, or, with a pattern, files whose names tell it: the first group of the
    pattern is the class, ``([0-9])_`` for ``7_jackson_0.wav``. If the one for `train` has the folders ``train`` and
    ``test`` these are the splits. Several channels are averaged, and other rates resampled.

    Args:
        places: split name -> folder; `train` is needed.
        rate: samples per second to bring them to.
        label_pattern: a regular expression that matches the beginning of a name.

    Returns:
        The splits with the columns `audio`, `label` (named by those of `train`) and `file`.

    Raises:
        DataError: a folder that is not there or empty, a file that can't be read, a class that `train` does not have.
    """
    parts = dict(places)
    whole = Path(places["train"])
    if len(parts) == 1 and (whole / "train").is_dir():
        parts = {name: whole / name for name in ("train", "validation", "test") if (whole / name).is_dir()}
    pattern = None if label_pattern is None else name_pattern(label_pattern, "--label_pattern")
    found = {name: _folder(Path(place), rate, pattern) for name, place in parts.items()}
    names = sorted({label for _, label, _ in found["train"]})
    if len(names) < 2:
        raise DataError(f"{parts['train']}: expected at least two classes, found {names}.")
    for split, sounds in found.items():
        unknown = sorted({label for _, label, _ in sounds} - set(names))
        if unknown:
            raise DataError(
                f"{parts[split]}: class {unknown[0]!r} is not among the training sounds'. Add examples, or remove it."
            )
    return DatasetDict(
        {
            split: _rows([one for one, _, _ in sounds], [label for _, label, _ in sounds], names).add_column(
                "file", [name for _, _, name in sounds]
            )
            for split, sounds in found.items()
        }
    )


def _folder(path: Path, rate: int, pattern: re.Pattern[str] | None) -> list[tuple[Waveform, str, str]]:
    files = [file for file in sorted(path.glob("*" if pattern else "*/*")) if file.suffix.lower() in SUFFIXES]
    if not files:
        wanted = "sounds" if pattern else f"sounds in a folder for each class, like {path.name}/yes/1.wav"
        raise DataError(
            f"{path}: expected {wanted}, found none ({', '.join(SUFFIXES)}). With the class in the name, give "
            "--label_pattern."
        )
    sounds = []
    for file in files:
        label = file.parent.name
        if pattern:
            told = pattern.match(file.name)
            if told is None or not told.groups() or told.group(1) is None:
                raise DataError(
                    f"{file}: expected a name that {pattern.pattern!r} matches, with the class as its first group. "
                    "Mend the pattern, or remove the file."
                )
            label = told.group(1)
        sounds.append((read_sound(file, rate, str(file)), label, file.name))
    return sounds


def read_sound(source: Path | bytes, rate: int, called: str) -> Waveform:
    """Return a sound's samples in [-1, 1], one channel, at a rate.

    Args:
        source: a file, or what is in one.
        rate: samples per second.
        called: what to call it in an error.

    Raises:
        DataError: what is no sound, an empty one or one that was cut off, or a missing library.
    """
    try:
        import soundfile
    except ImportError as error:
        raise DataError(
            "expected the library soundfile, which reads sounds, received none. Install it: pip install "
            "'hf-distill[audio]'."
        ) from error
    try:
        with soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else str(source)) as file:
            samples, own, notes = (
                file.read(dtype="float32", always_2d=True).mean(-1),
                file.samplerate,
                file.extra_info,
            )
    except (soundfile.SoundFileError, OSError) as error:
        raise DataError(
            f"{called}: expected a sound, which can't be read ({error}). Mend or remove it."
        ) from error
    if not len(samples):
        raise DataError(f"{called}: expected a sound, received one of no length. Remove it.")
    if _SHORTER.search(notes):
        raise DataError(
            f"{called}: expected as much sound as it says it has, received less. It was cut off: mend or remove it."
        )
    if len(samples) < _SHORTEST * own:
        raise DataError(
            f"{called}: expected a sound of at least {1000 * _SHORTEST:.0f} ms, the window of a spectrogram, received "
            f"{1000 * len(samples) / own:.1f} ms. Remove it."
        )
    if own != rate:
        shared = int(numpy.gcd(own, rate))
        samples = resample_poly(samples, rate // shared, own // shared)
    return numpy.asarray(samples, dtype=numpy.float32)


def hub_sounds(
    splits: Mapping[str, Dataset],
    name: str,
    rate: int,
    audio_column: str = "audio",
    label_column: str = "label",
) -> DatasetDict:
    """Bring a Hub data set of sounds to the columns `audio` (floats) and `label`.

    Args:
        splits: split name -> rows as `datasets` loads them; `train` is needed.
        name: of the data set, for errors.
        rate: samples per second to bring them to.
        audio_column, label_column: the names of the columns.

    Raises:
        DataError: for a missing column, labels that are none, and sounds that can't be read.
    """
    sources = {split: f"{name} ({split})" for split in splits}
    raw = {
        split: rows.cast_column(audio_column, Audio(decode=False))
        if audio_column in rows.column_names
        else rows
        for split, rows in splits.items()
    }
    found = labelled_media(raw, sources, "audio", audio_column, label_column)

    def samples(row: dict[str, Any], place: int, split: str) -> dict[str, Waveform]:
        held = row["audio"]
        called = f"{sources[split]}: row {place + 1}"
        return {
            "audio": read_sound(
                held["bytes"] if held["bytes"] is not None else Path(held["path"]), rate, called
            )
        }

    read = {}
    for split, rows in found.items():
        features = Features({"audio": Sequence(Value("float32")), "label": rows.features["label"]})
        read[split] = rows.map(
            samples, with_indices=True, fn_kwargs={"split": split}, features=features, desc="Reading sounds"
        )
    return DatasetDict(read)


def _rows(waves: list[Waveform], labels: list[str], names: list[str]) -> Dataset:
    features = Features({"audio": Sequence(Value("float32")), "label": ClassLabel(names=names)})
    return Dataset.from_dict({"audio": waves, "label": labels}, features=features)
