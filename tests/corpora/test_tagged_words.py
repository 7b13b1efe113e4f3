"""Sentences whose words have tags: every format, and mistakes by line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features, Sequence, Value

from hf_distill.corpora.files import DataError
from hf_distill.corpora.tagged_words import checked_words, read_tagged_words

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
UNIVERSAL = """# sent_id = 1
1-2\tDon't\t_\t_\t_\t_\t_\t_\t_\t_
1\tDo\tdo\tAUX\t_\t_\t_\t_\t_\t_
2\tn't\tnot\tPART\t_\t_\t_\t_\t_\t_
2.1\tgo\tgo\tVERB\t_\t_\t_\t_\t_\t_
3\t#\t#\tSYM\t_\t_\t_\t_\t_\t_

1\tYes\tyes\tINTJ\t_\t_\t_\t_\t_\t_
"""


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_bytes(text.encode())
    return str(folder / name)


def test_every_format_says_the_same(tmp_path: Path) -> None:
    rows = [
        {"tokens": ["Do", "n't", "#"], "tags": ["AUX", "PART", "SYM"]},
        {"tokens": ["Yes"], "tags": ["INTJ"]},
    ]
    columns = "Do\tAUX\nn't\tPART\n#\tSYM\n\nYes\tINTJ\n"
    Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    files = [
        write(tmp_path, "a.conllu", UNIVERSAL),
        write(tmp_path, "a.conll", columns),
        write(tmp_path, "a.txt", "-DOCSTART- O\n\n" + columns.replace("\t", " x ") + "\n\n"),
        write(tmp_path, "a.jsonl", "\n".join(map(json.dumps, rows))),
        str(tmp_path / "a.parquet"),
    ]
    for file in files:
        found = read_tagged_words({"train": file})["train"]
        assert found["tokens"][:] == [row["tokens"] for row in rows], file
        names = found.features["tags"].feature.names
        assert names == ["AUX", "INTJ", "PART", "SYM"]
        assert [[names[tag] for tag in tags] for tags in found["tags"]] == [row["tags"] for row in rows]


def test_other_splits_follow_the_training_files_numbers(tmp_path: Path) -> None:
    features = Features({"words": Sequence(Value("string")), "ner": Sequence(ClassLabel(names=["O", "B-x"]))})
    train = Dataset.from_dict({"words": [["a", "b"]], "ner": [[0, 1]]}, features=features)
    other = Features({"words": Sequence(Value("string")), "ner": Sequence(ClassLabel(names=["B-x", "O"]))})
    test = Dataset.from_dict({"words": [["c"]], "ner": [[0]]}, features=other)
    splits = checked_words({"train": train, "test": test}, {"train": "a", "test": "b"}, "words", "ner")
    assert splits["train"].features["tags"].feature.names == ["O", "B-x"]
    assert splits["test"]["tags"][:] == [[1]]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.conll", "Paris\tB\nis\n", r"a.conll, line 2: expected a word and its tag, received 'is'"),
        ("a.conllu", "1\tDo\tdo\n", r"a.conllu, line 1: expected the 10 columns of CoNLL-U, received 3"),
        ("a.conll", "a\tO\nb\tO\n", "expected at least two tags"),
        ("a.conll", "\n\n", "expected at least one sentence"),
        ("a.jsonl", '{"tokens": ["a"], "tags": ["O", "B"]}', "row 1: expected a tag for each word"),
        ("a.jsonl", '{"words": ["a"], "tags": ["O"]}', "expected a column 'tokens'.*--tokens_column"),
        ("a.conll", "\u00a0\tO\nb\tX\n", "line 1: expected a word and its tag"),
        ("a.jsonl", '{"tokens": "ab", "tags": ["O", "B"]}', "row 1: expected a list of words, received 'ab'"),
        ("a.jsonl", '{"tokens": ["a", null], "tags": ["O", "B"]}', r"expected a list of words, received \['a', None\]"),
        ("a.jsonl", '{"tokens": ["a", "b"], "tags": ["O", null]}', "expected tags that are strings or integers"),
        ("a.jsonl", '{"tokens": ["a", "b"], "tags": [0.5, 1.5]}', "expected tags that are strings or integers"),
        ("a.jsonl", '{"tokens": ["a"], "tags": null}\n{"tokens": ["b"], "tags": ["O"]}', "received 1 words and 0 tags"),
    ],
)  # fmt: skip
def test_mistakes_name_the_file_and_the_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_tagged_words({"train": write(tmp_path, name, text)})


def test_a_tag_that_training_never_has_and_a_file_that_is_not_there(tmp_path: Path) -> None:
    train = write(tmp_path, "train.conll", "a\tX\nb\tY\n")
    test = write(tmp_path, "test.conll", "a\tZ\n")
    with pytest.raises(DataError, match=r"test.conll: 1 tag\(s\) that the training file never has: 'Z'"):
        read_tagged_words({"train": train, "test": test})
    with pytest.raises(DataError, match="no such file"):
        read_tagged_words({"train": str(tmp_path / "none.conll")})
    (tmp_path / "folder.conll").mkdir()
    with pytest.raises(DataError, match="expected a file, received a folder"):
        read_tagged_words({"train": str(tmp_path / "folder.conll")})


def test_integers_are_ordered_by_value_and_those_below_0_are_no_tag(tmp_path: Path) -> None:
    rows = {"tokens": ["a", "b", "c", "d"], "tags": [10, 9, -100, -1]}
    train = read_tagged_words({"train": write(tmp_path, "a.jsonl", json.dumps(rows))})["train"]
    assert train.features["tags"].feature.names == ["9", "10"]
    assert train["tags"][:] == [[1, 0, -1, -1]]


def test_built_in_lines_survive_a_file(tmp_path: Path) -> None:
    features = Features({"tokens": Sequence(Value("string")), "tags": Sequence(ClassLabel(names=["x", "y"]))})
    rows = Dataset.from_dict({"tokens": [["a", "=", "b"]], "tags": [[0, -1, 1]]}, features=features)
    rows.to_parquet(tmp_path / "a.parquet")
    assert read_tagged_words({"train": tmp_path / "a.parquet"})["train"]["tags"][:] == [[0, -1, 1]]


def test_a_word_with_what_unicode_takes_for_an_end_of_a_line(tmp_path: Path) -> None:
    train = read_tagged_words({"train": write(tmp_path, "a.conll", "a\u2028b\tX\r\nc\x85d\tY\r\n\r\n")})[
        "train"
    ]
    assert train["tokens"][:] == [["a\u2028b", "c\x85d"]]


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
def test_the_shared_data_is_read() -> None:
    universal = read_tagged_words({"train": str(SHARED / "ud_ewt" / "en_ewt-ud-test.conllu")})["train"]
    assert len(universal) == 2077
    assert len(universal.features["tags"].feature.names) == 17
    files = {
        "train": "wnut17train.conll",
        "validation": "emerging.dev.conll",
        "test": "emerging.test.annotated",
    }
    splits = read_tagged_words({name: str(SHARED / "wnut17" / file) for name, file in files.items()})
    assert {name: len(rows) for name, rows in splits.items()} == {
        "train": 3394,
        "validation": 1009,
        "test": 1287,
    }


@pytest.mark.parametrize("comment", ["# id 3 domain=news", "# id 3\tdomain=news", "# one two three four"])
def test_a_line_about_a_sentence_is_no_word_of_it(tmp_path: Path, comment: str) -> None:
    path = tmp_path / "a.conll"
    path.write_text(f"{comment}\nNew\tB-LOC\n# \tO\n\n#\tO\nYork\tB-LOC\n")
    rows = read_tagged_words({"train": path}, "tokens", "tags")["train"]
    assert rows["tokens"][:] == [["New", "#"], ["#", "York"]]
    path.write_text("# O\nYork B-LOC\n")  # the word #
    assert read_tagged_words({"train": path}, "tokens", "tags")["train"]["tokens"][:] == [["#", "York"]]
