"""Which rows a loss is taken over: kinds of head, masks, the shift, counts, and what is ignored."""

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertLMHeadModel,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from hf_distill.items import (
    Head,
    batch_size,
    count_items,
    count_labelled,
    head_of,
    item_mask,
    labelled_mask,
    select_rows,
    slice_batch,
)
from hf_distill.objectives.forward_kl import ForwardKL
from hf_distill.teachers.signals import DenseSignals

NAN = float("nan")
EXAMPLE = Head("single_label")
TOKEN = Head("single_label", positions=True)
CAUSAL = Head("single_label", positions=True, shift=True)
SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
BERT = {**SMALL, "vocab_size": 20}
GPT2 = {"n_embd": 8, "n_layer": 1, "n_head": 1, "vocab_size": 20, "bos_token_id": 1, "eos_token_id": 2}
GEMMA_TEXT = {**BERT, "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0}
GEMMA_IMAGE = {**SMALL, "image_size": 16, "patch_size": 4}


def bert(**config) -> BertForSequenceClassification:
    return BertForSequenceClassification(BertConfig(**BERT, **config))


def gemma3() -> Gemma3ForConditionalGeneration:
    ids = {"image_token_index": 5, "boi_token_index": 6, "eoi_token_index": 7}
    config = Gemma3Config(text_config=GEMMA_TEXT, vision_config=GEMMA_IMAGE, mm_tokens_per_image=4, **ids)
    return Gemma3ForConditionalGeneration(config)


def random_logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- kinds of head ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda: bert(num_labels=3), EXAMPLE),
        (lambda: bert(num_labels=1), Head("regression")),
        (lambda: GPT2ForSequenceClassification(GPT2Config(**GPT2)), EXAMPLE),
        (lambda: ViTForImageClassification(ViTConfig(**SMALL, image_size=8, patch_size=4)), EXAMPLE),
        (lambda: BertForTokenClassification(BertConfig(**BERT)), TOKEN),
        (lambda: BertForMaskedLM(BertConfig(**BERT)), TOKEN),
        (lambda: BertLMHeadModel(BertConfig(**BERT, is_decoder=True)), CAUSAL),
        (lambda: GPT2LMHeadModel(GPT2Config(**GPT2)), CAUSAL),
        (lambda: LlamaForCausalLM(LlamaConfig(**BERT)), CAUSAL),
        (
            lambda: T5ForConditionalGeneration(
                T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=1, vocab_size=20)
            ),
            TOKEN,
        ),
    ],
)
def test_head_of_a_model(build, expected):
    assert head_of(build()) == expected


def test_head_of_a_decoder_that_also_reads_images_is_shifted():
    assert head_of(gemma3()) == CAUSAL


@pytest.mark.parametrize(
    ("problem_type", "kind"),
    [
        ("regression", "regression"),
        ("single_label_classification", "single_label"),
        ("multi_label_classification", "multi_label"),
    ],
)
@pytest.mark.parametrize("label", [None, 1, [0.0, 1.0, 0.0]])
def test_problem_type_wins_over_the_label(problem_type, kind, label):
    assert head_of(bert(num_labels=3, problem_type=problem_type), label) == Head(kind)


@pytest.mark.parametrize(
    ("label", "kind"),
    [
        (2, "single_label"),
        (np.int64(2), "single_label"),
        (torch.tensor(2), "single_label"),
        ([0.0, 1.0, 1.0], "multi_label"),
        (np.array([0.0, 1.0, 1.0]), "multi_label"),
        (torch.tensor([0.0, 1.0, 1.0]), "multi_label"),
        (None, "single_label"),
    ],
)
def test_without_problem_type_the_label_tells(label, kind):
    assert head_of(bert(num_labels=3), label) == Head(kind)


# ---- masks and counts ----------------------------------------------------------------------


def test_labelled_integers():
    assert labelled_mask(torch.tensor([1, -100, 0]), EXAMPLE).tolist() == [True, False, True]
    tokens = torch.tensor([[5, -100, 3], [-100, -100, 1]])
    assert labelled_mask(tokens, TOKEN).tolist() == [[True, False, True], [False, False, True]]


