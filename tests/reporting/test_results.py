"""The results of a run: numbers, table, file, and the interval of the paired bootstrap."""

import json

import numpy as np
import pytest

from hf_distill.evaluation import ModelCost
from hf_distill.evaluation.measures import Column, Measure
from hf_distill.reporting.results import (
    ModelResults,
    paired_bootstrap,
    results_table,
    summarise,
    write_results,
)

COST = ModelCost(parameters=1000, size_on_disk_bytes=4_000_000, latency_ms=2.0)
METRICS = {"accuracy": 0.8, "macro_f1": 0.7, "matthews": 0.6, "calibration_error": 0.05}


def example_models():
    better = [METRICS | {"accuracy": value} for value in (0.78, 0.80, 0.82)]
    worse = [METRICS | {"accuracy": value} for value in (0.70, 0.74, 0.78)]
    return {
        "teacher": ModelResults([METRICS], COST),
        "student_alone": ModelResults(worse, COST, [0.7, 0.7, 0.7]),
        "student_distilled": ModelResults(better, COST, [0.9, 0.8, 0.7]),
    }


def test_bootstrap_mean_and_bounds():
    generator = np.random.default_rng(0)
    distilled, alone = generator.random((5, 400)) < 0.7, generator.random((5, 400)) < 0.6
    result = paired_bootstrap(distilled, alone, resamples=500)
    assert result.mean == pytest.approx(distilled.mean() - alone.mean())
    assert result.low < result.mean < result.high
    assert result == paired_bootstrap(distilled, alone, resamples=500)


def test_bootstrap_of_one_seed_has_the_textbook_width():
    """Over texts alone the interval is that of a mean: 1.96 standard errors to each side."""
    generator = np.random.default_rng(1)
    distilled, alone = generator.random((1, 2000)) < 0.7, generator.random((1, 2000)) < 0.6
    result = paired_bootstrap(distilled, alone, resamples=4000)
    error = (distilled.astype(float) - alone).std() / np.sqrt(2000)
    assert result.high - result.mean == pytest.approx(1.96 * error, rel=0.06)
    assert result.mean - result.low == pytest.approx(1.96 * error, rel=0.06)


def test_bootstrap_covers_seeds_as_well():
    """Two seeds that disagree on every text: texts alone would say that the difference is certain."""
    distilled = np.array([[1] * 50, [0] * 50])
    alone = np.array([[0] * 50, [1] * 50])
    assert paired_bootstrap(distilled, alone, resamples=500) == (0.0, -1.0, 1.0)


def test_bootstrap_is_paired():
    """What both get right or wrong alike is no cause of chance, however the accuracy varies with the seed."""
    alone = np.random.default_rng(2).random((3, 100)) < np.array([[0.2], [0.5], [0.9]])
    assert paired_bootstrap(alone, alone, resamples=200) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("shapes", [((2, 3), (2, 4)), ((0, 3), (0, 3)), ((2, 0), (2, 0))])
def test_bootstrap_refuses(shapes):
    with pytest.raises(ValueError, match="one shape"):
        paired_bootstrap(np.ones(shapes[0]), np.ones(shapes[1]))


class Perplexity(Measure):
    """exp(sum of losses / count)."""

    headline, lower_is_better = "perplexity", True
    columns = (Column("perplexity", "perplexity", percent=False), Column("accuracy", "accuracy"))

    preprocess = metrics = statistics = None

    def value(self, sums):
        return np.exp(sums[..., 0] / sums[..., 1])


def test_bootstrap_of_a_metric_of_sums():
    """Against a naive one that draws the texts themselves."""
    generator = np.random.default_rng(3)
    lengths = generator.integers(1, 9, size=20)
    both = [
        np.stack([np.stack([generator.random(20) * lengths, lengths], -1) for _ in range(2)])
        for _ in range(2)
    ]
    result = paired_bootstrap(*both, resamples=300, measure=Perplexity())
    of = [[np.exp(one[:, 0].sum() / one[:, 1].sum()) for one in student] for student in both]
    assert result.mean == pytest.approx(np.mean(of[0]) - np.mean(of[1]))
    again, drawn = np.random.default_rng(0), []
    for _ in range(300):
        texts = again.integers(20, size=20)
        of = [
            [np.exp(one[texts, 0].sum() / one[texts, 1].sum()) for one in student[again_seeds]]
            for student, again_seeds in zip(both, [slice(None)] * 2, strict=True)
        ]
        seeds = again.integers(2, size=2)
        drawn.append(np.mean([of[0][seed] - of[1][seed] for seed in seeds]))
    assert result[1:] == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])))


