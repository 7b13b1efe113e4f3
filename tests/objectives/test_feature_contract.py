"""Every objective on features keeps the contract of ``objectives/base.py``: this test finds them by itself."""

import pytest
import torch

from hf_distill.features import FeatureNeeds, ModelShape
from hf_distill.objectives import objective_classes
from tests.feature_rows import (
    LENGTHS,
    STUDENT,
    TEACHER,
    feature_rows,
    features,
    gradients,
    projection_for,
    rebuilt,
    tensors,
    values_of,
    with_gradient,
)

CLASSES = {name: found for name, found in objective_classes().items() if "features" in found.needs}
# A contrast is 0 only where the other examples are endlessly far.
DIVERGENCES = sorted(set(CLASSES) - {"contrastive"})
RELATIONAL = sorted(name for name, found in CLASSES.items() if found.batch_relational)
INDEPENDENT = sorted(set(CLASSES) - set(RELATIONAL))

every_objective = pytest.mark.parametrize("name", sorted(CLASSES))


def pair(dtype: torch.dtype = torch.float64, scale: float = 1.0):
    return features(STUDENT, 0, dtype=dtype, scale=scale), features(TEACHER, 1, dtype=dtype, scale=scale)


def moved(of, change):
    return rebuilt(of, [change(value.clone()) for value in tensors(of)])


def test_the_seven_are_found():
    expected = {"hidden_states", "patient", "attentions", "relations", "similarity", "rkd", "contrastive"}
    assert expected <= set(CLASSES)
    assert {"similarity", "rkd", "contrastive"} <= set(RELATIONAL)


@every_objective
@pytest.mark.parametrize("lengths", [LENGTHS, (3,), (1,)])
def test_gives_one_value_per_row_of_its_level(name, lengths):
    objective = CLASSES[name]()
    values = values_of(objective, features(STUDENT, 0, lengths), features(TEACHER, 1, lengths))
    assert values.shape == (sum(lengths) if objective.level == "token" else len(lengths),)
    assert torch.isfinite(values).all()


@every_objective
def test_reads_no_more_than_it_asked_for(name):
    objective = CLASSES[name]()
    whole, kept = pair(), []
    for of, needs in zip(whole, objective.feature_needs(STUDENT, TEACHER), strict=True):
        assert needs
        states = {number: of.hidden_states[number] for number in needs.hidden_states}
        attention = {layer: of.attention[layer] for layer in needs.attention}
        kept.append(type(of)(states, attention, of.attended, of.shape))
    projection = projection_for(objective, STUDENT, TEACHER)
    assert torch.equal(
        objective(feature_rows(*kept, projection)), objective(feature_rows(*whole, projection))
    )


@pytest.mark.parametrize("name", sorted(objective_classes().keys() - CLASSES.keys()))
def test_objectives_on_logits_ask_for_nothing_inside(name):
    objective = objective_classes()[name]()
    assert objective.feature_needs(STUDENT, TEACHER) == (FeatureNeeds(), FeatureNeeds())
    assert objective.projection(STUDENT, TEACHER) is None


@every_objective
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_types_are_upcast_before_any_arithmetic(name, half):
    student, teacher = pair(half)
    got = values_of(CLASSES[name](), student, teacher)
    assert got.dtype == torch.float32
    expected = values_of(
        CLASSES[name](), moved(student, torch.Tensor.float), moved(teacher, torch.Tensor.float)
    )
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


@every_objective
def test_float64_is_kept_and_float32_is_close_to_it(name):
    student, teacher = pair()
    got = values_of(CLASSES[name](), student, teacher)
    assert got.dtype == torch.float64
    single = values_of(
        CLASSES[name](), moved(student, torch.Tensor.float), moved(teacher, torch.Tensor.float)
    )
    assert single.dtype == torch.float32
    assert not torch.equal(single.double(), got)
    torch.testing.assert_close(single.double(), got, rtol=1e-4, atol=1e-5)


@every_objective
@pytest.mark.parametrize("double", ["student", "teacher"])
def test_models_of_different_precision_are_compared(name, double):
    student, teacher = pair(torch.float32)
    expected = values_of(CLASSES[name](), student, teacher)
    if double == "student":
        student = moved(student, torch.Tensor.double)
    else:
        teacher = moved(teacher, torch.Tensor.double)
    student = with_gradient(student)
    got = values_of(CLASSES[name](), student, teacher)
    got.sum().backward()
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5, check_dtype=False)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_value_and_gradient_are_zero_where_student_is_teacher(name, scale):
    teacher = features(TEACHER, 2, dtype=torch.float32, scale=scale)
    student = with_gradient(teacher)
    values = values_of(CLASSES[name](), student, teacher)
    values.sum().backward()
    assert values.abs().max().item() < 1e-6
    assert gradients(student).abs().max().item() < 1e-6


@every_objective
def test_values_of_other_features_are_above_zero(name):
    values = values_of(CLASSES[name](), features(STUDENT, 0, (4, 2, 3)), features(TEACHER, 1, (4, 2, 3)))
    assert (values > 0).all()


@every_objective
def test_gradient_reaches_the_student_and_never_the_teacher(name):
    student, teacher = (with_gradient(of) for of in pair())
    teacher = rebuilt(teacher, [value.detach() for value in tensors(teacher)])
    values_of(CLASSES[name](), student, teacher).sum().backward()
    assert gradients(student).isfinite().all()
    assert gradients(student).abs().max() > 0
    assert all(value.grad is None for value in tensors(teacher))