def test_shift_drops_the_first_label():
    tokens = torch.tensor([[5, -100, 3], [-100, 4, -100]])
    assert labelled_mask(tokens, CAUSAL).tolist() == [[False, True], [True, False]]
    assert count_labelled({"labels": tokens}, CAUSAL) == 2


@pytest.mark.parametrize("head", [Head("multi_label"), Head("regression")])
def test_labelled_floats_are_rows_without_nan(head):
    rows = torch.tensor([[0.0, 1.0], [NAN, NAN], [-100.0, 0.0]])
    assert labelled_mask(rows, head).tolist() == [True, False, True]
    assert count_labelled({"labels": rows}, head) == 2


def test_regression_labels_without_a_second_dimension():
    assert labelled_mask(torch.tensor([0.5, NAN]), Head("regression")).tolist() == [True, False]


@pytest.mark.parametrize("head", [EXAMPLE, Head("multi_label"), Head("regression")])
def test_every_example_is_an_item_labelled_or_not(head):
    labels = torch.tensor([1, -100, -100]) if head == EXAMPLE else torch.tensor([[1.0], [NAN], [NAN]])
    batch = {"input_ids": torch.zeros(3, 4, dtype=torch.long), "labels": labels}
    assert item_mask(batch, head) is None
    assert (count_items(batch, head), count_labelled(batch, head)) == (3, 1)


def test_labelled_positions_are_the_items():
    batch = {"labels": torch.tensor([[5, -100, 3], [-100, -100, 1]]), "attention_mask": torch.ones(2, 3)}
    assert count_items(batch, TOKEN) == 3
    assert count_items(batch, CAUSAL) == 2
    assert count_items(batch, TOKEN, "example") == 2


