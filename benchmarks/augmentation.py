"""Texts made of other texts, for the teacher to label: masking, n-gram sampling, mixing.

The first two are those of Tang et al., "Distilling Task-Specific Knowledge from BERT into Simple Neural Networks",
arXiv 1903.12136, section 3.2, each alone. Mixing is done on the texts, as student and teacher have embeddings of
other widths: no mixed embedding could be given to both.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

MASKED_SHARE = 0.1  # p_mask of the paper
LONGEST_NGRAM = 5  # as in the paper

Augmentation = Callable[[list[str], Random, str], list[str]]


def masking(texts: list[str], random: Random, mask: str) -> list[str]:
    """Hide each word behind the mask token with a probability of a tenth, and one word at least."""

    def masked(text: str) -> str:
        words = text.split()
        chosen = {random.randrange(len(words))} if words else set()
        chosen |= {index for index in range(len(words)) if random.random() < MASKED_SHARE}
        return " ".join(mask if index in chosen else word for index, word in enumerate(words))

    return [masked(text) for text in texts]


def ngram_sampling(texts: list[str], random: Random, mask: str) -> list[str]:
    """Keep one to five words that stand together, and drop all others."""

    def sampled(text: str) -> str:
        words = text.split()
        count = min(random.randint(1, LONGEST_NGRAM), len(words))
        start = random.randint(0, len(words) - count)
        return " ".join(words[start : start + count])

    return [sampled(text) for text in texts]


def mixing(texts: list[str], random: Random, mask: str) -> list[str]:
    """Put the first half of each text's words before the second half of another's."""

    def halves(text: str) -> tuple[list[str], list[str]]:
        words = text.split()
        middle = (len(words) + 1) // 2
        return words[:middle], words[middle:]

    others = random.sample(texts, len(texts))
    return [" ".join(halves(text)[0] + halves(other)[1]) for text, other in zip(texts, others, strict=True)]


AUGMENTATIONS: dict[str, Augmentation] = {
    "masking": masking,
    "n-gram sampling": ngram_sampling,
    "mixing": mixing,
}


def augmented(texts: list[str], name: str, copies: int, seed: int, mask: str) -> list[str]:
    """Return so many new texts for each, the same ones for the same seed.

    Args:
        texts: the originals, none of them empty.
        name: one of ``AUGMENTATIONS``.
        copies: new texts for each.
        seed: what they are drawn by.
        mask: the tokenizer's mask token.
    """
    random = Random(f"{name} {seed}")
    return [text for _ in range(copies) for text in AUGMENTATIONS[name](texts, random, mask)]
