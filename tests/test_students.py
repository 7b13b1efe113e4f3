"""Students from teachers: every promised architecture, on tiny configs and real forward passes."""

import copy
import itertools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn

from hf_distill.students import evenly_spaced_layers, student_from_teacher, warn_about_random_start

DEPTH = 5
SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "num_hidden_layers": DEPTH,
}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}
NO_VOCABULARY = {name: value for name, value in SIZES.items() if name != "vocab_size"}


def _bert() -> hf.PreTrainedModel:
    return hf.BertForSequenceClassification(hf.BertConfig(**SIZES, num_labels=3))


def _distilbert() -> hf.PreTrainedModel:
    config = hf.DistilBertConfig(vocab_size=40, dim=16, n_heads=2, hidden_dim=24, n_layers=DEPTH)
    return hf.DistilBertForSequenceClassification(config)


def _roberta() -> hf.PreTrainedModel:
    return hf.RobertaForMaskedLM(hf.RobertaConfig(**SIZES))


def _modernbert() -> hf.PreTrainedModel:
    config = hf.ModernBertConfig(**SIZES, **SPECIAL, cls_token_id=2, sep_token_id=1, local_attention=4)
    return hf.ModernBertForSequenceClassification(config)


def _deberta() -> hf.PreTrainedModel:
    config = hf.DebertaV2Config(
        **SIZES,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_buckets=4,
        share_att_key=True,
        norm_rel_ebd="layer_norm",
        conv_kernel_size=3,
        conv_act="gelu",
    )
    return hf.DebertaV2ForSequenceClassification(config)


def _electra() -> hf.PreTrainedModel:
    return hf.ElectraForSequenceClassification(hf.ElectraConfig(**SIZES, embedding_size=8))


def _gpt2() -> hf.PreTrainedModel:
    return hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=40, n_embd=16, n_head=2, n_layer=DEPTH, **SPECIAL))


def _llama() -> hf.PreTrainedModel:
    return hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES, **SPECIAL, num_key_value_heads=1))


def _qwen3() -> hf.PreTrainedModel:
    config = hf.Qwen3Config(
        **SIZES,
        **SPECIAL,
        num_key_value_heads=1,
        head_dim=8,
        use_sliding_window=True,
        sliding_window=3,
        max_window_layers=2,
    )
    return hf.Qwen3ForCausalLM(config)


def _gemma3() -> hf.PreTrainedModel:
    config = hf.Gemma3TextConfig(
        **SIZES, **SPECIAL, num_key_value_heads=1, head_dim=8, sliding_window=3, sliding_window_pattern=2
    )
    return hf.Gemma3ForCausalLM(config)


def _t5() -> hf.PreTrainedModel:
    config = hf.T5Config(
        vocab_size=40,
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_heads=2,
        num_layers=DEPTH,
        num_decoder_layers=4,
        decoder_start_token_id=0,
        **SPECIAL,
    )
    return hf.T5ForConditionalGeneration(config)


def _bart_config() -> hf.BartConfig:
    return hf.BartConfig(
        vocab_size=40,
        d_model=16,
        encoder_layers=DEPTH,
        decoder_layers=4,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        decoder_start_token_id=2,
        forced_eos_token_id=None,
        **SPECIAL,
    )


def _bart() -> hf.PreTrainedModel:
    return hf.BartForConditionalGeneration(_bart_config())


def _bart_classifier() -> hf.PreTrainedModel:
    return hf.BartForSequenceClassification(_bart_config())


def _vit() -> hf.PreTrainedModel:
    return hf.ViTForImageClassification(hf.ViTConfig(**NO_VOCABULARY, image_size=8, patch_size=4))


def _wav2vec2() -> hf.PreTrainedModel:
    # As many convolutions as layers: their lists in the config must not be cut.
    config = hf.Wav2Vec2Config(
        **SIZES,
        conv_dim=(8,) * DEPTH,
        conv_kernel=(3, 3, 3, 2, 2),
        conv_stride=(2, 2, 1, 1, 1),
        num_feat_extract_layers=DEPTH,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        use_weighted_layer_sum=True,
        classifier_proj_size=8,
    )
    return hf.Wav2Vec2ForSequenceClassification(config)


