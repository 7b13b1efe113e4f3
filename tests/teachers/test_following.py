"""Objectives on features and derivatives over several teachers: one is followed, or all are averaged over."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import DataCollatorWithPadding

from hf_distill import DistillationTrainer, TeacherEnsemble, student_from_teacher
from hf_distill.features import FeatureNeeds
from hf_distill.objectives import objective_classes
from hf_distill.projections import PROJECTIONS_NAME, module_name
from hf_distill.teachers.following import Followed, followed
from hf_distill.teachers.online import OnlineTeacher
from tests.test_columns import tokenizer_of
from tests.test_ensemble_training import WORDS, texts_for
from tests.test_feature_training import CLASSES, INDEPENDENT, TOKENS, LogitsOnly, objectives
from tests.tiny import (
    arguments,
    bert,
    classifier,
    collate,
    distiller,
    examples,
    gradient_of,
    one_step,
    perturbed,
    teacher_of,
)

VJP = {"name": "derivative", "weight": 0.1}
DERIVATIVES = {
    "vjp": VJP,
    "finite_difference": {**VJP, "method": "finite_difference", "epsilon": 1e-4},
}
WIDTHS = (24, 16, 32)  # the student's is 16
SAVING = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}


def teachers(dtype: torch.dtype = torch.float32) -> list[Any]:
    """Return teachers of other depths and widths, which say different things; one has the student's width."""
    return [
        perturbed(bert(3, seed=5 + k, hidden_size=width, num_attention_heads=4), 0.1, seed=9 + k).to(dtype)
        for k, width in enumerate(WIDTHS)
    ]


def alone(name: str, teacher: Any = None) -> dict[str, Any]:
    """Return arguments for one objective and no label loss."""
    (given,) = objectives(name)
    return {"objectives": [given if teacher is None else {**given, "teacher": teacher}], "label_weight": 0.0}


def logged(trainer: Any, key: str) -> float:
    return next(e[f"loss/{key}"] for e in trainer.state.log_history if f"loss/{key}" in e)


def close(received: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    return bool((received - expected).abs().max() <= tolerance * expected.abs().max())


# ---- who is followed ---------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["confidence", "label_loss", None])
def test_weights_per_row_are_no_weights_of_features(weights: Any) -> None:
    ensemble = TeacherEnsemble(["a", "b"], weights=weights)
    assert [(one.place, one.weight) for one in followed(ensemble, "average", "rkd")] == [(0, 0.5), (1, 0.5)]


@pytest.mark.parametrize("setting", [None, 0, "average"])
def test_a_single_teacher_is_the_one(setting: Any) -> None:
    teacher = OnlineTeacher(bert())
    assert followed(teacher, setting, "rkd") == (Followed(teacher, 1.0, None, None),)


@pytest.mark.parametrize("name", [*sorted(CLASSES), "derivative"])
@pytest.mark.parametrize(
    ("count", "setting", "message"),
    [
        (3, None, "expected teacher: 0 to 2 or average, as there are 3 teachers, received nothing"),
        (3, 3, "expected teacher: 0 to 2 or average, as there are 3 teachers, received 3"),
        (1, 1, "expected teacher: 0, average or nothing, as there is one teacher, received 1"),
    ],
)
def test_it_must_be_said_who_and_be_there(
    tmp_path: Any, name: str, count: int, setting: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=f"^objective '{name}': {message}"):
        distiller(bert(2), teachers()[:count], arguments(tmp_path, **alone(name, setting)), examples(8))


@pytest.mark.parametrize("name", ["rkd", "derivative"])
def test_a_member_that_can_t_be_followed_is_named(tmp_path: Any, name: str) -> None:
    given = [teacher_of(), LogitsOnly()]
    for setting in (1, "average"):
        args = arguments(tmp_path, **alone(name, setting))
        with pytest.raises(
            ValueError, match=rf"^teacher\[1\]: objective '{name}': expected a teacher that g"
        ):
            distiller(student_from_teacher(given[0], num_hidden_layers=2), given, args, examples(8))


def test_another_input_space_is_refused_by_name(tmp_path: Any) -> None:
    first, second = teacher_of(), perturbed(bert(2, seed=1), seed=4)
    student = student_from_teacher(first, num_hidden_layers=1)
    distiller(student, [first, second], arguments(tmp_path, **alone("derivative", 0)), examples(8))
    for setting in (1, "average"):
        args = arguments(tmp_path, **alone("derivative", setting))
        with pytest.raises(ValueError, match=r"^teacher\[1\]: derivative: expected the student's word embed"):
            distiller(student, [first, second], args, examples(8))


def test_the_settings_say_who(tmp_path: Any) -> None:
    given = [*objectives("rkd"), {"name": "hidden_states", "teacher": "average", "weight": 2.0}]
    given[0]["teacher"] = 1
    trainer = distiller(bert(2), teachers(), arguments(tmp_path, objectives=given), examples(8))
    said = trainer.distillation_settings()["objectives"]
    assert [entry["teacher"] for entry in said] == [1, "average"]
    plain = distiller(bert(2), teachers()[0], arguments(tmp_path, **alone("rkd")), examples(8))
    assert "teacher" not in plain.distillation_settings()["objectives"][0]


# ---- features ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_following_one_is_training_on_it_alone(tmp_path: Any, name: str) -> None:
    found = []
    for given, setting in ((teachers(), 2), (teachers()[2], None)):
        args = one_step(tmp_path, 8, 1, **alone(name, setting))
        trainer = distiller(bert(2), given, args, examples(8))
        before = trainer.evaluate(examples(6, seed=3))[f"eval_loss/{name}"]
        found.append((gradient_of(trainer), before, logged(trainer, name)))
    assert found[0][0].abs().max() > 0
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1:] == found[1][1:]


