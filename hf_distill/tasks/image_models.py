"""What pretrained models of images need before they are fine-tuned here: batch norms that remember, and other sizes."""

from __future__ import annotations

import copy
from typing import Any

import torch

# PyTorch's own default: the share of the newest batch in running statistics.
_MOMENTUM = 0.1


def remembering(model: Any) -> Any:
    """Return a model whose running statistics are those of many batches.

    MobileNets of transformers have TensorFlow's momentum of 0.997, which in PyTorch is the share of the *last* batch:
    in evaluation a model trained so would know the last few images alone.

    Example:
        >>> remembering(torch.nn.BatchNorm2d(2, momentum=0.997)).momentum
        0.1
    """
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d) and module.momentum and module.momentum > 0.5:
            module.momentum = _MOMENTUM
    return model


def resized(processor: Any, size: int) -> Any:
    """Return another processor that makes images of a size, cut out of its larger image by the same share as before.

    Example:
        >>> from transformers import ViTImageProcessor
        >>> resized(ViTImageProcessor(), 96).size["height"]
        96
    """
    processor = copy.deepcopy(processor)
    crop = getattr(processor, "crop_size", None) if getattr(processor, "do_center_crop", False) else None
    if not crop:
        processor.size = {"height": size, "width": size}
        return processor
    shortest = processor.size.get("shortest_edge") or processor.size.get("height")
    processor.size = {"shortest_edge": round(shortest * size / crop["height"])}
    processor.crop_size = {"height": size, "width": size}
    return processor
