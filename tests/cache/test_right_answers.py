"""A cache answers as its teacher would, or says why it can't: settings, precision, packing, positions, damage."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    ModernBertConfig,
    ModernBertForSequenceClassification,
    RobertaConfig,
    RobertaForMaskedLM,
)

from hf_distill import CacheError, TeacherCache
from hf_distill.cache.formats import FullLogits, SampledLogits, SignalFormat, TopKLogits
from hf_distill.cache.manifest import MANIFEST_NAME, Manifest
from hf_distill.cache.source import source_of
from hf_distill.items import head_of
from hf_distill.teachers.online import OnlineTeacher
from tests.cache.test_teacher_cache import ROWS, captured
from tests.tiny import arguments, bert, classifier, collate, distiller, perturbed, teacher_of

Batch = dict[str, torch.Tensor]


def batch_of(rows: list[dict[str, Any]]) -> Batch:
    return {name: value for name, value in collate(rows).items() if name != "labels"}


def documents(*texts: list[int]) -> list[dict[str, Any]]:
    return [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in texts]


def packed(*texts: list[int]) -> Batch:
    return {
        "input_ids": torch.tensor([[one for text in texts for one in text]]),
        "position_ids": torch.tensor([[place for text in texts for place in range(len(text))]]),
    }


# ---- another teacher under the same weights ----------------------------------------------------


def with_settings(model: Any, **settings: Any) -> Any:
    """Return the same weights under another config."""
    config = type(model.config)(**{**model.config.to_diff_dict(), **settings})
    other = type(model)(config).eval()
    other.load_state_dict(model.state_dict())
    return other


def modernbert() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = ModernBertConfig(vocab_size=50, num_labels=3, pad_token_id=0, **sizes)
    return perturbed(ModernBertForSequenceClassification(config)).eval()


@pytest.mark.parametrize(
    ("teacher", "settings", "message"),
    [
        (teacher_of, {"num_attention_heads": 1}, "num_attention_heads 1 and num_attention_heads"),
        (teacher_of, {"hidden_act": "relu"}, "hidden_act 'relu' and hidden_act 'gelu'"),
        (
            modernbert,
            {"classifier_pooling": "mean"},
            "classifier_pooling 'mean' and classifier_pooling 'cls'",
        ),
    ],
)
def test_settings_without_weights_tell_teachers_apart(
    tmp_path: Path, teacher: Any, settings: dict[str, Any], message: str
) -> None:
    first = teacher()
    other = with_settings(first, **settings)
    batch = batch_of(ROWS[:4])
    with torch.no_grad():
        assert not torch.allclose(first(**batch).logits, other(**batch).logits), "it does answer otherwise"
    captured(tmp_path / "cache", first)
    TeacherCache(tmp_path / "cache", with_settings(first))
    with pytest.raises(CacheError, match=f"config: expected .*cache.* same settings, received {message}"):
        TeacherCache(tmp_path / "cache", other)
    with pytest.raises(CacheError, match="config: expected this capture and"):
        captured(tmp_path / "cache", other)


def test_settings_that_no_answer_depends_on_do_not_count(tmp_path: Path) -> None:
    first = teacher_of()
    captured(tmp_path / "cache", first)
    names = {0: "a", 1: "b", 2: "c"}
    same = with_settings(
        first, hidden_dropout_prob=0.3, use_cache=False, initializer_range=0.5, id2label=names
    )
    assert TeacherCache(tmp_path / "cache", same).at_hand is not None


@pytest.mark.parametrize("signals", [FullLogits("bfloat16"), TopKLogits(2), SampledLogits(30)])
def test_sparse_answers_are_compared_too(tmp_path: Path, signals: SignalFormat) -> None:
    captured(tmp_path / "cache", signals=signals)
    teacher, batch = teacher_of(), batch_of(ROWS[:4])
    same = TeacherCache(tmp_path / "cache", teacher)
    same(batch)
    with torch.no_grad():
        teacher.classifier.bias += torch.tensor([0.0, 2.0, -2.0])  # after its weights were looked at
    changed = TeacherCache(tmp_path / "cache")
    changed.at_hand = same.at_hand
    with pytest.raises(CacheError, match="expected the teacher to answer as it did"):
        changed(batch)


# ---- precision -----------------------------------------------------------------------------------


def test_what_is_missing_is_asked_in_the_caches_own_precision(tmp_path: Path) -> None:
    teacher, batch = teacher_of(), batch_of(ROWS[8:12])
    captured(tmp_path / "half", teacher, ROWS[:8], bf16=True)
    captured(tmp_path / "full", teacher, ROWS[:8])
    with torch.no_grad():
        exact = teacher(**batch).logits
        with torch.autocast("cpu", torch.bfloat16):
            rounded = teacher(**batch).logits.float()
    assert not torch.equal(exact, rounded)
    half = TeacherCache(tmp_path / "half", teacher, on_missing="ask")
    assert torch.equal(half(batch).logits, rounded)
    full = TeacherCache(tmp_path / "full", teacher, on_missing="ask")
    with torch.autocast("cpu", torch.bfloat16):  # as in a training with bf16=True
        assert torch.allclose(full(batch).logits, exact, atol=1e-6)


def test_a_teacher_in_another_precision_is_refused(tmp_path: Path) -> None:
    captured(tmp_path / "cache")
    other = teacher_of().to(torch.bfloat16)
    with pytest.raises(CacheError, match="weights"):
        TeacherCache(tmp_path / "cache", other)
    manifest = Manifest.read(tmp_path / "cache")
    held = source_of(OnlineTeacher(other))
    assert held.dtype == "bfloat16"
    from hf_distill.cache.source import check_same_teacher

    source = type(held)(**{**vars(manifest.source), "weights": held.weights})
    with pytest.raises(
        CacheError, match=r"computes in float32, as the answers in here were, received .* in bfloat16"
    ):
        check_same_teacher(source, OnlineTeacher(other), Path("here"))


# ---- packing ---------------------------------------------------------------------------------------

TEXTS = [5, 6, 7], [8, 9, 10, 11], [12, 13]


def test_whether_packed_documents_are_kept_apart_is_measured() -> None:
    causal = source_of(OnlineTeacher(classifier("llama_lm")))
    assert causal.counts_from_zero is True
    assert causal.isolates is True
    bidirectional = source_of(OnlineTeacher(perturbed(classifier("bert_mlm"))))
    assert bidirectional.counts_from_zero is True
    assert bidirectional.isolates is False
    assert source_of(OnlineTeacher(teacher_of())).isolates is None, "an answer for each example"


def test_packed_rows_are_refused_where_documents_see_each_other(tmp_path: Path) -> None:
    teacher = perturbed(classifier("bert_mlm"))
    cache = captured(tmp_path / "cache", teacher, documents(*TEXTS))
    with torch.no_grad():
        together = teacher(**packed(*TEXTS[:2])).logits[0, :3]
        alone = teacher(input_ids=torch.tensor([TEXTS[0]])).logits[0]
    assert not torch.allclose(together, alone, atol=1e-2)
    with pytest.raises(
        CacheError, match=r"packed rows with 2 examples, and .* reads a packed document together"
    ):
        cache(packed(*TEXTS[:2]))


def test_documents_of_a_packed_row_are_asked_about_one_by_one(tmp_path: Path) -> None:
    teacher = perturbed(classifier("llama_lm"))
    captured(tmp_path / "cache", teacher, documents(TEXTS[0]))
    cache = TeacherCache(tmp_path / "cache", teacher, on_missing="ask")
    found = cache(packed(*TEXTS)).logits
    cache.flush()
    asked = []
    for ids in TEXTS:
        with torch.no_grad():
            asked.append(teacher(input_ids=torch.tensor([ids])).logits[0])
    assert torch.allclose(found[0], torch.cat(asked), atol=1e-5)
    later = TeacherCache(tmp_path / "cache")
    assert len(later) == 3
    assert torch.equal(later(packed(TEXTS[2], TEXTS[1])).logits[0], torch.cat([found[0, 7:], found[0, 3:7]]))


# ---- positions ---------------------------------------------------------------------------------------


def test_positions_that_a_model_does_not_count_by_itself_are_part_of_the_question(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = RobertaConfig(vocab_size=50, pad_token_id=1, max_position_embeddings=20, **sizes)
    teacher = perturbed(RobertaForMaskedLM(config)).eval()
    assert source_of(OnlineTeacher(teacher)).counts_from_zero is False
    cache = captured(tmp_path / "cache", teacher, documents([5, 6, 7]))
    ids = torch.tensor([[5, 6, 7]])
    cache({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    placed = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "position_ids": torch.arange(3)[None]}
    with torch.no_grad():
        assert not torch.allclose(teacher(**placed).logits, teacher(input_ids=ids).logits, atol=1e-3)
    with pytest.raises(CacheError, match="found none to 1 of them"):
        cache(placed)


# ---- an example without tokens -------------------------------------------------------------------


@pytest.mark.parametrize(
    "signals", [FullLogits(), TopKLogits(4), TopKLogits(4, id_bits=18), SampledLogits(5)]
)
def test_an_example_without_tokens(tmp_path: Path, signals: SignalFormat) -> None:
    rows = [*documents(*TEXTS), {"input_ids": [3], "attention_mask": [0]}]
    cache = captured(tmp_path / "cache", classifier("bert_mlm"), rows, signals=signals, batch_size=1)
    assert len(cache) == 4
    answer = cache(batch_of([rows[3], rows[2]])).log_probs(1.0)
    assert answer.shape[:2] == (2, 2)
    alone = captured(tmp_path / "alone", classifier("bert_mlm"), rows[3:], signals=signals)
    assert len(TeacherCache(alone.folder)) == 1


def test_hidden_states_of_an_example_without_tokens(tmp_path: Path) -> None:
    rows = [*documents(*TEXTS), {"input_ids": [3], "attention_mask": [0]}]
    cache = captured(tmp_path / "cache", teacher_of(), rows, hidden_states=(0, 1), batch_size=1)
    assert cache(batch_of([rows[3], rows[2]])).features.hidden_states[1].shape[:2] == (2, 2)


# ---- heads ---------------------------------------------------------------------------------------------


def test_a_cache_of_the_next_token_does_not_answer_for_this_one(tmp_path: Path) -> None:
    cache = captured(tmp_path / "cache", classifier("llama_lm"), documents(*TEXTS))
    student = classifier("bert_mlm")
    assert dict(cache.source.head) == {
        "kind": "single_label",
        "positions": True,
        "shift": True,
        "spans": False,
    }
    with pytest.raises(ValueError, match=r"'shift': False.*'shift': True"):
        cache.prepared(student, head_of(student))


# ---- damage and disks ----------------------------------------------------------------------------------


def test_a_changed_manifest_is_found(tmp_path: Path) -> None:
    captured(tmp_path / "cache")
    path = tmp_path / "cache" / MANIFEST_NAME
    whole = path.read_bytes()
    held = json.loads(whole)
    found = 0
    for place in range(0, len(whole), 37):
        for bit in (0, 3):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            path.write_bytes(bytes(damaged))
            try:
                same = json.loads(damaged) == held  # blanks between values
            except ValueError:
                same = False
            if same:
                continue
            found += 1
            with pytest.raises(CacheError, match=MANIFEST_NAME):
                TeacherCache(tmp_path / "cache")
    assert found > 20
    path.write_bytes(whole)
    TeacherCache(tmp_path / "cache")


def test_a_manifest_of_an_older_version_says_what_to_do(tmp_path: Path) -> None:
    captured(tmp_path / "cache")
    path = tmp_path / "cache" / MANIFEST_NAME
    held = json.loads(path.read_text())
    path.write_text(json.dumps({**held, "format_version": 1}))
    with pytest.raises(CacheError, match=r"expected format version 2, received 1.*capture again"):
        TeacherCache(tmp_path / "cache")


def test_a_folder_that_answers_can_not_be_added_to_is_said_at_once(tmp_path: Path) -> None:
    captured(tmp_path / "cache")
    (tmp_path / "cache" / ".lock").unlink()
    (tmp_path / "cache" / ".lock").mkdir()  # chmod does not stop root
    TeacherCache(tmp_path / "cache")
    with pytest.raises(CacheError, match="expected a folder to write the cache into"):
        TeacherCache(tmp_path / "cache", teacher_of(), on_missing="ask")


def test_a_disk_that_fills_up_in_training_loses_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    captured(tmp_path / "cache", rows=ROWS[:4])
    cache = TeacherCache(tmp_path / "cache", teacher_of(), on_missing="ask")

    def full(*args: Any) -> None:
        raise CacheError("added.arrow: expected to write a part of the cache, but: No space left on device.")

    from hf_distill.cache import teacher_cache

    trainer = distiller(bert(), cache, arguments(tmp_path / "run", max_steps=3), copy.deepcopy(ROWS))
    monkeypatch.setattr(teacher_cache, "write_shard", full)
    monkeypatch.setattr(teacher_cache.logger, "propagate", True)
    with caplog.at_level(logging.WARNING):
        assert trainer.train().global_step == 3
    assert "No space left on device" in caplog.text
    assert "answers are kept in memory" in caplog.text
    monkeypatch.undo()
    trainer.teacher.flush()
    assert len(TeacherCache(tmp_path / "cache")) > 4
