"""Texts and models of the recipe: encoding, unlabelled rows, tokenizers, and a teacher that is kept."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from PIL import Image
from tokenizers import processors
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_distill import DistillationTrainingArguments
from hf_distill.corpora.files import DataError
from hf_distill.jobs.own_teacher import content_hash, kept_teacher, kept_teachers
from hf_distill.tasks.bert_models import TextModelArguments, check_widths
from hf_distill.tasks.task import processors_of
from hf_distill.tasks.text_classification import TextClassification
from hf_distill.tasks.text_data import TextDataArguments, encode, load_texts, with_unlabelled
from hf_distill.tasks.word_dropout import WordDropout
from hf_distill.tasks.wordpiece import train_tokenizer


@pytest.fixture
def splits() -> DatasetDict:
    """Return two classes that one word tells apart."""
    features = Features({"text": Value("string"), "label": ClassLabel(names=["cat", "dog"])})
    rows = {"text": ["a meow", "the bark", "meow meow", "a bark"] * 4, "label": [0, 1, 0, 1] * 4}
    return DatasetDict({"train": Dataset.from_dict(rows, features=features)})


@pytest.fixture
def models() -> TextModelArguments:
    return TextModelArguments(
        vocabulary_size=40, teacher_layers=1, teacher_width=16, teacher_epochs=1, student_width=8
    )


def task_of(models: TextModelArguments) -> TextClassification:
    return TextClassification(TextDataArguments(max_seq_length=8), models)


@pytest.fixture
def args(tmp_path: Path) -> DistillationTrainingArguments:
    return DistillationTrainingArguments(str(tmp_path), report_to="none", use_cpu=True, disable_tqdm=True)


def test_pairs_get_token_types_and_pads_have_id_0() -> None:
    tokenizer = train_tokenizer(["one two", "three"], 60)
    encoded = tokenizer("one two", "three")
    assert tokenizer.decode(encoded["input_ids"]) == "[CLS] one two [SEP] three [SEP]"
    assert encoded["token_type_ids"] == [0, 0, 0, 0, 1, 1]
    assert tokenizer.pad_token_id == 0


def test_the_same_texts_give_the_same_tokenizer_in_every_process() -> None:
    code = (
        "from hf_distill.tasks.wordpiece import train_tokenizer\n"
        "texts = [f'wort{i % 7}x{i} abc{chr(97 + i % 26)}{i}é' for i in range(300)]\n"
        "print(train_tokenizer(texts, 200).backend_tokenizer.to_str())"
    )
    runs = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout for _ in range(3)
    }
    assert len(runs) == 1, "a library's hash map decides the vocabulary, so no run can be repeated"
    assert b"##" in next(iter(runs))


def test_continuing_pieces_are_no_special_tokens() -> None:
    tokenizer = train_tokenizer(["banana band", "bandana"], 60)
    assert set(tokenizer.all_special_ids) == {0, 1, 2, 3, 4}
    assert "##a" not in tokenizer.tokenize("##a"), "text that looks like a piece is text"
    assert tokenizer.decode(tokenizer("banana")["input_ids"], skip_special_tokens=True) == "banana"


def test_word_dropout_leaves_out_a_share_of_the_words_and_nothing_else() -> None:
    tokenizer = train_tokenizer(["one two three four five"], 60)
    rows = [
        {**tokenizer("one two three four five " * 40), "labels": 1},
        {**tokenizer("one", "two"), "labels": 0},
    ]
    plain, fewer = WordDropout(tokenizer, 0.0)(rows), WordDropout(tokenizer, 0.4)(rows)
    assert plain["input_ids"][1][: len(rows[1]["input_ids"])].tolist() == rows[1]["input_ids"]
    assert fewer["labels"].tolist() == [1, 0]
    kept = fewer["attention_mask"].sum(-1).tolist()
    assert kept[0] == fewer["input_ids"].shape[1] == pytest.approx(2 + 0.6 * 200, abs=25)
    for row, length in zip(fewer["input_ids"], kept, strict=True):
        assert row[0] == tokenizer.cls_token_id
        assert row[length - 1] == tokenizer.sep_token_id
        assert "[MASK]" not in tokenizer.convert_ids_to_tokens(row[:length])
    segments = fewer["token_type_ids"][1][: kept[1]].tolist()
    assert segments == sorted(segments)
    assert segments[-1] == 1, "a token keeps its segment"
    words = tokenizer.decode(fewer["input_ids"][0], skip_special_tokens=True).split()
    remaining = iter("one two three four five".split() * 40)
    assert all(word in remaining for word in words), "in their order"
    again = WordDropout(tokenizer, 0.4)(rows)["input_ids"]
    assert again.shape != fewer["input_ids"].shape or not torch.equal(again, fewer["input_ids"]), "drawn anew"


def test_unlabelled_rows_are_appended_with_minus_100(splits: DatasetDict) -> None:
    tokenizer = train_tokenizer(splits["train"]["text"][:], 40)
    train = encode(splits["train"], tokenizer, 8)
    more = encode(splits["train"].remove_columns("label"), tokenizer, 8)
    both = with_unlabelled(train, more)
    assert both["labels"][:] == [*train["labels"], *[-100] * 16]
    assert "text" not in both.column_names


def test_a_teacher_is_trained_once_per_task(
    splits: DatasetDict, models: TextModelArguments, args: Any
) -> None:
    said: list[str] = []
    first = kept_teacher(task_of(models), splits, args, said.append)
    before = (first / "model.safetensors").stat().st_mtime_ns
    assert kept_teacher(task_of(models), splits, args, said.append) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == before
    assert "kept from an earlier run" in said[-1]
    assert AutoModelForSequenceClassification.from_pretrained(first).config.id2label == {0: "cat", 1: "dog"}
    assert AutoTokenizer.from_pretrained(first)("meow")["input_ids"]
    models.teacher_width = 32
    assert kept_teacher(task_of(models), splits, args, said.append) != first
    models.teacher_width = 16
    fewer = DatasetDict({"train": splits["train"].select(range(8))})
    assert kept_teacher(task_of(models), fewer, args, said.append) != first
    assert not [path for path in first.parent.iterdir() if path.name.startswith("_")]


def test_an_image_that_was_changed_is_another(tmp_path: Path) -> None:
    """Its name was compared alone, and a teacher of other images was kept."""
    features = Features({"image": datasets.Image()})

    def told(colour: int) -> bytes:
        Image.new("L", (4, 4), colour).save(tmp_path / "a.png")
        return content_hash(Dataset.from_dict({"image": [str(tmp_path / "a.png")]}, features=features))

    assert told(30) != told(200)
    assert told(30) == told(30)


def test_a_teacher_that_became_nan_is_not_kept(
    splits: DatasetDict, models: TextModelArguments, args: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    made = TextClassification.make_teacher

    def broken(*given: Any) -> Any:
        model = made(*given)
        model.classifier.bias.data[0] = torch.nan
        return model

    monkeypatch.setattr(TextClassification, "make_teacher", broken)
    with pytest.raises(SystemExit) as ended:
        kept_teacher(task_of(models), splits, args, lambda line: None)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "expected finite weights, received NaN or infinity in epoch 1" in said
    assert "Lower --teacher_learning_rate (0.0005)." in said
    assert not list(Path(args.output_dir).glob("*teacher*")), "nothing from which a second run would go on"
    monkeypatch.undo()
    assert kept_teacher(task_of(models), splits, args, lambda line: None).is_dir()


def test_an_ensemble_is_trained_seed_by_seed_and_kept(
    splits: DatasetDict, models: TextModelArguments, args: Any
) -> None:
    said: list[str] = []
    models.teachers_from_seeds = 2
    folders = kept_teachers(task_of(models), splits, args, said.append)
    assert len(set(folders)) == 2
    first, second = (AutoModelForSequenceClassification.from_pretrained(folder) for folder in folders)
    assert not torch.equal(first.classifier.weight, second.classifier.weight)
    models.teachers_from_seeds = 1
    assert kept_teachers(task_of(models), splits, args, said.append) == folders[:1]
    assert "kept from an earlier run" in said[-1]
    tokenizer, own = processors_of(task_of(models), folders)
    assert own == [None, None], "the same texts, the same tokenizer"
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(folders[1]).get_vocab()


def test_a_student_is_cut_from_the_teacher_or_new(
    splits: DatasetDict, models: TextModelArguments, args: Any
) -> None:
    folder = kept_teacher(task_of(models), splits, args, lambda line: None)
    teacher = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    new = task_of(models).make_student(teacher, splits, tokenizer)
    assert new.config.hidden_size == 8
    models.student_num_hidden_layers = 1
    cut = task_of(models).make_student(teacher, splits, tokenizer)
    assert torch.equal(cut.classifier.weight, teacher.classifier.weight)


def test_files_are_split_where_there_is_no_validation(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text("text,label\n" + "".join(f"text {i},{'ab'[i % 2]}\n" for i in range(40)))
    splits = load_texts(TextDataArguments(train_file=str(path), max_train_samples=20, max_eval_samples=3))
    assert len(splits["train"]) == 20
    assert len(splits["validation"]) == 4
    assert len(splits["test"]) == 3
    assert not set(splits["train"]["text"]) & set(splits["validation"]["text"])


def test_texts_without_labels_are_counted_out_too(tmp_path: Path) -> None:
    train, more = tmp_path / "train.csv", tmp_path / "more.csv"
    train.write_text("text,label\nx,a\ny,b\nz,a\n")
    more.write_text("text\n" + "more\n" * 9)
    for limit, expected in ((4, 4), (None, 9)):
        data = TextDataArguments(train_file=str(train), unlabeled_file=str(more), max_unlabeled_samples=limit)
        assert len(load_texts(data)["unlabeled"]) == expected
    assert "unlabeled" not in load_texts(TextDataArguments(train_file=str(train), max_unlabeled_samples=4))


def test_contradictions_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="received both"):
        load_texts(TextDataArguments(train_file="a.csv", dataset_name="b"))


def test_a_tokenizer_that_reads_pairs_otherwise_is_the_teachers_own(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["one two", "three"], 60)
    tokenizer.save_pretrained(str(tmp_path / "student"))
    tokenizer.save_pretrained(str(tmp_path / "same"))
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save_pretrained(str(tmp_path / "other"))
    named = TextModelArguments(student_model_name_or_path=str(tmp_path / "student"))
    _, own = processors_of(task_of(named), [str(tmp_path / "same"), str(tmp_path / "other")])
    assert own[0] is None
    assert own[1]("one", "three")["token_type_ids"] == [0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("student_width", 65, "a multiple of 2, the number of attention heads at this width, received 65"),
        ("teacher_width", 250, "a multiple of 3"),
    ],
)
def test_a_width_that_is_no_berts(name: str, value: int, message: str) -> None:
    check_widths(TextModelArguments())
    with pytest.raises(ValueError, match=f"^--{name}: expected {message}"):
        check_widths(TextModelArguments(**{name: value}))
