"""A model as a teacher: frozen, in eval mode, fed without labels, permuted, and loaded by name."""

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForTokenClassification,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    ModernBertConfig,
    ModernBertForQuestionAnswering,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput

from hf_distill.teachers import Teacher, TeacherSignals
from hf_distill.teachers.online import (
    OnlineTeacher,
    add_decoder_inputs,
    load_teacher_model,
    load_trained_model,
    logits_of,
)

SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
BERT = {**SMALL, "vocab_size": 20}
BATCH = {
    "input_ids": torch.tensor([[2, 5, 3], [2, 7, 3]]),
    "attention_mask": torch.ones(2, 3, dtype=torch.long),
}


def bert(**config) -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**BERT, **config))


def distilbert() -> DistilBertForSequenceClassification:
    sizes = {"dim": 8, "hidden_dim": 8, "n_layers": 1, "n_heads": 1, "vocab_size": 20}
    return DistilBertForSequenceClassification(DistilBertConfig(**sizes))


def t5() -> T5ForConditionalGeneration:
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 1, "vocab_size": 20}
    return T5ForConditionalGeneration(T5Config(decoder_start_token_id=0, pad_token_id=0, **sizes))


def gpt2() -> GPT2LMHeadModel:
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 1, "n_positions": 16, "vocab_size": 20}
    return GPT2LMHeadModel(GPT2Config(bos_token_id=1, eos_token_id=2, **sizes))


def bart() -> BartForConditionalGeneration:
    heads = {"encoder_attention_heads": 1, "decoder_attention_heads": 1}
    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    return BartForConditionalGeneration(BartConfig(d_model=8, vocab_size=20, **heads, **layers))


