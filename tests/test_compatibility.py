"""What must match before training starts: each check, and that its error helps."""

import warnings
from types import SimpleNamespace

import datasets
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5Model,
    ViTConfig,
    ViTForImageClassification,
)

from hf_distill import DistillationTrainer
from hf_distill.compatibility import (
    check_has_config,
    check_heads,
    check_lengths,
    check_outputs,
    check_vocabulary,
    label_order,
    longest_input,
)
from hf_distill.items import Head, head_of
from tests.tiny import arguments, classifier, collate, examples
from tests.tiny import bert as tiny_bert

SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
WORDS = ["a", "b", "c", "##d"]


def config(*names: str, **settings) -> BertConfig:
    if names:
        settings["id2label"] = dict(enumerate(names))
        settings["label2id"] = {name: index for index, name in enumerate(names)}
    return BertConfig(**SMALL, vocab_size=20, **settings)


def bert(**settings) -> BertForSequenceClassification:
    return BertForSequenceClassification(config(**settings))


def roberta(positions: int) -> RobertaForSequenceClassification:
    return RobertaForSequenceClassification(
        RobertaConfig(**SMALL, vocab_size=20, max_position_embeddings=positions, pad_token_id=1)
    )


def gpt2(positions: int) -> GPT2LMHeadModel:
    ids = {"bos_token_id": 1, "eos_token_id": 2}
    return GPT2LMHeadModel(
        GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=20, n_positions=positions, **ids)
    )


def modernbert(positions: int) -> ModernBertForSequenceClassification:
    ids = {f"{name}_token_id": 0 for name in ("pad", "bos", "eos", "cls", "sep")}
    return ModernBertForSequenceClassification(
        ModernBertConfig(**SMALL, vocab_size=20, max_position_embeddings=positions, **ids)
    )


def tokenizer_of(words: list[str], **options) -> PreTrainedTokenizerFast:
    core = Tokenizer(
        WordPiece({token: i for i, token in enumerate(["[PAD]", "[UNK]", *words])}, unk_token="[UNK]")
    )
    core.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", **options)


def saved_bert(folder, tokenizer=None, **settings) -> BertForSequenceClassification:
    """A model that knows the folder it came from, with the tokenizer beside it."""
    bert(**settings).save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return BertForSequenceClassification.from_pretrained(folder)


# ---- labels --------------------------------------------------------------------------


def test_another_number_of_labels():
    with pytest.raises(
        ValueError, match=r"expected .*the student's 2 labels, received one with 3.*num_labels=3"
    ):
        label_order(config(num_labels=2), config(num_labels=3))


def test_equal_names_need_no_permutation():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert label_order(config("no", "maybe", "yes"), config("no", "maybe", "yes")) is None


def test_permuted_names_give_the_teachers_index_of_each_of_the_students_classes():
    order = label_order(config("a", "b", "c"), config("c", "a", "b"))
    assert order == [1, 2, 0]
    teacher_names = ["c", "a", "b"]
    assert [teacher_names[index] for index in order] == ["a", "b", "c"]


def test_other_names():
    with pytest.raises(
        ValueError, match=r"expected .*\['no', 'yes'\], received \['neg', 'pos'\].*same id2label"
    ):
        label_order(config("no", "yes"), config("neg", "pos"))


def test_a_name_used_twice_is_not_permuted():
    with pytest.raises(ValueError, match="label names"):
        label_order(config("a", "a", "b"), config("a", "b", "a"))


@pytest.mark.parametrize(
    ("student", "teacher", "who"), [((), ("no", "yes"), "student"), (("no", "yes"), (), "teacher")]
)
def test_one_without_names_warns_and_says_which(student, teacher, who):
    with pytest.warns(
        UserWarning, match=f"order of the labels can't be checked.*the {who} has no label names"
    ):
        assert label_order(config(*student), config(*teacher)) is None


def test_many_names_are_shortened():
    names = [f"n{i}" for i in range(50)]
    with pytest.raises(ValueError, match=r"\(50\)") as caught:
        label_order(config(*names), config(*[name.upper() for name in names]))
    assert len(str(caught.value)) < 500


def test_one_label_has_no_order():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert label_order(config(num_labels=1), config("score")) is None


# ---- heads --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        (bert(num_labels=3), bert(num_labels=3)),
        (bert(num_labels=1), bert(num_labels=1)),
        (bert(num_labels=1), bert(num_labels=1, problem_type="regression")),
        (bert(num_labels=3, problem_type="multi_label_classification"), bert(num_labels=3)),
        (bert(num_labels=3, problem_type="regression"), bert(num_labels=3)),
        (bert(num_labels=3), roberta(16)),
        (gpt2(16), LlamaForCausalLM(LlamaConfig(**SMALL, vocab_size=20))),
    ],
)
def test_heads_that_fit(student, teacher):
    assert check_heads(student, teacher, head_of(student)) is None