@pytest.mark.parametrize("name", sorted(CLASSES))
@pytest.mark.parametrize(
    ("weights", "shares"),
    [(None, (1 / 3, 1 / 3, 1 / 3)), ([3, 1, 0], (0.75, 0.25, 0)), ("label_loss", (1 / 3, 1 / 3, 1 / 3))],
)
def test_the_average_is_the_mean_of_all(
    tmp_path: Any, name: str, weights: Any, shares: tuple[float, ...]
) -> None:
    def run(given: Any, setting: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor, list[float]]:
        args = one_step(tmp_path, 8, 1, **alone(name, setting), **options)
        trainer = distiller(bert(2).double(), given, args, examples(8))
        values = [trainer.evaluate(examples(6, seed=3))[f"eval_loss/{name}"]]
        gradient = gradient_of(trainer)
        size = sum(parameter.numel() for parameter in trainer.model.parameters())
        return gradient[:size], gradient[size:], [*values, logged(trainer, name)]

    student, beside, values = run(teachers(torch.float64), "average", teacher_weights=weights)
    singles = [run(model, None) for model in teachers(torch.float64)]
    mean = sum(share * single[0] for share, single in zip(shares, singles, strict=True))
    assert mean.abs().max() > 0
    assert close(student, mean, 1e-12)
    parts = [share * single[1] for share, single in zip(shares, singles, strict=True) if share > 0]
    expected = torch.cat(parts)
    assert beside.shape == expected.shape
    assert beside.numel() == 0 or close(beside, expected, 1e-12)
    for place, value in enumerate(values):
        each = [share * single[2][place] for share, single in zip(shares, singles, strict=True)]
        assert value == pytest.approx(sum(each), rel=1e-6)


