"""Tiny models and data of every head, over encoders, decoders, encoder-decoders and convolutions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as tf
from torch import nn

VOCABULARY, CLASSES, PAD = 24, 3, 1
_SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
_STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_ENDS = {"pad_token_id": PAD, "bos_token_id": 0, "eos_token_id": 2}
_BERT = {"vocab_size": VOCABULARY, "max_position_embeddings": 32, "num_labels": CLASSES, "pad_token_id": PAD}
_CONFIGS: dict[str, Callable[[], Any]] = {
    "bert": lambda: tf.BertConfig(**_SIZES, **_STILL, **_BERT),
    "roberta": lambda: tf.RobertaConfig(**_SIZES, **_STILL, **{**_BERT, "max_position_embeddings": 40}),
    "modernbert": lambda: tf.ModernBertConfig(**_SIZES, **{**_BERT, **_ENDS}, cls_token_id=0, sep_token_id=2),
    "distilbert": lambda: tf.DistilBertConfig(
        vocab_size=VOCABULARY, dim=16, n_layers=1, n_heads=2, hidden_dim=16, dropout=0.0, attention_dropout=0.0,
        qa_dropout=0.0, seq_classif_dropout=0.0, num_labels=CLASSES, pad_token_id=PAD,
    ),
    "gpt2": lambda: tf.GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_head=2, n_layer=1, n_positions=32, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, classifier_dropout=0.0, num_labels=CLASSES, **_ENDS,
    ),
    "llama": lambda: tf.LlamaConfig(
        **_SIZES, vocab_size=VOCABULARY, max_position_embeddings=32, num_labels=CLASSES, **_ENDS
    ),
    "opt": lambda: tf.OPTConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=16,
        word_embed_proj_dim=16, max_position_embeddings=32, dropout=0.0, attention_dropout=0.0, layerdrop=0.0,
        num_labels=CLASSES, **_ENDS,
    ),
    "t5": lambda: tf.T5Config(
        vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_decoder_layers=1, num_heads=2,
        dropout_rate=0.0, classifier_dropout=0.0, decoder_start_token_id=PAD, num_labels=CLASSES, pad_token_id=PAD,
        eos_token_id=2,
    ),
    "bart": lambda: tf.BartConfig(
        vocab_size=VOCABULARY, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=32, dropout=0.0,
        attention_dropout=0.0, activation_dropout=0.0, classifier_dropout=0.0, num_labels=CLASSES,
        decoder_start_token_id=2, **_ENDS,
    ),
    "m2m_100": lambda: tf.M2M100Config(
        vocab_size=VOCABULARY, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=32, dropout=0.0,
        attention_dropout=0.0, activation_dropout=0.0, encoder_layerdrop=0.0, decoder_layerdrop=0.0,
        decoder_start_token_id=2, **_ENDS,
    ),
    "pegasus": lambda: tf.PegasusConfig(
        vocab_size=VOCABULARY, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=32, dropout=0.0,
        attention_dropout=0.0, activation_dropout=0.0, decoder_start_token_id=0, **_ENDS,
    ),
    "vit": lambda: tf.ViTConfig(**_SIZES, **_STILL, image_size=8, patch_size=4, num_labels=CLASSES),
    "resnet": lambda: tf.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", num_labels=CLASSES
    ),
    "mobilenet_v2": lambda: tf.MobileNetV2Config(
        image_size=32, depth_multiplier=0.1, min_depth=4, classifier_dropout_prob=0.0, num_labels=CLASSES
    ),
    "convnext": lambda: tf.ConvNextConfig(
        hidden_sizes=[8, 8], depths=[1, 1], num_stages=2, drop_path_rate=0.0, num_labels=CLASSES
    ),
    "wav2vec2": lambda: tf.Wav2Vec2Config(**_of_sound()),
    "hubert": lambda: tf.HubertConfig(**_of_sound()),
    "ast": lambda: tf.ASTConfig(
        **_SIZES, **_STILL, num_mel_bins=8, max_length=16, patch_size=4, frequency_stride=4, time_stride=4,
        num_labels=CLASSES,
    ),
}  # fmt: skip


def _of_sound() -> dict[str, Any]:
    return {
        **_SIZES, "conv_dim": (8, 8), "conv_stride": (4, 2), "conv_kernel": (8, 4), "num_feat_extract_layers": 2,
        "feat_extract_norm": "layer", "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
        "classifier_proj_size": 8, "num_labels": CLASSES, "do_stable_layer_norm": True, "hidden_dropout": 0.0,
        "attention_dropout": 0.0, "activation_dropout": 0.0, "feat_proj_dropout": 0.0, "final_dropout": 0.0,
        "layerdrop": 0.0, "mask_time_prob": 0.0, "apply_spec_augment": False, "vocab_size": VOCABULARY,
    }  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A head over an architecture."""

    head: str
    architecture: str
    auto_class: str

    def __str__(self) -> str:
        return f"{self.head}-{self.architecture}"

    @property
    def shifts(self) -> bool:
        """Whether a position predicts the next one's label: BART's decoder alone does not, and its loss knows it."""
        return self.head == "causal" and self.architecture != "bart"

    def model(self, seed: int = 0) -> Any:
        """Return a model without dropout, whose batch norms stay as they are: they would see the split of a batch."""
        torch.manual_seed(seed)
        config = _CONFIGS[self.architecture]()
        if self.head == "spans":
            config.num_labels = 2
        model = getattr(tf, self.auto_class).from_config(config)
        draw = torch.Generator().manual_seed(seed + 1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.3 * torch.randn(parameter.shape, generator=draw)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
                module.train = lambda mode=True, module=module: module  # type: ignore[method-assign,misc]
        return model


_HEADS = {
    "sequence": ("AutoModelForSequenceClassification", "bert gpt2 bart"),
    "tokens": ("AutoModelForTokenClassification", "bert distilbert gpt2 t5"),
    "spans": ("AutoModelForQuestionAnswering", "bert distilbert gpt2 llama bart t5"),
    "masked": ("AutoModelForMaskedLM", "bert distilbert roberta modernbert"),
    "causal": ("AutoModelForCausalLM", "gpt2 llama opt bart"),
    "written": ("AutoModelForSeq2SeqLM", "t5 bart pegasus m2m_100"),
    "choices": ("AutoModelForMultipleChoice", "bert distilbert roberta"),
    "image": ("AutoModelForImageClassification", "vit resnet mobilenet_v2 convnext"),
    "audio": ("AutoModelForAudioClassification", "wav2vec2 hubert ast"),
}
CASES = [
    Case(head, architecture, auto_class)
    for head, (auto_class, architectures) in _HEADS.items()
    for architecture in architectures.split()
]
BY_POSITION = ("tokens", "masked", "causal", "written")


def rows_of(case: Case, count: int = 8, seed: int = 0, ragged: bool = True) -> list[dict[str, Any]]:
    """Return examples with labels, of which some are longer, and the number of items differs from row to row.

    The models' own loss of spans has padding among its classes, so it is the same in every batch for texts of one
    length alone.
    """
    draw = torch.Generator().manual_seed(seed)
    return [_row(case, number, draw, ragged) for number in range(count)]


def _row(case: Case, number: int, draw: torch.Generator, ragged: bool) -> dict[str, Any]:
    def ids(low: int, high: int, floor: int = 3, top: int = VOCABULARY) -> list[int]:
        length = int(torch.randint(low, high, (1,), generator=draw))
        return torch.randint(floor, top, (length,), generator=draw).tolist()

    one_class = int(torch.randint(CLASSES, (1,), generator=draw))
    if case.head == "image":
        size = 32 if case.architecture == "mobilenet_v2" else 8
        return {"pixel_values": torch.randn(3, size, size, generator=draw), "labels": one_class}
    if case.head == "audio":
        shape = (16, 8) if case.architecture == "ast" else (120,)
        return {"input_values": torch.randn(*shape, generator=draw), "labels": one_class}
    if case.head == "choices":
        return _choices(draw)
    text = ids(4, 9) if ragged else ids(8, 9)
    row: dict[str, Any] = {"input_ids": text, "attention_mask": [1] * len(text)}
    if case.head == "sequence":
        text[-1] = 2  # BART reads its answer at the end of the text
        return {**row, "labels": one_class}
    if case.head == "spans":
        start = int(torch.randint(len(text), (1,), generator=draw))
        end = int(torch.randint(start, len(text), (1,), generator=draw))
        # Answers cut off, of which the model takes no notice: more starts than ends.
        return {**row, "start_positions": start, "end_positions": 99 if number in (1, 2, 5) else end}
    if case.head == "tokens":
        labels = [
            one if place % 2 else -100 for place, one in enumerate(ids(len(text), len(text) + 1, 0, CLASSES))
        ]
    elif case.head == "masked":
        labels = [one if place % 3 == number % 3 else -100 for place, one in enumerate(text)]
    elif case.head == "causal":
        labels = [-100] * (number % 3) + text[number % 3 :]
    else:
        labels = ids(2, 6)
    return {**row, "labels": labels}


def _choices(draw: torch.Generator) -> dict[str, Any]:
    """Return an example of four texts, of which one is right; a model has two classes by its configuration."""
    ids = torch.randint(3, VOCABULARY, (4, 8), generator=draw)
    attended = (torch.arange(8) < torch.randint(4, 9, (4, 1), generator=draw)).long()
    ids = ids.masked_fill(attended == 0, PAD)
    return {
        "input_ids": ids,
        "attention_mask": attended,
        "labels": int(torch.randint(4, (1,), generator=draw)),
    }


def collate(features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Pad behind, labels with -100."""
    batch: dict[str, torch.Tensor] = {}
    padding = {"input_ids": PAD, "attention_mask": 0, "labels": -100}
    for name in features[0]:
        values = [feature[name] for feature in features]
        if isinstance(values[0], torch.Tensor):
            batch[name] = torch.stack(values)
        elif isinstance(values[0], list):
            longest = max(map(len, values))
            batch[name] = torch.tensor([one + [padding[name]] * (longest - len(one)) for one in values])
        else:
            batch[name] = torch.tensor(values)
    return batch