def test_the_students_labels_may_have_told_its_kind():
    student = bert(num_labels=3)
    assert check_heads(student, bert(num_labels=3), head_of(student, [0.0, 1.0, 0.0])) is None
    with pytest.raises(ValueError, match=r"multi_label, per example.*single_label, per example"):
        check_heads(
            student, bert(num_labels=3, problem_type="single_label_classification"), Head("multi_label")
        )


@pytest.mark.parametrize(
    ("student", "teacher", "expected", "received"),
    [
        (bert(num_labels=2), bert(num_labels=1), "single_label, per example", "regression, per example"),
        (
            bert(num_labels=1),
            bert(num_labels=2, problem_type="single_label_classification"),
            "regression",
            "single",
        ),
        (bert(), BertForTokenClassification(config()), "per example", "single_label, per position"),
        (BertForMaskedLM(config()), gpt2(16), "per position", "per position, shifted"),
    ],
)
def test_heads_that_do_not_fit(student, teacher, expected, received):
    with pytest.raises(
        ValueError, match=rf"heads: expected .*{expected}.*received .*{received}.*problem_type"
    ):
        check_heads(student, teacher, head_of(student))


def test_a_teacher_of_spans_is_no_classifiers():
    student = BertForQuestionAnswering(config())
    check_heads(student, student, head_of(student))
    other = BertForTokenClassification(config())
    with pytest.raises(
        ValueError, match=r"the start and the end of a span.*received BertForTokenClassification"
    ):
        check_heads(student, other, head_of(student))


# ---- vocabulary ------------------------------------------------------------------------


def test_the_same_tokens_under_the_same_ids(tmp_path):
    teacher = saved_bert(tmp_path, tokenizer_of(WORDS))
    assert check_vocabulary(tokenizer_of(WORDS), teacher) is None


def test_a_teacher_may_know_more_tokens(tmp_path):
    teacher = saved_bert(tmp_path, tokenizer_of([*WORDS, "more"]))
    assert check_vocabulary(tokenizer_of(WORDS), teacher) is None


def test_the_same_size_is_not_the_same_vocabulary(tmp_path):
    teacher = saved_bert(tmp_path, tokenizer_of(["a", "c", "b", "##d"]))
    with pytest.raises(
        ValueError, match=r"2 of 6 tokens differ: 'b' is 3 .*student and 4 .*teacher"
    ) as caught:
        check_vocabulary(tokenizer_of(WORDS), teacher)
    assert "teacher_processing_class=" in str(caught.value)


def test_a_token_that_the_teacher_lacks(tmp_path):
    teacher = saved_bert(tmp_path, tokenizer_of(WORDS))
    with pytest.raises(ValueError, match=r"1 of 7 tokens differ: 'new' is 6 for the student and None"):
        check_vocabulary(tokenizer_of([*WORDS, "new"]), teacher)


def test_without_a_tokenizer_the_size_is_compared():
    assert check_vocabulary(tokenizer_of(WORDS), bert()) is None
    with pytest.raises(
        ValueError, match=r"ids below the teacher's 20 embeddings.*ids up to 31.*teacher_processing"
    ):
        check_vocabulary(tokenizer_of([f"w{i}" for i in range(30)]), bert())


def test_a_folder_without_a_tokenizer_is_no_other_vocabulary(tmp_path):
    assert check_vocabulary(tokenizer_of(WORDS), saved_bert(tmp_path)) is None


def test_a_folder_that_is_gone_is_no_other_vocabulary(tmp_path):
    teacher = bert()
    teacher.name_or_path = str(tmp_path / "gone")
    assert check_vocabulary(tokenizer_of(WORDS), teacher) is None


@pytest.mark.parametrize("processor", [None, SimpleNamespace(image_mean=[0.5])])
def test_what_is_no_tokenizer_is_not_checked(processor):
    assert check_vocabulary(processor, bert()) is None


# ---- lengths --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "longest"),
    [
        (bert(max_position_embeddings=64), 64),
        (roberta(66), 64),
        (gpt2(64), 64),
        (modernbert(64), 64),
        (LlamaForCausalLM(LlamaConfig(**SMALL, vocab_size=20, max_position_embeddings=64)), 64),
        (T5Model(T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=1, vocab_size=20)), None),
        (ViTForImageClassification(ViTConfig(**SMALL, image_size=8, patch_size=4)), None),
        (None, None),
    ],
)
def test_longest_input(model, longest):
    assert longest_input(model) == longest


@pytest.mark.parametrize(
    ("model", "limit"), [(bert(max_position_embeddings=8), 8), (roberta(8), 6), (gpt2(8), 8)]
)
def test_longest_input_is_what_the_model_really_reads(model, limit):
    import torch

    with torch.no_grad():
        assert model.eval()(input_ids=torch.full((1, limit), 5)).logits.isfinite().all()
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, limit + 1), 5))


def data(*lengths: int) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"input_ids": [[1] * length for length in lengths]})


def check(student_limit: int, teacher_limit: int, tokenizer=None, sets=()) -> None:
    student, teacher = (
        bert(max_position_embeddings=student_limit),
        bert(max_position_embeddings=teacher_limit),
    )
    check_lengths(student, teacher, tokenizer, sets)


