"""What pretrained models of images need before they are fine-tuned here: batch norms that remember, and other sizes."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers.utils import logging

logger = logging.get_logger(__name__)

# PyTorch's own default: the share of the newest batch in running statistics.
_MOMENTUM = 0.1


class HeldBatchNorm2d(torch.nn.BatchNorm2d):
    """A batch norm that takes its statistics from what it holds, in training too, and holds them as they are.

    Example:
        >>> norm = HeldBatchNorm2d(1)
        >>> norm.train()(torch.full((1, 1, 1, 2), 3.0)).round().flatten().tolist()
        [3.0, 3.0]
    """

    def train(self, mode: bool = True) -> HeldBatchNorm2d:
        """Stay in evaluation."""
        return super().train(False)


def hold_folded(model: Any) -> Any:
    """Return a pretrained model whose batch norms stay as they are where they were folded into its convolutions.

    Exported for inference, a batch norm's statistics are part of the weights before it, and what stands there adds a
    bias alone: mean 0, weight 1. To normalise by the batch in training would undo all that the model has learnt. One
    that was never trained has no bias either, and is left alone.

    Example:
        >>> norm = torch.nn.BatchNorm2d(2)
        >>> norm.bias.data += 1.0
        >>> type(hold_folded(torch.nn.Sequential(norm))[0]).__name__
        'HeldBatchNorm2d'
    """
    held = 0
    for module in model.modules():
        if type(module) is torch.nn.BatchNorm2d and module.affine and module.running_mean is not None:
            folded = bool((module.weight == 1).all()) and not module.running_mean.any()
            if folded and module.bias.any():
                module.__class__ = (
                    HeldBatchNorm2d  # the same weights by the same names: it is saved as it was
                )
                module.eval()
                held += 1
    if held:
        logger.warning_once(
            f"{type(model).__name__}: {held} batch norms are folded into the convolutions before them, and their "
            "statistics stay as they are."
        )
    return model


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


def dropping(model: Any) -> Any:
    """Return a MobileNet that drops the share of features that its authors dropped.

    Its configurations in transformers have TensorFlow's share of what is *kept*, 0.999 (V1) and 0.8 (V2), which PyTorch
    takes for the share of what is dropped: nothing is left to learn from.

    Example:
        >>> from transformers import MobileNetV1Config, MobileNetV1ForImageClassification
        >>> model = MobileNetV1ForImageClassification(MobileNetV1Config(depth_multiplier=0.25))
        >>> model.dropout.p, round(dropping(model).dropout.p, 3)
        (0.999, 0.001)
    """
    config: Any = getattr(model, "config", None)
    if getattr(config, "model_type", "") in ("mobilenet_v1", "mobilenet_v2") and model.dropout.p > 0.5:
        model.dropout.p = config.classifier_dropout_prob = 1 - model.dropout.p
    return model


def ready_to_train(model: Any) -> Any:
    """Return a model of images whose batch norms and dropout are as training wants them."""
    return hold_folded(remembering(dropping(model)))
