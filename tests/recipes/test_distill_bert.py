"""The recipe as a user runs it: through accelerate launch, on files, with YAML, with mistakes."""

from __future__ import annotations

import json
import os
import random
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hf_distill.tasks.bert_models import TextModelArguments
from hf_distill.tasks.text_data import TextDataArguments

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "distill_bert.py"
WORDS = {
    "cat": "meow purr paw whisker".split(),
    "dog": "bark fetch paw leash".split(),
    "hen": "egg cluck coop".split(),
}
SIZES = {
    "teacher_dropout": 0.0, "teacher_batch_size": 8,
    "teacher_layers": 1, "teacher_width": 32, "teacher_epochs": 15, "student_layers": 1, "student_width": 16,
    "num_train_epochs": 2, "vocabulary_size": 100, "per_device_train_batch_size": 8, "disable_tqdm": True,
    "bf16": False, "max_seq_length": 16, "teacher_learning_rate": 3e-3, "learning_rate": 3e-3,
}  # fmt: skip


def rows(count: int, seed: int) -> list[tuple[str, str]]:
    """Return texts whose words mostly tell their label."""
    draw = random.Random(seed)
    labels = draw.choices(list(WORDS), k=count)
    return [(" ".join(draw.choices([*WORDS[label], "the", "a"], k=5)), label) for label in labels]


def write_csv(path: Path, table: list[tuple[str, str]], header: str = "text,label") -> Path:
    path.write_text("\n".join([header, *(",".join(row) for row in table)]) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Write a training, a validation and an unlabelled file."""
    train = write_csv(tmp_path / "train.csv", rows(80, 0))
    validation = write_csv(tmp_path / "validation.csv", rows(30, 1))
    unlabelled = write_csv(tmp_path / "more.csv", [(text,) for text, _ in rows(40, 2)], "text")  # type: ignore[misc]
    return {"train_file": str(train), "validation_file": str(validation), "unlabeled_file": str(unlabelled)}


def flags(settings: dict[str, Any]) -> list[str]:
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def launch(
    settings: list[str], tmp_path: Path, launcher: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run the recipe through accelerate launch."""
    command = [sys.executable, "-m", "accelerate.commands.launch", *launcher, str(RECIPE), *settings]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(RECIPE.parents[1])}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment, timeout=300
    )