def _ast() -> hf.PreTrainedModel:
    return hf.ASTForAudioClassification(hf.ASTConfig(**NO_VOCABULARY, num_mel_bins=16, max_length=32))


# The function that builds the teacher, and where its layers are.
ARCHITECTURES: dict[str, tuple[Callable[[], hf.PreTrainedModel], tuple[str, ...]]] = {
    "bert": (_bert, ("bert.encoder.layer",)),
    "distilbert": (_distilbert, ("distilbert.transformer.layer",)),
    "roberta": (_roberta, ("roberta.encoder.layer",)),
    "modernbert": (_modernbert, ("model.layers",)),
    "deberta_v2": (_deberta, ("deberta.encoder.layer",)),
    "electra": (_electra, ("electra.encoder.layer",)),
    "gpt2": (_gpt2, ("transformer.h",)),
    "llama": (_llama, ("model.layers",)),
    "qwen3": (_qwen3, ("model.layers",)),
    "gemma3": (_gemma3, ("model.layers",)),
    "t5": (_t5, ("encoder.block", "decoder.block")),
    "bart": (_bart, ("model.encoder.layers", "model.decoder.layers")),
    "bart_classifier": (_bart_classifier, ("model.encoder.layers", "model.decoder.layers")),
    "vit": (_vit, ("vit.layers",)),
    "wav2vec2": (_wav2vec2, ("wav2vec2.encoder.layers",)),
    "ast": (_ast, ("audio_spectrogram_transformer.layers",)),
}
EVERY = pytest.mark.parametrize("name", ARCHITECTURES)
GENERATORS = pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3", "gemma3", "t5", "bart"])