def test_the_data_decides_where_it_can_be_measured():
    assert check(64, 8, sets=[data(3, 8)]) is None
    with pytest.raises(
        ValueError, match=r"at most 8 tokens.*received 9 \(the data's longest input\).*Truncate at 8"
    ):
        check(64, 8, sets=[data(3), data(9, 2)])


def test_views_of_the_data_are_measured_as_they_are():
    whole = data(3, 20, 5)
    assert check(64, 8, sets=[whole.select([0, 2])]) is None
    with pytest.raises(ValueError, match="received 20"):
        check(64, 8, sets=[whole.select([1])])


def test_data_in_torch_format_is_measured():
    with pytest.raises(ValueError, match="received 9"):
        check(64, 8, sets=[data(9).with_format("torch")])


@pytest.mark.parametrize("sets", [[], [data()], [data(3).remove_columns("input_ids")]])
def test_without_measures_the_limits_decide(sets):
    with pytest.raises(ValueError, match=r"at most 8 tokens.*received 64 \(what the student accepts\)"):
        check(64, 8, sets=sets)
    assert check(8, 64, sets=sets) is None


def test_the_tokenizers_limit_counts():
    assert check(64, 8, tokenizer_of(WORDS, model_max_length=8)) is None
    with pytest.raises(ValueError, match="received 16"):
        check(64, 8, tokenizer_of(WORDS, model_max_length=16))
    with pytest.raises(ValueError, match="received 64"):
        check(64, 8, tokenizer_of(WORDS))


def test_a_teacher_without_a_limit_reads_anything():
    teacher = T5Model(T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=1, vocab_size=20))
    assert check_lengths(bert(), teacher, None, [data(5000)]) is None


def test_a_streamed_set_can_not_be_measured():
    stream = data(9).to_iterable_dataset()
    assert check(8, 8, sets=[stream]) is None


# ---- what a model must have ----------------------------------------------------------


def test_a_student_without_a_config():
    with pytest.raises(
        ValueError, match=r"model: expected a transformers model.*received Linear without a config"
    ):
        check_has_config(torch.nn.Linear(2, 2))
    check_has_config(bert())


def test_a_teacher_without_weights(tmp_path):
    with torch.device("meta"):
        empty = tiny_bert(2)
    with pytest.raises(
        ValueError, match="teacher: expected a model with weights, received one on the meta device"
    ):
        DistillationTrainer(
            tiny_bert(), empty, arguments(tmp_path), train_dataset=examples(2), data_collator=collate
        )


def test_a_tokenizer_that_cannot_pad_for_the_teacher(tmp_path):
    data = datasets.Dataset.from_dict(
        {"text": ["a"], "input_ids": [[1]], "attention_mask": [[1]], "labels": [0]}
    )
    without = tokenizer_of(WORDS)
    without.pad_token = None
    with pytest.raises(ValueError, match=r"a tokenizer that can pad.*Set tokenizer\.pad_token"):
        DistillationTrainer(
            tiny_bert(),
            tiny_bert(2),
            arguments(tmp_path),
            train_dataset=data,
            data_collator=collate,
            teacher_processing_class=without,
        )


def test_a_student_whose_forward_names_nothing_reads_what_it_would_under_trainer(tmp_path):
    class Wrapped(BertForSequenceClassification):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    rows, args = examples(8), arguments(tmp_path, remove_unused_columns=False)
    losses = []
    for kind in (BertForSequenceClassification, Wrapped):
        trainer = DistillationTrainer(
            kind(tiny_bert().config).eval(),
            classifier("bert", 2),
            args,
            train_dataset=rows,
            data_collator=collate,
        )
        trainer.model.load_state_dict(tiny_bert().state_dict())
        losses.append(trainer.train().training_loss)
    assert losses[0] == losses[1]


def test_language_models_with_other_numbers_of_tokens():
    small, large = (
        GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=size)) for size in (20, 24)
    )
    with pytest.raises(
        ValueError, match=r"student's 20 tokens.*with 24.*student.resize_token_embeddings\(24\)"
    ):
        check_outputs(small, large)
    with pytest.raises(ValueError, match=r"teacher.resize_token_embeddings\(24\)"):
        check_outputs(large, small)
    check_outputs(small, small)


def test_a_teacher_of_the_last_token_does_not_read_the_padding(tmp_path, caplog):
    teacher = classifier("gpt2", 2)
    teacher.config.pad_token_id = 7
    tokenizer = tokenizer_of(WORDS)
    rows = examples(2)
    del rows[0]["input_ids"][3:], rows[0]["attention_mask"][3:]
    trainer = DistillationTrainer(
        tiny_bert(),
        teacher,
        arguments(tmp_path),
        train_dataset=rows,
        data_collator=collate,
        processing_class=tokenizer,
    )
    assert teacher.config.pad_token_id == tokenizer.pad_token_id
    together, alone = collate(rows), collate(rows[:1])
    assert together["input_ids"].shape[1] > alone["input_ids"].shape[1]
    with torch.no_grad():
        padded, bare = (trainer.teacher(batch).logits[0] for batch in (together, alone))
    torch.testing.assert_close(padded, bare)
