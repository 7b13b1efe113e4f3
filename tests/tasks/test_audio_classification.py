"""Sounds in a recipe: spectrograms, waveforms of other lengths, a split by name, and runs."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch
from datasets import DatasetDict
from transformers import Wav2Vec2FeatureExtractor

from hf_distill.corpora.sounds import tones
from hf_distill.jobs.comparison import prepare_comparison
from hf_distill.jobs.rehearsal import rehearse
from hf_distill.tasks.audio_classification import (
    AudioClassification,
    SoundCollator,
    SoundDataArguments,
    SoundModelArguments,
)
from tests.corpora.test_sounds import write
from tests.every_head import CASES
from tests.jobs.test_comparison import arguments

pytestmark = pytest.mark.filterwarnings(
    "ignore:The student .* seems to start from random", "ignore:The teacher is nearly uniform"
)


@pytest.fixture(scope="module")
def splits() -> DatasetDict:
    return DatasetDict({name: rows.select(range(21)) for name, rows in tones().items()})


def task_of(**data: object) -> AudioClassification:
    sizes = {"teacher_layers": 1, "teacher_width": 16, "teacher_epochs": 1, "student_width": 8}
    return AudioClassification(SoundDataArguments(**data), SoundModelArguments(**sizes))  # type: ignore[arg-type]


@pytest.mark.parametrize("cached", [False, True])
def test_a_run(tmp_path: Path, splits: DatasetDict, cached: bool) -> None:
    task = task_of()
    args = arguments(tmp_path, max_steps=-1, num_train_epochs=1, train_sampling_strategy="random")
    task.check(args)
    rehearse(task, splits, args)
    job = prepare_comparison(task, splits, args, lambda line: None)
    if cached:
        job.cache_teachers(1)
        assert job.caches is not None
    results = job.run([0], baseline=True)
    (teacher,) = job.teachers
    batch = job.task.collator(job.processor)([job.encoded["test"][place] for place in range(21)])
    with torch.no_grad():
        right = teacher(input_values=batch["input_values"]).logits.argmax(-1) == batch["labels"]
    assert results["teacher"]["accuracy"] == pytest.approx(float(right.float().mean()))


def test_spectrograms_have_the_scale_of_the_training_sounds(splits: DatasetDict) -> None:
    task = task_of()
    encoded = task.encode(splits["train"], task.new_processor(splits))
    values = numpy.asarray(encoded["input_values"][:])
    assert values.shape == (21, 48, 32)
    assert abs(values.mean()) < 0.05
    assert values.std() == pytest.approx(1, abs=0.05)


def test_waveforms_of_other_lengths_are_padded_for_wav2vec2() -> None:
    processor = Wav2Vec2FeatureExtractor(sampling_rate=8000, return_attention_mask=True)
    rows = [
        {"input_values": numpy.ones(length, numpy.float32).tolist(), "labels": 1} for length in (120, 160)
    ]
    batch = SoundCollator(processor)(rows)
    assert batch["input_values"].shape == (2, 160)
    assert batch["attention_mask"].sum(-1).tolist() == [120, 160]
    model = next(case for case in CASES if case.architecture == "wav2vec2").model().eval()
    alone = SoundCollator(processor)(rows[:1])
    with torch.no_grad():
        one, both = model(**alone).logits, model(**batch).logits
    assert torch.allclose(one[0], both[0], atol=1e-4)


def test_files_are_split_by_their_names(tmp_path: Path) -> None:
    for label in (7, 8):
        for index in range(6):
            write(tmp_path / f"{label}_a_{index}.wav", numpy.full(400, index, "<i2"))
    task = task_of(train_file=str(tmp_path), label_pattern="([0-9])_", test_pattern="_[01].wav")
    splits = task.load()
    assert sorted(splits["test"]["file"]) == ["7_a_0.wav", "7_a_1.wav", "8_a_0.wav", "8_a_1.wav"]
    assert not set(splits["test"]["file"]) & {*splits["train"]["file"], *splits["validation"]["file"]}
    task.data.test_pattern = "nothing"
    with pytest.raises(ValueError, match="--test_pattern: expected one that some of the files match"):
        task.load()


def test_a_model_of_another_rate_is_refused(tmp_path: Path) -> None:
    Wav2Vec2FeatureExtractor(sampling_rate=16000).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="--sampling_rate: expected 16000"):
        task_of().load_processor(str(tmp_path))
    with pytest.raises(ValueError, match="expected a feature extractor beside the model"):
        task_of().load_processor(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="--max_seconds"):
        task_of(max_seconds=0.01).check(None)
