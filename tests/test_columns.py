"""Routing of columns to student and teacher, and the collator that encodes for the teacher."""

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    ViTForImageClassification,
    default_data_collator,
)

from hf_distill.columns import (
    TEACHER_PREFIX,
    UNLABELLED_ROWS,
    BatchColumns,
    DistillationCollator,
    TeacherEncoding,
    accepted_columns,
    member_prefix,
)

NAN = float("nan")
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
STUDENT_WORDS = ["a", "b", "c", "d"]
TEACHER_WORDS = ["d", "c", "b", "a", "e"]


def tokenizer_of(words: list[str], **options) -> PreTrainedTokenizerFast:
    """A word-level tokenizer in BERT's format: [CLS] text [SEP] pair [SEP], with token types."""
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *words])}
    core = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = Whitespace()
    core.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=core, model_input_names=inputs, **names, **options)


@pytest.fixture
def student_tokenizer() -> PreTrainedTokenizerFast:
    return tokenizer_of(STUDENT_WORDS)


@pytest.fixture
def teacher_tokenizer() -> PreTrainedTokenizerFast:
    return tokenizer_of(TEACHER_WORDS)


def encoded(tokenizer, words: str, second: str | None = None, label: int = 0, **more) -> dict:
    return {**tokenizer(words, second), "labels": label, **more}


@pytest.fixture
def distilbert_and_bert() -> BatchColumns:
    sizes = {"dim": 8, "hidden_dim": 8, "n_layers": 1, "n_heads": 1, "vocab_size": 10}
    student = DistilBertForSequenceClassification(DistilBertConfig(**sizes))
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    teacher = BertForSequenceClassification(BertConfig(vocab_size=10, **sizes))
    return BatchColumns(accepted_columns(student), accepted_columns(teacher))


# ---- what a forward accepts ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "has", "lacks"),
    [
        (BertForSequenceClassification, "token_type_ids", "pixel_values"),
        (DistilBertForSequenceClassification, "input_ids", "token_type_ids"),
        (ViTForImageClassification, "pixel_values", "input_ids"),
        (GPT2LMHeadModel, "attention_mask", "pixel_values"),
    ],
)
def test_accepted_columns(model, has, lacks):
    columns = accepted_columns(model)
    assert {has, "labels"} <= columns
    assert not {lacks, "self", "kwargs"} & columns


def test_an_adapter_accepts_what_its_base_accepts():
    class Base(torch.nn.Module):
        def forward(self, input_ids, labels=None, *, extra=None, **kwargs):
            return input_ids

    class Adapter(torch.nn.Module):
        def get_base_model(self):
            return Base()

        def forward(self, *args, **kwargs):
            return None

    assert accepted_columns(Adapter()) == {"input_ids", "labels", "extra"}


# ---- routing ------------------------------------------------------------------------


