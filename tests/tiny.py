"""Tiny models from configs and ragged data, shared by the tests: no network, milliseconds a step."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    TrainerCallback,
    ViTConfig,
    ViTForImageClassification,
)

from hf_distill import DistillationTrainer, DistillationTrainingArguments

VOCABULARY = 50
SIZES = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": VOCABULARY}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
HEADS = {
    "single_label": {"num_labels": 3},
    "multi_label": {"num_labels": 3, "problem_type": "multi_label_classification"},
    "regression": {"num_labels": 1, "problem_type": "regression"},
}


def bert(
    layers: int = 1, seed: int = 0, head: str = "single_label", dropout: bool = False, **options: Any
) -> Any:
    """Return a BERT classifier with its own weights for each seed."""
    torch.manual_seed(seed)
    rates = {} if dropout else NO_DROPOUT
    return BertForSequenceClassification(
        BertConfig(num_hidden_layers=layers, **{**SIZES, **rates, **HEADS[head], **options})
    )


def perturbed(model: Any, scale: float = 0.5, seed: int = 9) -> Any:
    """Move a model's weights, so that a teacher says something that a fresh student does not."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return model


def teacher_of(head: str = "single_label", **options: Any) -> Any:
    """Return a perturbed two-layer teacher."""
    return perturbed(bert(2, seed=5, head=head, **options))


def classifier(architecture: str, layers: int = 1, seed: int = 0, **options: Any) -> Any:
    """Return a tiny model of an architecture, without dropout."""
    torch.manual_seed(seed)
    heads = {"num_labels": 3, **options}
    if architecture in ("bert", "bert_tokens", "bert_mlm"):
        config = BertConfig(num_hidden_layers=layers, **{**SIZES, **NO_DROPOUT, **heads})
        kinds = {"bert": BertForSequenceClassification, "bert_tokens": BertForTokenClassification}
        return kinds.get(architecture, BertForMaskedLM)(config)
    if architecture == "distilbert":
        return DistilBertForSequenceClassification(
            DistilBertConfig(
                vocab_size=VOCABULARY, dim=16, n_layers=layers, n_heads=2, hidden_dim=16,
                dropout=0.0, attention_dropout=0.0, seq_classif_dropout=0.0, **heads,
            )
        )  # fmt: skip
    if architecture == "roberta":
        return RobertaForSequenceClassification(
            RobertaConfig(num_hidden_layers=layers, **SIZES, **NO_DROPOUT, pad_token_id=0, **heads)
        )
    if architecture == "modernbert":
        return ModernBertForSequenceClassification(
            ModernBertConfig(num_hidden_layers=layers, **SIZES, pad_token_id=0, **heads)
        )
    if architecture in ("gpt2", "gpt2_lm"):
        kind = GPT2LMHeadModel if architecture == "gpt2_lm" else GPT2ForSequenceClassification
        return kind(
            GPT2Config(
                vocab_size=VOCABULARY, n_embd=16, n_head=2, n_layer=layers, pad_token_id=0,
                resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=1, eos_token_id=2, **heads,
            )
        )  # fmt: skip
    if architecture in ("llama", "llama_lm"):
        kind = LlamaForCausalLM if architecture == "llama_lm" else LlamaForSequenceClassification
        return kind(
            LlamaConfig(
                num_hidden_layers=layers, pad_token_id=0, **{**SIZES, "num_key_value_heads": 2, **heads}
            )
        )
    if architecture == "vit":
        sizes = {key: value for key, value in SIZES.items() if key != "vocab_size"}
        return ViTForImageClassification(
            ViTConfig(
                num_hidden_layers=layers, image_size=8, **{**sizes, **NO_DROPOUT, "patch_size": 4, **heads}
            )
        )
    raise ValueError(architecture)


def examples(count: int, head: str = "single_label", seed: int = 0) -> list[dict[str, Any]]:
    """Return ragged texts of 3 to 8 tokens with labels for a head."""
    generator = torch.Generator().manual_seed(seed)

    def one() -> dict[str, Any]:
        length = int(torch.randint(3, 9, (1,), generator=generator))
        ids = torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()
        labels: Any = int(torch.randint(0, 3, (1,), generator=generator))
        if head == "multi_label":
            labels = (torch.rand(3, generator=generator) > 0.5).float().tolist()
        elif head == "regression":
            labels = float(torch.randn(1, generator=generator))
        elif head == "tokens":
            labels = [int(i) if i % 3 else -100 for i in torch.randint(0, 3, (length,), generator=generator)]
        elif head == "causal":
            labels = [-100] * int(torch.randint(0, length - 1, (1,), generator=generator))
            labels = labels + ids[len(labels) :]
        elif head == "image":
            return {"pixel_values": torch.randn(3, 8, 8, generator=generator).tolist(), "labels": labels}
        return {"input_ids": ids, "attention_mask": [1] * length, "labels": labels}

    return [one() for _ in range(count)]


def collate(features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Pad a batch to its longest text; labels per token are padded with -100."""
    longest = max((len(feature["input_ids"]) for feature in features if "input_ids" in feature), default=0)
    batch = {}
    for key in features[0]:
        rows = [feature[key] for feature in features]
        per_token = key in ("input_ids", "attention_mask", "token_type_ids") or (
            key == "labels" and isinstance(rows[0], list) and len(rows[0]) == len(features[0]["input_ids"])
            and isinstance(rows[0][0], int)
        )  # fmt: skip
        if per_token:
            filler = -100 if key == "labels" else 0
            rows = [row + [filler] * (longest - len(row)) for row in rows]
        batch[key] = torch.tensor(rows)
    return batch


def arguments(output_dir: Any, cls: Any = DistillationTrainingArguments, **options: Any) -> Any:
    """Return quiet CPU arguments for a few steps."""
    defaults = {
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "logging_steps": 1,
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "learning_rate": 1e-2,
        "seed": 1,
    }
    return cls(output_dir=str(output_dir), **{**defaults, **options})


def gradient_of(trainer: Any) -> torch.Tensor:
    """Train, and return the accumulated gradient that the optimizer is handed, summed where there are several steps.

    What is trained beside the student comes after it. Not read off the weights: their own rounding, half a unit in
    the last place of a weight near 1, is more than the 1e-6 of a small gradient that tests ask about.
    """
    found: list[torch.Tensor] = []

    class Keep(TrainerCallback):
        def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            beside = getattr(trainer, "projections", torch.nn.ModuleDict())
            parameters = [*trainer.model.parameters(), *beside.parameters()]
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
            found.append(torch.cat([gradient.detach().flatten().clone() for gradient in gradients]))

    keep = Keep()
    trainer.add_callback(keep)
    trainer.train()
    trainer.remove_callback(keep)
    return torch.stack(found).sum(0)


def one_step(
    output_dir: Any, batch_size: int, accumulation: int, cls: Any = DistillationTrainingArguments, **o: Any
) -> Any:
    """Return arguments for one step of plain SGD at a rate of 1 over unshuffled data."""
    options = {
        "max_steps": 1,
        "optim": "sgd",
        "learning_rate": 1.0,
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
        "train_sampling_strategy": "sequential",
        **o,
    }
    return arguments(
        output_dir,
        cls,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        **options,
    )


def distiller(model: Any, teacher: Any, args: Any, data: Any, **options: Any) -> DistillationTrainer:
    """Return a trainer over ragged data."""
    return DistillationTrainer(model, teacher, args, data_collator=collate, train_dataset=data, **options)
