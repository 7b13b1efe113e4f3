"""Sounds: what the built-in ones are, and WAV files read, resampled and refused."""

from __future__ import annotations

import sys
import wave
from pathlib import Path

import numpy
import pytest
from datasets import Audio, ClassLabel, Dataset, Value

from hf_distill.corpora.files import DataError
from hf_distill.corpora.sounds import KINDS, RATE, hub_sounds, read_sound, read_sounds, tone, tones

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def write(path: Path, samples: numpy.ndarray, rate: int = 8000, width: int = 2, channels: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "w") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return path


def pitch_of(sound: numpy.ndarray) -> float:
    return float(numpy.abs(numpy.fft.rfft(sound)).argmax() * RATE / len(sound))


def test_tones_are_what_their_names_say() -> None:
    sounds = tones()
    assert all(len(set(rows["label"])) == len(KINDS) for rows in sounds.values())
    rising, falling, steady = (
        numpy.mean([pitch_of(s[2000:]) / pitch_of(s[:2000]) for s in (tone(kind, n) for n in range(60))])
        for kind in ("rising", "falling", "steady")
    )
    assert rising > 1.08
    assert falling < 0.95
    assert abs(steady - 1) < 0.06
    assert max(abs(numpy.array(row["audio"])).max() for row in sounds["test"].select(range(40))) < 1.5
    assert not numpy.array_equal(sounds["train"][0]["audio"], sounds["test"][0]["audio"])


def test_waves_are_brought_to_one_rate_and_one_channel(tmp_path: Path) -> None:
    time = numpy.arange(16000) / 16000
    both = numpy.stack([numpy.sin(2 * numpy.pi * 440 * time) * 16000, numpy.zeros(16000)], -1).astype("<i2")
    sound = read_sound(write(tmp_path / "a.wav", both, 16000, channels=2), 8000, "a")
    assert len(sound) == 8000
    assert pitch_of(sound) == 440
    assert abs(sound[500:-500]).max() == pytest.approx(16000 / 32768 / 2, rel=0.02)


def test_classes_by_folder_or_by_name(tmp_path: Path) -> None:
    samples = numpy.arange(300, dtype="<i2")
    for name in ("train/yes/1.wav", "train/no/1.wav", "test/no/2.wav", "flat/7_a_0.wav", "flat/8_a_1.wav"):
        write(tmp_path / name, samples)
    found = read_sounds({"train": tmp_path})
    assert found["test"]["label"][:] == [0]
    assert found["train"].features["label"].names == ["no", "yes"]
    assert found["train"][0]["audio"] == pytest.approx((samples / 32768).tolist())
    write(tmp_path / "flat" / "9_a_2.WAV", samples)
    (tmp_path / "flat" / "README.md").write_text("not a sound")
    flat = read_sounds({"train": tmp_path / "flat"}, label_pattern="([0-9])_")
    assert flat["train"].features["label"].names == ["7", "8", "9"]
    assert flat["train"]["file"][:] == ["7_a_0.wav", "8_a_1.wav", "9_a_2.WAV"]


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected sounds in a folder for each class"):
        read_sounds({"train": tmp_path})
    write(tmp_path / "one" / "yes" / "1.wav", numpy.zeros(400, "<i2"))
    with pytest.raises(DataError, match="at least two classes"):
        read_sounds({"train": tmp_path / "one"})
    with pytest.raises(DataError, match="expected a name that 'x' matches"):
        read_sounds({"train": tmp_path / "one" / "yes"}, label_pattern="x")
    with pytest.raises(DataError, match=r"1.wav: expected a name that '\(x\)\?1' matches"):
        read_sounds({"train": tmp_path / "one" / "yes"}, label_pattern="(x)?1")
    with pytest.raises(DataError, match=r"--label_pattern: expected a regular expression, received '\('"):
        read_sounds({"train": tmp_path / "one" / "yes"}, label_pattern="(")
    cut = write(tmp_path / "cut.wav", numpy.zeros(400, "<i2"), channels=2)
    cut.write_bytes(cut.read_bytes()[:-4])
    for source in (cut, cut.read_bytes()):
        with pytest.raises(DataError, match=r"cut.wav: .* received less. It was cut off"):
            read_sound(source, 8000, "cut.wav")
    (tmp_path / "one" / "yes" / "2.wav").write_bytes(b"RIFF")
    with pytest.raises(DataError, match=r"2.wav: expected a sound, which can't be read"):
        read_sounds({"train": tmp_path / "one"})
    with pytest.raises(DataError, match=r"none.wav: expected a sound, received one of no length"):
        read_sound(write(tmp_path / "none.wav", numpy.zeros(0, "<i2")), 8000, "none.wav")
    with pytest.raises(
        DataError, match=r"short.wav: expected a sound of at least 25 ms, .* received 24.9 ms"
    ):
        read_sound(write(tmp_path / "short.wav", numpy.zeros(199, "<i2")), 8000, "short.wav")
    write(tmp_path / "two" / "yes" / "1.wav", numpy.zeros(400, "<i2"))
    write(tmp_path / "two" / "no" / "1.wav", numpy.zeros(400, "<i2"))
    write(tmp_path / "other" / "hm" / "1.wav", numpy.zeros(400, "<i2"))
    with pytest.raises(DataError, match="class 'hm' is not among"):
        read_sounds({"train": tmp_path / "two", "test": tmp_path / "other"})


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
def test_a_shared_recording_is_read() -> None:
    sound = read_sound(SHARED / "fsdd" / "recordings" / "7_jackson_0.wav", 8000, "jackson")
    assert 1000 < len(sound) < 16000
    assert 0.01 < abs(sound).max() <= 1