def _teacher(name: str) -> hf.PreTrainedModel:
    """Build a teacher none of whose parameters is still at its initial zero or one."""
    torch.manual_seed(0)
    model = ARCHITECTURES[name][0]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def _inputs(name: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    if name == "vit":
        return {"pixel_values": torch.randn(2, 3, 8, 8, generator=generator)}
    if name == "wav2vec2":
        return {"input_values": torch.randn(2, 64, generator=generator)}
    if name == "ast":
        return {"input_values": torch.randn(2, 32, 16, generator=generator)}
    ids = torch.randint(3, 40, (2, 9), generator=generator)
    ids[:, -1] = 1
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return inputs | ({"decoder_input_ids": ids[:, :5]} if name in ("t5", "bart") else {})


@torch.no_grad()
def _logits(model: hf.PreTrainedModel, name: str) -> torch.Tensor:
    return model(**_inputs(name)).logits


def _maps(student: hf.PreTrainedModel, name: str) -> dict[str, list[int]]:
    """The recorded layer map of each module list."""
    recorded = student.config.distilled_from_layers
    maps = list(recorded.values()) if isinstance(recorded, dict) else [recorded]
    return dict(zip(ARCHITECTURES[name][1], maps, strict=True))


def _without_layers(teacher: hf.PreTrainedModel, maps: dict[str, list[int]]) -> hf.PreTrainedModel:
    """Take layers out of a copy of the teacher in place: another way to the same model, with no cache."""
    cut = copy.deepcopy(teacher)
    for path, kept in maps.items():
        layers = cut.get_submodule(path)
        parent, _, leaf = path.rpartition(".")
        setattr(cut.get_submodule(parent), leaf, nn.ModuleList([layers[i] for i in kept]))
        if path.endswith("block") and kept[0] != 0:  # T5: the relative bias moves to the new first layer
            attention = layers[kept[0]].layer[0].SelfAttention
            attention.relative_attention_bias = layers[0].layer[0].SelfAttention.relative_attention_bias
            attention.has_relative_attention_bias = True
        for config in {
            id(part.config): part.config for part in cut.modules() if hasattr(part, "config")
        }.values():
            if isinstance(getattr(config, "layer_types", None), list) and len(config.layer_types) > len(kept):
                types = config.layer_types
                object.__setattr__(config, "num_hidden_layers", len(kept))
                config.layer_types = [types[i] for i in kept]
    if "layer_weights" in dict(cut.named_parameters()):
        (kept,) = maps.values()
        cut.layer_weights = nn.Parameter(cut.layer_weights[[0, *(i + 1 for i in kept)]])
        cut.config.num_hidden_layers = len(kept)
    return cut


def _reference_logits(teacher: hf.PreTrainedModel, student: hf.PreTrainedModel, name: str) -> torch.Tensor:
    cut = _without_layers(teacher, _maps(student, name))
    with torch.no_grad():
        arguments = _inputs(name) | ({"use_cache": False} if cut.can_generate() else {})
        return cut(**arguments).logits


@EVERY
def test_full_depth_is_bit_equal(name: str) -> None:
    teacher = _teacher(name)
    student = student_from_teacher(
        teacher, num_hidden_layers={} if name.startswith(("t5", "bart")) else DEPTH
    )
    assert type(student) is type(teacher)
    assert torch.equal(_logits(student, name), _logits(teacher, name))
    assert student.state_dict().keys() == teacher.state_dict().keys()


@EVERY
@pytest.mark.parametrize("depth", [1, 3])
def test_evenly_spaced_student_computes_what_the_teacher_without_the_layers_does(
    name: str, depth: int
) -> None:
    teacher = _teacher(name)
    student = student_from_teacher(teacher, num_hidden_layers=depth)
    for path, kept in _maps(student, name).items():
        assert kept == evenly_spaced_layers(len(teacher.get_submodule(path)), depth)
        assert len(student.get_submodule(path)) == depth
        theirs = teacher.get_submodule(path)
        for layer, index in zip(student.get_submodule(path), kept, strict=True):
            expected = theirs[index].state_dict()
            assert layer.state_dict().keys() == expected.keys()
            assert all(torch.equal(value, expected[key]) for key, value in layer.state_dict().items())
    assert torch.equal(_logits(student, name), _reference_logits(teacher, student, name))


@EVERY
def test_survives_saving_and_loading(name: str, tmp_path: Any) -> None:
    teacher = _teacher(name)
    student = student_from_teacher(teacher, num_hidden_layers=2)
    student.save_pretrained(tmp_path)
    loaded, report = type(teacher).from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert torch.equal(_logits(loaded, name), _logits(student, name))
    assert loaded.config.distilled_from_layers == student.config.distilled_from_layers
    assert student.config.distilled_from_model is None


@EVERY
def test_chosen_layers_without_the_first(name: str) -> None:
    teacher = _teacher(name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        student = student_from_teacher(teacher, layers=[1, 3])
    assert _maps(student, name) == {path: [1, 3] for path in ARCHITECTURES[name][1]}
    if name == "modernbert":  # its first layer has no norm of its own
        assert isinstance(student.model.layers[0].attn_norm, nn.Identity)
        (warning,) = caught
        assert "no place for model.layers.1.attn_norm.weight" in str(warning.message)
        return
    assert caught == []
    assert torch.equal(_logits(student, name), _reference_logits(teacher, student, name))


@EVERY
def test_teacher_is_unchanged_and_shares_nothing(name: str) -> None:
    teacher = _teacher(name).requires_grad_(False)
    before, config = copy.deepcopy(teacher.state_dict()), teacher.config.to_dict()
    random_state = torch.get_rng_state()
    student = student_from_teacher(teacher, num_hidden_layers=2)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not student.training
    always_frozen = {
        key for key, parameter in ARCHITECTURES[name][0]().named_parameters() if not parameter.requires_grad
    }
    frozen = {key for key, parameter in student.named_parameters() if not parameter.requires_grad}
    assert frozen <= always_frozen
    theirs = {tensor.data_ptr() for tensor in (*teacher.parameters(), *teacher.buffers())}
    assert all(tensor.data_ptr() not in theirs for tensor in (*student.parameters(), *student.buffers()))
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.fill_(7.0)
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert teacher.config.to_dict() == config
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


@GENERATORS
def test_cached_generation_equals_uncached(name: str) -> None:
    teacher = _teacher(name)
    teacher.generation_config.repetition_penalty = 1.25
    student = student_from_teacher(teacher, num_hidden_layers=3)
    assert student.generation_config.repetition_penalty == 1.25
    assert student.generation_config is not teacher.generation_config
    inputs = {key: value for key, value in _inputs(name).items() if not key.startswith("decoder")}
    arguments: dict[str, Any] = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
    results = [
        student.generate(
            **inputs, **arguments, use_cache=cached, output_logits=True, return_dict_in_generate=True
        )
        for cached in (True, False)
    ]
    assert torch.equal(results[0].sequences, results[1].sequences)
    torch.testing.assert_close(
        torch.stack(results[0].logits), torch.stack(results[1].logits), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name", ["modernbert", "gemma3", "qwen3"])
def test_each_layer_keeps_its_kind_of_attention(name: str) -> None:
    teacher = _teacher(name)
    student = student_from_teacher(teacher, layers=[0, 1, 4])
    types = teacher.config.layer_types
    assert student.config.layer_types == [types[0], types[1], types[4]]
    assert len(set(student.config.layer_types)) == 2
    assert torch.equal(_logits(student, name), _reference_logits(teacher, student, name))


@pytest.mark.parametrize("name", ["t5", "bart", "bart_classifier"])
def test_encoder_and_decoder_have_depths_of_their_own(name: str) -> None:
    teacher = _teacher(name)
    student = student_from_teacher(teacher, num_hidden_layers={"encoder": 3, "decoder": 2})
    assert student.config.distilled_from_layers == {"encoder": [0, 2, 4], "decoder": [0, 3]}
    assert torch.equal(_logits(student, name), _reference_logits(teacher, student, name))
    student = student_from_teacher(teacher, layers={"decoder": [0, 2]})
    assert student.config.distilled_from_layers == {"encoder": [0, 1, 2, 3, 4], "decoder": [0, 2]}
    assert torch.equal(_logits(student, name), _reference_logits(teacher, student, name))


@pytest.mark.parametrize(
    ("build", "depths"),
    [
        (lambda: hf.BartForCausalLM(_bart_config()), 2),
        (lambda: hf.T5EncoderModel(hf.T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_heads=2)), 3),
        (lambda: hf.Dinov2Backbone(hf.Dinov2Config(**NO_VOCABULARY, out_features=["stage1", "stage5"])), 2),
    ],
    ids=["decoder alone", "encoder alone", "backbone"],
)
def test_one_stack_of_a_config_of_more(
    build: Callable[[], hf.PreTrainedModel], depths: int, tmp_path: Any
) -> None:
    student = student_from_teacher(build(), num_hidden_layers=depths)
    assert len(student.config.distilled_from_layers) == depths
    student.save_pretrained(tmp_path)
    loaded = type(student).from_pretrained(tmp_path)
    assert loaded.state_dict().keys() == student.state_dict().keys()


def test_unlike_stacks_are_named() -> None:
    inner = {**NO_VOCABULARY, "num_hidden_layers": 3}
    config = hf.CLIPConfig(
        text_config={**inner, "vocab_size": 40}, vision_config={**inner, "image_size": 8, "patch_size": 4}
    )
    teacher = hf.CLIPModel(config)
    with pytest.raises(
        ValueError, match=r"dict that names the stacks .*vision: 3, text: 3.*received 2\. Give"
    ):
        student_from_teacher(teacher, num_hidden_layers=2)
    student = student_from_teacher(teacher, num_hidden_layers={"text": 2})
    assert student.config.distilled_from_layers == {"text": [0, 2], "vision": [0, 1, 2]}
    assert len(student.text_model.encoder.layers) == 2
    assert len(student.vision_model.encoder.layers) == 3


@pytest.mark.parametrize("name", ["roberta", "gpt2", "gemma3", "t5", "bart"])
def test_tied_weights_stay_tied(name: str) -> None:
    student = student_from_teacher(_teacher(name), num_hidden_layers=2)
    assert student.get_output_embeddings().weight is student.get_input_embeddings().weight


def test_weights_that_the_teacher_untied_stay_untied() -> None:
    teacher = _teacher("gpt2")
    teacher.lm_head.weight = nn.Parameter(torch.randn(40, 16))
    student = student_from_teacher(teacher, num_hidden_layers=DEPTH)
    assert torch.equal(_logits(student, "gpt2"), _logits(teacher, "gpt2"))


def test_parts_that_the_teacher_was_built_without_stay_away() -> None:
    teacher = hf.BertModel(hf.BertConfig(**SIZES), add_pooling_layer=False)
    student = student_from_teacher(teacher, num_hidden_layers=2)
    assert student.pooler is None
    assert student(**_inputs("bert")).pooler_output is None


def test_lists_and_counts_of_layers_in_the_config_are_cut() -> None:
    config = hf.LongformerConfig(**SIZES, attention_window=[2, 4, 6, 8, 10])
    student = student_from_teacher(hf.LongformerModel(config), layers=[0, 2, 4])
    assert student.config.attention_window == [2, 6, 10]
    # The attention keeps the window of the layer it came from.
    windows = [layer.attention.self.one_sided_attn_window_size for layer in student.encoder.layer]
    assert windows == [1, 3, 5]
    config = hf.GPTNeoConfig(
        vocab_size=40,
        hidden_size=16,
        num_heads=2,
        num_layers=4,
        attention_types=[[["global", "local"], 2]],
        **SPECIAL,
    )
    student = student_from_teacher(hf.GPTNeoForCausalLM(config), layers=[0, 1, 3])
    loaded = hf.GPTNeoConfig.from_dict(student.config.to_dict())
    assert loaded.attention_layers == ["global", "local", "local"]
    config = hf.DeepseekV3Config(
        **SIZES,
        **SPECIAL,
        num_key_value_heads=2,
        first_k_dense_replace=3,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        moe_intermediate_size=8,
        q_lora_rank=8,
        kv_lora_rank=8,
        qk_rope_head_dim=4,
        qk_nope_head_dim=4,
        v_head_dim=8,
    )
    student = student_from_teacher(hf.DeepseekV3ForCausalLM(config), layers=[0, 2, 4])
    assert student.config.first_k_dense_replace == 2


def test_layers_that_cannot_stand_elsewhere_are_refused() -> None:
    config = hf.NllbMoeConfig(
        vocab_size=40,
        d_model=16,
        encoder_layers=4,
        decoder_layers=4,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        encoder_sparse_step=2,
        decoder_sparse_step=2,
        num_experts=2,
        expert_capacity=4,
        **SPECIAL,
    )
    teacher = hf.NllbMoeForConditionalGeneration(config)
    with pytest.raises(
        ValueError, match=r"received none\. Keep layers that are built alike where they stand"
    ):
        student_from_teacher(teacher, layers=[0, 2])
    assert student_from_teacher(teacher, layers=[0, 3]).config.distilled_from_layers["encoder"] == [0, 3]


def test_dtype_and_attention_implementation_are_kept() -> None:
    config = hf.LlamaConfig(**SIZES, **SPECIAL, attn_implementation="eager")
    teacher = hf.LlamaForCausalLM(config).to(torch.bfloat16)
    student = student_from_teacher(teacher, num_hidden_layers=2)
    assert {parameter.dtype for parameter in student.parameters()} == {torch.bfloat16}
    assert student.config._attn_implementation == "eager"


def test_teacher_name_is_recorded(tmp_path: Any) -> None:
    _teacher("bert").save_pretrained(tmp_path / "teacher")
    teacher = hf.BertForSequenceClassification.from_pretrained(tmp_path / "teacher")
    student = student_from_teacher(teacher, num_hidden_layers=2)
    assert student.config.distilled_from_model == str(tmp_path / "teacher")
    assert student.name_or_path == ""
    student.save_pretrained(tmp_path / "student")
    loaded = hf.AutoConfig.from_pretrained(tmp_path / "student")
    assert loaded.distilled_from_model == str(tmp_path / "teacher")


def test_index_dependent_setting_is_reported() -> None:
    config = hf.GPT2Config(
        vocab_size=40, n_embd=16, n_head=2, n_layer=DEPTH, scale_attn_by_inverse_layer_idx=True, **SPECIAL
    )
    with pytest.warns(UserWarning, match="settings follow the new place of their layer .*scaling from"):
        student_from_teacher(hf.GPT2LMHeadModel(config), layers=[0, 2])


@pytest.mark.parametrize("teacher_depth", [1, 2, 3, 6, 12, 24, 32])
def test_even_spacing_ascends_from_first_to_last(teacher_depth: int) -> None:
    for depth in range(1, teacher_depth + 1):
        chosen = evenly_spaced_layers(teacher_depth, depth)
        assert len(chosen) == depth
        assert chosen[0] == 0
        assert depth == 1 or chosen[-1] == teacher_depth - 1
        assert all(low < high for low, high in itertools.pairwise(chosen))
    assert evenly_spaced_layers(teacher_depth, teacher_depth) == list(range(teacher_depth))


def test_even_spacing_is_distilberts() -> None:
    assert evenly_spaced_layers(12, 6) == [0, 2, 4, 7, 9, 11]
    assert evenly_spaced_layers(12, 3) == [0, 6, 11]  # 5.5 rounds up


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"exactly one of num_hidden_layers and layers, received neither\. Give"),
        ({"num_hidden_layers": 2, "layers": [0, 1]}, r"exactly one of .* received both\. Give"),
        ({"num_hidden_layers": 6}, r"from 1 to the teacher's 5, received 6\. .* ask for fewer"),
        ({"num_hidden_layers": 0}, r"from 1 to the teacher's 5, received 0\."),
        ({"layers": [0, 5]}, r"ascending layer indices from 0 to 4, received \[0, 5\]\. Name each"),
        ({"layers": [-1, 2]}, r"indices from 0 to 4, received \[-1, 2\]"),
        ({"layers": [0, 2, 2]}, r"strictly ascending .* received \[0, 2, 2\]"),
        ({"layers": [2, 0]}, r"strictly ascending .* received \[2, 0\]"),
        ({"layers": []}, r"strictly ascending .* received \[\]"),
        ({"num_hidden_layers": {"encoder": 2}}, r"those of the stacks \(layers: 5\), received \['encoder'\]"),
    ],
)
def test_what_is_asked_is_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        student_from_teacher(_teacher("bert"), **arguments)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: hf.AlbertForSequenceClassification(hf.AlbertConfig(**SIZES, embedding_size=8)),
            r"\(num_hidden_layers=5\), received AlbertForSequenceClassification.* shared \(as in ALBERT\)",
        ),
        (
            lambda: hf.SwinForImageClassification(
                hf.SwinConfig(embed_dim=8, depths=[2, 2], num_heads=[1, 1], image_size=32, window_size=4)
            ),
            r"received SwinForImageClassification, whose SwinConfig has stages .*Build a smaller student",
        ),
        (
            lambda: hf.ResNetForImageClassification(
                hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[2, 2])
            ),
            r"received ResNetForImageClassification, whose ResNetConfig has stages",
        ),
        (
            lambda: nn.Linear(2, 2),
            r"PreTrainedModel as teacher, received Linear\. Load one with from_pretrained",
        ),
        (lambda: "bert-base-uncased", r"PreTrainedModel as teacher, received str\."),
    ],
    ids=["albert", "swin", "resnet", "module", "name"],
)
def test_unfit_teachers_are_refused(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        student_from_teacher(build(), num_hidden_layers=1)


def test_parts_unknown_to_the_class_are_refused() -> None:
    teacher = _teacher("bert")
    teacher.classifier = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 3))
    with pytest.raises(
        ValueError, match=r"tensor of shape \(3, 16\) in the teacher for classifier.weight, received none"
    ):
        student_from_teacher(teacher, num_hidden_layers=2)