@pytest.mark.parametrize("name", INDEPENDENT)
def test_one_batch_has_one_gradient_however_it_is_split(tmp_path: Any, name: str) -> None:
    whole, split = (
        gradient_of(
            distiller(
                bert(2).double(), teachers(torch.float64),
                one_step(tmp_path, size, 8 // size, **alone(name, "average")), examples(8),
            )
        )
        for size in (8, 1)
    )  # fmt: skip
    assert whole.abs().max() > 0
    assert close(split, whole, 1e-12)


def test_only_what_is_followed_is_computed(tmp_path: Any) -> None:
    given, outputs = teachers(), []
    for index, model in enumerate(given):
        model.register_forward_hook(lambda m, a, out, index=index: outputs.append((index, out)) and None)
    terms = [{"name": "hidden_states", "teacher": 0}, {"name": "attentions", "teacher": 2}]
    args = arguments(tmp_path, objectives=terms, max_steps=1)
    trainer = distiller(bert(2), given, args, examples(8))
    trainer.train()
    trainer.evaluate(examples(4))
    assert [index for index, _ in outputs] == [0, 1, 2] * 2
    assert all((out.hidden_states is not None) == (index == 0) for index, out in outputs)
    assert all(out.attentions is None for _, out in outputs)
    needs = [member.feature_needs for member in trainer.teacher.members]  # type: ignore[attr-defined]
    assert needs == [
        FeatureNeeds(hidden_states=frozenset({1, 3})), FeatureNeeds(), FeatureNeeds(attention=frozenset({1, 3})),
    ]  # fmt: skip
    kept = trainer.teacher_signals(collate(examples(2))).members  # type: ignore[attr-defined]
    assert [sorted(one.features.hidden_states) if one.features else None for one in kept] == [
        [1, 3],
        None,
        [],
    ]


def test_the_same_teacher_twice_shows_what_either_place_needs(tmp_path: Any) -> None:
    twice = OnlineTeacher(teachers()[1])
    args = arguments(tmp_path, max_steps=1, **alone("hidden_states", 0))
    trainer = distiller(bert(2), TeacherEnsemble([twice, twice]), args, examples(8))
    trainer.train()
    assert logged(trainer, "hidden_states") > 0


def test_a_teacher_that_is_not_finite_is_still_named(tmp_path: Any) -> None:
    def spoil(module: Any, args: Any, output: Any) -> Any:
        output.logits[1, 0] = float("nan")
        return output

    given = teachers()
    given[1].register_forward_hook(spoil)
    trainer = distiller(bert(2), given, arguments(tmp_path, **alone("rkd", 0)), examples(8))
    with pytest.raises(FloatingPointError, match=r"^teacher\[1\]"):
        trainer.train()


# ---- projections -----------------------------------------------------------------------------------


def projected(folder: Any, setting: Any = "average", model: Any = None, **options: Any) -> Any:
    terms = [{"name": "hidden_states", "teacher": setting}, {"name": "patient", "teacher": 2}]
    args = arguments(folder, objectives=terms, label_weight=0.0, **options)
    return distiller(model or bert(2), teachers(), args, examples(16))


def test_each_teacher_of_another_width_has_a_projection(tmp_path: Path) -> None:
    trainer = projected(tmp_path, **SAVING)
    names = {
        "teacher:0:key:hidden_states": 24,
        "teacher:2:key:hidden_states": 32,
        "teacher:2:key:patient": 32,
    }
    assert {name: module.weight.shape for name, module in trainer.projections.items()} == {
        name: (width, 16) for name, width in names.items()
    }
    before = {name: module.weight.detach().clone() for name, module in trainer.projections.items()}
    trainer.train()
    assert not any(torch.equal(before[name], trainer.projections[name].weight) for name in names)
    assert set(load_file(tmp_path / "checkpoint-4" / PROJECTIONS_NAME)) == {f"{n}.weight" for n in names}
    assert set(load_file(tmp_path / "checkpoint-4" / "model.safetensors")) == set(bert(2).state_dict())


def test_resume_ends_with_the_bits_of_a_run_that_was_not_stopped(tmp_path: Path) -> None:
    whole = projected(tmp_path / "a", model=bert(2, dropout=True), **SAVING)
    whole.train()
    resumed = projected(tmp_path / "b", model=bert(2, seed=8, dropout=True), **SAVING)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    for name, module in whole.projections.items():
        assert torch.equal(module.weight, resumed.projections[name].weight)
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(ValueError, match="Resume with the objectives and models that wrote the checkpoint"):
        projected(tmp_path / "c", 0, **SAVING).train(
            resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2")
        )


def test_names_of_projections_do_not_collide() -> None:
    keys = ["hidden", "0:key:hidden", "teacher:0:key:hidden"]
    assert len({module_name(key, place) for key in keys for place in (None, 0, 10)}) == 9


# ---- tokenizers ------------------------------------------------------------------------------------


def own_encoding(folder: Any, name: str, setting: Any) -> DistillationTrainer:
    """Return a trainer whose second teacher has a tokenizer of its own."""
    students, second = tokenizer_of(WORDS), tokenizer_of(["z", *WORDS])
    given = [perturbed(bert(2, seed=5)), perturbed(bert(2, seed=6))]
    return DistillationTrainer(
        student_from_teacher(given[0], num_hidden_layers=2), given,
        arguments(folder, max_steps=1, **alone(name, setting)),
        train_dataset=texts_for(students), processing_class=students,
        data_collator=DataCollatorWithPadding(students), teacher_processing_class=[None, second],
    )  # fmt: skip


@pytest.mark.parametrize("name", [*TOKENS, "derivative"])
def test_other_tokens_are_refused_where_positions_are_compared(tmp_path: Any, name: str) -> None:
    own_encoding(tmp_path, name, 0).train()
    for setting in (1, "average"):
        with pytest.raises(
            ValueError, match=r"^teacher\[1\]: .*expected student and teacher to read the same"
        ):
            own_encoding(tmp_path, name, setting)


@pytest.mark.parametrize("name", ["patient", "similarity"])
def test_vectors_of_two_encodings_are_compared(tmp_path: Any, name: str) -> None:
    trainer = own_encoding(tmp_path, name, 1)
    trainer.train()
    assert logged(trainer, name) > 0


# ---- derivatives -----------------------------------------------------------------------------------


def images() -> tuple[Any, list[Any]]:
    """Return a student and teachers that read pixels, in float64."""
    given = [perturbed(classifier("vit", 2, 5 + k), 0.2, seed=9 + k).double() for k in range(3)]
    return classifier("vit").double(), given


@pytest.mark.parametrize("term", DERIVATIVES.values(), ids=DERIVATIVES)
@pytest.mark.parametrize("setting", [1, "average"])
def test_derivatives_are_those_of_the_followed(tmp_path: Any, term: dict[str, Any], setting: Any) -> None:
    def run(given: Any, setting: Any, size: int = 8, **options: Any) -> tuple[torch.Tensor, float]:
        terms = [{**term, **({} if setting is None else {"teacher": setting})}]
        args = one_step(tmp_path, size, 8 // size, objectives=terms, label_weight=0, **options)
        trainer = distiller(images()[0], given, args, examples(8, "image"))
        gradient = gradient_of(trainer)
        assert all(p.grad is None for model in images()[1] for p in model.parameters())
        return gradient, logged(trainer, "derivative")

    shares = (0, 1, 0) if setting == 1 else (0.25, 0.75, 0)
    gradient, value = run(images()[1], setting, teacher_weights=[1, 3, 0])
    singles = [run(model, None) for model in images()[1]]
    assert len({value for _, value in singles}) == 3
    expected = sum(share * single[0] for share, single in zip(shares, singles, strict=True))
    assert close(gradient, expected, 1e-6)  # pixels are float32
    mean = sum(share * single[1] for share, single in zip(shares, singles, strict=True))
    assert value == pytest.approx(mean, rel=1e-6)
    split, _ = run(images()[1], setting, 2, teacher_weights=[1, 3, 0])
    assert close(split, gradient, 1e-6)


@pytest.mark.parametrize(("setting", "shares"), [(2, (0, 0, 1)), ("average", (0.25, 0.5, 0.25))])
def test_the_value_is_that_of_explicit_jacobians(
    tmp_path: Any, setting: Any, shares: tuple[float, ...]
) -> None:
    student, given = images()
    data = examples(3, "image")
    args = arguments(tmp_path, objectives=[{**VJP, "teacher": setting}], teacher_weights=[1, 2, 1])
    trainer = distiller(student, given, args, data)
    received = trainer.evaluate(data)["eval_loss/derivative"]
    pixels = collate(data)["pixel_values"].double()

    def jacobians(model: Any) -> torch.Tensor:
        """Return dz/dx of each example, (examples, classes, pixels)."""
        model.eval()
        each = [torch.autograd.functional.jacobian(lambda x: model(x).logits[0], p[None]) for p in pixels]
        return torch.stack([jacobian.reshape(3, -1) for jacobian in each])

    functions = trainer._functions(student, collate(data), 0, -1, Followed(trainer.teacher.members[0]))  # type: ignore[attr-defined]
    u = functions.output_directions(torch.ones(3, 1, 3, dtype=torch.bool), torch.float64)
    values = [
        3 * (u @ (jacobians(student) - jacobians(model))).square().sum((1, 2)).mean() for model in given
    ]
    expected = sum(share * value for share, value in zip(shares, values, strict=True))
    assert received == pytest.approx(float(expected), rel=1e-5)


def test_texts_are_embedded_by_the_teacher_that_is_followed(tmp_path: Any) -> None:
    first = teacher_of()
    second = copy.deepcopy(first)
    with torch.no_grad():
        second.classifier.weight.mul_(-2.0)
        second.get_input_embeddings().weight.mul_(1.1)  # another point of the same space
    student = student_from_teacher(first, num_hidden_layers=1)
    found = []
    for given, setting in (([first, second], 1), (second, None), ([first, second], 0)):
        terms = [{**VJP, **({} if setting is None else {"teacher": setting})}]
        args = one_step(tmp_path, 4, 2, objectives=terms, label_weight=0)
        trainer = distiller(copy.deepcopy(student), copy.deepcopy(given), args, examples(8))
        found.append((gradient_of(trainer), logged(trainer, "derivative")))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1] != found[2][1]


# ---- offloading --------------------------------------------------------------------------------------


def test_a_teacher_is_on_the_device_whenever_it_is_asked(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where teachers are moved to is recorded, and nothing moved: there may be no second device here."""
    moves: list[tuple[int, str]] = []
    given = [teacher_of(), teacher_of()]
    student = student_from_teacher(given[0], num_hidden_layers=1)
    terms = [{**VJP, "teacher": "average"}, {"name": "hidden_states", "teacher": 1}]
    args = arguments(tmp_path, objectives=terms, offload_teachers=True)
    trainer = distiller(student, given, args, examples(8))
    for index, model in enumerate(given):
        model.get_input_embeddings().register_forward_hook(
            lambda *_, index=index: moves.append((index, "asked"))
        )

    def record(self: OnlineTeacher, device: torch.device) -> OnlineTeacher:
        moves.append((given.index(self.model), device.type))
        return self

    monkeypatch.setattr(OnlineTeacher, "to", record)
    trainer.teacher.device = torch.device("cuda")  # type: ignore[attr-defined]
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(examples(4)))
    here = len(moves)
    loss.backward()
    assert len(moves) == here, "the backward of the student needs no teacher"
    signals = [(index, what) for index in (0, 1) for what in ("cuda", "asked", "cpu")]
    # For its derivative a teacher embeds the tokens, to find the point, and then is run at that point.
    derivatives = [(index, what) for index in (0, 1) for what in ("cuda", "asked", "asked", "cpu")]
    assert moves == signals + derivatives


def test_every_objective_on_one_models_inside_is_covered() -> None:
    inside = {
        name for name, found in objective_classes().items() if found.needs & {"features", "input_gradient"}
    }
    assert inside == {*CLASSES, "derivative"}
