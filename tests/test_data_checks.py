"""What the data sets must hold: each check, that its error helps, and that good data passes."""

import datasets
import pytest
import torch

from hf_distill import DistillationTrainer
from hf_distill.data_checks import (
    check_input_columns,
    check_label_names,
    check_labels,
    check_splits,
    check_text_columns,
)
from hf_distill.items import Head
from tests.test_compatibility import tokenizer_of
from tests.tiny import arguments, bert, classifier, examples, teacher_of

SINGLE, MULTI, REGRESSION = Head("single_label"), Head("multi_label"), Head("regression")
TOKENS = Head("single_label", positions=True)
NAN = float("nan")


def as_dataset(labels, name="labels", **options):
    return datasets.Dataset.from_dict({"input_ids": [[1, 2]] * len(labels), name: labels}, **options)


def as_list(labels):
    return [{"input_ids": [1, 2], "labels": label} for label in labels]


def trainer(folder, train, **options):
    return DistillationTrainer(bert(), teacher_of(), arguments(folder), train_dataset=train, **options)


# ---- splits --------------------------------------------------------------------------


def test_several_splits_for_one(tmp_path):
    splits = datasets.DatasetDict(train=as_dataset([0]), test=as_dataset([1]))
    with pytest.raises(ValueError, match=r"received DatasetDict with train, test.*dataset\['train'\]"):
        check_splits(splits, None)
    with pytest.raises(ValueError, match="DatasetDict"):
        trainer(tmp_path, splits)


@pytest.mark.parametrize("empty", [[], as_dataset([])])
def test_empty_sets(empty):
    with pytest.raises(ValueError, match=r"train_dataset: expected at least one example, received none"):
        check_splits(empty, None)
    with pytest.raises(ValueError, match=r"eval_dataset\['own'\]: expected at least one"):
        check_splits(as_dataset([0]), {"other": as_dataset([0]), "own": empty})


def test_a_mapping_for_evaluation_is_no_mistake():
    check_splits(as_dataset([0]), {"one": as_dataset([0]), "two": as_list([1])})
    check_splits(None, None)


def test_label_names_without_labels():
    check_label_names(None)
    check_label_names(["labels", "more"])
    with pytest.raises(ValueError, match=r"'labels'.*received \['target'\].*rename_column"):
        check_label_names(["target"])


# ---- labels --------------------------------------------------------------------------


@pytest.mark.parametrize("make", [as_dataset, as_list])
@pytest.mark.parametrize(
    ("head", "labels", "message"),
    [
        (SINGLE, ["no", "yes"], r"expected numbers, received 'no' \(.*string\).*class_encode_column"),
        (SINGLE, [0, None, 1], r"expected a label for each example.*missing one"),
        (SINGLE, [True, False], r"expected numbers, received True"),
        (SINGLE, [0, 1, 3], r"expected classes from 0 to 2 .*has 3.*received 3"),
        (SINGLE, [1, -1], r"expected classes from 0 to 2 .*-100 for none, received -1"),
        (SINGLE, [0.0, 1.0], r"expected integers.*received double numbers"),
        (MULTI, [[1, 0, 1]], r"expected floats.*received integers"),
        (MULTI, [[1.0, 0.0]], r"expected 3 numbers for each example.*received 2"),
        (MULTI, [1.0, 0.0], r"expected 3 numbers for each example.*received 1"),
        (REGRESSION, [0.5, None], r"missing one \(None\).*has NaN there"),
        (TOKENS, [[0, 1], [2, 5]], r"expected classes from 0 to 2 .*received 5"),
    ],
)
def test_labels_that_the_head_cannot_take(make, head, labels, message):
    with pytest.raises(ValueError, match=message):
        check_labels(make(labels), bert(), head)


@pytest.mark.parametrize("make", [as_dataset, as_list])
@pytest.mark.parametrize(
    ("head", "labels"),
    [
        (SINGLE, [0, 2, -100]),
        (SINGLE, [-100, -100]),
        (MULTI, [[1.0, 0.0, 1.0], [NAN] * 3]),
        (REGRESSION, [0.5, NAN]),
        (REGRESSION, [1, 4]),
        (TOKENS, [[0, -100], [2]]),
    ],
)
def test_labels_that_it_can(make, head, labels):
    check_labels(make(labels), bert(), head)


def test_a_language_models_classes_are_its_vocabulary():
    model = classifier("gpt2_lm")
    check_labels(as_dataset([[4, 49]]), model, TOKENS)
    with pytest.raises(ValueError, match="from 0 to 49"):
        check_labels(as_dataset([[4, 50]]), model, TOKENS)


