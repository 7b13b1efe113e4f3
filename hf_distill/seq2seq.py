"""The pair for encoder-decoders that write text: arguments and trainer over those of transformers' Seq2SeqTrainer."""

from __future__ import annotations

from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

from hf_distill.arguments import DistillationArgumentsMixin
from hf_distill.trainer import DistillationMixin


class DistillationSeq2SeqTrainingArguments(DistillationArgumentsMixin, Seq2SeqTrainingArguments):
    """``Seq2SeqTrainingArguments`` with the settings of distillation, ``predict_with_generate`` among its own.

    Example:
        >>> args = DistillationSeq2SeqTrainingArguments("out", alpha=0.7, predict_with_generate=True, report_to="none")
        >>> args.alpha, args.predict_with_generate
        (0.7, True)
    """


class DistillationSeq2SeqTrainer(DistillationMixin, Seq2SeqTrainer):  # type: ignore[misc] # it names one argument more
    """``Seq2SeqTrainer`` that makes a small encoder-decoder imitate a large one, token by token.

    Both models read the decoder's input that the labels give, and are compared at the labels. With
    ``predict_with_generate`` an evaluation has the losses and the agreement, and metrics of the text that the student
    writes; the teacher's metric is left out, which would be of logits. :class:`hf_distill.DistillationTrainer`
    documents the arguments.
    """
