"""dist against the paper's batch loss in float64, its parts per row, and rows or columns without a correlation."""

import math

import pytest
import torch

from hf_distill.objectives import Rows
from hf_distill.objectives.dist import Dist
from hf_distill.teachers.signals import DenseSignals


def softmax(logits: list[float], temperature: float) -> list[float]:
    largest = max(logits)
    powers = [math.exp((z - largest) / temperature) for z in logits]
    return [power / sum(powers) for power in powers]


def direction(values: list[float]) -> list[float]:
    """Centred, and of length 1; all 0 without variation."""
    mean = sum(values) / len(values)
    length = math.sqrt(sum((v - mean) ** 2 for v in values))
    return [(v - mean) / length if length > 1e-12 else 0.0 for v in values]


def pearson(x: list[float], y: list[float]) -> float:
    return sum(a * b for a, b in zip(direction(x), direction(y), strict=True))


def naive_loss(student: list, teacher: list, temperature: float, b: float, g: float) -> float:
    """b mean_i(1 - pearson of row i) + g mean_c(1 - pearson of column c): the paper's loss of a batch."""
    p, q = ([softmax(row, temperature) for row in logits] for logits in (teacher, student))
    inter = sum(1 - pearson(x, y) for x, y in zip(p, q, strict=True)) / len(p)
    columns = list(zip(zip(*p, strict=True), zip(*q, strict=True), strict=True))
    return b * inter + g * sum(1 - pearson(x, y) for x, y in columns) / len(columns)


def naive(student: list, teacher: list, temperature: float, b: float, g: float) -> list[float]:
    """b (1 - pearson_i) + g (1 - M mean_c(a_ic b_ic)), one value per row."""
    p, q = ([softmax(row, temperature) for row in logits] for logits in (teacher, student))
    first, second = ([direction(column) for column in zip(*rows, strict=True)] for rows in (p, q))
    values = []
    for i, (x, y) in enumerate(zip(p, q, strict=True)):
        product = sum(s[i] * t[i] for s, t in zip(first, second, strict=True)) / len(first)
        values.append(b * (1 - pearson(x, y)) + g * (1 - len(p) * product))
    return values


def normal(seed: int, scale: float = 3.0, rows: int = 6, classes: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, classes, generator=generator, dtype=torch.float64) * scale


def value(student: torch.Tensor, teacher: torch.Tensor, **settings: float) -> torch.Tensor:
    return Dist(**settings)(Rows(student, DenseSignals(teacher)))


ONLY_INTER = {"inter_class_weight": 1.0, "intra_class_weight": 0.0}
ONLY_INTRA = {"inter_class_weight": 0.0, "intra_class_weight": 1.0}


def test_hand_worked_number():
    # T = 1, p = (4, 1, 1)/6 and (1, 4, 1)/6; q = (1, 4, 1)/6 twice over but for the second row, (1, 1, 4)/6.
    # Rows: the deviations are (2, -1, -1)/6 and (-1, 2, -1)/6, whose correlation is -3/6, so 3/2 in both.
    teacher = torch.tensor([[4.0, 1.0, 1.0], [1.0, 4.0, 1.0]], dtype=torch.float64).log()
    student = torch.tensor([[1.0, 4.0, 1.0], [1.0, 1.0, 4.0]], dtype=torch.float64).log()
    assert value(student, teacher, temperature=1.0, **ONLY_INTER).tolist() == pytest.approx([1.5, 1.5])
    # Columns: the first is constant in the student and the third in the teacher, so 0; the second falls from
    # 4 to 1 where the teacher's rises: each row has 1 - 2 * (-1/2) = 2, divided by three classes.
    assert value(student, teacher, temperature=1.0, **ONLY_INTRA).tolist() == pytest.approx([2 / 3, 2 / 3])
    assert value(student, teacher, temperature=1.0).tolist() == pytest.approx([3 + 4 / 3] * 2)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
@pytest.mark.parametrize(("b", "g"), [(2.0, 2.0), (1.0, 0.0), (0.0, 1.0)])
def test_float64_equals_the_definition(temperature, b, g):
    student, teacher = normal(0), normal(1)
    got = value(student, teacher, temperature=temperature, inter_class_weight=b, intra_class_weight=g)
    expected = naive(student.tolist(), teacher.tolist(), temperature, b, g)
    assert got.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_mean_over_rows_is_the_papers_loss(temperature):
    student, teacher = normal(0), normal(1)
    expected = naive_loss(student.tolist(), teacher.tolist(), temperature, 2.0, 2.0)
    assert value(student, teacher, temperature=temperature).mean().item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("temperature", [0.5, 4.0])