def test_a_bert_teacher_alone_gets_token_types(distilbert_and_bert, student_tokenizer):
    features = [encoded(student_tokenizer, "a b", "c"), encoded(student_tokenizer, "d", "c b")]
    batch = DataCollatorWithPadding(student_tokenizer)(features)
    for_student, for_teacher = distilbert_and_bert.for_student(batch), distilbert_and_bert.for_teacher(batch)
    assert set(for_student) == {"input_ids", "attention_mask", "labels"}
    assert set(for_teacher) == {"input_ids", "attention_mask", "token_type_ids"}
    assert for_teacher["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1]]


def test_what_the_student_knows_alone_stays_with_the_student(distilbert_and_bert):
    columns = BatchColumns(student=distilbert_and_bert.teacher, teacher=distilbert_and_bert.student)
    batch = {"input_ids": 1, "token_type_ids": 2, "labels": 3}
    assert set(columns.for_student(batch)) == {"input_ids", "token_type_ids", "labels"}
    assert set(columns.for_teacher(batch)) == {"input_ids"}


@pytest.mark.parametrize("name", ["labels", "label", "label_ids", "start_positions", "end_positions"])
@pytest.mark.parametrize("own_encoding", [False, True])
def test_the_teacher_never_sees_a_label(name, own_encoding):
    accepted = frozenset({"input_ids", name})
    columns = BatchColumns(accepted, accepted, own_encoding)
    batch = {name: 1, f"teacher_{name}": 2, "input_ids": 3, "teacher_input_ids": 4}
    assert set(columns.for_teacher(batch)) == {"input_ids"}
    assert columns.for_student(batch)[name] == 1


def test_a_label_that_only_the_teacher_accepts_still_reaches_the_students_loss():
    columns = BatchColumns(frozenset({"input_ids"}), frozenset({"input_ids", "labels"}))
    assert set(columns.for_student({"input_ids": 1, "labels": 2})) == {"input_ids", "labels"}


def test_own_encoding_keeps_both_views_apart():
    columns = BatchColumns(
        frozenset({"input_ids", "labels"}), frozenset({"input_ids", "token_type_ids"}), own_encoding=True
    )
    batch = {
        "input_ids": "student's",
        "labels": "labels",
        "teacher_input_ids": "teacher's",
        "teacher_token_type_ids": "types",
        "teacher_special_tokens_mask": "not accepted",
    }
    assert columns.for_student(batch) == {"input_ids": "student's", "labels": "labels"}
    assert columns.for_teacher(batch) == {"input_ids": "teacher's", "token_type_ids": "types"}


def test_members_of_an_ensemble_have_prefixes_of_their_own():
    columns = BatchColumns(
        frozenset({"input_ids", "labels"}),
        frozenset({"input_ids", "teacher_1_input_ids"}),
        own_prefixes=(member_prefix(1),),
    )
    batch = {"input_ids": 1, "labels": 2, "teacher_1_input_ids": 3, "teacher_1_token_type_ids": 4}
    assert set(columns.for_student(batch)) == {"input_ids", "labels"}, "what no forward accepts as well"
    assert set(columns.for_teacher(batch)) == {"input_ids", "teacher_1_input_ids"}


def test_the_mark_of_unlabelled_rows_reaches_no_forward(distilbert_and_bert):
    batch = {"input_ids": 1, UNLABELLED_ROWS: 2}
    assert set(distilbert_and_bert.for_student(batch)) == {"input_ids"}
    assert set(distilbert_and_bert.for_teacher(batch)) == {"input_ids"}


def test_routing_leaves_the_batch_as_it_is(distilbert_and_bert):
    batch = {"input_ids": 1, "token_type_ids": 2, "labels": 3}
    distilbert_and_bert.for_student(batch)
    distilbert_and_bert.for_teacher(batch)
    assert batch == {"input_ids": 1, "token_type_ids": 2, "labels": 3}


def test_the_special_tokens_mask_reaches_no_forward_that_does_not_name_it(distilbert_and_bert):
    batch = {"input_ids": 1, "special_tokens_mask": 2}
    assert set(distilbert_and_bert.for_student(batch)) == {"input_ids"}


# ---- the teacher's own encoding ------------------------------------------------------------


def collate(student_tokenizer, teacher_tokenizer, features, columns=("text", "text_pair"), **options):
    collator = DataCollatorWithPadding(student_tokenizer)
    return DistillationCollator(collator, teacher_tokenizer, columns, **options)(features)


def test_text_is_encoded_for_the_teacher(student_tokenizer, teacher_tokenizer):
    features = [encoded(student_tokenizer, text, text=text, label=i) for i, text in enumerate(["a b e", "c"])]
    batch = collate(student_tokenizer, teacher_tokenizer, features)
    assert batch["input_ids"].tolist() == [[2, 4, 5, 1, 3], [2, 6, 3, 0, 0]]
    assert batch["teacher_input_ids"].tolist() == [[2, 7, 6, 8, 3], [2, 5, 3, 0, 0]]
    assert batch["teacher_attention_mask"].tolist() == [[1] * 5, [1, 1, 1, 0, 0]]
    assert batch["labels"].tolist() == [0, 1]
    assert "text" not in batch


def test_pairs_are_encoded_for_the_teacher(student_tokenizer, teacher_tokenizer):
    features = [encoded(student_tokenizer, "a", "b", text="a", text_pair="b")]
    batch = collate(student_tokenizer, teacher_tokenizer, features)
    assert batch["teacher_input_ids"].tolist() == [[2, 7, 3, 6, 3]]
    assert batch["teacher_token_type_ids"].tolist() == [[0, 0, 0, 1, 1]]


def test_columns_of_other_names(student_tokenizer, teacher_tokenizer):
    features = [encoded(student_tokenizer, "a", question="a", context="b")]
    batch = collate(student_tokenizer, teacher_tokenizer, features, columns=("question", "context"))
    assert batch["teacher_input_ids"].tolist() == [[2, 7, 3, 6, 3]]


def test_ready_columns_are_padded_and_win_over_text(student_tokenizer, teacher_tokenizer):
    def ready(text: str) -> dict:
        return {TEACHER_PREFIX + key: value for key, value in teacher_tokenizer(text).items()}

    features = [
        encoded(student_tokenizer, "a b", text="never read", **ready("a b e")),
        encoded(student_tokenizer, "c", text="never read", **ready("c")),
    ]
    batch = collate(student_tokenizer, teacher_tokenizer, features)
    assert batch["teacher_input_ids"].tolist() == [[2, 7, 6, 8, 3], [2, 5, 3, 0, 0]]
    assert batch["teacher_attention_mask"].tolist() == [[1] * 5, [1, 1, 1, 0, 0]]
    assert "text" not in batch


def test_text_is_encoded_for_several_teachers(student_tokenizer, teacher_tokenizer):
    other = tokenizer_of(["b", "a", "c"])
    encodings = (
        TeacherEncoding(teacher_tokenizer, member_prefix(0)),
        TeacherEncoding(other, member_prefix(2), max_length=3),
    )
    features = [encoded(student_tokenizer, text, text=text) for text in ("a b", "c")]
    collator = DistillationCollator(
        DataCollatorWithPadding(student_tokenizer), text_columns=("text",), encodings=encodings
    )
    batch = collator(features)
    assert batch["input_ids"].tolist() == [[2, 4, 5, 3], [2, 6, 3, 0]]
    assert batch["teacher_0_input_ids"].tolist() == [[2, 7, 6, 3], [2, 5, 3, 0]]
    assert batch["teacher_2_input_ids"].tolist() == [[2, 5, 3], [2, 6, 3]]
    assert "text" not in batch
    ready = [{**f, **{member_prefix(2) + "input_ids": [2, 4, 3]}} for f in features]
    batch = collator(ready)
    assert batch["teacher_2_input_ids"].tolist() == [[2, 4, 3]] * 2
    assert batch["teacher_0_input_ids"].tolist() == [[2, 7, 6, 3], [2, 5, 3, 0]]
    for feature in features:
        del feature["text"]
    with pytest.raises(ValueError, match="ready teacher_0_input_ids"):
        collator(features)


def test_the_teachers_encoding_is_truncated(student_tokenizer, teacher_tokenizer):
    features = [encoded(student_tokenizer, "a b c d", text="a b c d")]
    batch = collate(student_tokenizer, teacher_tokenizer, features, max_length=4)
    assert batch["teacher_input_ids"].tolist() == [[2, 7, 6, 3]]
    assert batch["input_ids"].shape == (1, 6)


def test_no_text_to_encode_says_what_came_and_what_to_do(student_tokenizer, teacher_tokenizer):
    with pytest.raises(ValueError, match=r"text or text_pair.*attention_mask.*teacher_text_columns"):
        collate(student_tokenizer, teacher_tokenizer, [encoded(student_tokenizer, "a")])


@pytest.mark.parametrize("missing", [0, 1])
def test_a_pair_that_some_rows_lack_is_not_dropped_in_silence(student_tokenizer, teacher_tokenizer, missing):
    features = [encoded(student_tokenizer, "a", "b", text="a", text_pair="b") for _ in range(2)]
    features[missing]["text_pair"] = None
    with pytest.raises((TypeError, ValueError)):  # the tokenizer's own error
        collate(student_tokenizer, teacher_tokenizer, features)


def test_the_features_are_left_as_they_are(student_tokenizer, teacher_tokenizer):
    features = [encoded(student_tokenizer, "a", text="a")]
    before = {key: list(value) if isinstance(value, list) else value for key, value in features[0].items()}
    collate(student_tokenizer, teacher_tokenizer, features)
    assert features[0] == before


def test_the_wrapped_collators_tokenizer_is_found(student_tokenizer, teacher_tokenizer):
    wrapped = DistillationCollator(DataCollatorWithPadding(student_tokenizer), teacher_tokenizer)
    assert wrapped.tokenizer is student_tokenizer
    assert DistillationCollator(default_data_collator).tokenizer is None


# ---- rows without float labels -----------------------------------------------------------


def collate_labels(labels: list) -> dict:
    features = [{"x": float(i), "labels": torch.as_tensor(label)} for i, label in enumerate(labels)]
    return DistillationCollator(default_data_collator)(features)


@pytest.mark.parametrize(
    "labels", [[[0.0, 1.0], [NAN, NAN], [1.0, 1.0]], [0.5, NAN, 1.0], [[0.5], [NAN], [1.0]]]
)
def test_rows_of_nan_are_marked(labels):
    batch = collate_labels(labels)
    assert batch[UNLABELLED_ROWS].tolist() == [False, True, False]
    assert batch["labels"][1].isnan().all()


@pytest.mark.parametrize("labels", [[[0.0, 1.0], [1.0, 1.0]], [0.5, 1.0], [1, -100]])
def test_no_mark_where_no_row_is_nan(labels):
    assert UNLABELLED_ROWS not in collate_labels(labels)


def test_half_a_row_of_nan_is_an_error_that_names_the_row():
    with pytest.raises(ValueError, match=r"received row 2 of a batch with both: \[1.0, nan\]"):
        collate_labels([[0.0, 1.0], [NAN, NAN], [1.0, NAN]])


def test_a_batch_without_labels():
    batch = DistillationCollator(default_data_collator)([{"x": 1.0}, {"x": 2.0}])
    assert set(batch) == {"x"}
