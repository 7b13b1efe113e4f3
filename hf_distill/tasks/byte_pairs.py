"""A tokenizer of byte pairs trained on the spot, for models that write text."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

END, PADDING = "<|endoftext|>", "<|pad|>"


def train_byte_pairs(
    texts: Iterable[str], vocabulary_size: int, ends: bool = False, longest: int | None = None
) -> PreTrainedTokenizerFast:
    """Train a byte-level tokenizer that reads any text, with an end of text and a padding token.

    Args:
        texts: to learn pairs from.
        vocabulary_size: most tokens; the 256 bytes and two special ones are always there.
        ends: put the end of text behind each text, as encoder-decoders want it.
        longest: tokens that the models can read, for whoever truncates; no limit if None.

    Source: Radford et al. 2019, GPT-2 (byte-level byte pair encoding); Sennrich et al. 2016, arXiv 1508.07909.

    Example:
        >>> tokenizer = train_byte_pairs(["a small text", "a small one"], 300)
        >>> tokenizer.decode(tokenizer("a tall text")["input_ids"]), tokenizer.pad_token_id, tokenizer.eos_token_id
        ('a tall text', 1, 0)
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    if ends:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"$A {END}", special_tokens=[(END, 0)]
        )
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[END, PADDING],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, bos_token=END, pad_token=PADDING,
        model_input_names=["input_ids", "attention_mask"], model_max_length=longest, clean_up_tokenization_spaces=False,
    )  # fmt: skip
