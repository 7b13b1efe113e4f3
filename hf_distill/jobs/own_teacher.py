"""A classifier trained on the same texts as its students, once, and kept: the teacher where no name is given."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import DatasetDict
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch.nn.functional import cross_entropy
from transformers import (
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from hf_distill.jobs.text_data import encode
from hf_distill.jobs.text_models import TextModelArguments, label_names, last_epoch, new_bert
from hf_distill.whole_checkpoints import last_whole_checkpoint

_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def first_on_main(state: PartialState) -> AbstractContextManager[Any]:
    """Let process 0 build what it keeps on disk, and the others read it after."""
    return state.main_process_first()


def _empty_tokenizer(vocabulary: dict[str, int] | None = None) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocab=vocabulary or {}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _continuing_characters(tokenizer: Tokenizer, texts: list[str]) -> list[str]:
    """Return WordPiece's name, ## and the character, of each that stands inside a word, sorted."""
    found: set[str] = set()
    for text in texts:
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text)):
            found.update(word[1:])
    return sorted(f"##{character}" for character in found)


def train_tokenizer(texts: list[str], vocabulary_size: int) -> PreTrainedTokenizerFast:
    """Train a lower-casing WordPiece tokenizer with BERT's special tokens, the same one each time.

    Example:
        >>> tokenizer = train_tokenizer(["a small text", "another text"], 60)
        >>> tokenizer.decode(tokenizer("A text")["input_ids"])
        '[CLS] a text [SEP]'
    """
    # The library numbers the pieces that go on a word in the order of a hash map, another in each run, and breaks
    # ties between merges by number: so they are numbered here, and made ordinary again by a second tokenizer.
    first = _empty_tokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary_size,
        special_tokens=_SPECIAL + _continuing_characters(first, texts),
        show_progress=False,
    )
    first.train_from_iterator(texts, trainer)
    tokenizer = _empty_tokenizer(first.get_vocab(with_added_tokens=False))
    tokenizer.add_special_tokens(_SPECIAL)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = {f"{name.strip('[]').lower()}_token": name for name in _SPECIAL}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=inputs, **names)


@dataclass
class WordDropout:
    """Pads a batch, and leaves each token out with a probability, never a special one.

    On few short texts a classifier from random weights learns single rare words by heart. Leaving some out makes it
    read the others, and reading fewer takes less time.

    Args:
        tokenizer: gives padding and the special tokens.
        rate: the probability, in [0, 1).

    Source: Iyyer et al., "Deep Unordered Composition Rivals Syntactic Methods for Text
    Classification", ACL 2015, section 3.2.

    Example:
        >>> tokenizer = train_tokenizer(["a small text", "another text"], 60)
        >>> rows = [tokenizer("a small text"), tokenizer("text")]
        >>> WordDropout(tokenizer, 0.0)(rows)["attention_mask"].sum(-1).tolist()
        [5, 3]
    """

    tokenizer: Any
    rate: float

    def __call__(self, features: list[Any]) -> Any:
        """Make a batch, with draws from PyTorch's global generator."""
        return DataCollatorWithPadding(self.tokenizer)([self._shortened(dict(row)) for row in features])

    def _shortened(self, row: dict[str, Any]) -> dict[str, Any]:
        tokens = torch.as_tensor(row["input_ids"])
        special = torch.isin(tokens, torch.tensor(self.tokenizer.all_special_ids))
        kept = (special | (torch.rand(len(tokens)) >= self.rate)).nonzero().flatten().tolist()
        per_token = [name for name in self.tokenizer.model_input_names if name in row]
        return {**row, **{name: [row[name][place] for place in kept] for name in per_token}}


def kept_teacher(
    settings: TextModelArguments,
    splits: DatasetDict,
    args: TrainingArguments,
    length: int,
    say: Callable[[str], None],
    every_epoch: bool = False,
) -> Path:
    """Return the folder of a teacher trained on these texts with these settings; train it if it is not there.

    The folder's name is a hash of the texts and the settings, so another task gets another teacher.
    It is filled beside and renamed when whole; a run that was killed goes on from its last checkpoint.
    With ``every_epoch`` the same training also leaves the teacher of each earlier ``teacher_stop_epoch``, in the folder
    where that setting looks for it.
    """
    last = last_epoch(settings)
    folders = {
        epoch: _folder(settings, splits, args, length, epoch)
        for epoch in range(1 if every_epoch else last, last + 1)
    }
    missing = {epoch: folder for epoch, folder in folders.items() if not folder.is_dir()}
    if not missing:
        say(f"Teacher: kept from an earlier run in {folders[last]}")
        return folders[last]
    end, whole = max(missing), math.ceil(settings.teacher_epochs)
    say(
        f"Teacher: training {settings.teacher_layers} layers of width {settings.teacher_width} into {missing[end]} "
        f"{'' if end == whole else f'to epoch {end} of {whole} '}..."
    )
    _train_teacher(settings, splits, args, length, missing)
    return folders[last]