@pytest.mark.parametrize(
    ("name", "subtype"),
    [("a.wav", "PCM_U8"), ("a.wav", "PCM_24"), ("a.wav", "FLOAT"), ("a.flac", "PCM_16"), ("a.ogg", "VORBIS")],
)
def test_other_kinds_of_files_are_read(tmp_path: Path, name: str, subtype: str) -> None:
    soundfile = pytest.importorskip("soundfile")
    tone_of_440 = 0.5 * numpy.sin(2 * numpy.pi * 440 * numpy.arange(8000) / 8000)
    soundfile.write(tmp_path / name, tone_of_440, 8000, subtype=subtype)
    sound = read_sound(tmp_path / name, 8000, name)
    assert pitch_of(sound) == 440
    assert abs(sound).max() == pytest.approx(0.5, abs=0.05)


def test_without_the_library_it_is_said_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(DataError, match=r"library soundfile.*pip install 'hf-distill\[audio\]'"):
        read_sound(tmp_path / "a.wav", 8000, "a")


def data_set(folder: Path, labels: list[int], names: list[str], sounds: list[bytes] | None = None) -> Dataset:
    """Return sounds as a data set of the Hub holds them: files in Parquet."""
    if sounds is None:
        waves = [write(folder / f"{at}.wav", numpy.full(800, at, "<i2"), 16000) for at in range(len(labels))]
        sounds = [path.read_bytes() for path in waves]
    rows = Dataset.from_dict({"sound": [{"bytes": one, "path": None} for one in sounds], "kind": labels})
    # A path of None alone has no type that a cast could start from.
    plain = rows.cast_column("sound", {"bytes": Value("binary"), "path": Value("string")})
    return plain.cast_column("sound", Audio(decode=False)).cast_column("kind", ClassLabel(names=names))


def test_a_data_set_of_the_hub(tmp_path: Path) -> None:
    held = {
        "train": data_set(tmp_path, [0, 1, 1], ["no", "yes"]),
        "validation": data_set(tmp_path, [0, 0], ["yes", "no"]),  # numbered in another order
        "test": data_set(tmp_path, [-1, -1], ["no", "yes"]),  # withheld
    }
    found = hub_sounds(held, "user/words", 8000, "sound", "kind")
    assert set(found) == {"train", "validation"}
    assert found["validation"]["label"][:] == [1, 1]
    assert found["train"].features["label"].names == ["no", "yes"]
    assert [len(one) for one in found["train"]["audio"]] == [400] * 3
    assert found["train"][2]["audio"][20] == pytest.approx(2 / 32768, rel=0.1)
    with pytest.raises(
        DataError,
        match=r"user/words \(train\): expected a column 'audio'; it has 'sound', 'kind'.*--audio_column",
    ):
        hub_sounds(held, "user/words", 8000)
    held["train"] = data_set(
        tmp_path, [0, 1], ["no", "yes"], [(tmp_path / "0.wav").read_bytes(), b"no sound"]
    )
    with pytest.raises(DataError, match=r"user/words \(train\): row 2: expected a sound"):
        hub_sounds(held, "user/words", 8000, "sound", "kind")