@pytest.mark.parametrize("scale", [1.0, 10.0])
@pytest.mark.parametrize("classes", [3, 1000])
def test_float32_keeps_to_the_bound(temperature, scale, classes):
    shape = {"rows": 16, "classes": classes}
    student, teacher = normal(0, scale, **shape).float(), normal(1, scale, **shape).float()
    exact = value(student.double(), teacher.double(), temperature=temperature)
    error = (value(student, teacher, temperature=temperature).double() - exact).abs().max().item()
    assert error <= 1e-6 * (1 + temperature**2 * max(student.abs().max().item(), teacher.abs().max().item()))


def test_probabilities_far_below_one_keep_their_correlation():
    # The last class has a probability of e^-80 and less, whose square float32 can't hold.
    student, teacher = normal(0, 1.0), normal(1, 1.0)
    student[:, 0] += 80
    teacher[:, 0] += 80
    exact = value(student, teacher, temperature=1.0, **ONLY_INTRA)
    got = value(student.float(), teacher.float(), temperature=1.0, **ONLY_INTRA)
    torch.testing.assert_close(got.double()[1:], exact[1:], rtol=0, atol=1e-4)


def test_scale_and_shift_of_the_probabilities_do_not_count():
    p = torch.softmax(normal(0, 1.0), -1)
    mixed = 0.5 * p + 0.5 / p.shape[1]  # a row's correlation with p is 1, and so is a column's
    values = value(mixed.log(), p.log(), temperature=1.0)
    assert value(mixed.log(), p.log(), temperature=1.0, **ONLY_INTER).abs().max().item() < 1e-12
    assert abs(values.mean().item()) < 1e-12


@pytest.mark.parametrize("constant", ["student", "teacher", "both"])
def test_constant_rows_add_nothing_and_have_a_finite_gradient(constant):
    student, teacher = normal(0).float(), normal(1).float()
    for who, logits in (("student", student), ("teacher", teacher)):
        if constant in (who, "both"):
            logits[2] = 7.3
    student.requires_grad_(True)
    got = value(student, teacher, **ONLY_INTER)
    got.sum().backward()
    assert got[2].item() == 0
    assert (got[[0, 1, 3]] > 0).all()
    assert student.grad[2].abs().max().item() == 0
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("constant", ["student", "teacher", "both"])
def test_constant_columns_add_nothing_and_have_a_finite_gradient(constant):
    student, teacher = normal(0).float(), normal(1).float()
    for who, logits in (("student", student), ("teacher", teacher)):
        if constant in (who, "both"):
            logits[:] = logits[0] + torch.arange(6.0).unsqueeze(-1)  # all rows say the same
    student.requires_grad_(True)
    got = value(student, teacher, **ONLY_INTRA)
    got.sum().backward()
    assert got.tolist() == [0.0] * 6
    assert student.grad.abs().max().item() == 0


def test_one_row_has_the_inter_class_term_alone():
    student, teacher = normal(0, rows=1).requires_grad_(True), normal(1, rows=1)
    got = value(student, teacher)
    got.sum().backward()
    expected = 2 * (1 - pearson(*(softmax(z.tolist()[0], 4.0) for z in (teacher, student))))
    assert got.tolist() == pytest.approx([expected])
    assert torch.isfinite(student.grad).all()
    assert value(student, teacher, **ONLY_INTRA).tolist() == [0.0]


def test_accumulating_relates_the_rows_of_one_micro_batch():
    student, teacher = normal(0), normal(1)
    parts = torch.cat([value(student[:3], teacher[:3]), value(student[3:], teacher[3:])])
    assert not torch.allclose(parts, value(student, teacher))
    inter = [value(student[s], teacher[s], **ONLY_INTER) for s in (slice(0, 3), slice(3, 6))]
    torch.testing.assert_close(torch.cat(inter), value(student, teacher, **ONLY_INTER))


def test_gradient_keeps_its_size_as_t_grows():
    norms = []
    for temperature in (8.0, 64.0):
        student = normal(0, 1.0).requires_grad_(True)
        value(student, normal(1, 1.0), temperature=temperature).sum().backward()
        norms.append(student.grad.norm().item())
    assert norms[0] == pytest.approx(norms[1], rel=0.1)


@pytest.mark.parametrize("rows", [1, 4])
def test_gradient_is_that_of_finite_differences_with_classes_ruled_out(rows):
    student, teacher = normal(0, 1.0, rows, 5), normal(1, 1.0, rows, 5)
    closed = torch.tensor([False, True, False, False, False])
    teacher = teacher.masked_fill(closed, -math.inf)

    def closed_value(logits: torch.Tensor) -> torch.Tensor:
        return value(logits.masked_fill(closed, -math.inf), teacher)

    assert torch.autograd.gradcheck(closed_value, (student.requires_grad_(True),))


def test_two_weights_of_0_teach_nothing_and_are_refused():
    with pytest.raises(
        ValueError, match="dist: inter_class_weight and intra_class_weight: expected one above 0"
    ):
        Dist(inter_class_weight=0.0, intra_class_weight=0.0)
