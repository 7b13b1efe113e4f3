"""The classes of a trained head in the order of the data, whose labels are numbers to a model."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig

from hf_distill.compatibility import label_order


def follow_label_names(model: Any, names: Sequence[str]) -> None:
    """Bring a classifier's classes into an order by name: the rows of its head, ``id2label`` and ``label2id``.

    Names like ``LABEL_0`` count as unnamed, and as being in the order already; a trainer warns of those.

    Args:
        model: a classifier with a trained head.
        names: the classes in the order of their numbers in the data.

    Raises:
        ValueError: another number of classes, other names, or a head whose rows can't be told.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
        >>> model = BertForSequenceClassification(BertConfig(id2label={0: "no", 1: "yes"}, **sizes))
        >>> of_yes = model.classifier.weight[1].tolist()
        >>> follow_label_names(model, ["yes", "no"])
        >>> model.config.id2label, model.classifier.weight[0].tolist() == of_yes
        ({0: 'yes', 1: 'no'}, True)
    """
    id2label = dict(enumerate(names))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            order = label_order(PretrainedConfig(id2label=id2label), model.config)
    except ValueError as error:
        received = list(model.config.id2label.values())
        raise ValueError(
            f"labels: expected a model of the data's {len(names)} classes ({_shown(names)}), received one of "
            f"{len(received)} ({_shown(received)}). Name the classes in the data as the model does, or use a model "
            "trained on these."
        ) from error
    if order is not None:
        _permute_rows(_head(model), order)
    model.config.id2label = id2label
    model.config.label2id = {name: number for number, name in id2label.items()}


def _head(model: Any) -> nn.Linear:
    """Return the layer outside a model's body with a row for each class; the last, should a hidden one be as wide."""
    body = set() if model.base_model is model else set(model.base_model.modules())
    found = [
        part
        for part in model.modules()
        if isinstance(part, nn.Linear) and part.out_features == model.config.num_labels and part not in body
    ]
    if not found:
        raise ValueError(
            f"labels: expected a {type(model).__name__} whose classes are in the data's order, since its head can't be "
            "reordered, received another order. Number the data's labels as the model does (a ClassLabel in Parquet)."
        )
    return found[-1]


def _permute_rows(head: nn.Linear, order: list[int]) -> None:
    with torch.no_grad():
        for rows in (head.weight, head.bias):
            if rows is not None:
                rows.copy_(rows[order].clone())


def _shown(names: Sequence[Any]) -> str:
    return ", ".join(map(str, names[:4])) + (", ..." if len(names) > 4 else "")
