"""Every objective file keeps the contract of ``objectives/base.py``: this test finds them by itself."""

import dataclasses
import inspect
import math
import pkgutil

import pytest
import torch
from torch import nn

import hf_distill.objectives
from hf_distill.objectives import Objective, Rows, objective_classes
from hf_distill.teachers.online import OnlineTeacher
from hf_distill.teachers.signals import DenseSignals

CLASSES = objective_classes()
VALID_LEVELS = {"item", "example", "token"}
VALID_NEEDS = {"log_probs", "logits", "labels", "features", "input_gradient", "batch"}
VALID_HEADS = {"single_label", "multi_label", "regression"}
# Those that two tensors of logits and labels are enough for; test_feature_contract.py has the others.
ON_LOGITS = sorted(
    name for name, found in CLASSES.items() if found.needs <= {"log_probs", "logits", "labels"}
)
# Objectives that sum over classes; a regression output at -inf has no meaning.
OVER_CLASSES = [name for name in ON_LOGITS if CLASSES[name].heads != {"regression"}]
# Objectives that compare rows with each other: what holds for a row, holds for the sum of theirs.
INDEPENDENT = [name for name in ON_LOGITS if not CLASSES[name].batch_relational]
# A cross-entropy is smallest where student and teacher agree, but is the teacher's entropy there.
NOT_ZERO_AT_EQUALITY = {"soft_cross_entropy"}
DIVERGENCES = sorted(set(ON_LOGITS) - NOT_ZERO_AT_EQUALITY)
# Their papers hold parts constant, so their gradient is not that of the value: their own tests check it.
STOPPED_GRADIENT = {"adaptive_kl"}
DIFFERENTIATED = sorted(set(ON_LOGITS) - STOPPED_GRADIENT)
OUT_OF_RANGE = [-1.0, math.nan, math.inf, "2", True, None]
SETTINGS = [
    (name, field, value)
    for name in sorted(CLASSES)
    for field in dataclasses.fields(CLASSES[name])
    for value in OUT_OF_RANGE
    if not (value is True and isinstance(field.default, bool))
]

every_objective = pytest.mark.parametrize("name", sorted(CLASSES))
every_objective_on_logits = pytest.mark.parametrize("name", ON_LOGITS)
every_divergence = pytest.mark.parametrize("name", DIVERGENCES)
over_classes = pytest.mark.parametrize("name", OVER_CLASSES)


def random_logits(rows: int, classes: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, classes, generator=generator, dtype=torch.float64).to(dtype)


def rows_of(student: torch.Tensor, teacher: torch.Tensor) -> Rows:
    # The likeliest class is one that no model rules out, and it moves with its row and its class.
    labels = teacher.argmax(-1)
    return Rows(student_logits=student, teacher=DenseSignals(teacher), labels=labels)