def test_without_labels_attended_and_non_special_positions_are_the_items():
    batch = {
        "input_ids": torch.tensor([[1, 7, 8, 2], [1, 9, 2, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
    }
    assert item_mask(batch, TOKEN).tolist() == [[True] * 4, [True, True, True, False]]
    batch["special_tokens_mask"] = torch.tensor([[1, 0, 0, 1], [1, 0, 1, 1]])
    assert item_mask(batch, TOKEN).tolist() == [[False, True, True, False], [False, True, False, False]]
    assert count_items(batch, TOKEN) == 3
    assert count_labelled(batch, TOKEN) == 0


def test_without_labels_a_causal_item_is_a_position_whose_next_one_is_attended():
    batch = {"attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}
    assert item_mask(batch, CAUSAL).tolist() == [[True, True], [True, False]]


def test_left_padding_predicts_nothing():
    batch = {"attention_mask": torch.tensor([[0, 0, 1, 1]])}
    assert item_mask(batch, CAUSAL).tolist() == [[False, False, True]]


def test_without_a_mask_every_position_is_attended():
    assert item_mask({"input_ids": torch.zeros(2, 3)}, TOKEN).tolist() == [[True] * 3] * 2


def test_nothing_to_tell_the_items_by():
    with pytest.raises(ValueError, match="expected labels, an attention_mask or input_ids"):
        item_mask({"inputs_embeds": torch.zeros(2, 3, 4)}, TOKEN)


def test_batch_size_and_slices():
    batch = {"input_ids": torch.arange(8).reshape(4, 2), "labels": torch.arange(4)}
    batch.update(note="kept", n=torch.tensor(9))
    assert batch_size(batch) == 4
    half = slice_batch(batch, slice(1, 3))
    assert half["input_ids"].tolist() == [[2, 3], [4, 5]]
    assert half["labels"].tolist() == [1, 2]
    assert (half["note"], half["n"].item()) == ("kept", 9)


def test_a_batch_without_tensors_has_no_size():
    with pytest.raises(ValueError, match="expected a batch with at least one tensor"):
        batch_size({"text": ["a", "b"]})


# ---- aligned rows ---------------------------------------------------------------------


def test_examples_are_rows_as_they_are():
    student, teacher, labels = random_logits(3, 4), random_logits(3, 4, seed=1), torch.tensor([0, -100, 2])
    rows = select_rows(student, DenseSignals(teacher), {"labels": labels}, EXAMPLE)
    assert torch.equal(rows.student_logits, student)
    assert torch.equal(rows.teacher.logits, teacher)
    assert torch.equal(rows.labels, labels)


@pytest.mark.parametrize("head", [TOKEN, CAUSAL])
def test_positions_are_aligned_by_a_loop(head):
    student, teacher = random_logits(2, 5, 3), random_logits(2, 5, 3, seed=1)
    labels = torch.tensor([[7, -100, 4, 5, -100], [-100, 6, -100, -100, 8]])
    rows = select_rows(student, DenseSignals(teacher), {"labels": labels}, head)
    offset = 1 if head.shift else 0
    places = [
        (b, t) for b in range(2) for t in range(5 - offset) if labels[b, t + offset] != -100
    ]  # position t predicts the label at t + offset
    assert rows.labels.tolist() == [labels[b, t + offset].item() for b, t in places]
    assert rows.student_logits.tolist() == [student[b, t].tolist() for b, t in places]
    assert rows.teacher.logits.tolist() == [teacher[b, t].tolist() for b, t in places]
    assert count_items({"labels": labels}, head) == len(places)


def test_one_output_without_a_class_dimension_becomes_a_column():
    rows = select_rows(random_logits(3), DenseSignals(random_logits(3, 1)), {}, Head("regression"))
    assert rows.student_logits.shape == (3, 1)


def kl_of(student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, head: Head) -> torch.Tensor:
    rows = select_rows(student, DenseSignals(teacher), {"labels": labels}, head)
    return ForwardKL(2.0)(rows).sum()


LABELS = torch.tensor([[7, -100, 4, 5, -100], [-100, 6, -100, -100, 8]])


def places(items: bool, head: Head) -> list[tuple[int, int]]:
    """The positions of logits that are items, or that are not."""
    offset = 1 if head.shift else 0
    return [
        (b, t)
        for b in range(2)
        for t in range(5)
        if (t + offset < 5 and LABELS[b, min(t + offset, 4)].item() != -100) is items
    ]


@pytest.mark.parametrize("head", [TOKEN, CAUSAL])
@pytest.mark.parametrize("where", ["teacher", "student", "both"])
@pytest.mark.parametrize("bad", [NAN, float("inf"), float("-inf")])
def test_what_is_no_item_changes_neither_value_nor_gradient(head, where, bad):
    student, teacher = random_logits(2, 5, 3), random_logits(2, 5, 3, seed=1)
    clean = student.clone().requires_grad_(True)
    expected = kl_of(clean, teacher, LABELS, head)
    expected.backward()
    spoilt_student, spoilt_teacher = student.clone(), teacher.clone()
    for place in places(False, head):
        if where != "teacher":
            spoilt_student[place] = bad
        if where != "student":
            spoilt_teacher[place] = bad
    spoilt_student.requires_grad_(True)
    got = kl_of(spoilt_student, spoilt_teacher, LABELS, head)
    got.backward()
    assert got.item() == expected.item()
    assert torch.equal(spoilt_student.grad, clean.grad)


@pytest.mark.parametrize("head", [TOKEN, CAUSAL])
@pytest.mark.parametrize("who", ["student", "teacher"])
def test_perturbing_any_item_changes_the_value_and_any_other_nothing(head, who):
    logits = {"student": random_logits(2, 5, 3), "teacher": random_logits(2, 5, 3, seed=1)}
    before = kl_of(logits["student"], logits["teacher"], LABELS, head).item()
    for items in (True, False):
        for place in places(items, head):
            moved = {name: value.clone() for name, value in logits.items()}
            moved[who][place] += torch.tensor([1.0, 0.0, -1.0])
            after = kl_of(moved["student"], moved["teacher"], LABELS, head).item()
            assert (after != before) is items, place


def test_no_item_at_all_gives_no_rows():
    labels = torch.full((2, 3), -100)
    student = random_logits(2, 3, 4).requires_grad_(True)
    rows = select_rows(student, DenseSignals(random_logits(2, 3, 4)), {"labels": labels}, TOKEN)
    assert rows.student_logits.shape == (0, 4)
    ForwardKL()(rows).sum().backward()
    assert student.grad.abs().max().item() == 0