def _folder(
    settings: TextModelArguments, splits: DatasetDict, args: TrainingArguments, length: int, epoch: int
) -> Path:
    """Return where the teacher that stops after an epoch belongs."""
    names = ("vocabulary_size", *(name for name in asdict(settings) if name.startswith("teacher_")))
    wanted = {name: getattr(settings, name) for name in names if name != "teacher_stop_epoch"}
    if epoch < math.ceil(settings.teacher_epochs):
        wanted["teacher_stop_epoch"] = epoch
    wanted |= {"length": length, "processes": args.world_size}
    wanted |= {name: getattr(args, name) for name in ("seed", "bf16", "fp16", "warmup_steps", "weight_decay")}
    wanted["labels"] = label_names(splits)
    digest = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode())
    train = splits["train"]
    for column in train.column_names:
        digest.update(json.dumps(train[column][:]).encode())
    return Path(str(args.output_dir)) / f"teacher-{digest.hexdigest()[:12]}"


def kept_teachers(
    settings: TextModelArguments,
    splits: DatasetDict,
    args: TrainingArguments,
    length: int,
    say: Callable[[str], None],
    every_epoch: bool = False,
) -> list[str]:
    """Return the folders of the teachers that the settings ask for: one, or one for each seed from 0.

    All have one tokenizer, since the same texts give the same.
    """
    if settings.teachers_from_seeds is None:
        return [str(kept_teacher(settings, splits, args, length, say, every_epoch))]
    folders: list[Path] = []
    for seed in range(settings.teachers_from_seeds):
        with_seed = copy.copy(args)
        with_seed.seed = seed
        folders.append(kept_teacher(settings, splits, with_seed, length, say, every_epoch))
    return [str(folder) for folder in folders]


def summed_loss(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
    """Return the cross-entropy divided by the count that plain Trainer believes every model divides by.

    With BERT's own mean the teacher's gradient would be too large by the number of processes.

    Example:
        >>> import torch
        >>> summed_loss({"logits": torch.zeros(2, 4)}, torch.tensor([0, 1]), 2)
        tensor(1.3863)
    """
    total = cross_entropy(outputs["logits"].float(), labels, reduction="sum")
    return total / (labels.numel() if num_items_in_batch is None else num_items_in_batch)


def new_tokenizer(settings: TextModelArguments, splits: DatasetDict) -> Any:
    """Return a tokenizer trained on the training texts, pairs included."""
    train = splits["train"]
    texts = [text for name in ("text", "text_pair") if name in train.column_names for text in train[name]]
    return train_tokenizer(texts, settings.vocabulary_size)


def _train_teacher(
    settings: TextModelArguments,
    splits: DatasetDict,
    args: TrainingArguments,
    length: int,
    folders: dict[int, Path],
) -> None:
    """Train once, to the last of some epochs, and leave the teacher of each in its folder."""
    state = PartialState()
    end = folders[max(folders)]
    unfinished = end.with_name(f"_{end.name}-unfinished")
    with first_on_main(state):
        if not (unfinished / "tokenizer_config.json").is_file():
            new_tokenizer(settings, splits).save_pretrained(str(unfinished))
        tokenizer = AutoTokenizer.from_pretrained(str(unfinished))
        train = encode(splits["train"], tokenizer, length)
    set_seed(args.seed)
    model = new_bert(
        settings.teacher_layers, settings.teacher_width, splits, tokenizer, length, settings.teacher_dropout
    )
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=str(unfinished / "checkpoints"),
            num_train_epochs=settings.teacher_epochs,
            learning_rate=settings.teacher_learning_rate,
            per_device_train_batch_size=settings.teacher_batch_size,
            train_sampling_strategy=args.train_sampling_strategy,
            warmup_steps=args.warmup_steps,
            weight_decay=args.weight_decay,
            bf16=args.bf16,
            fp16=args.fp16,
            use_cpu=args.use_cpu,
            seed=args.seed,
            save_total_limit=1,
            save_strategy="epoch",
            logging_strategy="epoch",
            report_to="none",
            disable_tqdm=args.disable_tqdm,
        ),
        train_dataset=train,
        data_collator=WordDropout(tokenizer, settings.teacher_word_dropout),
        processing_class=tokenizer,
        compute_loss_func=summed_loss,
    )
    trainer.add_callback(_KeepEpochs(trainer, folders))
    trainer.train(resume_from_checkpoint=last_whole_checkpoint(str(unfinished / "checkpoints")))
    if not end.is_dir():  # killed after its last checkpoint, so that no epoch was left to end
        _keep(trainer, end)
    if state.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
    state.wait_for_everyone()


class _KeepEpochs(TrainerCallback):
    """Keeps the teacher as it is at the end of some epochs, and stops after the last of them.

    An epoch's end comes before its checkpoint, so a run that goes on from a checkpoint has kept the epochs before.
    """

    def __init__(self, trainer: Trainer, folders: dict[int, Path]) -> None:
        self.trainer, self.folders = trainer, folders

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        epoch = math.ceil(state.epoch - 1e-6)  # counted in floats; the last may be a part of one
        if epoch in self.folders:
            _keep(self.trainer, self.folders[epoch])
        if epoch >= max(self.folders):
            control.should_training_stop = True


def _keep(trainer: Trainer, folder: Path) -> None:
    """Save a model beside its folder, and rename when it is whole."""
    state = PartialState()
    beside = folder.with_name(f"_{folder.name}-unsaved")
    trainer.save_model(str(beside))
    state.wait_for_everyone()
    if state.is_main_process:
        (beside / "training_args.bin").unlink(missing_ok=True)
        os.replace(beside, folder)
    state.wait_for_everyone()
