"""Reading the user's files: each kind, each label type, and each refusal in one or two lines."""

import json

import pyarrow
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from hf_distill.corpora import DataError, read_files
from hf_distill.corpora.files import checked_splits

CSV = 'text,label\n"where, then,\nis my card?",card\n42,transfer\nnull,NA\n'


def write(folder, name, content):
    path = folder / name
    path.write_text(content)
    return path


def test_csv_keeps_texts_as_they_are(tmp_path):
    train = read_files({"train": write(tmp_path, "train.csv", CSV)})["train"]
    assert train["text"][:] == ["where, then,\nis my card?", "42", "null"]
    assert train.features["label"].names == ["NA", "card", "transfer"]
    assert train["label"][:] == [1, 2, 0]


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["01", "1", "02"], ["01", "02", "1"]),
        (["10", "9", " 9"], ["9", "10"]),
        (["true", "false"], ["false", "true"]),
        (["2024-01-02", "2024-01-01"], ["2024-01-01", "2024-01-02"]),
    ],
)
def test_csv_keeps_labels_as_they_are(tmp_path, labels, names):
    content = "text,label\n" + "".join(f"x,{label}\n" for label in labels)
    train = read_files({"train": write(tmp_path, "train.csv", content)})["train"]
    assert train.features["label"].names == names
    assert [names[number] for number in train["label"]] == [label.strip() for label in labels]


def test_json_lines_and_parquet_give_the_same(tmp_path):
    rows = [{"question": "a b", "answer": "c", "kind": 10}, {"question": "d", "answer": "e", "kind": 9}]
    lines = write(tmp_path, "train.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    parquet = tmp_path / "train.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), parquet)
    columns = {"text_column": "question", "text_pair_column": "answer", "label_column": "kind"}
    for path in (lines, parquet):
        train = read_files({"train": path}, **columns)["train"]
        assert train.column_names == ["text", "text_pair", "label"]
        assert train.features["label"].names == ["9", "10"]
        assert train["label"][:] == [1, 0]


def test_unlabeled_file_needs_no_label_and_validation_is_numbered_as_training(tmp_path):
    splits = read_files(
        {
            "train": write(tmp_path, "train.csv", "text,label\nx,b\ny,a\nz,c\n"),
            "validation": write(tmp_path, "validation.csv", "text,label\nx,c\n"),
            "unlabeled": write(tmp_path, "unlabeled.csv", "text\nwho knows\n"),
        }
    )
    assert splits["validation"]["label"][:] == [2]
    assert splits["unlabeled"].column_names == ["text"]


def numbered(names, labels):
    """Return rows whose labels are a ClassLabel."""
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    return Dataset.from_dict({"text": ["x"] * len(labels), "label": labels}, features=features)


def parquet(folder, name, names, labels):
    path = folder / name
    numbered(names, labels).to_parquet(path)
    return path


def test_class_label_is_kept():
    train = checked_splits({"train": numbered(["neg", "pos"], [1, 0])}, {"train": "hub"})["train"]
    assert train.features["label"].names == ["neg", "pos"]
    assert train["label"][:] == [1, 0]


def test_every_split_is_numbered_as_training_by_name(tmp_path):
    csv = write(tmp_path, "rows.csv", "text,label\nx,cat\ny,dog\n")
    one, other = (
        parquet(tmp_path, f"{'-'.join(names)}.parquet", names, [0, 1])
        for names in (["cat", "dog"], ["dog", "cat"])
    )
    for train, validation in ((one, other), (other, one), (csv, other), (other, csv)):
        splits = read_files({"train": train, "validation": validation})
        assert splits["train"].features == splits["validation"].features
        names = splits["train"].features["label"].names
        first = "dog" if validation == other else "cat"
        assert names[splits["validation"]["label"][0]] == first


@pytest.mark.parametrize("names", [["cat", "dog"], ["cat", "dog", "hen"]], ids=["unnamed", "unused"])
def test_class_label_that_training_never_had(tmp_path, names):
    train = parquet(tmp_path, "train.parquet", names, [0, 1])
    validation = parquet(tmp_path, "validation.parquet", ["cat", "dog", "hen"], [0, 2])
    with pytest.raises(DataError, match=r"validation.parquet: 1 label\(s\) .* never has: 'hen'"):
        read_files({"train": train, "validation": validation})