def test_own_files_seeds_and_yaml(tmp_path: Path, files: dict[str, str]) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text(
        json.dumps({**SIZES, **files, "alpha": 0.9, "temperature": 2, "output_dir": "from_yaml"})
    )
    done = launch([str(settings), "--output_dir", "out", "--alpha", "0.5", "--seeds", "0", "1"], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((tmp_path / "out" / "distillation_results.json").read_text())
    for name in ("teacher", "student_alone", "student_distilled"):
        assert {"accuracy", "parameters", "latency_ms", "macro_f1", "matthews", "calibration_error"} <= set(
            results[name]
        )
    assert results["settings"]["alpha"] == 0.5, "a flag overrides the file"
    assert results["settings"]["temperature"] == 2.0
    assert results["settings"]["seeds"] == [0, 1]
    assert results["teacher"]["accuracy"] > 0.5
    # What the table says of a student is what its trainer's own evaluation said.
    for name, kind in (("student_alone", "alone"), ("student_distilled", "distilled")):
        said = re.findall(rf"Student {kind}, seed \d: accuracy ([\d.]+) %", done.stdout)
        assert len(said) == 2
        assert 100 * results[name]["accuracy"] == pytest.approx(sum(map(float, said)) / 2, abs=0.01)
    assert 0 <= results["agreement"] <= 1
    assert results["retention"] == pytest.approx(
        results["student_distilled"]["accuracy"] / results["teacher"]["accuracy"]
    )
    assert "student distilled" in done.stdout
    assert not (tmp_path / "from_yaml").exists()

    # Again: the teacher is kept, and what is finished goes on from its last checkpoint to the same end.
    again = launch(
        [str(settings), "--output_dir", "out", "--alpha", "0.5", "--resume_from_checkpoint", "True"], tmp_path
    )
    assert again.returncode == 0, again.stderr[-3000:]
    assert "kept from an earlier run" in again.stdout
    assert "going on from" in again.stdout

    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = tmp_path / "out" / "seed_0" / "distilled"
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    logits = model(**tokenizer("meow purr whisker", return_tensors="pt")).logits
    assert model.config.id2label[int(logits.argmax())] in WORDS


def test_two_processes(tmp_path: Path, files: dict[str, str]) -> None:
    settings = flags({**SIZES, **files, "output_dir": "out", "baseline": False})
    launcher = ("--multi_gpu", "--num_processes", "2", "--main_process_port", "0")
    done = launch([*settings, "--use_cpu"], tmp_path, launcher)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "trains on 2 processes (gloo, cpu)" in done.stderr
    results = json.loads((tmp_path / "out" / "distillation_results.json").read_text())
    assert results["settings"]["processes"] == 2
    assert results["student_alone"] is None
    assert done.stdout.count("Results:") == 1
    assert done.stdout.count("train: asking the teacher about 80 of 80 examples") == 1


def test_a_cached_teacher_gives_the_same_student(
    tmp_path: Path, files: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    settings = flags(
        {**SIZES, **files, "baseline": False, "use_cpu": True, "output_dir": str(tmp_path / "out")}
    )
    found, printed = [], []
    for words in (["--no_cache_teacher"], ["--cache_teacher"], []):
        monkeypatch.setattr(sys, "argv", [str(RECIPE), *settings, *words])
        runpy.run_path(str(RECIPE), run_name="__main__")
        results = json.loads((tmp_path / "out" / "distillation_results.json").read_text())
        found.append(
            (results["student_distilled"]["accuracy"], results["teacher"]["accuracy"], results["agreement"])
        )
        printed.append(capsys.readouterr().out)
    assert found[0] == found[1] == found[2]
    online, first, second = printed
    assert "answers" not in online
    assert "train: asking the teacher about 80 of 80 examples" in first
    assert "train: the teacher's answers to all 80 examples are in" in second


def test_a_loss_that_looks_inside_the_teacher_asks_it_at_every_step(
    tmp_path: Path, files: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    settings = flags(
        {**SIZES, **files, "baseline": False, "use_cpu": True, "output_dir": str(tmp_path / "out")}
    )
    objectives = json.dumps([{"name": "forward_kl"}, {"name": "hidden_states"}])
    monkeypatch.setattr(sys, "argv", [str(RECIPE), *settings, "--objectives", objectives])
    runpy.run_path(str(RECIPE), run_name="__main__")
    printed = capsys.readouterr().out
    assert "Teacher: its answers are not kept, since hidden_states looks inside it" in printed
    assert "Results:" in printed


@pytest.mark.slow
def test_an_ensemble_of_own_teachers_and_of_their_folders(
    tmp_path: Path, files: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    settings = flags({**SIZES, **files, "baseline": False, "output_dir": str(tmp_path / "out")})

    def run(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", [str(RECIPE), *settings, *words])
        runpy.run_path(str(RECIPE), run_name="__main__")
        return str(capsys.readouterr().out)

    printed = run("--teachers_from_seeds", "3", "--teacher_weights", "confidence")
    results = json.loads((tmp_path / "out" / "distillation_results.json").read_text())
    assert "| best single teacher " in printed
    assert "| teacher (ensemble of 3) " in printed
    assert len(results["teachers"]) == len({row["name"] for row in results["teachers"]}) == 3
    best = max(row["accuracy"] for row in results["teachers"])
    assert results["best_teacher"]["accuracy"] == best
    student = results["student_distilled"]["accuracy"]
    assert results["retention"] == pytest.approx(student / results["teacher"]["accuracy"])
    assert results["retention_best_teacher"] == pytest.approx(student / best)
    assert results["teacher"]["parameters"] == sum(row["parameters"] for row in results["teachers"])
    assert results["settings"]["teacher_weights"] == "confidence"
    said = re.search(r"teacher_accuracy ([\d.]+) %", printed)
    assert said is not None
    assert results["teacher"]["accuracy"] > 0.5
    assert 100 * results["teacher"]["accuracy"] == pytest.approx(float(said[1]), abs=0.01)

    # The same folders as names, but one, with weights of one's own: nothing is trained but the student.
    folders = [str(row["name"]) for row in results["teachers"][:2]]
    words = ["--teacher_model_name_or_path", *folders, "--teacher_weights", "3", "1", "--offload_teachers"]
    again = run(*words, "--teacher_combine", "logits")
    settings_of = json.loads((tmp_path / "out" / "distillation_results.json").read_text())["settings"]
    assert (settings_of["teacher_combine"], settings_of["teacher_weights"]) == ("logits", [0.75, 0.25])
    assert "Teacher: training" not in again
    assert "| teacher (ensemble of 2) " in again


@pytest.mark.slow
def test_it_tunes_first_and_the_flags_it_prints_give_the_same_run(
    tmp_path: Path, files: dict[str, str]
) -> None:
    common = flags({**files, "output_dir": "out", "baseline": False, "disable_tqdm": True, "bf16": False})
    done = launch(["--quick", "--tune", "--tune_trials", "2", *common], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Tuning on 8 texts held out of the training texts" in done.stdout
    assert re.search(r"Trial 2 of 2: --alpha \S+ --temperature \S+ --teacher_stop_epoch 1: ", done.stdout)
    said = re.search(r"Tuned: (--alpha .*?) \(", done.stdout)
    assert said is not None
    results = json.loads((tmp_path / "out" / "distillation_results.json").read_text())
    assert results["settings"]["tuned"]["trials"] == 2
    assert results["settings"]["train_texts"] == 80, "what was held out is given back"
    assert (tmp_path / "out" / "tuning_results.json").is_file()

    by_hand = launch(["--quick", *said.group(1).split(), *common, "--output_dir", "by_hand"], tmp_path)
    assert by_hand.returncode == 0, by_hand.stderr[-3000:]
    again = json.loads((tmp_path / "by_hand" / "distillation_results.json").read_text())
    for name in ("accuracy", "calibration_error", "agreement"):
        assert again["student_distilled"][name] == results["student_distilled"][name]


def run_here(monkeypatch: pytest.MonkeyPatch, capsys: Any, words: list[str]) -> tuple[Any, str]:
    """Run the recipe in this process, and return its exit code and standard error."""
    monkeypatch.setattr(sys, "argv", [str(RECIPE), *words])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(RECIPE), run_name="__main__")
    return left.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--alhpa", "0.5"], "unknown flag --alhpa. Did you mean --alpha?"),
        (["--alpha", "two"], "alpha: expected a number, or a schedule as JSON .* received 'two'"),
        (["--alpha", "1.5"], r"alpha: expected a number in \[0, 1\], received 1.5"),
        (["--alpha", "0.5", "--objectives", '[{"name": "forward_kl"}]'], "received both"),
        (["--objectives", '[{"name": "backward_kl"}]'], "unknown objective 'backward_kl'"),
        (["nowhere.yaml"], "no such file: nowhere.yaml"),
        (["--validation_file", "x.csv"], "expected --train_file beside --validation_file"),
        (["--train_file", "nowhere.csv"], "nowhere.csv"),
        (["--train_file", "{train}", "--label_column", "category"], "category"),
        (["--train_file", "{empty}"], "empty.csv"),
        (["--train_file", "{one}"], "one.csv"),
        (["--train_file", "{train}", "--validation_file", "{other}"], "other.csv"),
        (["--teacher_model_name_or_path", "{tmp}/nowhere", "--train_file", "{train}"], "nowhere"),
        (["--student_num_hidden_layers", "1", "--student_model_name_or_path", "x"], "Drop one"),
        (["--push_to_hub", "True"], "--hub_model_id"),
        (["--push_to_hub", "True", "--hub_model_id", "a/b"], "needs a token that may write to 'a/b'"),
        (["--student_num_hidden_layers", "9", "--train_file", "{train}"], "at most the teacher's 2 layers, received 9"),
        (["--student_model_name_or_path", "{tmp}/nowhere"], "--student_model_name_or_path: expected a Hub id"),
        (["--resume_from_checkpoint", "some/where"], "expected True or False"),
        (["--teachers_from_seeds", "3", "--teacher_weights", "1", "2"], "expected 3 numbers, one for each teacher"),
        (["--teachers_from_seeds", "0"], "--teachers_from_seeds: expected a number of at least 1, received 0"),
        (["--teachers_from_seeds", "2", "--teacher_model_name_or_path", "x"], "received both. Drop one"),
        (["--teacher_combine", "logits"], "teacher_combine: expected several teachers, received one"),
        (["--tune", "--objectives", '[{"name": "forward_kl"}]'], "received objectives. Drop --objectives"),
        (["--tune", "--alpha", '{{"schedule": "linear", "start": 0, "end": 1}}'], "expected a number for --alpha"),
        (["--teacher_stop_epoch", "9"], "expected an epoch from 1 to 5"),
        (["--teachers_from_seeds", "2", "--teacher_weights", "most"], "teacher_weights: expected confidence"),
        (["--per_device_train_batch_size", "0"], "_batch_size: expected a whole number of at least 1"),
        (
            ["--eval_strategy", "epoch", "--load_best_model_at_end", "--metric_for_best_model", "loss/forward_kl"],
            "expected a metric that the student alone has too, received 'loss/forward_kl'",
        ),
        (["--train_sampling_strategy", "by_length"], "invalid choice: 'by_length'"),
        (["--train_file", "{twice}"], "twice.csv: expected one column 'text'; it has several"),
        # Found out on a few texts, before the teacher is trained.
        (["--student_layers", "1", "--objectives", '[{"name": "patient"}]'], "expected a student of at least 2 layers"),
        (["--objectives", '[{"name": "derivative"}]'], "derivative: expected word embeddings of the teacher's width"),
    ],
)  # fmt: skip
def test_mistakes_are_a_line_or_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, words: list[str], message: str
) -> None:
    monkeypatch.setattr("hf_distill.uploads.get_token", lambda: None)  # whoever is logged in on this machine
    places = {
        "train": write_csv(tmp_path / "train.csv", rows(80, 0)),
        "twice": write_csv(tmp_path / "twice.csv", [("a", "x", "b"), ("c", "y", "d")], "text,label,text"),  # type: ignore[list-item]
        "empty": write_csv(tmp_path / "empty.csv", []),
        "one": write_csv(tmp_path / "one.csv", [("a b", "x"), ("c d", "x")]),
        "other": write_csv(tmp_path / "other.csv", [("a b", "cow")]),
        "tmp": tmp_path,
    }
    filled = [
        word if word.startswith("[") else word.format(**{name: str(path) for name, path in places.items()})
        for word in words
    ]
    common = [] if words[0].endswith(".yaml") else ["--output_dir", str(tmp_path / "out"), "--bf16", "False"]
    code, error = run_here(monkeypatch, capsys, [*filled, *common])
    assert code == 2
    lines = [line for line in error.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, error
    said = error[error.index("error:") :].strip().splitlines()
    assert len(said) <= 2
    assert re.search(message, "\n".join(said)), error
    assert "Traceback" not in error
    assert not list((tmp_path / "out").glob("*teacher*")), "a teacher was trained for a student that can't be"


def test_quick_is_quick_with_every_file() -> None:
    recipe = runpy.run_path(str(RECIPE))
    settings = SimpleNamespace(learning_rate=0, alpha=None, temperature=None, objectives=None)
    data = TextDataArguments()
    recipe["DEFAULTS"].shrink(data, TextModelArguments(), settings)
    assert data.max_train_samples == data.max_eval_samples == data.max_unlabeled_samples == 600


@pytest.mark.slow
def test_the_embedded_default_in_its_quick_form(tmp_path: Path) -> None:
    done = launch(["--quick", "--output_dir", "out"], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((tmp_path / "out" / "distillation_results.json").read_text())
    assert results["settings"]["test_texts"] == 600
