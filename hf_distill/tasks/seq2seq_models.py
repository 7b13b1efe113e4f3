"""Encoder-decoders from random weights, for the recipe on pairs of texts."""

from __future__ import annotations

from typing import Any

from transformers import BartConfig, T5Config

from hf_distill.tasks.bert_models import attention_heads, initializer_range


def bart_config(layers: int, width: int, tokenizer: Any, longest: int, dropout: float = 0.1) -> BartConfig:
    """Return the configuration of a BART to be trained from random weights.

    Args:
        layers: of the encoder, and of the decoder.
        width: of hidden states.
        tokenizer: gives vocabulary, padding and end.
        longest: most tokens that either half reads.
        dropout: of hidden states and attention, in [0, 1).

    Source: Lewis et al., arXiv 1910.13461; embeddings scaled as in "Attention Is All You Need".

    Example:
        >>> from hf_distill.tasks.byte_pairs import train_byte_pairs
        >>> bart_config(1, 64, train_byte_pairs(["a text"], 300, ends=True), 16).decoder_layers
        1
    """
    heads = attention_heads(width)
    return BartConfig(
        vocab_size=len(tokenizer), d_model=width, encoder_layers=layers, decoder_layers=layers,
        encoder_attention_heads=heads, decoder_attention_heads=heads, encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width, max_position_embeddings=longest, init_std=initializer_range(width),
        scale_embedding=True, dropout=dropout, attention_dropout=dropout,
        # A text ends where the model ends it.
        forced_eos_token_id=None, bos_token_id=tokenizer.bos_token_id, **_ends(tokenizer),
    )  # fmt: skip


def t5_config(layers: int, width: int, tokenizer: Any, longest: int, dropout: float = 0.1) -> T5Config:
    """Return the configuration of a T5 1.1 to be trained from random weights; arguments as for a BART.

    Source: Raffel et al., arXiv 1910.10683; gated as in arXiv 2002.05202.

    Example:
        >>> from hf_distill.tasks.byte_pairs import train_byte_pairs
        >>> t5_config(1, 64, train_byte_pairs(["a text"], 300, ends=True), 16).num_decoder_layers
        1
    """
    heads = attention_heads(width)
    return T5Config(
        vocab_size=len(tokenizer), d_model=width, d_kv=width // heads, num_heads=heads, d_ff=4 * width,
        num_layers=layers, num_decoder_layers=layers, dropout_rate=dropout, feed_forward_proj="gated-gelu",
        **_ends(tokenizer),
    )  # fmt: skip


def _ends(tokenizer: Any) -> dict[str, Any]:
    """Both begin to write at their padding token, as T5 does."""
    padding = tokenizer.pad_token_id
    return {
        "pad_token_id": padding,
        "decoder_start_token_id": padding,
        "eos_token_id": tokenizer.eos_token_id,
    }