REFUSED = {
    "no such file": (None, "no such file"),
    "empty file": ("", "the file is empty"),
    "header only": ("text,label\n", "expected at least one row"),
    "missing column": (
        "sentence,label\nx,a\n",
        r"expected a column 'text'; it has 'sentence', 'label'.*--text_column",
    ),
    "one class": ("text,label\nx,a\ny,a\n", "at least two classes; every row has the label 'a'"),
    "no label": ("text,label\nx,a\ny,\n", "row 2 has nothing in the column 'label'.*--unlabeled_file"),
    "no label among numbers": ("text,label\nx,1\ny,NA\n", "row 2 has nothing in the column 'label'"),
    "no text": ("text,label\nx,a\n,b\n", "row 2 has nothing in the column 'text'"),
    "real numbers": ("text,label\nx,0.5\ny,0.7\n", "strings or integers .* received double"),
    "ragged": ("text,label\nx,a,b,c\n", "can't be read as CSV"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_or_two_lines(case, tmp_path):
    content, message = REFUSED[case]
    path = tmp_path / "train.csv" if content is None else write(tmp_path, "train.csv", content)
    with pytest.raises(DataError, match=message) as error:
        read_files({"train": path})
    assert len(str(error.value)) < 350
    assert "\n" not in str(error.value)
    assert "train.csv" in str(error.value)


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, -1, -1], r"2 row\(s\) have no label \(-1 in the column 'label'\): 3, 4. .*--unlabeled_file"),
        ([0, 1, 2], r"expected numbers from 0 to 1 .* received others in 1 row\(s\): 3"),
    ],
)
def test_numbers_without_a_name(tmp_path, split, labels, message):
    good = parquet(tmp_path, "good.parquet", ["cat", "dog"], [0, 1])
    bad = numbered(["cat", "dog"], [0] * len(labels))
    column = pyarrow.array(labels, pyarrow.int64())
    table = bad.data.table.set_column(1, "label", column).replace_schema_metadata(bad.data.schema.metadata)
    pyarrow.parquet.write_table(table, tmp_path / "bad.parquet")
    with pytest.raises(DataError, match=rf"bad.parquet: {message}"):
        read_files({"train": good, "validation": good} | {split: tmp_path / "bad.parquet"})


@pytest.mark.parametrize("split", ["train", "validation"])
def test_lists_of_labels(tmp_path, split):
    good = write(tmp_path, "good.csv", "text,label\nx,a\ny,b\n")
    bad = write(tmp_path, "bad.jsonl", '{"text": "x", "label": ["a"]}\n{"text": "y", "label": ["b"]}\n')
    with pytest.raises(
        DataError, match=r"bad.jsonl: .* strings or integers .* received list<.*Turn them into names"
    ):
        read_files({"train": good, "validation": good} | {split: bad})


def test_label_that_training_never_had(tmp_path):
    train = write(tmp_path, "train.csv", "text,label\nx,a\ny,b\n")
    validation = write(tmp_path, "validation.csv", "text,label\nx,a\ny,c\n")
    with pytest.raises(DataError, match=r"validation.csv: 1 label\(s\) .* never has: 'c'"):
        read_files({"train": train, "validation": validation})


@pytest.mark.parametrize("name", ["train.json", "train.parquet", "train.txt"])
def test_unreadable(name, tmp_path):
    with pytest.raises(DataError, match=r"can't be read as|expected a file ending in"):
        read_files({"train": write(tmp_path, name, "neither one nor the other")})


def test_a_folder(tmp_path):
    with pytest.raises(DataError, match="expected a file, received a folder"):
        read_files({"train": tmp_path})


def test_wrong_encoding(tmp_path):
    path = tmp_path / "train.csv"
    path.write_bytes("text,label\ncafé,a\nthé,b\n".encode("latin-1"))
    with pytest.raises(DataError, match="UTF-8"):
        read_files({"train": path})
