"""What teachers write, one or several as one, in the way that Seq2SeqTrainer lets a student write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, Seq2SeqTrainer, Seq2SeqTrainingArguments

from hf_distill.items import head_of
from hf_distill.teachers.ensemble import TeacherEnsemble
from hf_distill.teachers.online import OnlineTeacher


class MixedWriting(LogitsProcessor):
    """Lets several encoder-decoders write one text: each next token is chosen by their mixture.

    Given to ``generate`` of any one of them, whose own scores it replaces, with beams or without. All are asked about
    the whole text so far, without a key-value cache.

    Formula: ``log p(y_t | y_<t, x)`` of the ensemble, by its own weights and way to combine.

    Args:
        ensemble: what is to write.
        inputs: a batch of what is read, ``input_ids`` and ``attention_mask``, ``(batch, length)``.

    Source: Sutskever et al., "Sequence to Sequence Learning with Neural Networks", arXiv 1409.3215, section 3.2
        (an ensemble's beam search); mixed as by :class:`hf_distill.TeacherEnsemble`.

    Example:
        >>> from transformers import T5Config, T5ForConditionalGeneration
        >>> sizes = dict(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=1, vocab_size=9)
        >>> def teacher():
        ...     return T5ForConditionalGeneration(T5Config(decoder_start_token_id=0, pad_token_id=0, **sizes)).eval()
        >>> models = [teacher(), teacher()]
        >>> ensemble = mixture_of(models, weights=[1, 3])
        >>> inputs = {"input_ids": torch.tensor([[3, 4, 1]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
        >>> writing = LogitsProcessorList([MixedWriting(ensemble, inputs)])
        >>> models[0].generate(**inputs, logits_processor=writing, max_length=4).shape[0]
        1
    """

    def __init__(self, ensemble: TeacherEnsemble, inputs: Mapping[str, Any]) -> None:
        self.ensemble, self.inputs = ensemble, inputs

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Return the mixture's log-probabilities of the next token, ``(batch * beams, vocabulary)``."""
        beams = len(input_ids) // len(self.inputs["input_ids"])
        batch = {name: value.repeat_interleave(beams, 0) for name, value in self.inputs.items()}
        with torch.no_grad():
            answers = self.ensemble({**batch, "decoder_input_ids": input_ids})
        mixed: Any = answers.log_probs(1.0)[:, -1].to(scores)
        return mixed


def mixture_of(
    teachers: Sequence[Any],
    weights: Sequence[float] | str | None = None,
    combine: str = "probabilities",
    device: torch.device | None = None,
) -> TeacherEnsemble:
    """Return models as an ensemble that answers without a trainer.

    Args:
        teachers: models of one tokenizer.
        weights, combine: as of :class:`hf_distill.TeacherEnsemble`.
        device: where they are put; where they are if None.
    """
    members = [OnlineTeacher(model if device is None else model.to(device)) for model in teachers]
    ensemble = TeacherEnsemble(members, weights, combine)
    place = device or next(teachers[0].parameters()).device
    return ensemble.prepared(members, head_of(teachers[0]), place, ("",) * len(members))


def read_of(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an encoder reads of a batch."""
    return {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}


class Writer(Seq2SeqTrainer):
    """A ``Seq2SeqTrainer`` that only lets a model write, or an ensemble through its first model.

    Args:
        model: writes, or stands for the ensemble.
        args: of the run, whose options of generation hold here.
        ensemble: writes in its place.
        trainer_kwargs: everything else that ``Seq2SeqTrainer`` takes.
    """

    def __init__(
        self, model: Any, args: Any, ensemble: TeacherEnsemble | None = None, **trainer_kwargs: Any
    ) -> None:
        self.ensemble = ensemble
        own = Seq2SeqTrainingArguments(
            output_dir=args.output_dir,
            per_device_eval_batch_size=args.per_device_eval_batch_size,
            predict_with_generate=True,
            generation_max_length=args.generation_max_length,
            generation_num_beams=args.generation_num_beams,
            use_cpu=args.use_cpu,
            bf16=args.bf16,
            report_to="none",
            disable_tqdm=args.disable_tqdm,
        )
        super().__init__(model, own, **trainer_kwargs)

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None, **gen_kwargs: Any
    ) -> Any:
        """Let the ensemble choose each token of this batch."""
        given = {**getattr(self, "_gen_kwargs", {}), **gen_kwargs}
        if self.ensemble is not None:
            inputs = self._prepare_inputs(inputs)
            given["logits_processor"] = LogitsProcessorList([MixedWriting(self.ensemble, read_of(inputs))])
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys, **given)
