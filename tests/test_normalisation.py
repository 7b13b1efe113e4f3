"""One batch has one gradient, however it is split: accumulation, architectures, and the probe itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments

from hf_distill.items import Head
from hf_distill.normalisation import Normalisation, probe_normalisation, undisturbed
from tests.test_trainer import mean_loss, normalised_loss
from tests.tiny import bert, classifier, collate, distiller, examples, gradient_of, one_step, perturbed

MULTI = {"problem_type": "multi_label_classification"}
# architecture, kind of data, model options, training options, how the loss is normalised
CASES = {
    "bert": ("bert", "single_label", {}, {}, Normalisation.MEAN),
    "distilbert": ("distilbert", "single_label", {}, {}, Normalisation.MEAN),
    "roberta": ("roberta", "single_label", {}, {}, Normalisation.MEAN),
    "modernbert": ("modernbert", "single_label", {}, {}, Normalisation.MEAN),
    "gpt2": ("gpt2", "single_label", {}, {}, Normalisation.MEAN),
    "llama": ("llama", "single_label", {}, {}, None),
    "vit": ("vit", "image", {}, {}, Normalisation.NORMALISED),
    "bert_multi_label": ("bert", "multi_label", MULTI, {}, Normalisation.MEAN),
    "llama_multi_label": ("llama", "multi_label", MULTI, {}, Normalisation.MEAN),
    "bert_tokens": ("bert_tokens", "tokens", {}, {}, None),
    "gpt2_causal": ("gpt2_lm", "causal", {}, {}, Normalisation.NORMALISED),
    "llama_causal": ("llama_lm", "causal", {}, {}, Normalisation.NORMALISED),
    "bert_smoothing": ("bert", "single_label", {}, {"label_smoothing_factor": 0.1}, None),
    "bert_mean_function": ("bert", "single_label", {}, {"loss": mean_loss}, Normalisation.MEAN),
    "bert_normalised_function": (
        "bert",
        "single_label",
        {},
        {"loss": normalised_loss},
        Normalisation.NORMALISED,
    ),
}


def gradient(
    tmp_path: Any, case: str, split: tuple[int, int], alpha: float, data: Any
) -> tuple[torch.Tensor, Any]:
    """Return the gradient of the 8 examples under a split into micro-batches, and the probe's answer."""
    architecture, _, options, training, _ = CASES[case]
    training = dict(training)
    loss = training.pop("loss", None)
    trainer = distiller(
        classifier(architecture, 1, 0, **options),
        perturbed(classifier(architecture, 2, 5, **options), 0.3),
        one_step(tmp_path, *split, alpha=alpha, **training),
        data,
        compute_loss_func=loss,
    )
    return gradient_of(trainer), trainer._normalisation


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_accumulation_does_not_change_the_gradient(tmp_path: Any, case: str, alpha: float) -> None:
    data = examples(8, CASES[case][1])
    (whole, answer), *others = (
        gradient(tmp_path, case, split, alpha, data) for split in [(8, 1), (4, 2), (1, 8)]
    )
    assert whole.abs().max() > 0
    for split, other in others:
        assert (split - whole).abs().max() <= 1e-6 * whole.abs().max()
        assert other is answer
    if CASES[case][4] is not None:
        assert answer is CASES[case][4]


def test_plain_trainer_gets_it_wrong(tmp_path: Any) -> None:
    """What the README says of plain Trainer, so that the day it is mended we see it."""
    gradients = [
        gradient_of(Trainer(bert(), one_step(tmp_path, *split, TrainingArguments), collate, examples(16)))
        for split in [(16, 1), (4, 4)]
    ]
    assert (gradients[1].norm() / gradients[0].norm()).item() == pytest.approx(4.0, rel=1e-3)


def test_unlabelled_rows_spread_over_micro_batches(tmp_path: Any) -> None:
    for head, nothing in [("single_label", -100), ("multi_label", [float("nan")] * 3)]:
        data = examples(8, head)
        for row in (0, 3, 4, 5):
            data[row]["labels"] = nothing
        case = "bert" if head == "single_label" else "bert_multi_label"
        whole, *others = (
            gradient(tmp_path, case, split, 0.5, data)[0] for split in [(8, 1), (4, 2), (2, 4), (1, 8)]
        )
        for split in others:
            assert (split - whole).abs().max() <= 1e-6 * whole.abs().max()


def test_every_normalisation_is_scaled_right_against_a_sum_by_hand(tmp_path: Any) -> None:
    """Not only the same under every split, but the mean over the labelled items itself."""
    data = examples(8)
    student = bert()
    batch = collate(data)
    logits = student(batch["input_ids"], batch["attention_mask"]).logits
    torch.nn.functional.cross_entropy(logits, batch["labels"]).backward()
    expected = torch.cat([p.grad.flatten() for p in student.parameters()])
    for case in ("bert", "bert_mean_function", "bert_normalised_function"):
        received, _ = gradient(tmp_path, case, (2, 4), 0.0, data)
        assert (received - expected).abs().max() <= 1e-6 * expected.abs().max()


