"""Plain text and completions: how they are divided, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hf_distill.corpora.files import DataError
from hf_distill.corpora.plain_text import paragraphs, read_completions, read_plain_text


def book(path: Path, name: str, count: int = 10) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n \n".join(f"{name}\n  {number}" for number in range(count)) + "\n\n\n")
    return path


def test_paragraphs_are_single_lines(tmp_path: Path) -> None:
    assert paragraphs(book(tmp_path / "a.txt", "a", 3)) == ["a 0", "a 1", "a 2"]


def test_one_file_is_cut_into_blocks_that_follow_each_other(tmp_path: Path) -> None:
    splits = read_plain_text({"train": book(tmp_path / "a.txt", "a", 100)})
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 80, "validation": 5, "test": 15}
    texts = [*splits["train"]["text"], *splits["validation"]["text"], *splits["test"]["text"]]
    assert texts == [f"a {number}" for number in range(100)]


def test_a_folder_is_divided_by_whole_files(tmp_path: Path) -> None:
    for name in "abcdefghij":
        book(tmp_path / f"{name}.md", name, 3)
    (tmp_path / "README.md").write_text("not a text of it")
    splits = read_plain_text({"train": tmp_path})
    files = {name: {text[0] for text in rows["text"]} for name, rows in splits.items()}
    assert files == {"train": set("abcdefgh"), "validation": {"i"}, "test": {"j"}}
    few = read_plain_text({"train": tmp_path, "test": tmp_path / "a.md"})
    assert set(few) == {"train", "test"}
    assert len(few["train"]) == 30


def test_tables_give_a_column(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"body": text}) for text in ("one", "", "two")))
    assert read_plain_text({"train": path}, "body")["train"]["text"][:] == ["one", "two"]
    with pytest.raises(DataError, match=r"expected a column 'text'; it has 'body'.*--text_column"):
        read_plain_text({"train": path})
    path.write_text('{"body": ["one"]}')
    with pytest.raises(DataError, match=r"row 1: expected a text in the column 'body', received \['one'\]"):
        read_plain_text({"train": path}, "body")


def test_places_without_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_plain_text({"train": tmp_path / "none"})
    with pytest.raises(DataError, match=r"expected files ending in .txt or .md, found none"):
        read_plain_text({"train": tmp_path})
    with pytest.raises(DataError, match="too few"):
        read_plain_text({"train": book(tmp_path / "a.txt", "a", 1)})
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"b.txt: can't be read as text in UTF-8"):
        read_plain_text({"train": tmp_path / "b.txt"})


def test_completions_and_their_references(tmp_path: Path) -> None:
    rows = [("q1", "a"), ("q1", "b"), ("q2", "c"), ("q1", "d")]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"q": prompt, "a": end}) for prompt, end in rows))
    splits = read_completions(dict.fromkeys(("train", "validation", "test"), path), "q", "a")
    assert splits["train"]["completion"][:] == ["a", "b", "c", "d"]
    assert splits["test"]["references"][:] == [["a", "b"], ["c"], ["d"]]
    assert splits["test"]["completion"][:] == ["a", "c", "d"]
    with pytest.raises(DataError, match=r"expected a column 'x'.*--prompt_column"):
        read_completions({"train": path}, "x", "a")
    for row in ({"q": "a", "a": ""}, {"q": "a", "a": 1}, {"q": "a" * 9000, "a": ["b"]}):
        path.write_text(json.dumps(row))
        with pytest.raises(DataError, match="row 1: expected text in 'q' and 'a', received") as error:
            read_completions({"train": path}, "q", "a")
        assert len(str(error.value)) < 350


def test_repeated_prompts_are_held_out_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [(f"q{number}", f"{number} {end}") for number in range(20) for end in "xyz"]
    path.write_text("\n".join(json.dumps({"q": prompt, "a": end}) for prompt, end in rows))
    splits = read_completions({"train": path, "test": path}, "q", "a")
    assert {name: len(of) for name, of in splits.items()} == {"train": 54, "test": 20, "validation": 2}
    assert not set(splits["train"]["prompt"]) & set(splits["validation"]["prompt"])
    assert all(len(references) == 3 for references in splits["validation"]["references"])
    path.write_text("\n".join(json.dumps({"q": prompt, "a": end}) for prompt, end in rows[::3]))
    assert set(read_completions({"train": path}, "q", "a")) == {"train"}


def test_instructions_that_all_rows_share_do_not_leave_training_whole(tmp_path: Path) -> None:
    """Half of all rows were held out with one of two prompts, and became one example."""
    path = tmp_path / "two.jsonl"
    rows = [{"q": f"Write a {'sad' if i % 2 else 'happy'} line", "a": f"line {i}"} for i in range(60)]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert "validation" not in read_completions({"train": path}, "q", "a"), "rows are drawn one by one then"
    # A tenth of forty prompts with three answers each.
    path.write_text("\n".join(json.dumps({"q": f"q {i % 40}", "a": f"a {i}"}) for i in range(120)))
    splits = read_completions({"train": path}, "q", "a")
    assert len(splits["train"]) == 108
    assert not set(splits["train"]["prompt"]) & set(splits["validation"]["prompt"])


def test_completions_of_one_prompt_are_examples_of_their_own_unless_grouped(tmp_path: Path) -> None:
    path = tmp_path / "same.jsonl"
    path.write_text("\n".join(json.dumps({"q": "say", "a": f"a {i}"}) for i in range(5)))
    files = {"train": path, "test": path}
    assert len(read_completions(files, "q", "a", group=False)["test"]) == 5
    assert read_completions(files, "q", "a")["test"]["references"][:] == [[f"a {i}" for i in range(5)]]


def test_the_flag_of_the_recipe_is_named(tmp_path: Path) -> None:
    path = tmp_path / "semi.csv"
    path.write_text("source;target\na;b\n")
    with pytest.raises(DataError, match="Name the right one with --source_column"):
        read_completions({"train": path}, "source", "target", flags=("source_column", "target_column"))
