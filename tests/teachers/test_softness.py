"""The line on how soft the teacher is: its numbers, its warnings, and that a training is the same without it."""

import math
import re
import warnings
from typing import Any

import numpy
import pytest
import torch

from hf_distill.loss_plan import Term
from hf_distill.objectives import build_objective
from hf_distill.objectives.base import Rows
from hf_distill.teachers import softness
from hf_distill.teachers.signals import DenseSignals
from hf_distill.teachers.softness import BATCHES, ROWS_PER_BATCH, SoftnessMeter
from tests.tiny import (
    HEADS,
    arguments,
    bert,
    classifier,
    collate,
    distiller,
    examples,
    perturbed,
    teacher_of,
)


def term(name: str = "forward_kl", **settings: Any) -> Term:
    return Term(build_objective(name, settings), 1.0, name)


def measured(logits: torch.Tensor, labels: Any, temperature: float, head: Any = "single_label") -> Any:
    """Let a meter see rows in batches of 8."""
    meter = SoftnessMeter(head)
    one = [term("binary_kl" if head == "multi_label" else "forward_kl", temperature=temperature)]
    for start in range(0, len(logits), 8):
        part = slice(start, start + 8)
        labels_of_part = None if labels is None else labels[part]
        meter.see(Rows(torch.zeros_like(logits[part]), DenseSignals(logits[part]), labels_of_part), one)
    return meter.result()


def reference(logits: Any, head: str, temperature: float) -> tuple[float, float]:
    """Return the mean entropy and the share of near one-hot rows in float64, row by row."""
    entropies, near = [], []
    for row in numpy.asarray(logits, dtype=numpy.float64) / temperature:
        if head == "multi_label":
            pairs = [(1 / (1 + math.exp(-z)), 1 / (1 + math.exp(z))) for z in row]
        else:
            pairs = [tuple(numpy.exp(row - row.max()) / numpy.exp(row - row.max()).sum())]
        entropies.append(numpy.mean([-sum(p * math.log(p) for p in pair) for pair in pairs]))
        near.append(all(max(pair) > 0.99 for pair in pairs))
    return float(numpy.mean(entropies)), float(numpy.mean(near))


@pytest.mark.parametrize("head", ["single_label", "multi_label"])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_a_training_prints_the_numbers_of_its_first_items(
    tmp_path: Any, head: str, temperature: float, capsys: Any
) -> None:
    teacher, data = perturbed(teacher_of(head), 0.2), examples(24, head)
    args = arguments(tmp_path, temperature=temperature, num_train_epochs=1, max_steps=-1)
    distiller(bert(head=head), teacher, args, data).train()
    with torch.no_grad():
        logits = teacher(**{k: v for k, v in collate(data).items() if k != "labels"}).logits
    entropy, near = reference(logits, head, temperature)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Teacher: ")]
    classes, unit = (2, "nats per class") if head == "multi_label" else (3, "nats")
    assert 0.01 < entropy < 0.99 * math.log(classes), "the teacher must be neither one-hot nor uniform"
    assert f"on 24 training items at T = {temperature:g}, mean entropy {entropy:.2f} {unit} " in line
    assert f"({100 * entropy / math.log(classes):.0f} % of log {classes}), {100 * near:.0f} % near" in line


def test_near_one_hot_rows_are_counted_where_the_top_is_above_099() -> None:
    logits = torch.tensor([[4.59, 0.0], [4.60, 0.0], [0.0, 9.0], [0.0, 0.0]])  # 0.9899, 0.9900, 0.9999, 0.5
    result = measured(logits, torch.tensor([0, 0, 0, 0]), 1.0)
    assert (result.near_one_hot, result.repeats) == (0.5, 0.25), "the third says another class than its label"
    assert measured(logits, torch.tensor([0, -100, -100, 0]), 1.0).repeats == 0.0
    assert measured(logits, None, 1.0).repeats == 0.0
    several = torch.tensor([[9.0, -9.0], [9.0, 0.0], [9.0, -9.0], [9.0, -9.0]])
    labels = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0], [float("nan")] * 2])
    result = measured(several, labels, 1.0, "multi_label")
    assert (result.near_one_hot, result.repeats) == (0.75, 0.25)


def test_classes_at_minus_infinity_are_ruled_out() -> None:
    result = measured(torch.tensor([[0.0, 0.0, -math.inf]]), torch.tensor([0]), 2.0)
    assert result.entropy == pytest.approx(math.log(2))


