"""Several teachers as one: the mixture beside naive float64, weights, routing, memory and offloading."""

from __future__ import annotations

import gc
import math
import weakref
from typing import Any

import pytest
import torch

from hf_distill import TeacherEnsemble
from hf_distill.items import Head
from hf_distill.objectives import Rows, objective_classes
from hf_distill.objectives.forward_kl import ForwardKL
from hf_distill.objectives.reverse_kl import ReverseKL
from hf_distill.teachers import DenseSignals, Teacher, TeacherSignals
from hf_distill.teachers.ensemble import MixtureSignals
from hf_distill.teachers.online import OnlineTeacher
from hf_distill.teachers.signals import label_free, member_logits, retemperable_logits
from hf_distill.teachers.weighting import check_weights, confidence_weights, label_loss_weights
from tests.tiny import classifier, perturbed

SINGLE, MULTI, NUMBER = Head("single_label"), Head("multi_label"), Head("regression")
TOKENS = Head("single_label", positions=True)
CAUSAL = Head("single_label", positions=True, shift=True)
CPU = torch.device("cpu")
FIXED = [2.0, 1.0, 5.0]


def logits_of_three(*shape: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [2 * torch.randn(*shape, generator=generator) for _ in range(3)]


def signals_of(logits: list[torch.Tensor]) -> tuple[TeacherSignals, ...]:
    return tuple(DenseSignals(one) for one in logits)


class Saying:
    """A teacher that says what it is told to."""

    name, columns = "saying", frozenset({"input_ids"})

    def __init__(self, logits: torch.Tensor, provides: tuple[str, ...] = ("logits", "log_probs")) -> None:
        self.logits, self.provides = logits, frozenset(provides)

    def __call__(self, batch: dict[str, Any]) -> TeacherSignals:
        self.seen = batch
        return DenseSignals(self.logits)


def ensemble_of(logits: list[torch.Tensor], head: Head = SINGLE, **settings: Any) -> TeacherEnsemble:
    teachers = [Saying(one) for one in logits]
    return TeacherEnsemble(teachers, **settings).prepared(teachers, head, CPU, [""] * len(teachers))


def naive_weights(weights: Any, logits: list[torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    """Return (teachers, rows) weights, written from the definition."""
    stacked = torch.stack(logits).double()
    if weights is None or isinstance(weights, list):
        row = torch.tensor(weights or [1.0] * len(logits), dtype=torch.float64)
        return (row / row.sum())[:, None].expand(len(logits), len(labels))
    p = stacked.softmax(-1)
    if weights == "confidence":
        sure = 1 + (p * p.log()).sum(-1) / math.log(p.shape[-1])
        return sure / sure.sum(0)
    true = p[:, torch.arange(len(labels)), labels.clamp(min=0)]
    return torch.where(labels >= 0, true / true.sum(0), 1 / len(logits))  # softmax(log p) over the teachers


def naive_mixture(
    weights: Any, combine: str, logits: list[torch.Tensor], labels: torch.Tensor, temperature: float
) -> torch.Tensor:
    w, stacked = naive_weights(weights, logits, labels)[..., None], torch.stack(logits).double()
    if combine == "logits":
        return ((w * stacked).sum(0) / temperature).softmax(-1)
    return (w * (stacked / temperature).softmax(-1)).sum(0)


# ---- the mixture ---------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [None, FIXED, "confidence", "label_loss"])
@pytest.mark.parametrize("combine", ["probabilities", "logits"])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_mixture_is_the_naive_one(weights: Any, combine: str, temperature: float) -> None:
    logits, labels = logits_of_three(6, 4), torch.tensor([0, 3, -100, 1, 2, -100])
    signals = ensemble_of(logits, weights=weights, combine=combine)({"labels": labels})
    expected = naive_mixture(weights, combine, logits, labels, temperature)
    got = signals.log_probs(temperature)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected.log(), rtol=1e-6, atol=1e-6)
    w = naive_weights(weights, logits, labels)[..., None]
    mean = (w * torch.stack(logits).double()).sum(0)
    torch.testing.assert_close(signals.logits.double(), mean, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("weights", [None, FIXED, "confidence", "label_loss"])
@pytest.mark.parametrize("objective", [ForwardKL(2.0), ReverseKL(2.0)])
def test_objectives_take_the_mixture_and_not_its_mean_logits(weights: Any, objective: Any) -> None:
    logits, labels = logits_of_three(5, 4), torch.tensor([0, 1, 2, 3, -100])
    student = torch.randn(5, 4, generator=torch.Generator().manual_seed(7))
    signals = ensemble_of(logits, weights=weights)({"labels": labels})
    p = naive_mixture(weights, "probabilities", logits, labels, 2.0)
    q = (student.double() / 2).softmax(-1)
    first, second = (p, q) if isinstance(objective, ForwardKL) else (q, p)
    expected = 4 * (first * (first / second).log()).sum(-1)
    torch.testing.assert_close(objective(Rows(student, signals)).double(), expected, rtol=1e-5, atol=1e-6)


def test_by_hand() -> None:
    """(0.8, 0.2) and (0.4, 0.6) at 3 to 1: probabilities (0.7, 0.3); odds 4^0.75 (2/3)^0.25 = 2.5558."""
    logits = [torch.tensor([[0.8, 0.2]]).log(), torch.tensor([[0.4, 0.6]]).log()]
    mixed = ensemble_of(logits, weights=[3, 1])({}).log_probs(1.0).exp()
    torch.testing.assert_close(mixed, torch.tensor([[0.7, 0.3]]))
    mean = ensemble_of(logits, weights=[3, 1], combine="logits")({}).log_probs(1.0).exp()
    torch.testing.assert_close(mean, torch.tensor([[2.5558 / 3.5558, 1 / 3.5558]]), rtol=1e-4, atol=0)
    # The label is class 0: weights in proportion to 0.8 and 0.4.
    aided = ensemble_of(logits, weights="label_loss")({"labels": torch.tensor([0])}).log_probs(1.0).exp()
    torch.testing.assert_close(aided[0, 0], torch.tensor((0.8 * 0.8 + 0.4 * 0.4) / 1.2))


# What an ensemble answers as one; features and derivatives are those of single members.
OF_ANSWERS = frozenset({"logits", "log_probs", "labels"})


@pytest.mark.parametrize("weights", [None, FIXED, "confidence", "label_loss"])
@pytest.mark.parametrize("combine", ["probabilities", "logits"])
def test_equal_members_are_one_teacher(weights: Any, combine: str) -> None:
    one = logits_of_three(6, 4)[0]
    labels, student = torch.tensor([0, 3, -100, 1, 2, 0]), logits_of_three(6, 4, seed=3)[1]
    signals = ensemble_of([one] * 3, weights=weights, combine=combine)({"labels": labels})
    alone = DenseSignals(one)
    torch.testing.assert_close(signals.logits, one, rtol=1e-6, atol=1e-6)
    for temperature in (1.0, 4.0):
        torch.testing.assert_close(signals.log_probs(temperature), alone.log_probs(temperature))
    of_answers = {name: found for name, found in objective_classes().items() if found.needs <= OF_ANSWERS}
    assert len(of_answers) > 10
    for name, found in of_answers.items():
        mixed, expected = (found()(Rows(student, teacher, labels)) for teacher in (signals, alone))
        torch.testing.assert_close(mixed, expected, rtol=1e-5, atol=1e-6, msg=name)


def test_a_teacher_of_weight_0_is_left_out_even_where_it_rules_a_class_out() -> None:
    logits = logits_of_three(2, 3)[:2]
    logits[1][:, 0] = -math.inf
    signals = ensemble_of(logits, weights=[1, 0])({})
    assert torch.equal(signals.log_probs(2.0), DenseSignals(logits[0]).log_probs(2.0))
    assert torch.equal(signals.logits, logits[0])
    per_row = MixtureSignals(signals_of(logits), (torch.ones(2, 1), torch.zeros(2, 1)))
    assert torch.equal(per_row.logits, logits[0])


def test_a_class_that_all_rule_out_stays_out_and_one_that_some_rule_out_does_not() -> None:
    logits = logits_of_three(2, 3)
    for one in logits:
        one[:, 2] = -math.inf
    logits[0][:, 1] = -math.inf
    for weights in (None, "confidence"):
        signals = ensemble_of(logits, weights=weights)({})
        probabilities = signals.log_probs(2.0).exp()
        assert (probabilities[:, 2] == 0).all()
        assert (probabilities[:, 1] > 0).all()
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(2))
        values = ForwardKL(2.0)(Rows(torch.zeros(2, 3), signals))
        assert values.isfinite().all()


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_types_are_mixed_in_float32_and_float64_is_kept(half: torch.dtype) -> None:
    logits = [one.to(half) for one in logits_of_three(4, 5)]
    signals = ensemble_of(logits)({})
    assert signals.log_probs(2.0).dtype == signals.logits.dtype == torch.float32
    exact = ensemble_of([one.double() for one in logits], weights="confidence")({})
    assert exact.log_probs(2.0).dtype == exact.logits.dtype == torch.float64


# ---- weights -------------------------------------------------------------------------------


def test_teachers_that_know_nothing_count_equally() -> None:
    unsure = [torch.full((2, 7), value) for value in (0.0, 3.3, -1e3)]
    torch.testing.assert_close(confidence_weights(signals_of(unsure), SINGLE), torch.full((3, 2, 1), 1 / 3))
    one_sure = [*unsure[:2], 9 * torch.eye(7)[:2]]
    weights = confidence_weights(signals_of(one_sure), SINGLE)
    assert weights.squeeze(-1).T.tolist() == [[0.0, 0.0, 1.0]] * 2
    for head, width in ((MULTI, 3), (MULTI, 1)):
        zeros = signals_of([torch.zeros(2, width)] * 2)
        assert confidence_weights(zeros, head).tolist() == [[[0.5]] * 2] * 2


def test_confidence_of_yes_and_no_classes() -> None:
    logits = logits_of_three(5, 4)
    p = torch.stack(logits).double().sigmoid()
    entropy = -(p * p.log() + (1 - p) * (1 - p).log())
    sure = (1 - entropy / math.log(2)).mean(-1)
    got = confidence_weights(signals_of(logits), MULTI).squeeze(-1)
    torch.testing.assert_close(got.double(), sure / sure.sum(0), rtol=1e-5, atol=1e-6)


def test_label_loss_of_yes_and_no_classes_and_of_numbers() -> None:
    logits = logits_of_three(4, 3)
    labels = torch.tensor([[1.0, 0.0, 1.0], [math.nan] * 3, [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    losses = torch.stack(
        [
            torch.nn.functional.binary_cross_entropy_with_logits(one, labels, reduction="none")
            for one in logits
        ]
    ).mean(-1)
    expected = torch.softmax(-losses, 0)
    expected[:, 1] = 1 / 3
    got = label_loss_weights(signals_of(logits), labels, MULTI)
    torch.testing.assert_close(got.squeeze(-1), expected)
    numbers = [one[:, :1] for one in logits]
    targets = torch.tensor([0.5, math.nan, 1.0, -2.0])
    expected = torch.softmax(-torch.stack([(one[:, 0] - targets) ** 2 for one in numbers]), 0)
    expected[:, 1] = 1 / 3
    got = label_loss_weights(signals_of(numbers), targets, NUMBER)
    torch.testing.assert_close(got.squeeze(-1), expected)


def test_a_class_ruled_out_costs_nothing_where_it_is_not_there() -> None:
    out = torch.tensor([[-math.inf, 1.0]])
    weights = label_loss_weights(signals_of([out, torch.zeros(1, 2)]), torch.tensor([[0.0, 1.0]]), MULTI)
    assert weights[0] > weights[1] > 0
    nobody = [torch.tensor([[-math.inf, 1.0]])] * 2
    assert label_loss_weights(signals_of(nobody), torch.tensor([0]), SINGLE).flatten().tolist() == [0.5, 0.5]


def test_labels_of_tokens_weigh_each_token_and_are_shifted_for_causal_models() -> None:
    logits, labels = logits_of_three(2, 5, 4), torch.tensor([[0, 1, -100, 3, 2], [1, -100, -100, 0, 3]])
    tokens = label_loss_weights(signals_of(logits), labels, TOKENS)
    flat = [one.flatten(0, 1) for one in logits]
    torch.testing.assert_close(
        tokens.flatten(1).double(), naive_weights("label_loss", flat, labels.flatten()), rtol=1e-5, atol=1e-6
    )
    causal = label_loss_weights(signals_of(logits), labels, CAUSAL)
    shifted = torch.cat([labels[:, 1:], torch.full((2, 1), -100)], 1)
    torch.testing.assert_close(causal, label_loss_weights(signals_of(logits), shifted, TOKENS))


@pytest.mark.parametrize("weights", ["confidence", "label_loss"])
def test_rows_are_selected_with_their_weights(weights: str) -> None:
    logits, labels = logits_of_three(2, 5, 4), torch.randint(0, 4, (2, 5))
    signals = ensemble_of(logits, CAUSAL, weights=weights)({"labels": labels})
    shorter = signals.select((..., slice(None, -1), slice(None)))
    torch.testing.assert_close(shorter.log_probs(2.0), signals.log_probs(2.0)[:, :-1])
    mask = torch.tensor([[True, False, True, True], [False, False, True, False]])
    torch.testing.assert_close(shorter.select(mask).log_probs(2.0), signals.log_probs(2.0)[:, :-1][mask])
    torch.testing.assert_close(shorter.select(mask).logits, signals.logits[:, :-1][mask])
    torch.testing.assert_close(signals.select(slice(0, 1)).log_probs(1.0), signals.log_probs(1.0)[:1])


def test_labels_help_no_teacher_that_is_measured() -> None:
    logits, labels = logits_of_three(6, 4), torch.arange(6) % 4
    equal = ensemble_of(logits)({})
    aided = ensemble_of(logits, weights="label_loss")({"labels": labels})
    assert not torch.allclose(aided.log_probs(1.0), equal.log_probs(1.0))
    torch.testing.assert_close(label_free(aided).log_probs(1.0), equal.log_probs(1.0))
    sure = ensemble_of(logits, weights="confidence")({"labels": labels})
    assert torch.equal(label_free(sure).log_probs(1.0), sure.log_probs(1.0))
    without = ensemble_of(logits, weights="label_loss")({})
    assert torch.equal(without.log_probs(1.0), equal.log_probs(1.0))


# ---- what it says of itself ------------------------------------------------------------------


def test_is_a_teacher_whose_signals_are_signals() -> None:
    logits = logits_of_three(2, 3)
    ensemble = ensemble_of(logits)
    assert isinstance(ensemble, Teacher)
    assert isinstance(TeacherEnsemble(["a", "b"]), Teacher)
    signals = ensemble({})
    assert isinstance(signals, TeacherSignals)
    assert retemperable_logits(signals) is None
    assert retemperable_logits(ensemble_of(logits, combine="logits")({})) is not None
    assert [torch.equal(a, b) for a, b in zip(member_logits(signals), logits, strict=True)] == [True] * 3
    assert ensemble.describe() == {"teacher_combine": "probabilities", "teacher_weights": [1 / 3] * 3}


def test_ensembles_may_be_members() -> None:
    logits = logits_of_three(4, 3)
    inner = ensemble_of(logits[:2])
    outer = TeacherEnsemble([inner, Saying(logits[2])], weights=[2, 1])
    expected = ensemble_of(logits)({})
    torch.testing.assert_close(outer({}).log_probs(2.0), expected.log_probs(2.0))
    torch.testing.assert_close(outer({}).logits, expected.logits)


class WithoutLogits:
    """Signals with log-probabilities alone, as a cache's would be."""

    logits = None

    def __init__(self, logits: torch.Tensor) -> None:
        self.log_probs = DenseSignals(logits).log_probs
        self.select = lambda index: WithoutLogits(logits[index])


class Cached(Saying):
    """A teacher that answers with log-probabilities alone."""

    def __call__(self, batch: dict[str, Any]) -> Any:
        return WithoutLogits(self.logits)


def test_a_member_without_logits_is_mixed_by_its_probabilities() -> None:
    logits = logits_of_three(4, 3)
    members = [Saying(logits[0]), Cached(logits[1], ("log_probs",))]
    ensemble = TeacherEnsemble(members)
    assert ensemble.provides == {"log_probs"}
    signals = ensemble({})
    assert signals.logits is None
    torch.testing.assert_close(signals.log_probs(2.0), ensemble_of(logits[:2])({}).log_probs(2.0))
    with pytest.raises(ValueError, match=r"teacher\[1\]: expected a teacher that gives logits.*Use probab"):
        TeacherEnsemble(members, combine="logits")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teachers": []}, r"teachers: expected a list with at least one .* received \[\]"),
        ({"teachers": "model"}, "teachers: expected a list with at least one .* received str"),
        ({"weights": [1]}, "teacher_weights: expected 2 numbers, one for each teacher, received 1"),
        ({"weights": [1, -1]}, "expected confidence, label_loss, or for each of 2 teachers a finite number"),
        ({"weights": [0, 0]}, "a sum above 0"),
        ({"weights": [1, math.nan]}, "a finite number"),
        ({"weights": [1, math.inf]}, "a finite number"),
        ({"weights": [1, True]}, "a finite number"),
        ({"weights": "entropy"}, "expected confidence, label_loss.* received 'entropy'"),
        ({"combine": "mean"}, "teacher_combine: expected probabilities or logits, received 'mean'"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TeacherEnsemble(**{"teachers": ["a", "b"], **settings})


def test_a_number_has_no_confidence() -> None:
    with pytest.raises(ValueError, match="received confidence; a predicted number has no entropy"):
        ensemble_of(logits_of_three(2, 1), NUMBER, weights="confidence")


def test_weights_are_divided_by_their_sum() -> None:
    assert check_weights((4, 4), 2) == (0.5, 0.5)
    assert sum(check_weights([0.1, 0.2, 0.7], 3)) == pytest.approx(1.0)


def test_models_and_names_wait_for_a_trainer() -> None:
    with pytest.raises(
        ValueError, match=r"received str\. Give the ensemble to a DistillationTrainer, or wrap"
    ):
        TeacherEnsemble(["a", "b"])({})


# ---- routing, memory, offloading ---------------------------------------------------------------


def batch_of_pairs() -> dict[str, torch.Tensor]:
    return {
        "input_ids": torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
        "token_type_ids": torch.tensor([[0, 0, 1, 1], [0, 1, 0, 0]]),
        "teacher_2_input_ids": torch.tensor([[9, 8, 7], [6, 5, 4]]),
        "teacher_2_token_type_ids": torch.tensor([[0, 0, 1], [0, 0, 1]]),
        "labels": torch.tensor([0, 1]),
    }


def test_different_architectures_get_their_own_columns_and_never_a_label() -> None:
    models = [perturbed(classifier(kind, seed=i)) for i, kind in enumerate(("bert", "distilbert", "roberta"))]
    seen: dict[int, dict[str, Any]] = {}
    for index, model in enumerate(models):
        model.register_forward_pre_hook(
            lambda m, a, k, index=index: seen.update({index: k}), with_kwargs=True
        )
    members = [OnlineTeacher(model) for model in models]
    ensemble = TeacherEnsemble(members).prepared(members, SINGLE, CPU, ["", "", "teacher_2_"])
    batch = batch_of_pairs()
    signals = ensemble(batch)
    assert list(seen) == [0, 1, 2], "one after another, in their order"
    assert set(seen[0]) == {"input_ids", "attention_mask", "token_type_ids"}
    assert set(seen[1]) == {"input_ids", "attention_mask"}
    assert set(seen[2]) == {"input_ids", "token_type_ids"}
    assert torch.equal(seen[2]["input_ids"], batch["teacher_2_input_ids"])
    assert {"input_ids", "token_type_ids", "teacher_2_input_ids"} <= ensemble.columns
    assert not {"teacher_2_labels", "teacher_0_input_ids"} & ensemble.columns
    alone = [
        OnlineTeacher(m)({k: v for k, v in s.items() if k != "use_cache"})
        for m, s in zip(models, list(seen.values()), strict=True)
    ]
    expected = sum(one.log_probs(2.0).double().exp() for one in alone) / 3
    torch.testing.assert_close(signals.log_probs(2.0).double().exp(), expected)


def test_the_activations_are_those_of_one_teacher() -> None:
    """When a member starts, nothing of the ones before is alive but their logits."""
    models = [perturbed(classifier("bert", 2, seed=i)) for i in range(3)]
    for model in models:
        model.config.output_hidden_states = True
    alive: list[weakref.ref[torch.Tensor]] = []
    counts: list[int] = []

    def before(*_: Any) -> None:
        gc.collect()
        counts.append(sum(reference() is not None for reference in alive))

    for model in models:
        model.register_forward_pre_hook(before)
        for layer in [*model.bert.encoder.layer, model.bert.embeddings]:
            layer.register_forward_hook(
                lambda m, a, out: alive.append(weakref.ref(out[0] if isinstance(out, tuple) else out))
            )
    signals = TeacherEnsemble([OnlineTeacher(model) for model in models])(batch_of_pairs())
    gc.collect()
    assert counts == [0, 0, 0]
    assert len(alive) == 9
    assert not any(reference() is not None for reference in alive)
    kept = [value for member in signals.members for value in vars(member).values() if value is not None]
    assert [tuple(value.shape) for value in kept] == [(2, 3)] * 3
    assert not any(value.requires_grad for value in kept)


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, str]]:
    """Record where teachers are moved to, and move nothing: there may be no second device here."""
    recorded: list[tuple[Any, str]] = []

    def record(self: OnlineTeacher, device: torch.device) -> OnlineTeacher:
        recorded.append((self.name, device.type))
        return self

    monkeypatch.setattr(OnlineTeacher, "to", record)
    return recorded


def online(name: str, moves: list[tuple[Any, str]]) -> OnlineTeacher:
    model = classifier("bert")
    model.register_forward_pre_hook(lambda *_: moves.append((name, "asked")))
    return OnlineTeacher(model, name)


def test_only_the_teacher_at_work_is_on_the_device(moves: list[tuple[Any, str]]) -> None:
    members = [online("a", moves), Saying(torch.zeros(2, 3)), online("b", moves)]
    ensemble = TeacherEnsemble(members, offload=True)
    ready = ensemble.prepared(members, SINGLE, torch.device("cuda"), [""] * 3)
    ready(batch_of_pairs())
    work = ("cuda", "asked", "cpu")
    assert moves == [(name, place) for name in "ab" for place in work]


def test_a_teacher_that_fails_leaves_the_device_as_well(moves: list[tuple[Any, str]]) -> None:
    member = online("a", moves)
    ready = TeacherEnsemble([member], offload=True).prepared([member], SINGLE, torch.device("cuda"), [""])
    with pytest.raises((RuntimeError, ValueError, IndexError)):
        ready({"input_ids": torch.tensor([[10_000]])})
    assert moves[-1] == ("a", "cpu")


@pytest.mark.parametrize(("offload", "device"), [(True, "cpu"), (False, "cuda")])
def test_nothing_moves_on_a_cpu_or_unless_told(
    moves: list[tuple[Any, str]], offload: bool, device: str
) -> None:
    members = [online("a", moves), online("b", moves)]
    ensemble = TeacherEnsemble(members, offload=offload)
    ensemble.prepared(members, SINGLE, torch.device(device), [""] * 2)(batch_of_pairs())
    assert moves == [("a", "asked"), ("b", "asked")]