@every_objective
@pytest.mark.parametrize("filler", [7.0, 1e30, float("nan"), float("inf")])
def test_pads_never_count(name, filler):
    results = []
    for fill in (None, filler):
        student, teacher = pair()
        for of in (student, teacher) if fill is not None else ():
            pads = ~of.attended
            for states in of.hidden_states.values():
                states[pads] = fill
            for one in of.attention.values():
                for kind in (one.query, one.key, one.value):
                    kind.transpose(1, 2)[pads] = fill
        student = with_gradient(student)
        values = values_of(CLASSES[name](), student, teacher)
        values.sum().backward()
        results.append((values.detach(), gradients(student)))
    for plain, filled in zip(*results, strict=True):
        assert torch.equal(plain, filled)


@every_objective
def test_longer_padding_changes_nothing(name):
    # (4, 2) padded to 4, and the same to 6: the positions added are pads of both.
    def padded(of):
        def longer(value):
            return torch.nn.functional.pad(value, (0, 0, 0, 2), value=3.0)

        wider = rebuilt(of, [longer(value) for value in tensors(of)])
        grow = torch.nn.functional.pad
        attention = {
            layer: type(one)(one.query, one.key, one.value, one.scaling, grow(one.allowed, (0, 2, 0, 2)))
            for layer, one in wider.attention.items()
        }
        return type(of)(wider.hidden_states, attention, grow(of.attended, (0, 2)), of.shape)

    student, teacher = pair()
    got = values_of(CLASSES[name](), padded(student), padded(teacher))
    torch.testing.assert_close(got, values_of(CLASSES[name](), student, teacher))


@every_objective
@pytest.mark.parametrize("scale", [1e-6, 1e4])
def test_extreme_values_stay_finite(name, scale):
    student, teacher = pair(torch.float32, scale)
    student = with_gradient(student)
    values = values_of(CLASSES[name](), student, teacher)
    values.sum().backward()
    assert values.isfinite().all()
    assert gradients(student).isfinite().all()


@every_objective
@pytest.mark.parametrize("who", ["student", "teacher", "both"])
def test_examples_that_coincide_have_a_tame_gradient(name, who):
    def alike(of):
        for value in tensors(of):
            value[1:] = value[:1]
        return of

    student, teacher = (features(shape, seed, (3, 3, 3)) for shape, seed in ((STUDENT, 0), (TEACHER, 1)))
    student = with_gradient(alike(student) if who != "teacher" else student)
    teacher = alike(teacher) if who != "student" else teacher
    values = values_of(CLASSES[name](), student, teacher)
    values.sum().backward()
    assert values.isfinite().all()
    assert gradients(student).abs().max() < 1e3


@every_objective
def test_all_zero_features_stay_finite(name):
    student, teacher = pair(torch.float32)
    student = with_gradient(moved(student, torch.zeros_like))
    values = values_of(CLASSES[name](), student, moved(teacher, torch.zeros_like))
    values.sum().backward()
    assert values.isfinite().all()
    assert gradients(student).isfinite().all()


@pytest.mark.parametrize("name", INDEPENDENT)
def test_an_example_does_not_depend_on_the_others(name):
    student, teacher = pair()
    whole = values_of(CLASSES[name](), student, teacher)
    parts = [
        values_of(CLASSES[name](), student.select(slice(i, i + 1)), teacher.select(slice(i, i + 1)))
        for i in range(len(LENGTHS))
    ]
    torch.testing.assert_close(whole, torch.cat(parts))


@pytest.mark.parametrize("name", RELATIONAL)
def test_a_relational_objective_says_what_its_examples_are(name):
    text = " ".join((CLASSES[name].__doc__ or "").split())
    assert "one micro-batch of one process" in text
    assert "the value depends on them" in text


@pytest.mark.parametrize("name", RELATIONAL)
def test_permuting_examples_permutes_the_values(name):
    order = torch.tensor([2, 0, 3, 1])

    def permuted(of):
        attention = {
            layer: type(one)(
                one.query[order], one.key[order], one.value[order], one.scaling, one.allowed[order]
            )
            for layer, one in of.attention.items()
        }
        states = {number: value[order] for number, value in of.hidden_states.items()}
        return type(of)(states, attention, of.attended[order], of.shape)

    student, teacher = pair()
    got = values_of(CLASSES[name](), permuted(student), permuted(teacher))
    torch.testing.assert_close(got, values_of(CLASSES[name](), student, teacher)[order])


@every_objective
def test_gradient_is_that_of_finite_differences(name):
    objective = CLASSES[name]()
    small, large = ModelShape(2, 12, 2), ModelShape(3, 24, 3)
    student, teacher = features(small, 0, (3, 2, 2)), features(large, 1, (3, 2, 2))
    projection = projection_for(objective, small, large)
    read = objective.feature_needs(small, large)[0]
    student = type(student)(
        {number: student.hidden_states[number] for number in read.hidden_states},
        {layer: student.attention[layer] for layer in read.attention},
        student.attended,
        student.shape,
    )
    leaves = [value.clone().requires_grad_(True) for value in tensors(student)]

    def value(*given):
        return objective(feature_rows(rebuilt(student, given[: len(leaves)]), teacher, projection))

    assert torch.autograd.gradcheck(value, leaves, fast_mode=True)
    if projection is not None:
        weight = projection.weight.detach().clone().requires_grad_(True)

        def of_weight(matrix):
            return objective(feature_rows(student, teacher, Multiply(matrix)))

        assert torch.autograd.gradcheck(of_weight, (weight,), fast_mode=True)


class Multiply(torch.nn.Module):
    def __init__(self, matrix):
        super().__init__()
        self.matrix = matrix

    def forward(self, states):
        return states @ self.matrix.T


@every_objective
def test_equal_widths_train_nothing(name):
    assert CLASSES[name]().projection(TEACHER, TEACHER) is None
