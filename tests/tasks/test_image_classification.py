"""Images in a recipe: other sizes for teacher and student, augmented together, mixed without labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import DatasetDict
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor, set_seed

from hf_distill import DistillationTrainer
from hf_distill.corpora.images import digit_images
from hf_distill.image_views import ImageViews, pixels
from hf_distill.jobs.comparison import prepare_comparison
from hf_distill.jobs.rehearsal import rehearse
from hf_distill.tasks.image_arguments import ImageDataArguments, ImageModelArguments
from hf_distill.tasks.image_classification import ImageClassification
from hf_distill.tasks.image_models import HeldBatchNorm2d, hold_folded, resized
from tests.jobs.test_comparison import arguments
from tests.tiny import perturbed

pytestmark = pytest.mark.filterwarnings(
    "ignore:The student .* seems to start from random", "ignore:The teacher is nearly uniform"
)
TINY = {"teacher_width": 4, "teacher_epochs": 1, "student_width": 2}


@pytest.fixture(scope="module")
def splits() -> DatasetDict:
    return DatasetDict({name: rows.select(range(24)) for name, rows in digit_images(8).items()})


def teacher(folder: Path, size: int = 16) -> str:
    """Save a ViT that reads images of its own size and pixels."""
    set_seed(0)
    config = ViTConfig(
        image_size=size, patch_size=4, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, id2label={number: str(number) for number in range(10)},
    )  # fmt: skip
    perturbed(ViTForImageClassification(config)).save_pretrained(folder)
    ViTImageProcessor(
        size={"height": size, "width": size}, image_mean=[0.3] * 3, image_std=[0.2] * 3
    ).save_pretrained(folder)
    return str(folder)


def run(task: Any, splits: DatasetDict, folder: Path, cached: bool, **settings: Any) -> tuple[Any, list[str]]:
    said: list[str] = []
    args = arguments(folder, train_sampling_strategy="random", max_steps=-1, num_train_epochs=1, **settings)
    job = prepare_comparison(task, splits, args, said.append)
    if cached:
        job.cache_teachers(1)
    return job.run([0], baseline=True), said


@pytest.mark.parametrize("cached", [False, True])
def test_a_teacher_of_another_size_teaches_a_mobilenet(
    tmp_path: Path, splits: DatasetDict, cached: bool
) -> None:
    models = ImageModelArguments(**TINY, teacher_model_name_or_path=[teacher(tmp_path / "teacher")])
    task = ImageClassification(ImageDataArguments(), models)
    # The student's own processor: of a folder with a model that reads 8 pixels.
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    student = MobileNetV2ForImageClassification(
        MobileNetV2Config(
            image_size=8, depth_multiplier=0.1, id2label={number: str(number) for number in range(10)}
        )
    )
    student.save_pretrained(tmp_path / "student")
    task.data.image_size = 8
    task.new_processor(splits).save_pretrained(tmp_path / "student")
    models.student_model_name_or_path = str(tmp_path / "student")
    results, said = run(task, splits, tmp_path / "out", cached)
    assert any("kept 24 answers" in line for line in said) == cached
    model = ViTForImageClassification.from_pretrained(tmp_path / "teacher")
    own = ViTImageProcessor.from_pretrained(tmp_path / "teacher")
    pixels = own([row["image"].convert("RGB") for row in splits["test"]], return_tensors="pt")
    with torch.no_grad():
        right = (model(**pixels).logits.argmax(-1) == torch.tensor(splits["test"]["label"][:])).float().mean()
    assert results["teacher"]["accuracy"] == pytest.approx(float(right))
    assert results["settings"]["counted"] == "images"


def test_a_teacher_trained_here_and_augmented_images(tmp_path: Path, splits: DatasetDict) -> None:
    data = ImageDataArguments(image_size=16, augmentation="crop")
    results, said = run(ImageClassification(data, ImageModelArguments(**TINY)), splits, tmp_path, cached=True)
    assert "Teacher: its answers are not kept, since images are augmented anew each epoch" in said
    assert results["student_alone"]["parameters"] == results["student_distilled"]["parameters"]


def test_mixed_images_teach_the_distilled_student_alone(tmp_path: Path, splits: DatasetDict) -> None:
    data = ImageDataArguments(image_size=16, mixup=1.0)
    task = ImageClassification(data, ImageModelArguments(**TINY))
    args = arguments(tmp_path, alpha=1.0, temperature=2.0)
    task.check(args)
    job = prepare_comparison(task, splits, args, lambda line: None)
    for kind, labelled in (("alone", True), ("distilled", False)):
        trainer = job._trainer(3, kind, publish=False)
        batch = trainer.data_collator([trainer.train_dataset[index] for index in range(4)])
        assert ("labels" in batch) == labelled
        views = trainer.data_collator
        while not isinstance(views, ImageViews):
            views = views.collator
        assert views.seed == 3
        assert isinstance(trainer, DistillationTrainer)
        trainer.train()
    with pytest.raises(ValueError, match=r"expected a loss without labels \(--alpha 1\)"):
        task.check(arguments(tmp_path, alpha=0.5))


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_both_kinds_of_teacher_fit(tmp_path: Path, splits: DatasetDict, kind: str) -> None:
    models = ImageModelArguments(**{**TINY, "teacher_width": 8}, teacher_kind=kind)
    rehearse(ImageClassification(ImageDataArguments(image_size=16), models), splits, arguments(tmp_path))
    assert not list(tmp_path.iterdir()), (
        "a rehearsal that goes well leaves nothing, and did not end the process"
    )


def test_a_pretrained_mobilenet_is_fine_tuned_into_the_teacher(
    tmp_path: Path, splits: DatasetDict, capsys: Any
) -> None:
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification, MobileNetV2ImageProcessor

    many = {number: f"thing {number}" for number in range(21)}
    base = perturbed(
        MobileNetV2ForImageClassification(MobileNetV2Config(depth_multiplier=0.1, id2label=many))
    )
    base.save_pretrained(tmp_path / "base")
    MobileNetV2ImageProcessor().save_pretrained(tmp_path / "base")
    models = ImageModelArguments(**TINY, teacher_pretrained_name_or_path=str(tmp_path / "base"))
    task = ImageClassification(ImageDataArguments(pretrained_image_size=32), models)
    with pytest.raises(SystemExit):
        rehearse(task, splits, arguments(tmp_path / "out"))
    assert "or give it a new head with --ignore_mismatched_sizes" in capsys.readouterr().err
    models.ignore_mismatched_sizes = True
    models.teacher_learning_rate = 1e-12  # so that it is still known
    _, said = run(task, splits, tmp_path / "out", cached=True)
    assert any(line.startswith(f"Teacher: fine-tuning {tmp_path / 'base'} into") for line in said)
    (folder,) = (tmp_path / "out").glob("teacher-*")
    teacher = MobileNetV2ForImageClassification.from_pretrained(folder)
    assert torch.allclose(
        teacher.mobilenet_v2.conv_stem.first_conv.convolution.weight,
        base.mobilenet_v2.conv_stem.first_conv.convolution.weight,
        atol=1e-6,
    )
    assert teacher.config.num_labels == 10
    assert {part.momentum for part in teacher.modules() if isinstance(part, torch.nn.BatchNorm2d)} == {
        0.997
    }, "the momentum is transformers' own in its configuration"
    assert task.load_processor(str(folder)).crop_size["height"] == 32
    _, said = run(task, splits, tmp_path / "out", cached=True)
    assert any("kept from an earlier run" in line for line in said)
    perturbed(base).save_pretrained(tmp_path / "base")
    _, said = run(task, splits, tmp_path / "out", cached=True)
    assert any("fine-tuning" in line for line in said), "the folder holds another model now"


def test_the_share_that_is_cut_out_is_that_of_the_larger_image() -> None:
    from transformers import MobileNetV2ImageProcessor

    processor = resized(MobileNetV2ImageProcessor(), 112)
    assert (processor.size["shortest_edge"], processor.crop_size["height"]) == (128, 112)
    from PIL import Image

    assert pixels(processor, [Image.new("RGB", (300, 200))]).shape == (1, 3, 112, 112)


def test_a_student_from_random_weights_reads_its_own_size(tmp_path: Path, splits: DatasetDict) -> None:
    models = ImageModelArguments(**TINY, teacher_model_name_or_path=[teacher(tmp_path / "teacher")])
    task = ImageClassification(ImageDataArguments(image_size=8), models)
    job = prepare_comparison(task, splits, arguments(tmp_path / "out"), lambda line: None)
    batch = task.collator(job.processor, job.teacher_processors)([job.encoded["train"][0]])
    assert batch["pixel_values"].shape[-1] == 8
    assert batch["teacher_pixel_values"].shape[-1] == 16
    task.data.image_size = None
    assert prepare_comparison(task, splits, arguments(tmp_path / "out"), print).teacher_processors == [None]


def test_folded_batch_norms_are_held_in_training_and_saved_as_ordinary_ones(tmp_path: Path) -> None:
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    torch.manual_seed(0)
    model = MobileNetV2ForImageClassification(
        MobileNetV2Config(depth_multiplier=0.1, classifier_dropout_prob=0.0)
    )
    assert not any(isinstance(part, HeldBatchNorm2d) for part in hold_folded(model).modules()), (
        "never trained"
    )
    norms = [part for part in model.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.bias += 0.1 * torch.randn_like(norm.bias)
            norm.running_var.fill_(1 - norm.eps)
    pixels_of = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        evaluated = model.eval()(pixels_of).logits
        hold_folded(model).train()
        assert torch.equal(model(pixels_of).logits, evaluated)
    model(pixels_of).logits.sum().backward()
    assert norms[0].bias.grad.any()
    assert norms[0].num_batches_tracked == 0
    model.save_pretrained(tmp_path)
    loaded = MobileNetV2ForImageClassification.from_pretrained(tmp_path)
    assert not any(isinstance(part, HeldBatchNorm2d) for part in loaded.modules())
    with torch.no_grad():
        assert torch.equal(loaded(pixels_of).logits, evaluated)
    norms[1].running_mean += 1.0  # statistics of its own: it is left alone
    norms[1].__class__ = torch.nn.BatchNorm2d
    hold_folded(model)
    assert type(norms[1]) is torch.nn.BatchNorm2d
