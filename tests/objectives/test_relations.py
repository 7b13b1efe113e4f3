"""relations against its definition written out in float64, and a number worked by hand."""

import math

import pytest
import torch

from hf_distill.attention_inputs import AttentionInputs
from hf_distill.features import Features, ModelShape
from hf_distill.objectives.relations import Relations
from tests.feature_rows import STUDENT, TEACHER, feature_rows, features


def relation(
    one: AttentionInputs, kind: str, relation_heads: int, example: int, head: int, query: int
) -> dict:
    """Softmax over the allowed positions of x_query . x_key / sqrt(d), for one relation head."""
    tensor = getattr(one, kind)[example]

    def vector(position: int) -> list[float]:
        side_by_side = [x for own in range(tensor.shape[0]) for x in tensor[own, position].tolist()]
        width = len(side_by_side) // relation_heads
        return side_by_side[head * width : (head + 1) * width]

    keys = [key for key in range(tensor.shape[1]) if one.allowed[example, 0, query, key]]
    width = len(vector(0))
    powers = {
        key: math.exp(sum(a * b for a, b in zip(vector(query), vector(key), strict=True)) / math.sqrt(width))
        for key in keys
    }
    return {key: power / sum(powers.values()) for key, power in powers.items()}


def naive(student, teacher, own, other, relation_heads) -> list[float]:
    """Equations 4 to 7: for each position the sum over Q, K, V of the mean over heads of KL(R_t, R_s)."""
    values = []
    for example in range(student.attended.shape[0]):
        for query in range(student.attended.shape[1]):
            if not student.attended[example, query]:
                continue
            total = 0.0
            for kind in ("query", "key", "value"):
                for head in range(relation_heads):
                    q = relation(student.attention[own], kind, relation_heads, example, head, query)
                    p = relation(teacher.attention[other], kind, relation_heads, example, head, query)
                    total += sum(p[key] * math.log(p[key] / q[key]) for key in p) / relation_heads
            values.append(total)
    return values


@pytest.mark.parametrize(("own", "other"), [(None, None), (1, 3)])
@pytest.mark.parametrize("relation_heads", [1, 2, 12])
@pytest.mark.parametrize("causal", [False, True])
def test_float64_equals_the_definition(own, other, relation_heads, causal):
    student, teacher = features(STUDENT, 0, causal=causal), features(TEACHER, 1, causal=causal)
    got = Relations(relation_heads, own, other)(feature_rows(student, teacher))
    expected = naive(student, teacher, own or 2, other or 4, relation_heads)
    assert got.tolist() == pytest.approx(expected, rel=1e-10, abs=1e-14)


def inputs(values: list[float], allowed: list[list[int]] | None = None) -> Features:
    """One example, one head of width 1, with the same query, key and value."""
    tensor = torch.tensor(values, dtype=torch.float64).reshape(1, 1, -1, 1)
    mask = torch.tensor(allowed or [[1] * len(values)] * len(values), dtype=torch.bool)[None, None]
    attention = {1: AttentionInputs(tensor, tensor, tensor, 1.0, mask)}
    return Features({}, attention, mask[0].any(-2), ModelShape(1, 1, 1))


def test_hand_worked_number():
    # Student 0: uniform relations. Teacher (1, 1 + log 3): row 0 has products 1 and 1 + log 3, so (1/4, 3/4).
    got = Relations(1)(feature_rows(inputs([0.0, 0.0]), inputs([1.0, 1 + math.log(3)])))
    kl = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert got[0].item() == pytest.approx(3 * kl)


def test_positions_count_that_both_may_look_at():
    causal = [[1, 0], [1, 1]]
    student, teacher = inputs([0.5, 1.0], causal), inputs([2.0, 1.0])
    got = Relations(1)(feature_rows(student, teacher))
    assert got[0].item() == 0.0  # one position alone is certain in both
    assert got[1].item() > 0
    assert torch.equal(got, Relations(1)(feature_rows(student, inputs([2.0, 1.0], causal))))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"relation_heads": 5}, "relation_heads: expected a divisor of the student's width 12, received 5"),
        ({"relation_heads": 2, "student_layer": 3}, "student_layer: expected at most 2, received 3"),
        ({"relation_heads": 2, "teacher_layer": 5}, "teacher_layer: expected at most 4, received 5"),
    ],
)
def test_what_the_models_can_not_satisfy_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Relations(**settings).feature_needs(STUDENT, TEACHER)


def test_the_divisor_is_of_the_width_of_all_heads():
    # Models like Gemma set head_dim: 2 heads of 10 are 20 wide, beside hidden states of 12.
    with pytest.raises(ValueError, match="expected a divisor of the student's width 20, received 12"):
        Relations(12).feature_needs(ModelShape(2, 12, 2, head_width=10), TEACHER)
    Relations(4).feature_needs(ModelShape(2, 12, 2, head_width=10), TEACHER)


@pytest.mark.parametrize("setting", ["student_layer", "teacher_layer"])
def test_the_embeddings_are_no_layer(setting):
    with pytest.raises(ValueError, match=f"{setting}: expected a whole number of at least 1, received 0"):
        Relations(**{setting: 0})


def test_one_layer_of_each_and_no_module():
    own, other = Relations().feature_needs(STUDENT, TEACHER)
    assert (own.attention, other.attention) == ({2}, {4})
    assert not own.hidden_states | other.hidden_states
    assert Relations().projection(STUDENT, TEACHER) is None