def value_of(name: str, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    return CLASSES[name]()(rows_of(student, teacher))


def rounding(name: str) -> float:
    """Return 1e-6 times what the default settings multiply a probability's last digit by: T and weights."""
    settings = dataclasses.asdict(CLASSES[name]()).values()
    return 1e-6 * math.prod(max(setting, 1.0) for setting in settings if setting is not None)


def total_or_values(name: str, values: torch.Tensor) -> torch.Tensor:
    """Return what must be at least 0: each value, or the sum where single ones mean nothing."""
    return values.sum(0, keepdim=True) if CLASSES[name].batch_relational else values


def test_every_file_is_found():
    files = {module.name for module in pkgutil.iter_modules(hf_distill.objectives.__path__)}
    assert set(CLASSES) == files - {"base", "registry"}
    assert {"forward_kl", "logit_mse", "binary_kl", "regression", "decoupled_kl", "dist"} <= set(CLASSES)


# ---- what the class says of itself ------------------------------------------------------


@every_objective
def test_is_a_frozen_dataclass_with_defaults(name):
    found = CLASSES[name]
    assert issubclass(found, Objective)
    assert dataclasses.is_dataclass(found)
    assert found.__dataclass_params__.frozen
    assert found() == found()
    for field in dataclasses.fields(found):
        assert field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


@every_objective
def test_name_is_the_file_name(name):
    assert CLASSES[name].name == name
    assert CLASSES[name].__module__ == f"hf_distill.objectives.{name}"


@every_objective
def test_class_attributes_have_valid_values(name):
    found = CLASSES[name]
    assert found.level in VALID_LEVELS
    assert found.needs
    assert found.needs <= VALID_NEEDS
    assert found.heads
    assert found.heads <= VALID_HEADS
    assert len(found.paper) > 10
    assert len(found.cost) > 5


@every_objective
def test_docstring_has_the_sections(name):
    text = inspect.getdoc(CLASSES[name]) or ""
    sections = ["Formula:", "Shapes:", "Units:", "Source:", "Example:"]
    fields = [field.name for field in dataclasses.fields(CLASSES[name])]
    if fields:
        sections += ["Args:", "Raises:", *(f"{field}:" for field in fields)]
    assert [section for section in sections if section not in text] == []
    assert text.splitlines()[0].endswith(".")
    assert ">>>" in text.split("Example:")[1]


@every_objective
def test_docstring_says_what_it_does_with_t_squared(name):
    # DESIGN, Words: "every objective's docstring says whether it multiplies by T^2".
    assert "T^2" in (inspect.getdoc(CLASSES[name]) or "")


@pytest.mark.parametrize(
    ("name", "field", "value"), SETTINGS, ids=lambda value: getattr(value, "name", value)
)
def test_settings_out_of_range_are_refused_by_name(name, field, value):
    if value is None and field.default is None:
        assert CLASSES[name](**{field.name: None}) == CLASSES[name]()
        return
    with pytest.raises(ValueError, match=f"{name}.*{field.name}"):
        CLASSES[name](**{field.name: value})


# ---- what it computes -----------------------------------------------------------------


OF_FUNCTIONS = sorted(name for name, found in CLASSES.items() if "input_gradient" in found.needs)


@pytest.mark.parametrize("name", OF_FUNCTIONS)
def test_rows_of_logits_alone_are_refused_where_functions_are_needed(name):
    with pytest.raises(ValueError, match="functions"):
        value_of(name, random_logits(2, 4, 0), random_logits(2, 4, 1))


@every_objective_on_logits
@pytest.mark.parametrize("rows", [1, 5])
def test_gives_one_value_per_row(name, rows):
    assert value_of(name, random_logits(rows, 4, 0), random_logits(rows, 4, 1)).shape == (rows,)


@every_objective_on_logits
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_types_are_upcast_before_any_arithmetic(name, half):
    student, teacher = random_logits(5, 6, 0, half), random_logits(5, 6, 1, half)
    got = value_of(name, student, teacher)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, value_of(name, student.float(), teacher.float()), rtol=0, atol=0)


@every_objective_on_logits
def test_float64_is_kept(name):
    student, teacher = random_logits(5, 6, 0, torch.float64), random_logits(5, 6, 1, torch.float64)
    got = value_of(name, student, teacher)
    assert got.dtype == torch.float64
    assert not torch.equal(got, value_of(name, student.float(), teacher.float()).double())


@every_divergence
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_value_and_gradient_are_zero_where_student_is_teacher(name, scale):
    teacher = random_logits(6, 5, 2) * scale
    student = teacher.clone().requires_grad_(True)
    values = value_of(name, student, teacher)
    values.sum().backward()
    assert total_or_values(name, values).abs().max().item() < rounding(name) * len(values)
    assert student.grad.abs().max().item() < rounding(name)


@every_divergence
def test_values_of_other_logits_are_above_zero(name):
    values = value_of(name, random_logits(6, 5, 0), random_logits(6, 5, 1))
    assert (total_or_values(name, values) > 0).all()


@every_objective_on_logits
@pytest.mark.parametrize("closed", [False, True])
def test_the_minimum_is_where_student_is_teacher(name, closed):
    teacher = random_logits(6, 5, 2)
    student = teacher.clone()
    if closed and name in OVER_CLASSES:
        teacher[:, 3] = student[:, 3] = -math.inf
    student.requires_grad_(True)
    best = value_of(name, student, teacher)
    best.sum().backward()
    assert student.grad.abs().max().item() < rounding(name)
    others = [
        student.detach() + step * random_logits(6, 5, seed) for seed in range(3, 6) for step in (0.1, 3.0)
    ]
    for other in others:
        higher = value_of(name, other, teacher) - best.detach()
        assert (total_or_values(name, higher) > 0).all()