# ---- the probe ----------------------------------------------------------------------------------


def with_router(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """A mean plus a part that no count divides, like a mixture of experts' balancing loss."""
    return normalised_loss(outputs, labels, num_items_in_batch) + outputs["logits"].square().mean()


def test_neither_warns_and_is_left_as_trainer_does(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    import logging

    logging.getLogger("transformers").propagate = True
    logging.getLogger("hf_distill").propagate = True
    ours = distiller(
        bert(), bert(2), one_step(tmp_path, 2, 4, alpha=0), examples(8), compute_loss_func=with_router
    )
    with caplog.at_level(logging.WARNING):
        received = gradient_of(ours)
    assert ours._normalisation is Normalisation.NEITHER
    assert "left as Trainer scales it" in caplog.text
    plain = Trainer(
        bert(),
        one_step(tmp_path, 2, 4, TrainingArguments),
        collate,
        examples(8),
        compute_loss_func=with_router,
    )
    expected = gradient_of(plain)
    assert (received - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_a_class_weighted_mean_is_neither() -> None:
    weights = torch.tensor([1.0, 5.0])

    def loss(batch: dict[str, Any], count: float) -> torch.Tensor:
        chosen = weights[batch["labels"]]
        return (chosen * batch["values"]).sum() / chosen.sum()

    batch = {"labels": torch.tensor([0, 1, 0, 0]), "values": torch.tensor([1.0, 2.0, 3.0, 7.0])}
    assert probe_normalisation(loss, batch, Head("single_label"), 1e-4) is Normalisation.NEITHER


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_a_sum_is_neither(rows: int) -> None:
    batch = {"labels": torch.ones(rows, dtype=torch.long)}
    answer = probe_normalisation(lambda b, n: b["labels"].double().sum(), batch, Head("single_label"), 1e-4)
    assert answer is Normalisation.NEITHER


def test_a_batch_without_labels_tells_nothing() -> None:
    batch = {"labels": torch.tensor([-100, -100])}
    answer = probe_normalisation(lambda b, n: torch.zeros(()), batch, Head("single_label"), 1e-4)
    assert answer is Normalisation.UNKNOWN


def test_the_probe_leaves_no_trace() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2), torch.nn.Dropout(0.5))
    model.config = bert().config
    model.train()
    model[2].eval()  # a part that someone froze stays as it was
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with undisturbed(model):
        model[1].train()
        model(torch.randn(4, 2))
        model.config.problem_type = "regression"
        torch.rand(100)
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    assert model.config.problem_type is None
    assert (model.training, model[1].training, model[2].training) == (True, True, False)


@pytest.mark.parametrize("weights", [[1.0, 3.0, 5.0], [1.0, 1.0, 5.0], [4.0, 1.0, 1.0]])
@pytest.mark.parametrize("labels", [[0, 0], [1], [0, 1, 2, 0, 1, 2], [0, 1, 1, 0], [0, -100, 0]])
def test_class_weights_show_whatever_rows_come_first(labels: list[int], weights: list[float]) -> None:
    weight = torch.tensor(weights)

    def loss(batch: dict[str, Any], count: float) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(batch["logits"], batch["labels"], weight=weight)

    logits = torch.randn(len(labels), 3, generator=torch.Generator().manual_seed(0))
    batch = {"labels": torch.tensor(labels), "logits": logits}
    answer = probe_normalisation(loss, batch, Head("single_label"), 1e-4, classes=3)
    assert answer is Normalisation.NEITHER
    assert batch["labels"].tolist() == labels


@pytest.mark.parametrize("labels", [[0, 0], [1], [0, 1, 2, 0, 1, 2], [0, -100, 0]])
def test_other_labels_leave_a_mean_a_mean_and_a_normalised_loss_normalised(labels: list[int]) -> None:
    logits = torch.randn(len(labels), 3, generator=torch.Generator().manual_seed(0))
    batch = {"labels": torch.tensor(labels), "logits": logits}
    for reduction, expected in (("mean", Normalisation.MEAN), ("sum", Normalisation.NORMALISED)):

        def loss(batch: dict[str, Any], count: float, reduction: str = reduction) -> torch.Tensor:
            found = torch.nn.functional.cross_entropy(batch["logits"], batch["labels"], reduction=reduction)
            return found / count if reduction == "sum" else found

        assert probe_normalisation(loss, batch, Head("single_label"), 1e-4, classes=3) is expected
