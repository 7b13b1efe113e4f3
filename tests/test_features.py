"""What is noted of models' insides is what they compute, and nothing of it stays behind."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    AutoModelForSequenceClassification,
    DebertaV2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    T5Config,
    T5ForSequenceClassification,
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hf_distill.attention_inputs import AttentionInputs
from hf_distill.features import FeatureNeeds, ModelShape, attended_positions, observed, shape_of
from tests.tiny import SIZES, bert, classifier, collate, examples

TEXT = ("bert", "distilbert", "roberta", "modernbert", "gpt2", "llama", "llama_grouped", "mistral_window")
KERNELS = ("eager", "sdpa")
BOTH_LAYERS = FeatureNeeds(frozenset({0, 1, 2}), frozenset({1, 2}))


def from_config(config: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(config)


def model_of(name: str) -> Any:
    common = {**SIZES, "num_hidden_layers": 2, "pad_token_id": 0}
    if name == "llama_grouped":
        return from_config(LlamaConfig(**{**common, "num_attention_heads": 4}, num_key_value_heads=2))
    if name == "mistral_window":
        return from_config(MistralConfig(**common, num_key_value_heads=1, sliding_window=2))
    if name == "modernbert":
        return classifier(name, 2, local_attention=4, global_attn_every_n_layers=2)
    return classifier(name, 2)


def batch_of(name: str, padded: bool = True) -> dict[str, torch.Tensor]:
    rows = examples(3, "image" if name == "vit" else "single_label")
    if not padded and name != "vit":
        rows = [{**row, "input_ids": row["input_ids"][:3], "attention_mask": [1] * 3} for row in rows]
    batch = collate(rows)
    del batch["labels"]
    return batch


def look(model: Any, needs: FeatureNeeds, batch: dict[str, torch.Tensor]) -> tuple[Any, Any]:
    with observed(model, needs) as seen:
        outputs = model(**batch)
    return outputs, seen.features(model, outputs, batch)


def probabilities(inputs: AttentionInputs) -> torch.Tensor:
    """Attention as the definition has it: softmax over the allowed keys."""
    return torch.softmax(inputs.scores().masked_fill(~inputs.allowed, -torch.inf), -1)


# ---- what is noted ---------------------------------------------------------------------------


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", [*TEXT, "vit"])
def test_recorded_attention_is_the_models_own(name: str, kernel: str, padded: bool) -> None:
    model = model_of(name).eval()
    batch = batch_of(name, padded)
    model.set_attn_implementation("eager")
    expected = model(**batch, output_attentions=True, output_hidden_states=True)
    model.set_attn_implementation(kernel)
    outputs, features = look(model, BOTH_LAYERS, batch)
    torch.testing.assert_close(outputs.logits, expected.logits, rtol=1e-4, atol=1e-6)
    for layer in (1, 2):
        own = expected.attentions[layer - 1].transpose(1, 2)[features.attended]  # (tokens, heads, keys)
        got = probabilities(features.attention[layer]).transpose(1, 2)[features.attended]
        torch.testing.assert_close(got, own, rtol=1e-4, atol=1e-6)
        value = features.attention[layer].value
        assert value.shape == features.attention[layer].query.shape == features.attention[layer].key.shape
    for number in (0, 1, 2):
        own = expected.hidden_states[number][features.attended]
        torch.testing.assert_close(features.tokens(number), own, rtol=1e-4, atol=1e-6)


def test_causal_masks_and_pads_are_in_what_is_allowed() -> None:
    batch = {
        "input_ids": torch.tensor([[5, 6, 7], [8, 9, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
    }
    triangle = torch.ones(3, 3, dtype=torch.bool).tril()
    for kernel in KERNELS:
        for name, seen in (("gpt2", triangle), ("bert", torch.ones(3, 3, dtype=torch.bool))):
            model = classifier(name, 2)
            model.set_attn_implementation(kernel)
            _, features = look(model, BOTH_LAYERS, batch)
            allowed = features.attention[2].allowed[:, 0]
            assert torch.equal(allowed[0], seen)
            assert torch.equal(allowed[1][:2], seen[:2] & torch.tensor([True, True, False]))


def test_left_padding_is_attended_from_where_the_text_begins() -> None:
    batch = {"input_ids": torch.tensor([[0, 5, 6]]), "attention_mask": torch.tensor([[0, 1, 1]])}
    model = classifier("gpt2", 2).eval()
    _, features = look(model, BOTH_LAYERS, batch)
    assert features.attended.tolist() == [[False, True, True]]
    assert features.attention[1].allowed[0, 0, 1:].tolist() == [[False, True, False], [False, True, True]]


@pytest.mark.parametrize("kernel", KERNELS)
def test_graph_reaches_the_student_through_what_is_noted(kernel: str) -> None:
    model = bert(2)
    model.set_attn_implementation(kernel)
    _, features = look(model, BOTH_LAYERS, batch_of("bert"))
    features.attention[1].scores().sum().backward()
    assert model.bert.encoder.layer[0].attention.self.query.weight.grad.abs().max() > 0


def test_the_first_of_two_forwards_is_kept() -> None:
    model, batch = bert(2), batch_of("bert")
    with observed(model, BOTH_LAYERS) as seen:
        outputs = model(**batch)
        model(**batch_of("bert", padded=False))
    features = seen.features(model, outputs, batch)
    assert features is not None
    assert features.attention[1].query.shape[2] == batch["input_ids"].shape[1]


def test_only_what_is_asked_for_is_kept() -> None:
    _, features = look(bert(2), FeatureNeeds(frozenset({2}), frozenset({1})), batch_of("bert"))
    assert set(features.hidden_states) == {2}
    assert set(features.attention) == {1}


# ---- nothing stays behind --------------------------------------------------------------------


@pytest.mark.parametrize(
    "needs", [FeatureNeeds(), FeatureNeeds(frozenset({1})), FeatureNeeds(attention=frozenset({1}))]
)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("fails", [False, True])
def test_config_and_attention_functions_are_left_as_they_were(
    needs: FeatureNeeds, kernel: str, fails: bool
) -> None:
    model = bert(2)
    model.set_attn_implementation(kernel)
    config = copy.deepcopy(model.config.to_dict())
    functions = [dict(ALL_ATTENTION_FUNCTIONS._global_mapping), dict(ALL_ATTENTION_FUNCTIONS._local_mapping)]
    attributes = set(vars(model.config))
    try:
        with observed(model, needs):
            model(**batch_of("bert"))
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert model.config.to_dict() == config
    assert set(vars(model.config)) == attributes
    after = [dict(ALL_ATTENTION_FUNCTIONS._global_mapping), dict(ALL_ATTENTION_FUNCTIONS._local_mapping)]
    assert after == functions
    assert model.config._attn_implementation == kernel


def test_someones_own_attention_function_is_called_and_put_back() -> None:
    model, calls = bert(2), []

    def own(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return ALL_ATTENTION_FUNCTIONS._global_mapping["sdpa"](*args, **kwargs)

    ALL_ATTENTION_FUNCTIONS["sdpa"] = own
    try:
        look(model, BOTH_LAYERS, batch_of("bert"))
        assert len(calls) == 2
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is own
    finally:
        del ALL_ATTENTION_FUNCTIONS["sdpa"]


def test_a_models_attention_class_of_the_users_own_still_finds_eager_attention() -> None:
    from transformers.models.bert.modeling_bert import BertSelfAttention

    class Own(BertSelfAttention):
        """Lies in this file, which has no eager_attention_forward."""

    model = bert(2)
    model.set_attn_implementation("eager")
    for layer in model.bert.encoder.layer:
        layer.attention.self.__class__ = Own
    _, features = look(model, BOTH_LAYERS, batch_of("bert"))
    assert set(features.attention) == {1, 2}


def test_nothing_is_noted_or_returned_where_nobody_asks() -> None:
    model, batch = bert(2), batch_of("bert")
    with observed(model, FeatureNeeds()) as seen:
        outputs = model(**batch)
    assert outputs.hidden_states is None
    assert outputs.attentions is None
    assert seen.attention == {}
    assert seen.features(model, outputs, batch) is None


def test_attention_alone_returns_no_hidden_states_and_never_attentions() -> None:
    outputs, features = look(bert(2), FeatureNeeds(attention=frozenset({2})), batch_of("bert"))
    assert outputs.hidden_states is None
    assert outputs.attentions is None
    assert features.hidden_states == {}


# ---- what can't be noted ---------------------------------------------------------------------


def test_attention_that_bypasses_the_interface_is_refused() -> None:
    model = from_config(DebertaV2Config(**{**SIZES, "num_hidden_layers": 2, "pad_token_id": 0}))
    model.config._attn_implementation = "eager"
    with pytest.raises(
        ValueError, match=r"queries and keys of layers \[1, 2\] of DebertaV2.*Use hidden_states"
    ):
        look(model, BOTH_LAYERS, batch_of("bert"))
    outputs, features = look(model, FeatureNeeds(frozenset({2})), batch_of("bert"))
    assert torch.equal(features.hidden_states[2], outputs.hidden_states[2])


def test_kernels_that_hide_masks_are_refused() -> None:
    model = bert(2)
    model.config._attn_implementation = "flash_attention_2"
    with (
        pytest.raises(ValueError, match=r"attn_implementation: expected eager or sdpa.*flash_attention_2"),
        observed(model, BOTH_LAYERS),
    ):
        pass
    with observed(model, FeatureNeeds(frozenset({1}))):
        pass


def test_encoder_decoders_and_models_in_stages_are_refused() -> None:
    t5 = T5ForSequenceClassification(
        T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=50)
    )
    with pytest.raises(
        ValueError, match=r"teacher: expected a model with one stack of layers.*T5ForSequence"
    ):
        shape_of(t5, "teacher")
    with pytest.raises(ValueError, match=r"student: expected a model with one stack of layers.*Linear"):
        shape_of(torch.nn.Linear(1, 1), "student")


def test_a_model_that_gives_no_hidden_states_is_refused() -> None:
    model, batch = bert(2), batch_of("bert")
    with observed(model, FeatureNeeds(frozenset({1}))) as seen:
        pass
    with pytest.raises(
        ValueError, match="hidden states: expected BertForSequenceClassification to return them"
    ):
        seen.features(model, model(**batch), batch)


# ---- sizes -----------------------------------------------------------------------------------


def test_sizes_go_by_the_names_of_each_config() -> None:
    assert shape_of(classifier("gpt2", 2), "x") == ModelShape(2, 16, 2)
    assert shape_of(classifier("distilbert", 2), "x") == ModelShape(2, 16, 2)
    assert shape_of(model_of("llama_grouped"), "x").attention_width == 16
    wide = from_config(LlamaConfig(**SIZES, num_hidden_layers=1, head_dim=12, pad_token_id=0))
    assert shape_of(wide, "x").attention_width == 24
    assert shape_of(from_config(GPT2Config(n_embd=8, n_layer=1, n_head=2)), "x").attention_width == 8


def test_the_map_of_a_cut_student_is_read_back() -> None:
    model = bert(2)
    model.config.distilled_from_layers = [0, 3]
    assert shape_of(model, "x").cut_from == (0, 3)
    model.config.distilled_from_layers = [0, 3, 5]  # of another depth: not this model's
    assert shape_of(model, "x").cut_from is None
    model.config.distilled_from_layers = {"encoder": [0], "decoder": [1]}
    assert shape_of(model, "x").cut_from is None


# ---- positions -------------------------------------------------------------------------------


def test_without_a_mask_every_position_is_attended() -> None:
    batch = {"input_ids": torch.ones(2, 3, dtype=torch.long)}
    assert attended_positions(bert(), batch, 3).tolist() == [[True] * 3] * 2
    images = {"pixel_values": torch.zeros(2, 3, 8, 8)}
    assert attended_positions(classifier("vit"), images, 5).tolist() == [[True] * 5] * 2


def test_a_mask_is_read_as_it_is() -> None:
    mask = torch.tensor([[0, 1, 1], [1, 1, 0]])
    assert attended_positions(bert(), {"attention_mask": mask}, 3).tolist() == mask.bool().tolist()


def test_a_mask_of_another_length_is_refused() -> None:
    with pytest.raises(
        ValueError, match="attention_mask: expected one entry for each of the 5 positions, received 3"
    ):
        attended_positions(bert(), {"attention_mask": torch.ones(2, 3)}, 5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_mask_over_samples_is_translated_to_positions(kernel: str) -> None:
    torch.manual_seed(0)
    model = Wav2Vec2ForSequenceClassification(
        Wav2Vec2Config(
            vocab_size=10, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
            conv_dim=(8, 8), conv_kernel=(4, 4), conv_stride=(4, 4), num_feat_extract_layers=2,
            num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, classifier_proj_size=8,
            feat_extract_norm="layer", do_stable_layer_norm=True, apply_spec_augment=False,
        )
    ).eval()  # fmt: skip
    model.set_attn_implementation(kernel)
    mask = torch.ones(2, 160, dtype=torch.long)
    mask[1, 80:] = 0
    batch = {"input_values": torch.randn(2, 160), "attention_mask": mask}
    outputs, features = look(model, BOTH_LAYERS, batch)
    assert features.attended.shape == outputs.hidden_states[1].shape[:2] == (2, 10)
    assert features.attended.sum(-1).tolist() == [10, 5]
    assert features.attention[2].allowed[1, 0].any(-2).sum() == 5


# ---- selecting -------------------------------------------------------------------------------


def test_selected_examples_keep_all_of_their_own() -> None:
    _, features = look(bert(2), BOTH_LAYERS, batch_of("bert"))
    first = features.select(slice(0, 1))
    assert torch.equal(first.hidden_states[2], features.hidden_states[2][:1])
    assert torch.equal(first.attention[2].allowed, features.attention[2].allowed[:1])
    assert first.attended.shape[0] == first.attention[1].query.shape[0] == 1
    assert first.shape == features.shape


def test_shared_layers_are_refused_for_what_they_are() -> None:
    sizes = {**SIZES, "embedding_size": 8, "num_hidden_layers": 3}
    model = AlbertForSequenceClassification(AlbertConfig(**sizes)).eval()
    batch = {name: value for name, value in collate(examples(2)).items() if name != "labels"}
    with observed(model, FeatureNeeds(attention=frozenset({3}))) as seen:
        outputs = model(**batch)
    with pytest.raises(ValueError, match="received none: its layers share 1 attention modules"):
        seen.features(model, outputs, batch)