class Spy(nn.Module):
    """Remembers what its forward is given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3)

    def forward(self, x, labels=None, use_cache=None):
        self.seen = {"labels": labels, "use_cache": use_cache, "training": self.training}
        self.seen["grad"], self.seen["autocast"] = torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")
        return SequenceClassifierOutput(logits=self.layer(x))


# ---- asking -------------------------------------------------------------------------


def test_is_a_teacher_and_answers_signals():
    teacher = OnlineTeacher(bert(num_labels=3))
    assert isinstance(teacher, Teacher)
    signals = teacher(BATCH)
    assert isinstance(signals, TeacherSignals)
    assert signals.logits.shape == (2, 3)
    assert {"input_ids", "token_type_ids"} <= teacher.columns


def test_is_frozen_and_in_eval_mode_and_keeps_no_graph():
    model = bert().train()
    teacher = OnlineTeacher(model)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(module.training for module in model.modules())
    assert not teacher(BATCH).logits.requires_grad


def test_goes_back_to_eval_mode_when_something_put_it_in_training():
    model = bert(hidden_dropout_prob=0.5)
    teacher = OnlineTeacher(model)
    expected = teacher(BATCH).logits
    model.train()
    assert torch.equal(teacher(BATCH).logits, expected)
    assert not model.training


def test_draws_no_random_number():
    teacher = OnlineTeacher(bert(hidden_dropout_prob=0.5))
    before = torch.random.get_rng_state()
    teacher(BATCH)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_forward_sees_no_label_no_cache_and_no_grad():
    spy = Spy()
    OnlineTeacher(spy)({"x": torch.zeros(1, 2), "labels": torch.tensor([1])})
    assert spy.seen == {
        "labels": None,
        "use_cache": False,
        "training": False,
        "grad": False,
        "autocast": False,
    }


def test_runs_in_autocast_where_wanted():
    spy = Spy()
    signals = OnlineTeacher(spy, autocast=lambda: torch.autocast("cpu", torch.bfloat16))(
        {"x": torch.zeros(1, 2)}
    )
    assert spy.seen["autocast"]
    assert signals.logits.dtype == torch.bfloat16
    assert signals.log_probs(2.0).dtype == torch.float32


def test_the_batch_is_left_as_it_is():
    batch = {**BATCH, "labels": torch.tensor([0, 1])}
    OnlineTeacher(bert())(batch)
    assert set(batch) == {*BATCH, "labels"}


def test_classes_come_in_the_students_order():
    model = bert(num_labels=3)
    plain, permuted = (
        OnlineTeacher(model)(BATCH).logits,
        OnlineTeacher(model, label_order=[2, 0, 1])(BATCH).logits,
    )
    # label_order[c] is the teacher's index of the student's class c.
    assert torch.equal(permuted, torch.stack([plain[:, 2], plain[:, 0], plain[:, 1]], -1))


def test_names():
    assert OnlineTeacher(bert(), name="org/teacher").name == "org/teacher"
    assert OnlineTeacher(bert()).name == "BertForSequenceClassification"
    assert OnlineTeacher(Spy()).name == "Spy"


def test_moves_unless_a_device_map_placed_it():
    meta = torch.device("meta")
    assert next(OnlineTeacher(Spy()).to(meta).model.parameters()).device == meta
    placed = Spy()
    placed.hf_device_map = {"": "cpu"}
    assert next(OnlineTeacher(placed).to(meta).model.parameters()).device.type == "cpu"


# ---- encoder-decoders -----------------------------------------------------------------


def test_a_decoder_reads_inputs_made_from_the_labels():
    model = t5()
    labels = torch.tensor([[5, 6, 1], [7, 1, -100]])
    got = OnlineTeacher(model)({**BATCH, "labels": labels}).logits
    decoder_inputs = torch.tensor([[0, 5, 6], [0, 7, 1]])
    with torch.no_grad():
        expected = model(**BATCH, decoder_input_ids=decoder_inputs, use_cache=False).logits
    assert torch.equal(got, expected)


def test_decoder_inputs_that_are_there_stay():
    inputs = {"decoder_input_ids": "ready"}
    add_decoder_inputs(t5(), inputs, torch.tensor([[5, 6]]))
    assert inputs == {"decoder_input_ids": "ready"}


@pytest.mark.parametrize("build", [bert, Spy])
def test_other_models_get_no_decoder_inputs(build):
    inputs: dict = {}
    add_decoder_inputs(build(), inputs, torch.tensor([1]))
    assert inputs == {}


# ---- logits of an output -----------------------------------------------------------------


@pytest.mark.parametrize(
    "output",
    [
        SequenceClassifierOutput(logits=torch.ones(2, 3)),
        {"logits": torch.ones(2, 3)},
        (torch.ones(2, 3), "hidden states"),
        (torch.tensor(0.5), torch.ones(2, 3)),
    ],
)
def test_logits_are_found(output):
    assert torch.equal(logits_of(output, "teacher"), torch.ones(2, 3))


@pytest.mark.parametrize(
    "output",
    [BaseModelOutput(last_hidden_state=torch.ones(2, 3)), {"logits": (torch.ones(1),) * 2}, "nothing"],
)
def test_outputs_without_logits_say_what_they_hold(output):
    with pytest.raises(ValueError, match=r"teacher: expected an output with one tensor of logits, received"):
        logits_of(output, "teacher")


def test_a_headless_teacher_is_refused_when_asked():
    with pytest.raises(ValueError, match=r"last_hidden_state.*AutoModelForSequenceClassification"):
        OnlineTeacher(BertModel(BertConfig(**BERT)))(BATCH)


# ---- loaded by name --------------------------------------------------------------------


@pytest.mark.parametrize("build", [bert, t5, gpt2, bart, lambda: BertForMaskedLM(BertConfig(**BERT))])
def test_a_saved_model_is_loaded_with_the_students_kind_of_head(tmp_path, build):
    saved = build()
    saved.save_pretrained(tmp_path)
    loaded = load_teacher_model(tmp_path, build())
    assert type(loaded) is type(saved)
    for (name, expected), value in zip(saved.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(expected, value), name


def test_the_students_head_decides_and_the_teachers_config_the_rest(tmp_path):
    bert(num_labels=3).save_pretrained(tmp_path)
    loaded = load_teacher_model(str(tmp_path), distilbert())
    assert isinstance(loaded, BertForSequenceClassification)
    assert loaded.config.num_labels == 3


def test_images_too(tmp_path):
    model = ViTForImageClassification(ViTConfig(**SMALL, image_size=8, patch_size=4))
    model.save_pretrained(tmp_path)
    assert isinstance(load_teacher_model(tmp_path, model), ViTForImageClassification)


@pytest.mark.parametrize(("dtype", "expected"), [("bfloat16", torch.bfloat16), ("float32", torch.float32)])
def test_dtype_is_set(tmp_path, dtype, expected):
    bert().save_pretrained(tmp_path)
    assert load_teacher_model(tmp_path, bert(), dtype=dtype).dtype == expected


@pytest.mark.parametrize("dtype", [None, "auto"])
def test_auto_takes_the_dtype_that_was_saved(tmp_path, dtype):
    bert().to(torch.bfloat16).save_pretrained(tmp_path)
    assert load_teacher_model(tmp_path, bert(), dtype=dtype).dtype == torch.bfloat16


def test_attention_kernel_is_set(tmp_path):
    bert().save_pretrained(tmp_path)
    loaded = load_teacher_model(tmp_path, bert(), attn_implementation="eager")
    assert loaded.config._attn_implementation == "eager"


@pytest.mark.parametrize("dtype", ["float3", "nn", "fp16"])
def test_what_is_no_dtype(tmp_path, dtype):
    with pytest.raises(ValueError, match=r"teacher_dtype: expected auto, float32.*received"):
        load_teacher_model(tmp_path, bert(), dtype=dtype)


NOT_A_MODEL = r"teacher: expected the id of a Hub model or a folder.*received"


def test_a_folder_that_is_not_there(tmp_path):
    for name in (tmp_path / "nowhere", "./nowhere", "runs/one/teacher"):
        with pytest.raises(ValueError, match=rf"{NOT_A_MODEL} '{name}', a folder that is not there\.$"):
            load_teacher_model(name, bert())


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(ValueError, match=NOT_A_MODEL):
        load_teacher_model(tmp_path, bert())


def test_a_head_that_was_never_trained(tmp_path):
    BertModel(BertConfig(**BERT)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no trained weights for classifier\.bias.*Fine-tune the teacher"):
        load_teacher_model(tmp_path, bert())


def test_a_head_of_another_task_is_refused_though_its_weights_fit(tmp_path):
    """A ModernBERT's tags and its ends of answers are both two outputs of a layer called classifier."""
    special = {f"{name}_token_id": number for number, name in enumerate(("pad", "bos", "eos", "cls", "sep"))}
    sizes = {**SMALL, "num_attention_heads": 2, "vocab_size": 60, **special}
    ModernBertForQuestionAnswering(ModernBertConfig(**sizes)).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"to be a ModernBertForTokenClassification, received a ModernBertForQ"
    ):
        load_trained_model(tmp_path, AutoModelForTokenClassification)
    assert load_trained_model(tmp_path, AutoModelForQuestionAnswering).config.hidden_size == 8
    BertForPreTraining(BertConfig(**BERT)).save_pretrained(tmp_path / "before")
    assert load_trained_model(tmp_path / "before", AutoModelForMaskedLM), "its masked head is whole"


def test_a_student_that_no_auto_class_builds(tmp_path):
    bert().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no Auto class has the head of Spy.*Load it yourself"):
        load_teacher_model(tmp_path, Spy())


def test_an_adapter_stands_for_its_base(tmp_path):
    class Adapter(nn.Module):
        def get_base_model(self):
            return bert()

    bert(num_labels=3).save_pretrained(tmp_path)
    assert load_teacher_model(tmp_path, Adapter()).config.num_labels == 3
