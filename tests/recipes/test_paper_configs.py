"""Each file of recipes/configs: the recipe takes it, and all parts of its loss are there, learn and shrink."""

from __future__ import annotations

import importlib.util
import re
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from hf_distill.jobs.command_line import parse
from hf_distill.jobs.comparison import Comparison
from hf_distill.jobs.recipe_settings import RecipeArguments
from hf_distill.jobs.tuning import TuningArguments
from hf_distill.loss_plan import LossPlan, resolve_loss
from hf_distill.schedules import highest, value_at
from hf_distill.support import check_supported
from hf_distill.tasks.bert_models import TextModelArguments, new_bert
from hf_distill.tasks.model_arguments import check_models, number_of_teachers
from hf_distill.tasks.text_classification import TextClassification
from hf_distill.tasks.text_data import TextDataArguments
from hf_distill.tasks.wordpiece import train_tokenizer
from hf_distill.teachers.preparation import check_ensemble_arguments
from tests.tiny import perturbed

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGS = sorted((REPOSITORY / "recipes" / "configs").glob("*.yaml"))
PAPERS = {
    "distilbert": "1910.01108", "dist": "2205.10536", "dkd": "2203.08679", "ensemble": "1503.02531",
    "hinton": "1503.02531", "minilmv2": "2012.15828", "pkd": "1908.09355", "sobolev": "1706.04859",
    "tinybert": "1909.10351",
}  # fmt: skip
STEPS, LENGTH = 50, 16
QUIET = {
    "use_cpu": True, "bf16": False, "disable_tqdm": True, "save_strategy": "no", "logging_strategy": "no",
    "max_seq_length": LENGTH, "per_device_train_batch_size": 8, "max_steps": STEPS, "learning_rate": 2e-3,
}  # fmt: skip
TEXTS = [
    "a cat", "the old dog barks at a cat", "one hen and two eggs", "the cat purrs and the dog sleeps all day",
    "a dog", "the hen sits on the eggs", "two old cats", "a hen and a dog and a cat meet at the door",
]  # fmt: skip

every_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)


