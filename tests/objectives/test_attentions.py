"""attentions against its definition written out in float64, and a number worked by hand."""

import pytest
import torch

from hf_distill.attention_inputs import AttentionInputs
from hf_distill.features import Features, ModelShape
from hf_distill.objectives.attentions import Attentions
from tests.feature_rows import STUDENT, TEACHER, feature_rows, features


def score(one: AttentionInputs, example: int, head: int, query: int, key: int) -> float:
    """One entry of Q K^T / sqrt(d)."""
    q, k = one.query[example, head, query].tolist(), one.key[example, head, key].tolist()
    return sum(a * b for a, b in zip(q, k, strict=True)) * one.scaling


def distance(own: AttentionInputs, other: AttentionInputs, example: int, query: int) -> float:
    """The mean over heads and allowed keys of squared differences; of the heads' means where they differ in number."""
    keys = [key for key in range(own.allowed.shape[-1]) if own.allowed[example, 0, query, key]]
    heads = own.query.shape[1], other.query.shape[1]
    squares = []
    for key in keys:
        ours = [score(own, example, head, query, key) for head in range(heads[0])]
        theirs = [score(other, example, head, query, key) for head in range(heads[1])]
        if heads[0] != heads[1]:
            ours, theirs = [sum(ours) / heads[0]], [sum(theirs) / heads[1]]
        squares += [(a - b) ** 2 for a, b in zip(ours, theirs, strict=True)]
    return sum(squares) / len(squares)


def naive(pairs, student, teacher) -> list[float]:
    return [
        sum(
            distance(student.attention[own], teacher.attention[other], example, query) for own, other in pairs
        )
        for example in range(student.attended.shape[0])
        for query in range(student.attended.shape[1])
        if student.attended[example, query]
    ]


@pytest.mark.parametrize(
    ("layers", "pairs"),
    [("uniform", [(1, 1), (2, 4)]), ("last", [(2, 4)]), ([[1, 2], [1, 3]], [(1, 2), (1, 3)])],
)
@pytest.mark.parametrize("shape", [STUDENT, ModelShape(2, 12, 4)], ids=["other_heads", "equal_heads"])
@pytest.mark.parametrize("causal", [False, True])
def test_float64_equals_the_definition(layers, pairs, shape, causal):
    student, teacher = features(shape, 0, causal=causal), features(TEACHER, 1, causal=causal)
    got = Attentions(layers)(feature_rows(student, teacher))
    assert got.tolist() == pytest.approx(naive(pairs, student, teacher), rel=1e-12)


def inputs(query: list[float], key: list[float], allowed: list[list[int]]) -> Features:
    """One example, one head of width 1."""
    q, k = (torch.tensor(x, dtype=torch.float64).reshape(1, 1, -1, 1) for x in (query, key))
    mask = torch.tensor(allowed, dtype=torch.bool)[None, None]
    attention = {1: AttentionInputs(q, k, k, 0.5, mask)}
    return Features({}, attention, mask[0].any(-2), ModelShape(1, 1, 1))


def test_hand_worked_number():
    both, causal = [[1, 1], [1, 1]], [[1, 0], [1, 1]]
    # Scores 0.5 q k: student ((1, 2), (2, 4)), teacher 0. Rows: (1 + 4) / 2 and (4 + 16) / 2.
    got = Attentions()(feature_rows(inputs([1, 2], [2, 4], both), inputs([0, 0], [1, 1], both)))
    assert got.tolist() == [2.5, 10.0]
    # The first query may not look at the second key.
    got = Attentions()(feature_rows(inputs([1, 2], [2, 4], causal), inputs([0, 0], [1, 1], causal)))
    assert got.tolist() == [1.0, 10.0]


def test_keys_count_that_both_may_look_at():
    got = Attentions()(
        feature_rows(inputs([1, 2], [2, 4], [[1, 1], [1, 1]]), inputs([0, 0], [1, 1], [[1, 0], [1, 1]]))
    )
    assert got.tolist() == [1.0, 10.0]


def test_embeddings_do_not_attend():
    with pytest.raises(ValueError, match="attentions: layers: expected layers counted from 1"):
        Attentions([[0, 1]])


def test_no_module_is_trained_whatever_the_widths():
    assert Attentions().projection(STUDENT, TEACHER) is None


def test_only_attention_is_asked_for():
    own, other = Attentions().feature_needs(STUDENT, TEACHER)
    assert (own.hidden_states, own.attention) == (frozenset(), {1, 2})
    assert (other.hidden_states, other.attention) == (frozenset(), {1, 4})
