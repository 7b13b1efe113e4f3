"""The README's Python example runs as it stands, on a tiny teacher and corpus; its links and files exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

import hf_distill.corpora
from hf_distill.tasks.bert_models import new_bert
from hf_distill.tasks.wordpiece import train_tokenizer

README = Path(__file__).resolve().parent.parent / "README.md"


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["cat", "dog"])})
    rows = Dataset.from_dict({"text": ["a meow", "the bark"] * 8, "label": [0, 1] * 8}, features=features)
    corpus = DatasetDict({"train": rows, "test": rows})
    tokenizer = train_tokenizer(rows["text"][:], 40)
    folder = tmp_path / "runs" / "distill_bert" / "teacher-0"
    tokenizer.save_pretrained(str(folder))
    new_bert(3, 16, corpus, tokenizer, 64).save_pretrained(folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hf_distill.corpora, "docstring_corpus", lambda: corpus)
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.S)
    exec(example.replace("disable_tqdm=True", "disable_tqdm=True, use_cpu=True, report_to='none'"), {})
    printed = ast.literal_eval(capsys.readouterr().out.splitlines()[-1])
    (shown,) = re.findall(
        r"```python\n.*?```.*?```text\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.S
    )
    assert list(printed) == list(ast.literal_eval(shown)), "the README shows another output than it prints"


def test_links_and_the_file_tree_are_true() -> None:
    text = README.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (README.parent / target).exists(), target
    (tree,) = re.findall(r"```\nhf_distill/\n(.*?)```", text, flags=re.S)
    for line in tree.splitlines():
        indented = line.startswith("  ")
        for name in re.findall(r"^\s*([\w/]+(?:\.py)?),?(?:\s([\w]+\.py))?\s", line)[0]:
            if name:
                assert (README.parent / ("hf_distill" if indented else "") / name).exists(), name