@cache
def recipe() -> ModuleType:
    """Import the recipe, which is in no package."""
    spec = importlib.util.spec_from_file_location(
        "recipe_distill_bert", REPOSITORY / "recipes/distill_bert.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def settings_of(config: Path, folder: Path, *words: str) -> tuple[Any, ...]:
    """Return the recipe's arguments of data, models and training, as its main() makes them."""
    quiet = [word for name, value in QUIET.items() for word in (f"--{name}", str(value))]
    kinds = [TextDataArguments, TextModelArguments, RecipeArguments, TuningArguments]
    words = (str(config), "--output_dir", str(folder), *quiet, *words)
    data, models, choices, _, args = parse([*kinds, recipe().TrainingSettings], words)
    if choices.quick:
        recipe().DEFAULTS.shrink(data, models, args)
    recipe().DEFAULTS.fill_in(models, args)
    return data, models, args


def corpus(labels: list[int]) -> DatasetDict:
    """Return the eight texts as the split to learn and to evaluate: one batch."""
    features = Features({"text": Value("string"), "label": ClassLabel(names=["cat", "dog", "hen"])})
    rows = Dataset.from_dict({"text": TEXTS, "label": labels}, features=features)
    return DatasetDict({"train": rows, "validation": rows, "test": rows})


def trainer_of(config: Path, folder: Path, quick: bool = False) -> Any:
    """Return the recipe's trainer of a distilled student, with a quarter of the file's widths and no dropout.

    The teacher has large random weights, and is sure of its answers, which are the labels: as those of a
    trained one mostly are, so that no part of the loss has to grow for another.
    """
    data, models, args = settings_of(config, folder, *(["--quick"] if quick else []))
    if not quick:
        models.teacher_width, models.student_width = models.teacher_width // 4, models.student_width // 4
    tokenizer = train_tokenizer(TEXTS, 60)
    empty = corpus([0] * len(TEXTS))
    teachers = []
    for seed in range(number_of_teachers(models)):
        torch.manual_seed(seed)
        teacher = new_bert(models.teacher_layers, models.teacher_width, empty, tokenizer, LENGTH, 0.0)
        teachers.append(perturbed(teacher, 0.1, seed).eval())
    with torch.no_grad():
        batch = tokenizer(TEXTS, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
        for teacher in teachers:
            teacher.classifier.weight *= 10
            teacher.classifier.bias -= teacher(**batch).logits.mean(0)  # no class is every text's
        labels = torch.stack([teacher(**batch).logits.softmax(-1) for teacher in teachers]).mean(0).argmax(-1)
    assert len(labels.unique()) > 1
    job = Comparison(
        TextClassification(data, models), corpus(labels.tolist()), teachers, ["teacher"] * len(teachers), tokenizer,
        [None] * len(teachers), args, print,
    )  # fmt: skip
    trainer = job._trainer(seed=0, kind="distilled", publish=False)
    for module in trainer.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return trainer


def parts_of(trainer: Any) -> dict[str, float]:
    """Return each part of the loss on the one batch, unweighted, those without a weight at present as well."""
    metrics = trainer.evaluate()
    return {
        key: metrics[f"eval_loss/{key}"]
        for key, weight in trainer.plan.weights.items()
        if highest(weight) > 0
    }


def heaviest(plan: LossPlan, key: str) -> LossPlan:
    """Return the loss of a step in which a part has its highest weight."""
    step = max(range(STEPS), key=lambda step: value_at(plan.weights[key], step, STEPS))
    return plan.at(step, STEPS)


def gradient(trainer: Any, plan: LossPlan) -> list[torch.Tensor]:
    """Return the gradient of a loss on the one batch, to each of the student's parameters."""
    trainer.plan = plan
    batch = trainer._prepare_inputs(next(iter(trainer.get_eval_dataloader())))
    trainer.model.train().zero_grad()
    trainer.compute_loss(trainer.model, batch).backward()
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in trainer.model.parameters()]


def without(plan: LossPlan, key: str) -> LossPlan:
    return LossPlan(
        0.0 if key == "label" else plan.label_weight, tuple(term for term in plan.terms if term.key != key)
    )


def test_the_nine_papers_are_there() -> None:
    assert {config.stem for config in CONFIGS} == set(PAPERS)


@every_config
def test_the_header_names_the_paper_and_what_is_not_reproduced(config: Path) -> None:
    header = config.read_text(encoding="utf-8").split("\n\n")[0]
    assert all(line.startswith("#") for line in header.splitlines())
    assert re.findall(r"arXiv (\d{4}\.\d{5})", header) == [PAPERS[config.stem]]
    assert re.search(r"\b(section|equation)s? \d", header), "where in the paper"
    assert "# Not reproduced: " in header
    assert max(map(len, config.read_text(encoding="utf-8").splitlines())) <= 120


def test_the_page_lists_every_file_with_its_paper() -> None:
    page = (REPOSITORY / "docs" / "paper_settings.md").read_text(encoding="utf-8")
    listed = re.findall(
        r"^\| \[`(\w+)`\]\(\.\./recipes/configs/(\w+)\.yaml\) \| .*?arXiv (\d{4}\.\d{5})", page, re.M
    )
    assert {(name, name, number) for name, number in PAPERS.items()} == set(listed)


@every_config
def test_the_recipe_takes_it(config: Path, tmp_path: Path) -> None:
    data, models, args = settings_of(config, tmp_path)
    given = yaml.safe_load(config.read_text(encoding="utf-8"))
    for name, value in given.items():
        holder = next(holder for holder in (data, models, args) if hasattr(holder, name))
        if name not in QUIET:
            assert getattr(holder, name) == value, name
    check_models(models)
    check_supported(args)
    check_ensemble_arguments(args, number_of_teachers(models))
    plan = resolve_loss(args, "single_label")
    assert [term.key for term in plan.terms] == [one.get("key", one["name"]) for one in given["objectives"]]


@every_config
def test_quick_models_suit_it(config: Path, tmp_path: Path) -> None:
    """Construction checks layers, widths, relation heads and the embeddings."""
    trainer = trainer_of(config, tmp_path, quick=True)
    assert trainer.plan.needs_teacher
    _, models, _ = settings_of(config, tmp_path, "--quick")
    if models.student_num_hidden_layers is not None and config.stem == "pkd":
        assert models.student_num_hidden_layers < models.teacher_layers, "a copy has nothing to learn"


@every_config
# Its published temperature makes the small teacher here nearly uniform, and the trainer says so.
@pytest.mark.filterwarnings("ignore:The temperature 10 leaves the teacher nearly uniform")
def test_every_part_counts_and_50_steps_reduce_it(config: Path, tmp_path: Path) -> None:
    trainer = trainer_of(config, tmp_path)
    before, plan = parts_of(trainer), trainer.plan
    assert set(before) == {key for key, weight in plan.weights.items() if highest(weight) > 0}
    assert all(0 < value < float("inf") for value in before.values()), before
    for key in before:
        whole = gradient(trainer, heaviest(plan, key))
        others = gradient(trainer, without(heaviest(plan, key), key))
        assert all(values.isfinite().all() for values in whole)
        changes = [(a - b).norm() / a.norm() for a, b in zip(whole, others, strict=True) if a.norm() > 1e-6]
        # Rounding is 1e-6 of it. How large a part is depends on the random weights, which are others on processors with
        # other vector instructions: distilbert's hidden states are 0.2 % on one with AVX-512, and more on one without.
        assert max(changes) > 1e-3, f"{key} adds nothing to the gradient of any parameter"
    trainer.plan = plan
    trainer.train()
    after = parts_of(trainer)
    assert all(after[key] < before[key] for key in before), (before, after)