def test_only_the_rows_of_a_view_count():
    data = as_dataset([0, 1, 7, 2], name="label")
    check_labels(data.select([0, 1, 3]), bert(), SINGLE)
    with pytest.raises(ValueError, match="received 7"):
        check_labels(data.select([2]), bert(), SINGLE)


def test_what_shows_its_labels_later_is_left_alone():
    made = as_dataset(["no", "yes"])
    made.set_transform(lambda rows: {**rows, "labels": [0] * len(rows["input_ids"])})
    for data in (
        made,
        iter([]),
        torch.utils.data.TensorDataset(torch.ones(2)),
        as_dataset([1], name="other"),
    ):
        check_labels(data, bert(), SINGLE)
    check_labels([{"input_ids": [1], "labels": torch.tensor(9)}], bert(), SINGLE)


def test_the_trainer_checks_both_sets(tmp_path):
    good, bad = examples(4), as_dataset([0, 9])
    for train, evaluation in ((bad, good), (good, bad), (good, {"own": bad})):
        with pytest.raises(ValueError, match="received 9"):
            trainer(tmp_path, train, eval_dataset=evaluation)


def test_a_collator_of_the_users_own_may_make_labels_of_anything(tmp_path):
    class Encode:
        def __call__(self, features):
            return {"input_ids": torch.ones(2, 2), "labels": torch.zeros(2)}

    made = trainer(tmp_path, as_dataset(["no", "yes"]), data_collator=Encode())
    assert made.train_dataset["labels"][:] == ["no", "yes"]
    with pytest.raises(ValueError, match="expected numbers, received 'no'"):
        trainer(tmp_path, as_dataset(["no", "yes"]))


# ---- text for the teacher ------------------------------------------------------------


def test_text_columns():
    data = datasets.Dataset.from_dict({"sentence": ["a"], "labels": [0]})
    check_text_columns(data, ["sentence"])
    check_text_columns(data.rename_column("sentence", "teacher_input_ids"), ["text"])
    check_text_columns(as_list([0]), ["text"])
    with pytest.raises(
        ValueError, match=r"\(text or text_pair\).*received the columns \['labels', 'sentence'\]"
    ):
        check_text_columns(data, ["text", "text_pair"])


def test_the_trainer_looks_for_the_text(tmp_path):
    with pytest.raises(ValueError, match="teacher_processing_class: expected a text column"):
        trainer(tmp_path, as_dataset([0, 1]), teacher_processing_class=tokenizer_of(["a"]))


def test_a_text_that_is_missing(tmp_path):
    data = datasets.Dataset.from_dict({"text": ["a", None], "other": [None, "b"], "labels": [0, 1]})
    with pytest.raises(
        ValueError, match="text: expected a text for the teacher in each example, received None"
    ):
        check_text_columns(data, ["text"])
    check_text_columns(data.select([0]), ["text"])


def test_text_that_is_not_encoded(tmp_path):
    raw = datasets.Dataset.from_dict({"text": ["a", "b"], "labels": [0, 1]})
    accepted = ["input_ids", "attention_mask", "labels"]
    with pytest.raises(
        ValueError, match=r"such as input_ids, received \['labels', 'text'\]. Encode the data first"
    ):
        check_input_columns(raw, accepted)
    with pytest.raises(ValueError, match="such as input_ids"):
        trainer(tmp_path, raw)
    check_input_columns(as_dataset([0]), accepted)
    check_input_columns(raw, [])  # forward(*args, **kwargs) names nothing
    raw.set_transform(lambda rows: {"input_ids": [[1, 2]] * len(rows["text"]), "labels": rows["labels"]})
    check_input_columns(raw, accepted)


def test_one_hot_integers_are_no_classes():
    one_hot = datasets.Dataset.from_dict({"labels": [[1, 0, 0], [0, 1, 0]]})
    with pytest.raises(ValueError, match=r"expected one class for each example.*received several numbers"):
        check_labels(one_hot, bert(), SINGLE)


@pytest.mark.parametrize("make", [as_dataset, as_list])
def test_the_mark_of_integer_labels_is_no_number_to_learn(make):
    with pytest.raises(ValueError, match=r"expected NaN for an example without a label.*received -100"):
        check_labels(make([1, 2, -100]), bert(head="regression"), REGRESSION)
    check_labels(make([1, 2, 3]), bert(head="regression"), REGRESSION)
