"""How a student is used: the Auto class that loads it, its task, and a few lines that run it."""

from __future__ import annotations

import inspect
import json
from typing import Any

import transformers
from transformers.models.auto import modeling_auto

# The task of a head by the class that loads it, for the Hub's filters.
TASKS = {
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
    "AutoModelForQuestionAnswering": "question-answering",
    "AutoModelForMultipleChoice": "multiple-choice",
    "AutoModelForMaskedLM": "fill-mask",
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForImageClassification": "image-classification",
    "AutoModelForAudioClassification": "audio-classification",
    "AutoModelForCTC": "automatic-speech-recognition",
    "AutoModelForSpeechSeq2Seq": "automatic-speech-recognition",
    "AutoModelForSemanticSegmentation": "image-segmentation",
    "AutoModelForObjectDetection": "object-detection",
    "AutoModel": "feature-extraction",
}


def auto_class_name(model: Any) -> str:
    """Name the Auto class that loads a model, or the model's own class if none does.

    Args:
        model: a transformers model, or a PEFT model around one.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> auto_class_name(GPT2LMHeadModel(GPT2Config(n_embd=4, n_layer=1, n_head=1, vocab_size=8)))
        'AutoModelForCausalLM'
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model  # PEFT's wrapper has it
    candidates = [*TASKS, *(name for name in vars(modeling_auto) if name.startswith("AutoModelFor"))]
    # A class is in several mappings: the task's own before the general ones.
    general = ("AutoModel", "AutoModelForTextEncoding", "AutoModelForPreTraining")
    for name in [*(name for name in dict.fromkeys(candidates) if name not in general), *general]:
        mapping = getattr(getattr(modeling_auto, name, None), "_model_mapping", None)
        classes = None if mapping is None else mapping._model_mapping.get(base.config.model_type)
        if type(base).__name__ in ([classes] if isinstance(classes, str) else list(classes or ())):
            return name
    return type(base).__name__


def usage_snippet(model: Any, source: str, processing_class: Any = None, revision: str | None = None) -> str:
    """Write the lines that load a student and run it on one input.

    Args:
        model: the student.
        source: what ``from_pretrained`` takes.
        processing_class: the student's tokenizer or processor.
        revision: the branch it was pushed to.
    """
    auto_class = auto_class_name(model)
    processor = _processor_class(processing_class)
    where = json.dumps(source) + ("" if revision is None else f", revision={json.dumps(revision)}")
    names = [auto_class] if processor is None else [auto_class, processor]
    lines = ["import torch"] if processor == "AutoTokenizer" else []
    lines += [f"from transformers import {', '.join(sorted(names))}", ""]
    lines.append(f"model = {auto_class}.from_pretrained({where}).eval()")
    if processor is not None:
        name = "tokenizer" if processor == "AutoTokenizer" else "processor"
        lines.append(f"{name} = {processor}.from_pretrained({where})")
    if processor != "AutoTokenizer":
        return "\n".join([*lines, "print(model.config)"])
    takes_types = "token_type_ids" in inspect.signature(model.forward).parameters
    options = "" if takes_types or hasattr(model, "peft_config") else ", return_token_type_ids=False"
    lines.append(f'inputs = tokenizer("One sentence to try.", return_tensors="pt"{options})')
    return "\n".join([*lines, "with torch.inference_mode():", *_answer_lines(auto_class, model)])


def _answer_lines(auto_class: str, model: Any) -> list[str]:
    if auto_class in ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM"):
        generate = "    tokens = model.generate(**inputs, max_new_tokens=20)"
        return [generate, "print(tokenizer.decode(tokens[0], skip_special_tokens=True))"]
    forward = "    logits = model(**inputs).logits"
    if auto_class == "AutoModelForSequenceClassification":
        if model.config.problem_type == "regression" or model.config.num_labels == 1:
            return [forward, "print(logits[0].tolist())"]
        if model.config.problem_type == "multi_label_classification":
            names = "[model.config.id2label[i] for i, p in enumerate(logits[0].sigmoid()) if p > 0.5]"
            return [forward, f"print({names})"]
        return [forward, "print(model.config.id2label[logits.argmax(-1).item()])"]
    if auto_class == "AutoModelForTokenClassification":
        words = 'tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])'
        classes = "[model.config.id2label[i] for i in logits.argmax(-1)[0].tolist()]"
        return [forward, f"print([*zip({words}, {classes})])"]
    if auto_class == "AutoModelForMaskedLM":
        return [forward, "print(tokenizer.decode(logits.argmax(-1)[0]))"]
    return ["    outputs = model(**inputs)", "print({name: value.shape for name, value in outputs.items()})"]


def _processor_class(processing_class: Any) -> str | None:
    kinds = {
        transformers.PreTrainedTokenizerBase: "AutoTokenizer",
        transformers.ProcessorMixin: "AutoProcessor",
        transformers.FeatureExtractionMixin: "AutoFeatureExtractor",
        transformers.BaseImageProcessor: "AutoImageProcessor",
    }
    return next((name for kind, name in kinds.items() if isinstance(processing_class, kind)), None)
