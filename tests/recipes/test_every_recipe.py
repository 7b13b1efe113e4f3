"""Each recipe as a user runs it: through accelerate launch, small and on its built-in data, and with mistakes."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
SMALL = [
    "--quick",
    "--max_train_samples",
    "64",
    "--max_eval_samples",
    "24",
    "--output_dir",
    "out",
    "--use_cpu",
    "true",
]
HEADLINES = {
    "token_classification": "accuracy",
    "question_answering": "f1",
    "masked_lm": "perplexity",
    "causal_lm": "perplexity",
    "seq2seq": "rouge_l",
    "image_classification": "accuracy",
    "audio_classification": "accuracy",
}


def launch(name: str, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        str(RECIPES / f"distill_{name}.py"),
        *words,
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(RECIPES.parent)}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=folder, env=environment, timeout=300
    )


# One that points, one that writes and one that sees run each time; the others, alike but for their task, with the slow.
ALWAYS = ("question_answering", "seq2seq", "image_classification")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ALWAYS else pytest.mark.slow) for name in HEADLINES]
)
def test_small_on_its_built_in_data(tmp_path: Path, name: str) -> None:
    done = launch(name, tmp_path, *SMALL)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((tmp_path / "out" / "distillation_results.json").read_text())
    assert results["measure"]["headline"] == HEADLINES[name]
    for model in ("teacher", "student_alone", "student_distilled"):
        assert HEADLINES[name] in results[model]
        assert results[model]["latency_ms"] > 0
    assert results["difference"] is not None
    assert "student distilled" in done.stdout
    assert ("\nBlocks: train " in done.stdout) == (name in ("masked_lm", "causal_lm")), (
        "beside the texts loaded"
    )
    assert (tmp_path / "out" / "seed_0" / "distilled" / "config.json").is_file()


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("token_classification", ["--train_file", "none.conll"], "none.conll: no such file"),
        ("question_answering", ["--doc_stride", "500"], "--doc_stride: expected a number"),
        ("masked_lm", ["--masked_share", "2"], "--masked_share: expected a number above 0"),
        ("causal_lm", ["--prompt_column", "q"], "expected --prompt_column and --completion_column"),
        ("seq2seq", ["--student_encoder_layers", "2"], "expected --student_encoder_layers and"),
        ("image_classification", ["--mixup", "1"], "expected a loss without labels"),
        ("audio_classification", ["--train_file", "nowhere"], "nowhere: expected sounds"),
    ],
)  # fmt: skip
def test_a_mistake_is_a_line_or_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str,
    words: list[str], message: str,
) -> None:  # fmt: skip
    recipe = str(RECIPES / f"distill_{name}.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [recipe, *words, "--output_dir", "out", "--use_cpu", "true"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(recipe, run_name="__main__")
    assert ended.value.code == 2
    said = capsys.readouterr().err
    said = said[said.index("error:") :]
    assert message in said
    assert len(said.strip().splitlines()) <= 2