def test_warns_of_a_teacher_that_repeats_the_labels_and_of_no_soft_one() -> None:
    labels = torch.arange(96) % 3
    hard = 9.0 * torch.nn.functional.one_hot(labels, 3)
    assert "only repeats the labels: at T = 1, on 100 %" in measured(hard, labels, 1.0).warning()
    assert measured(hard, labels, 4.0).warning() is None, "softened"
    assert measured(hard[:63], labels[:63], 1.0).warning() is None, "too few to tell"
    assert measured(hard, torch.full_like(labels, -100), 1.0).warning() is None, (
        "new to the student: no labels"
    )
    assert measured(hard, (labels + 1) % 3, 1.0).warning() is None, "it says something else"
    most = labels.masked_fill(torch.arange(96) % 16 == 0, -100)  # 90 of 96 repeat
    assert measured(hard, most, 1.0).warning() is None


def test_tells_an_untrained_teacher_from_a_high_temperature(tmp_path: Any) -> None:
    data = examples(96)
    untrained, trained = bert(2, seed=5), teacher_of()
    inputs = {k: v for k, v in collate(data).items() if k != "labels"}
    labels = collate(data)["labels"]
    with torch.no_grad():
        flat, sharp = untrained(**inputs).logits, trained(**inputs).logits
    assert "Is it trained on this task" in measured(flat, labels, 2.0).warning()
    assert "Is it trained on this task" in measured(flat, None, 1.0).warning()
    assert measured(sharp, labels, 2.0).warning() is None
    assert "The temperature 200 leaves" in measured(sharp, labels, 200.0).warning()


def test_a_training_warns_of_a_teacher_that_repeats_the_labels(tmp_path: Any) -> None:
    class Oracle:
        """Knows the labels, which stand in the first token."""

        name, provides, columns = "oracle", frozenset({"logits", "log_probs"}), frozenset({"input_ids"})

        def __call__(self, batch: dict[str, Any]) -> DenseSignals:
            return DenseSignals(30.0 * torch.nn.functional.one_hot(batch["input_ids"][:, 0] % 3, 3).float())

    data = [{**row, "labels": row["input_ids"][0] % 3} for row in examples(80)]
    args = arguments(tmp_path, temperature=4.0, num_train_epochs=1, max_steps=-1)
    with pytest.warns(UserWarning, match="only repeats the labels: at T = 4, on 100 %"):
        distiller(bert(), Oracle(), args, data).train()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*repeats the labels")
        distiller(bert(), teacher_of(), args, data).train()


def test_it_is_said_after_the_first_batches_and_then_no_more(tmp_path: Any, capsys: Any) -> None:
    args = arguments(tmp_path, max_steps=BATCHES + 3, logging_steps=BATCHES + 1)
    data = examples(8)
    distiller(bert(), teacher_of(), args, data).train()
    said = capsys.readouterr()
    assert len(re.findall(f"Teacher: on {4 * BATCHES} training items", said.err)) == 1
    assert "Teacher:" not in said.out


