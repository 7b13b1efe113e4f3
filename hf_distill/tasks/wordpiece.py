"""A WordPiece tokenizer trained on the spot, the same one each time."""

from __future__ import annotations

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def _empty_tokenizer(lowercase: bool, vocabulary: dict[str, int] | None = None) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocab=vocabulary or {}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _continuing_characters(tokenizer: Tokenizer, texts: list[str]) -> list[str]:
    """Return WordPiece's name, ## and the character, of each that stands inside a word, sorted."""
    found: set[str] = set()
    for text in texts:
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text)):
            found.update(word[1:])
    return sorted(f"##{character}" for character in found)


def train_tokenizer(
    texts: list[str],
    vocabulary_size: int,
    lowercase: bool = True,
    token_types: bool = True,
    longest: int | None = None,
) -> PreTrainedTokenizerFast:
    """Train a WordPiece tokenizer with BERT's special tokens, the same one each time.

    Args:
        texts: to learn pieces from.
        vocabulary_size: most pieces, the special ones included.
        lowercase: read capitals as small letters.
        token_types: tell a model which of two texts a token is of; ModernBERT does not read that.
        longest: tokens that the models can read, for whoever truncates; no limit if None.

    Example:
        >>> tokenizer = train_tokenizer(["a small text", "another text"], 60)
        >>> tokenizer.decode(tokenizer("A text")["input_ids"])
        '[CLS] a text [SEP]'
    """
    # The library numbers the pieces that go on a word in the order of a hash map, another in each run, and breaks
    # ties between merges by number: so they are numbered here, and made ordinary again by a second tokenizer.
    first = _empty_tokenizer(lowercase)
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary_size,
        special_tokens=_SPECIAL + _continuing_characters(first, texts),
        show_progress=False,
    )
    first.train_from_iterator(texts, trainer)
    tokenizer = _empty_tokenizer(lowercase, first.get_vocab(with_added_tokens=False))
    tokenizer.add_special_tokens(_SPECIAL)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = {f"{name.strip('[]').lower()}_token": name for name in _SPECIAL}
    inputs = ["input_ids", *(["token_type_ids"] if token_types else []), "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_input_names=inputs, model_max_length=longest, **names
    )