def test_a_metric_of_which_less_is_better():
    def model(*values):
        return ModelResults([{"perplexity": value, "accuracy": 0.5} for value in values], COST, [0.9])

    models = {"teacher": model(8.0), "student_alone": model(20.0), "student_distilled": model(10.0)}
    settings = {"seeds": [0], "test_texts": 5, "counted": "blocks"}
    teachers = [("first", model(9.0)), ("second", model(8.5))]
    difference = paired_bootstrap(
        np.array([[[2.0, 1.0]]]), np.array([[[3.0, 1.0]]]), 10, measure=Perplexity()
    )
    summary = summarise(models, settings, difference, teachers, Perplexity())
    assert summary["retention"] == pytest.approx(0.8)
    assert summary["best_teacher"]["name"] == "second"
    assert summary["retention_best_teacher"] == pytest.approx(0.85)
    table = results_table(summary)
    assert "ms / block |" in table
    assert "|     10.000 |" in table
    assert "Distilled minus alone: -12.70 of perplexity, 95 % interval -12.70 to -12.70" in table
    assert "(blocks resampled, less being better)" in table
    assert "The teachers reach 9.000, 8.500; the distilled student has 85.0 %" in table


def test_summary_by_hand():
    summary = summarise(example_models(), {"seeds": [0, 1, 2], "test_texts": 50})
    assert summary["student_distilled"]["accuracy"] == pytest.approx(0.80)
    assert summary["student_distilled"]["accuracy_std"] == pytest.approx(0.02)
    assert summary["student_alone"]["retention"] == pytest.approx(0.74 / 0.8)
    assert summary["retention"] == pytest.approx(1.0)
    assert summary["agreement"] == pytest.approx(0.8)
    assert "accuracy_std" not in summary["teacher"]
    for name in ("teacher", "student_alone", "student_distilled"):
        assert {"accuracy", "parameters", "latency_ms"} <= set(summary[name])


def test_table_with_and_without_a_baseline():
    models = example_models()
    difference = paired_bootstrap([[1, 1], [1, 0]], [[1, 0], [1, 0]], resamples=100)
    settings = {"seeds": [0, 1, 2], "test_texts": 5000}
    table = results_table(summarise(models, settings, difference))
    assert "| 80.0 ± 2.0 % |" in table
    assert "5,000 texts" in table
    assert "+25.00 points" in table
    assert len({len(line) for line in table.splitlines() if line.startswith("|")}) == 1
    del models["student_alone"]
    table = results_table(summarise(models, settings))
    assert "alone" not in table


def test_an_ensemble_and_its_best_teacher():
    models = example_models()
    reached = {"first": 0.70, "second": 0.76, "third": 0.74}
    teachers = [
        (name, ModelResults([METRICS | {"accuracy": value}], COST, [0.9])) for name, value in reached.items()
    ]
    summary = summarise(models, {"seeds": [0, 1, 2], "test_texts": 50}, teachers=teachers)
    assert [row["name"] for row in summary["teachers"]] == list(reached)
    assert summary["best_teacher"] == summary["teachers"][1]
    assert summary["best_teacher"]["retention"] == pytest.approx(0.76 / 0.8)
    assert summary["retention"] == pytest.approx(0.8 / 0.8), "against the ensemble"
    assert summary["retention_best_teacher"] == pytest.approx(0.8 / 0.76)
    lines = results_table(summary).splitlines()
    titles = [line.split("|")[1].strip() for line in lines if line.startswith("| ")][2:]
    assert titles == ["best single teacher", "teacher (ensemble of 3)", "student alone", "student distilled"]
    assert "The teachers reach 70.0, 76.0, 74.0 %; the distilled student has 105.3 % of the best" in lines[-1]


def test_one_teacher_is_listed_and_is_no_ensemble():
    models = example_models()
    summary = summarise(models, {"seeds": [0], "test_texts": 5}, teachers=[("only", models["teacher"])])
    assert [row["name"] for row in summary["teachers"]] == ["only"]
    assert summary["best_teacher"] is None
    assert "ensemble" not in results_table(summary)
    assert "best" not in results_table(summary)


def test_file_holds_the_named_keys(tmp_path):
    path = write_results(summarise(example_models(), {"seeds": [0], "test_texts": 5}), tmp_path)
    assert path == tmp_path / "distillation_results.json"
    expected = {
        "teacher",
        "teachers",
        "student_alone",
        "student_distilled",
        "retention",
        "agreement",
        "settings",
    }
    assert expected <= set(json.loads(path.read_text()))
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