class TinyTeacher(nn.Module):
    """A model whose logits depend on its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 5)

    def forward(self, inputs):
        return {"logits": self.layer(inputs)}


@every_objective_on_logits
def test_gradient_reaches_the_student_and_never_the_teacher(name):
    torch.manual_seed(0)
    model = TinyTeacher()
    student = random_logits(4, 5, 0).requires_grad_(True)
    signals = OnlineTeacher(model)({"inputs": random_logits(4, 3, 1)})
    labels = signals.logits.argmax(-1)
    CLASSES[name]()(Rows(student, signals, labels)).sum().backward()
    assert torch.isfinite(student.grad).all()
    assert (student.grad.abs().amax(-1) > 0).all()
    assert all(parameter.grad is None for parameter in model.parameters())


@over_classes
@pytest.mark.parametrize("size", [1e3, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits_stay_finite(name, size, dtype):
    student, teacher = (
        random_logits(6, 5, 0, dtype).sign() * size,
        random_logits(6, 5, 1, dtype).sign() * size,
    )
    student[0], teacher[0] = size, -size  # constant rows
    student[1], teacher[1] = 0, teacher[2]
    student[2] = teacher[2]
    teacher[3, 1:], student[3] = -size, 0
    for logits in (student, teacher):
        logits[4, 2:4] = -math.inf
        logits[5, 1:] = -math.inf  # one class is left
    student.requires_grad_(True)
    values = value_of(name, student, teacher)
    values.sum().backward()
    assert torch.isfinite(values).all()
    assert torch.isfinite(student.grad).all()


@over_classes
def test_a_class_that_no_row_allows_and_rows_all_alike_stay_finite(name):
    student, teacher = torch.zeros(3, 4), torch.zeros(3, 4)
    student[:, 1] = teacher[:, 1] = -math.inf
    student.requires_grad_(True)
    values = value_of(name, student, teacher)
    values.sum().backward()
    assert torch.isfinite(values).all()
    assert student.grad.abs().max().item() < rounding(name)


@over_classes
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_classes_that_both_rule_out_leave_every_sum(name, dtype):
    allowed = torch.tensor([0, 1, 3, 4])
    student, teacher = random_logits(6, 6, 0, dtype), random_logits(6, 6, 1, dtype)
    closed_student = torch.full_like(student, -math.inf).index_copy(1, allowed, student[:, allowed])
    closed_teacher = torch.full_like(teacher, -math.inf).index_copy(1, allowed, teacher[:, allowed])
    closed_student.requires_grad_(True)
    got = value_of(name, closed_student, closed_teacher)
    got.sum().backward()
    reference = student[:, allowed].requires_grad_(True)
    expected = value_of(name, reference, teacher[:, allowed])
    expected.sum().backward()
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(closed_student.grad[:, allowed], reference.grad)
    assert closed_student.grad[:, [2, 5]].abs().max().item() == 0


@over_classes
def test_rows_may_rule_out_different_classes(name):
    student, teacher = random_logits(2, 4, 0), random_logits(2, 4, 1)
    for logits in (student, teacher):
        logits[0, 1] = -math.inf
        logits[1, 3] = -math.inf
    student.requires_grad_(True)
    values = value_of(name, student, teacher)
    values.sum().backward()
    assert torch.isfinite(values).all()
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("name", sorted(set(OVER_CLASSES) & set(DIVERGENCES)))
def test_student_that_is_the_teacher_is_zero_with_classes_ruled_out(name):
    teacher = random_logits(3, 5, 3)
    teacher[:, 2] = -math.inf
    student = teacher.clone().requires_grad_(True)
    values = value_of(name, student, teacher)
    values.sum().backward()
    assert total_or_values(name, values).abs().max().item() < rounding(name) * len(values)
    assert student.grad.abs().max().item() < rounding(name)


@pytest.mark.parametrize("name", INDEPENDENT)
def test_a_row_does_not_depend_on_the_others(name):
    student, teacher = random_logits(4, 5, 0), random_logits(4, 5, 1)
    student.requires_grad_(True)
    values = value_of(name, student, teacher)
    values[1].backward()
    assert student.grad[[0, 2, 3]].abs().max().item() == 0
    alone = value_of(name, student[1:2], teacher[1:2])
    torch.testing.assert_close(values[1:2], alone, rtol=1e-6, atol=1e-7)


@every_objective_on_logits
def test_permuting_rows_permutes_the_values(name):
    student, teacher = random_logits(5, 4, 0, torch.float64), random_logits(5, 4, 1, torch.float64)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(
        value_of(name, student[order], teacher[order]), value_of(name, student, teacher)[order]
    )


@every_objective_on_logits
def test_permuting_classes_changes_no_value(name):
    student, teacher = random_logits(5, 6, 0, torch.float64), random_logits(5, 6, 1, torch.float64)
    teacher[2] = teacher[2].round()  # ties
    order = torch.tensor([3, 0, 5, 4, 1, 2])
    torch.testing.assert_close(
        value_of(name, student[:, order], teacher[:, order]), value_of(name, student, teacher)
    )


@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_gradient_is_that_of_finite_differences(name):
    student = random_logits(3, 4, 0, torch.float64).requires_grad_(True)
    teacher = random_logits(3, 4, 1, torch.float64)
    assert torch.autograd.gradcheck(lambda logits: value_of(name, logits, teacher), (student,))