def test_of_a_large_batch_some_rows_are_seen_from_all_over_it() -> None:
    meter = SoftnessMeter("single_label")
    count = 10 * ROWS_PER_BATCH + 1
    logits = torch.zeros(count, 2)
    logits[count // 2 :, 0] = 50.0
    meter.see(Rows(torch.zeros(count, 2), DenseSignals(logits), None), [term(temperature=1.0)])
    result = meter.result()
    assert ROWS_PER_BATCH / 2 < result.items <= ROWS_PER_BATCH
    assert 0.3 < result.near_one_hot < 0.7


@pytest.mark.parametrize(
    "options",
    [
        {"alpha": 0.0},
        {"objectives": [{"name": "logit_mse"}]},
        {"objectives": [{"name": "contrastive"}], "per_device_train_batch_size": 4},
        {"head": "regression"},
    ],
    ids=["alpha_0", "logit_mse", "contrastive", "regression"],
)
def test_silent_where_no_temperature_softens_the_teacher(
    tmp_path: Any, options: dict[str, Any], capsys: Any
) -> None:
    head = options.pop("head", "single_label")
    teacher, asked = teacher_of(head), []
    teacher.register_forward_hook(lambda *_: asked.append(1))
    distiller(bert(head=head), teacher, arguments(tmp_path, **options), examples(8, head)).train()
    assert "Teacher:" not in capsys.readouterr().err
    assert bool(asked) == (options.get("alpha") != 0.0), "with alpha=0 no teacher runs"


def test_the_temperature_is_the_teachers_own_at_the_start_of_its_schedule(tmp_path: Any, capsys: Any) -> None:
    falling = {"schedule": "linear", "start": 8.0, "end": 1.0}
    objectives = [
        {"name": "logit_mse"},
        {"name": "soft_cross_entropy", "teacher_temperature": falling, "temperature": 3.0},
    ]
    distiller(bert(), teacher_of(), arguments(tmp_path, objectives=objectives), examples(8)).train()
    assert "at T = 8," in capsys.readouterr().err


def test_evaluation_prints_nothing_and_counts_for_nothing(tmp_path: Any, capsys: Any) -> None:
    args = arguments(tmp_path, max_steps=4, eval_strategy="steps", eval_steps=1)
    trainer = distiller(bert(), teacher_of(), args, examples(8), eval_dataset=examples(6, seed=1))
    trainer.evaluate()
    assert "Teacher:" not in capsys.readouterr().err
    trainer.train()
    assert "on 16 training items" in capsys.readouterr().err, "4 steps of 4"


def test_per_token_heads_are_measured_on_supervised_positions(tmp_path: Any, capsys: Any) -> None:
    teacher, data = perturbed(classifier("bert_tokens", 2, seed=5), 0.3), examples(2, "tokens")
    distiller(classifier("bert_tokens"), teacher, arguments(tmp_path, max_steps=1), data).train()
    batch = collate(data)
    with torch.no_grad():
        logits = teacher(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    rows = logits[batch["labels"] != -100]
    assert 3 < len(rows) <= ROWS_PER_BATCH, "else the line is of some of them"
    entropy, _ = reference(rows, "single_label", 2.0)
    assert (
        f"on {len(rows)} training items at T = 2, mean entropy {entropy:.2f} nats" in capsys.readouterr().err
    )


def test_an_ensemble_is_measured_as_its_mixture_without_the_labels(tmp_path: Any, capsys: Any) -> None:
    teachers, data = [teacher_of(), perturbed(bert(1, seed=7), 0.5, seed=3)], examples(8)
    args = arguments(tmp_path, max_steps=2, teacher_weights="label_loss", temperature=2.0)
    distiller(bert(), teachers, args, data).train()
    inputs = {k: v for k, v in collate(data).items() if k != "labels"}
    with torch.no_grad():
        mixture = sum(torch.softmax(one(**inputs).logits / 2, -1) for one in teachers) / 2
    entropy = float(-(mixture * mixture.log()).sum(-1).mean())
    assert f"on 8 training items at T = 2, mean entropy {entropy:.2f} nats" in capsys.readouterr().err


@pytest.mark.parametrize("head", sorted(HEADS))
def test_training_has_the_same_bits_without_it(
    tmp_path: Any, head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Noisy(torch.utils.data.Dataset):  # type: ignore[type-arg]
        """Draws from the training's random stream and counts what is read."""

        def __init__(self) -> None:
            self.rows, self.read = examples(16, head), 0

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, index: int) -> dict[str, Any]:
            self.read += 1
            ids = list(self.rows[index]["input_ids"])
            ids[0] = int(torch.randint(3, 50, (1,)))
            return {**self.rows[index], "input_ids": ids}

    def trained(folder: str) -> tuple[list[torch.Tensor], int]:
        data = Noisy()
        args = arguments(tmp_path / folder, max_steps=6)
        trainer = distiller(bert(head=head, dropout=True), teacher_of(head), args, data)
        trainer.train()
        return list(trainer.model.state_dict().values()), data.read

    with_it, reads = trained("with")
    monkeypatch.setattr(softness.SoftnessMeter, "see", lambda *_: None)
    without, reads_without = trained("without")
    assert reads == reads_without
    assert all(torch.equal(a, b) for a, b in zip(with_it, without, strict=True))


def test_a_resumed_run_says_it_too_and_ends_with_the_same_bits(tmp_path: Any, capsys: Any) -> None:
    def run(**options: Any) -> Any:
        args = arguments(tmp_path, max_steps=6, save_strategy="steps", save_steps=3, **options)
        return distiller(bert(dropout=True), teacher_of(), args, examples(16))

    whole = run()
    whole.train()
    capsys.readouterr()
    resumed = run()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert "Teacher: on 12 training items" in capsys.readouterr().err
    both = zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in both)


def test_a_streamed_data_set_is_measured_as_it_is_read(tmp_path: Any, capsys: Any) -> None:
    class Stream(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            yield from examples(16)

    distiller(bert(), teacher_of(), arguments(tmp_path, max_steps=4), Stream()).train()
    assert "Teacher: on 16 training items" in capsys.readouterr().err