def test_random_start_on_little_data_warns(tmp_path: Any) -> None:
    student = _bert()
    with pytest.warns(
        UserWarning, match=r"random weights, with 500 training examples \(fewer than 10,000\).*student_from_"
    ):
        assert warn_about_random_start(student, 500)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not warn_about_random_start(student, 10_000)
        assert not warn_about_random_start(student, None)
        assert not warn_about_random_start(nn.Linear(2, 2), 500)
        assert not warn_about_random_start(student_from_teacher(student, num_hidden_layers=1), 500)
        student.save_pretrained(tmp_path)
        assert not warn_about_random_start(hf.BertForSequenceClassification.from_pretrained(tmp_path), 500)


def test_a_config_that_refuses_to_be_set_is_left_as_it_is_at_full_depth() -> None:
    config = hf.ProphetNetConfig(
        vocab_size=30, hidden_size=8, num_encoder_layers=2, num_decoder_layers=2, num_encoder_attention_heads=2,
        num_decoder_attention_heads=2, encoder_ffn_dim=8, decoder_ffn_dim=8, max_position_embeddings=20,
    )  # fmt: skip
    teacher = hf.ProphetNetForConditionalGeneration(config)
    student = student_from_teacher(teacher, num_hidden_layers={"encoder": 2, "decoder": 2})
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), student.parameters(), strict=True))
