"""derivative against explicit Jacobians in float64, finite differences, hand-worked numbers, and padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hf_distill import student_from_teacher
from hf_distill.directions import example_keys, standard_normals
from hf_distill.input_functions import InputFunctions, functions_of_batch
from hf_distill.items import head_of
from hf_distill.objectives.base import Rows
from hf_distill.objectives.derivative import Derivative
from hf_distill.teachers.online import OnlineTeacher
from hf_distill.teachers.signals import DenseSignals
from tests.tiny import classifier, collate, examples, perturbed

CPU = torch.device("cpu")
HEADS = {"bert": "single_label", "bert_tokens": "tokens", "gpt2_lm": "causal", "vit": "image"}
METHODS = [{"method": "vjp"}, {"method": "finite_difference", "epsilon": 1e-5}]


def value(objective: Derivative, functions: InputFunctions) -> torch.Tensor:
    logits = torch.zeros(functions.inputs.shape[0], 1)
    return objective(Rows(logits, DenseSignals(logits), level="example", functions=functions))


def linear(student: torch.Tensor, teacher: torch.Tensor, count: int = 1, step: int = 0) -> InputFunctions:
    """Return two linear maps ``(classes, width)`` as functions of inputs of ones."""
    width = student.shape[1]
    return InputFunctions(
        torch.ones(count, width, dtype=student.dtype),
        torch.ones(1, 1, dtype=torch.bool),
        torch.ones(count, 1, 1, dtype=torch.bool),
        example_keys(3, step, 0, count, CPU),
        lambda x: (x @ student.T)[:, None],
        lambda x: (x @ teacher.T)[:, None],
    )


def pair(architecture: str, dropout: float = 0.0) -> tuple[Any, Any]:
    """Return a student cut from a perturbed teacher, and moved from it, in float64."""
    teacher = perturbed(classifier(architecture, 2, 5), 0.3).double()
    student = perturbed(student_from_teacher(teacher, num_hidden_layers=1), 0.1, seed=4)
    for module in student.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    return student.train(), OnlineTeacher(teacher)


def functions(student: Any, teacher: Any, batch: dict[str, Any], keys: torch.Tensor) -> InputFunctions:
    def inputs(batch: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in batch.items() if key != "labels"}

    return functions_of_batch(
        batch, student, teacher.model, head_of(student), keys,
        lambda batch: student(**inputs(batch)).logits, lambda batch: teacher.raw_logits(inputs(batch)), seed=0,
    )  # fmt: skip


def batch_of(architecture: str, count: int = 3) -> dict[str, Any]:
    batch = collate(examples(count, HEADS[architecture], seed=1))
    return {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}


def repeated(batch: dict[str, Any], row: int, times: int) -> dict[str, Any]:
    return {key: value[row : row + 1].expand(times, *value.shape[1:]) for key, value in batch.items()}


def jacobian(model: Any, teacher: Any, batch: dict[str, Any], row: int) -> torch.Tensor:
    """Return d(logits of the row's items) / d(attended input) by the models' own inputs_embeds, eager attention."""
    one = {key: value[row : row + 1] for key, value in batch.items()}
    labels, model = one.pop("labels"), model.eval()
    model.set_attn_implementation("eager")
    if "pixel_values" in one:
        name, point = "pixel_values", one.pop("pixel_values")
        attended = torch.ones_like(point, dtype=torch.bool)
    else:
        name, point = "inputs_embeds", teacher.model.get_input_embeddings()(one.pop("input_ids")).detach()
        attended = one["attention_mask"].bool()[..., None].expand_as(point)

    def items(x: torch.Tensor) -> torch.Tensor:
        logits = model(**{name: x}, **one).logits
        if logits.dim() == 2:
            return logits.flatten()
        shift = "LMHead" in type(model).__name__
        logits, kept = (logits[:, :-1], labels[:, 1:] != -100) if shift else (logits, labels != -100)
        return logits[kept].flatten()

    found = torch.autograd.functional.jacobian(items, point)
    return found.flatten(1)[:, attended.flatten()]


# ---- worked by hand ------------------------------------------------------------------------------


def test_one_logit_by_hand() -> None:
    student = torch.tensor([[1.0, 2.0]], requires_grad=True)
    teacher = torch.tensor([[4.0, -2.0]])
    got = value(Derivative(), linear(student, teacher))
    got.sum().backward()
    assert got.tolist() == pytest.approx([25.0])  # 3^2 + 4^2: the one direction there is, +1 or -1
    assert student.grad.tolist() == [pytest.approx([-6.0, 8.0])]


def test_cosine_by_hand() -> None:
    student = torch.tensor([[1.0, 2.0]], requires_grad=True)
    for teacher, expected in (([4.0, -2.0], 1.0), ([2.0, 4.0], 0.0), ([-3.0, -6.0], 2.0)):
        got = value(Derivative(normalized=True), linear(student, torch.tensor([teacher])))
        assert got.item() == pytest.approx(expected, abs=1e-6)


def test_cosine_with_a_gradient_of_zero_is_one_and_finite() -> None:
    student = torch.zeros(1, 2, requires_grad=True)
    got = value(Derivative(normalized=True), linear(student, torch.tensor([[1.0, 2.0]])))
    got.sum().backward()
    assert got.item() == 1.0
    assert student.grad.isfinite().all()


def test_finite_difference_by_hand() -> None:
    student = torch.tensor([[1.0, 2.0]], requires_grad=True, dtype=torch.float64)
    maps = linear(student, torch.tensor([[4.0, -2.0]], dtype=torch.float64))
    v = maps.input_directions()[0]
    got = value(Derivative("finite_difference", epsilon=0.5), maps)
    assert got.item() == pytest.approx(float((-3 * v[0] + 4 * v[1]) ** 2))


@pytest.mark.parametrize("settings", METHODS)
def test_student_that_is_the_teacher_is_zero(settings: dict[str, Any]) -> None:
    weight = torch.randn(4, 3, requires_grad=True)
    assert value(Derivative(**settings), linear(weight, weight.detach(), 5)).abs().max() == 0


@pytest.mark.parametrize("settings", METHODS)
def test_a_class_that_either_rules_out_leaves_the_value(settings: dict[str, Any]) -> None:
    def closed(map_: torch.Tensor) -> Any:
        return lambda x: torch.cat([(x @ map_.T)[:, None], torch.full((2, 1, 1), -torch.inf)], -1)

    student, teacher = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4)
    maps = linear(student, teacher, 2)
    expected = value(Derivative(**settings), maps)
    ruled_out = InputFunctions(
        maps.inputs, maps.mask, maps.items, maps.keys, closed(student), closed(teacher)
    )
    got = value(Derivative(**settings), ruled_out)
    torch.testing.assert_close(got, expected)
    got.sum().backward()
    assert student.grad.isfinite().all()


# ---- the estimator --------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", METHODS)
@pytest.mark.parametrize("architecture", HEADS)
def test_the_mean_over_directions_is_the_jacobians_distance(
    architecture: str, settings: dict[str, Any]
) -> None:
    student, teacher = pair(architecture)
    batch, directions = batch_of(architecture), 2000
    row = int(batch["attention_mask"].sum(1).argmin()) if "attention_mask" in batch else 0  # padded
    maps = functions(
        student, teacher, repeated(batch, row, directions), example_keys(0, 0, 0, directions, CPU)
    )
    with torch.no_grad():
        values = value(Derivative(**settings), maps)
    assert values.shape == (directions,)
    difference = jacobian(student, teacher, batch, row) - jacobian(teacher.model, teacher, batch, row)
    expected, error = difference.square().sum(), values.std() / directions**0.5
    assert error < 0.05 * expected, "the test tells nothing"
    assert (values.mean() - expected).abs() < 4 * error


def test_the_gradient_to_the_input_is_that_of_central_differences() -> None:
    student, teacher = pair("bert_tokens")
    maps = functions(student, teacher, batch_of("bert_tokens"), example_keys(0, 0, 0, 3, CPU))
    x, v, h = maps.inputs.clone().requires_grad_(), maps.input_directions(), 1e-5
    u = maps.output_directions(maps.items.expand(-1, -1, 3), torch.float64)
    with maps.twice_differentiable():
        (g,) = torch.autograd.grad((u * maps.student(x)).sum(), x)
    with torch.no_grad():
        rise = (u * (maps.student(x + h * v) - maps.student(x - h * v))).sum() / (2 * h)
    assert (g * v).sum().item() == pytest.approx(rise.item(), rel=1e-7)


@pytest.mark.parametrize("settings", [*METHODS[:1], {"normalized": True}, METHODS[1]])
def test_the_gradient_to_a_weight_is_that_of_central_differences(settings: dict[str, Any]) -> None:
    student, teacher = pair("bert")
    maps = functions(student, teacher, batch_of("bert"), example_keys(0, 0, 0, 3, CPU))
    weight = student.bert.encoder.layer[0].attention.self.query.weight
    value(Derivative(**settings), maps).sum().backward()
    around = []
    for step in (1e-4, -1e-4):
        with torch.no_grad():
            weight[1, 2] += step
            around.append(value(Derivative(**settings), maps).sum().item())
            weight[1, 2] -= step
    assert weight.grad[1, 2].item() == pytest.approx((around[0] - around[1]) / 2e-4, rel=1e-4)


@pytest.mark.parametrize("settings", METHODS)
def test_the_gradient_reaches_the_student_and_never_the_teacher(settings: dict[str, Any]) -> None:
    student, teacher = pair("bert")
    maps = functions(student, teacher, batch_of("bert"), example_keys(0, 0, 0, 3, CPU))
    value(Derivative(**settings), maps).sum().backward()
    names = {name for name, p in student.named_parameters() if p.grad is not None and p.grad.any()}
    assert {"classifier.weight", "bert.encoder.layer.0.attention.self.query.weight"} <= names
    # The point is the teacher's: nothing moves the table that another point would come from.
    assert "bert.embeddings.word_embeddings.weight" not in names
    assert all(p.grad is None for p in teacher.model.parameters())
    assert not any(p.requires_grad for p in teacher.model.parameters())


# ---- padding, items and splits ----------------------------------------------------------------------


@pytest.mark.parametrize("settings", METHODS)
@pytest.mark.parametrize("architecture", ["bert", "bert_tokens", "gpt2_lm"])
def test_padding_contributes_nothing(architecture: str, settings: dict[str, Any]) -> None:
    student, teacher = pair(architecture)
    batch = batch_of(architecture)
    filler = {"input_ids": 7, "attention_mask": 0, "labels": -100}
    longer = {
        key: torch.cat([value, torch.full((3, 4), filler[key])], 1) if value.dim() == 2 else value
        for key, value in batch.items()
    }
    other_pads = {
        **longer,
        "input_ids": longer["input_ids"].where(longer["attention_mask"].bool(), torch.tensor(11)),
    }
    results = []
    for version in (batch, longer, other_pads):
        maps = functions(student, teacher, version, example_keys(0, 0, 0, 3, CPU))
        assert not maps.input_directions()[~version["attention_mask"].bool()].any()
        student.zero_grad()
        values = value(Derivative(**settings), maps)
        values.sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])
        results.append((values.detach(), gradient))
    (values, gradient), *others = results
    for other_values, other_gradient in others:
        torch.testing.assert_close(other_values, values, rtol=1e-6, atol=0)
        assert (other_gradient - gradient).abs().max() <= 1e-5 * gradient.abs().max()


def test_a_pads_gradient_is_not_compared() -> None:
    student, teacher = torch.tensor([[1.0, 50.0]], requires_grad=True), torch.tensor([[4.0, 2.0]])
    maps = linear(student, teacher)
    masked = InputFunctions(
        maps.inputs, torch.tensor([[True, False]]), maps.items, maps.keys, maps.student, maps.teacher
    )
    assert value(Derivative(), masked).item() == pytest.approx(9.0)
    v = masked.input_directions()[0, 0].item()
    assert value(Derivative("finite_difference", 0.5), masked).item() == pytest.approx(9 * v**2, rel=1e-4)


@pytest.mark.parametrize("settings", [*METHODS, {"normalized": True}])
def test_an_example_without_an_item_is_zero_with_a_live_graph(settings: dict[str, Any]) -> None:
    student, teacher = pair("bert_tokens")
    batch = batch_of("bert_tokens")
    batch["labels"] = torch.full_like(batch["labels"], -100)
    values = value(Derivative(**settings), functions(student, teacher, batch, example_keys(0, 0, 0, 3, CPU)))
    values.sum().backward()
    assert values.tolist() == [0.0] * 3
    assert all(p.grad.isfinite().all() for p in student.parameters() if p.grad is not None)


@pytest.mark.parametrize("settings", METHODS)
@pytest.mark.parametrize("architecture", HEADS)
def test_an_example_does_not_depend_on_the_others(architecture: str, settings: dict[str, Any]) -> None:
    student, teacher = pair(architecture)
    batch = batch_of(architecture)
    keys = example_keys(0, 0, 0, 3, CPU)
    together = value(Derivative(**settings), functions(student, teacher, batch, keys))
    alone = [
        value(
            Derivative(**settings), functions(student, teacher, repeated(batch, row, 1), keys[row : row + 1])
        )
        for row in range(3)
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-6, atol=0)


def test_batch_normalisation_uses_its_running_statistics_and_leaves_them() -> None:
    from transformers import ResNetConfig, ResNetForImageClassification

    sizes = {"embedding_size": 4, "hidden_sizes": [4], "depths": [1], "layer_type": "basic", "num_labels": 3}
    torch.manual_seed(0)
    student, teacher = (ResNetForImageClassification(ResNetConfig(**sizes)).double() for _ in range(2))
    student.train()
    before = [buffer.clone() for buffer in student.buffers()]
    batch = {"pixel_values": torch.randn(3, 3, 16, 16, dtype=torch.float64)}
    keys = example_keys(0, 0, 0, 3, CPU)
    together = value(Derivative(), functions(student, OnlineTeacher(teacher), batch, keys))
    alone = value(Derivative(), functions(student, OnlineTeacher(teacher), repeated(batch, 2, 1), keys[2:]))
    torch.testing.assert_close(together[2:], alone)
    assert all(torch.equal(a, b) for a, b in zip(before, student.buffers(), strict=True))
    assert all(module.training for module in student.modules())


# ---- randomness ---------------------------------------------------------------------------------------


def test_dropout_is_the_same_in_every_forward_and_the_stream_is_left() -> None:
    student, teacher = pair("bert", dropout=0.5)
    maps = functions(student, teacher, batch_of("bert"), example_keys(0, 0, 0, 3, CPU))
    state = torch.get_rng_state()
    first, second = maps.student(maps.inputs), maps.student(maps.inputs)
    assert torch.equal(first, second)
    assert not torch.equal(
        first, student.eval()(**{k: v for k, v in batch_of("bert").items() if k != "labels"}).logits
    )
    assert torch.equal(state, torch.get_rng_state())


def test_directions_have_mean_0_variance_1_and_no_correlation() -> None:
    keys = example_keys(0, 0, 0, 200, CPU)
    numbers = standard_normals(keys, torch.ones(200, 500, dtype=torch.bool), torch.float64)
    assert numbers.mean().abs() < 4 / 1e5**0.5
    assert (numbers.square().mean() - 1).abs() < 4 * (2 / 1e5) ** 0.5
    assert (numbers.pow(4).mean() - 3).abs() < 4 * (96 / 1e5) ** 0.5
    for pairs in (numbers[:, 1:] * numbers[:, :-1], numbers[1:] * numbers[:-1]):
        assert pairs.mean().abs() < 4 / 1e5**0.5


def test_directions_differ_by_seed_step_and_example() -> None:
    where = torch.ones(1, 8, dtype=torch.bool)
    drawn = [
        standard_normals(example_keys(seed, step, first, 1, CPU), where, torch.float32)
        for seed in (0, 1)
        for step in (-1, 0, 1)
        for first in (0, 1)
    ]
    assert len({tuple(numbers[0].tolist()) for numbers in drawn}) == len(drawn)


def test_every_direction_on_the_sphere_has_length_1() -> None:
    maps = linear(torch.ones(5, 2), torch.ones(5, 2), count=4)
    u = maps.output_directions(torch.ones(4, 1, 5, dtype=torch.bool), torch.float64)
    torch.testing.assert_close(u.flatten(1).norm(dim=1), torch.ones(4, dtype=torch.float64))


# ---- settings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "jacobian"}, "expected the method vjp or finite_difference, received 'jacobian'"),
        ({"method": "finite_difference", "normalized": True}, "Use method 'vjp', or normalized=False"),
        ({"epsilon": 0.0}, "epsilon to be a finite number above 0"),
        ({"every_n_steps": 0}, "every_n_steps to be a whole number of at least 1"),
        ({"every_n_steps": 2.5}, "every_n_steps to be a whole number of at least 1"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Derivative(**settings)
