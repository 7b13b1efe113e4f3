"""Several teachers write one text: each next token is the mixture's, with beams or without."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration, LogitsProcessorList, T5Config
from transformers import T5ForConditionalGeneration as T5

from hf_distill.evaluation.writing import MixedWriting, mixture_of
from tests.tiny import perturbed

VOCABULARY, LENGTH = 20, 8
INPUTS = {
    "input_ids": torch.tensor([[5, 6, 7, 2], [8, 9, 2, 1], [4, 2, 1, 1]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]]),
}


def t5(seed: int) -> Any:
    torch.manual_seed(seed)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    ends = {"pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    return perturbed(T5(T5Config(vocab_size=VOCABULARY, **sizes, **ends)), 0.5).eval()


def bart(seed: int) -> Any:
    torch.manual_seed(seed)
    sizes = {"d_model": 16, "max_position_embeddings": 32, "forced_eos_token_id": None}
    sizes |= {f"{side}_layers": 1 for side in ("encoder", "decoder")}
    sizes |= {f"{side}_attention_heads": 2 for side in ("encoder", "decoder")}
    sizes |= {f"{side}_ffn_dim": 16 for side in ("encoder", "decoder")}
    ends = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 1}
    config = BartConfig(vocab_size=VOCABULARY, **sizes, **ends)
    return perturbed(BartForConditionalGeneration(config), 0.5).eval()


def written(models: list[Any], beams: int, **mixing: Any) -> torch.Tensor:
    chosen = [MixedWriting(mixture_of(models, **mixing), INPUTS)] if mixing else []
    return models[0].generate(
        **INPUTS, logits_processor=LogitsProcessorList(chosen), num_beams=beams, max_length=LENGTH
    )


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("family", [t5, bart])
@pytest.mark.parametrize("combine", ["probabilities", "logits"])
def test_one_of_weight_1_writes_as_it_does_alone(family: Any, beams: int, combine: str) -> None:
    models = [family(0), family(1)]
    alone = [written([model], beams) for model in models]
    assert alone[0].tolist() != alone[1].tolist()
    for weights, expected in (([1, 0], alone[0]), ([0, 1], alone[1])):
        assert written(models, beams, weights=weights, combine=combine).tolist() == expected.tolist()


@pytest.mark.parametrize("combine", ["probabilities", "logits"])
def test_each_token_is_the_mixtures(combine: str) -> None:
    models, weights = [t5(0), t5(1), t5(2)], [0.5, 0.3, 0.2]
    found = written(models, 1, weights=weights, combine=combine)
    for row in range(3):
        given = {name: value[row : row + 1] for name, value in INPUTS.items()}
        text = [1]
        while len(text) < LENGTH and text[-1] != 2:
            with torch.no_grad():
                logits = [
                    model(**given, decoder_input_ids=torch.tensor([text])).logits[0, -1].double()
                    for model in models
                ]
            answers = [one.softmax(-1) if combine == "probabilities" else one for one in logits]
            text.append(int(sum(w * one for w, one in zip(weights, answers, strict=True)).argmax()))
        assert found[row].tolist()[: len(text)] == text
