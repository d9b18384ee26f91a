"""Metrics against scikit-learn, SciPy and published values; intervals against their promise."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as reference

from apps.evaluation.metrics import (
    MAX_CURVE_POINTS,
    UNKNOWN,
    Metric,
    Report,
    accuracy,
    delong_components,
    evaluate_classification,
    evaluate_regression,
    log_loss,
    mae,
    r_squared,
    rmse,
    roc_auc,
)


def binary(n: int, shift: float = 1.0, seed: int = 0) -> tuple[Any, Any]:
    """Labels [n] and probabilities [n, 2] of a logistic model that is right about itself."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, shift, n)
    positive = 1 / (1 + np.exp(-logits))
    labels = (random.random(n) < positive).astype(np.int32)
    return labels, np.column_stack([1 - positive, positive])


def by_name(report: Report) -> dict[str, Metric]:
    """The report's metrics."""
    return {metric.name: metric for metric in report.metrics}


def test_a_binary_classifier_agrees_with_scikit_learn() -> None:
    labels, scores = binary(2_000)
    found = by_name(evaluate_classification(labels, scores.argmax(axis=1), ["no", "yes"], scores))
    assert found["roc_auc"].value == pytest.approx(reference.roc_auc_score(labels, scores[:, 1]), abs=1e-12)
    assert found["accuracy"].value == pytest.approx(reference.accuracy_score(labels, scores.argmax(axis=1)), abs=1e-12)
    assert found["log_loss"].value == pytest.approx(reference.log_loss(labels, scores), abs=1e-9)


def test_several_classes_agree_with_scikit_learn() -> None:
    random = np.random.default_rng(3)
    labels = random.integers(0, 4, 500)
    scores = random.dirichlet(np.ones(4), 500) + 0.6 * np.eye(4)[labels]
    scores /= scores.sum(axis=1, keepdims=True)
    report = evaluate_classification(labels, scores.argmax(axis=1), list("abcd"), scores)
    found = by_name(report)
    expected = reference.roc_auc_score(labels, scores, multi_class="ovr", average="macro")
    assert found["roc_auc"].value == pytest.approx(expected, abs=1e-12)
    assert found["log_loss"].value == pytest.approx(reference.log_loss(labels, scores), abs=1e-9)
    counts = reference.confusion_matrix(labels, scores.argmax(axis=1)).tolist()
    assert report.curves["confusion"] == {"labels": list("abcd"), "counts": counts}
    assert "roc" not in report.curves


def test_the_auc_interval_is_the_variance_that_delong_defined() -> None:
    """The definition with its double sum over pairs, ties counting a half; slow and plain."""
    random = np.random.default_rng(5)
    labels = random.integers(0, 2, 60).astype(bool)
    scores = np.round(random.normal(labels * 0.8, 1.0), 1)  # rounded, so that there are ties
    x, y = scores[labels], scores[~labels]
    wins = (x[:, None] > y[None, :]) + 0.5 * (x[:, None] == y[None, :])
    variance = wins.mean(axis=1).var(ddof=1) / len(x) + wins.mean(axis=0).var(ddof=1) / len(y)
    area, influence = delong_components(labels, scores)
    assert area == pytest.approx(wins.mean(), abs=1e-12)
    assert np.sum(influence**2) == pytest.approx(variance, rel=1e-12)


def test_accuracy_has_wilsons_published_interval() -> None:
    """81 of 263: 0.2553 to 0.3662 (Newcombe 1998, Statistics in Medicine 17:857, table I, method 3)."""
    actual = np.zeros(263, np.int32)
    predicted = np.r_[np.zeros(81, np.int32), np.ones(182, np.int32)]
    found = accuracy(actual, predicted)
    assert found.ci_low == pytest.approx(0.2553, abs=5e-5)
    assert found.ci_high == pytest.approx(0.3662, abs=5e-5)


def test_a_regressor_agrees_with_scikit_learn() -> None:
    random = np.random.default_rng(1)
    actual = random.normal(10, 3, 800)
    predicted = actual + random.normal(0.2, 1, 800)
    report = evaluate_regression(actual, predicted)
    found = by_name(report)
    assert found["rmse"].value == pytest.approx(reference.root_mean_squared_error(actual, predicted), rel=1e-12)
    assert found["mae"].value == pytest.approx(reference.mean_absolute_error(actual, predicted), rel=1e-12)
    assert found["r2"].value == pytest.approx(reference.r2_score(actual, predicted), rel=1e-12)
    assert sum(report.curves["residuals"]["counts"]) == 800


@pytest.mark.parametrize("name", ["accuracy", "roc_auc", "log_loss", "rmse", "mae", "r2"])
def test_intervals_cover_the_truth_about_as_often_as_they_say(name: str) -> None:
    """300 samples of 300 rows; 95 % less what chance and small samples may take."""
    big_labels, big_scores = binary(400_000, seed=99)
    truth = by_name(evaluate_classification(big_labels, big_scores.argmax(axis=1), [0, 1], big_scores))
    # Target normal with variance 9, residual normal with variance 1 and independent of the target.
    known = {"rmse": 1.0, "mae": (2 / np.pi) ** 0.5, "r2": 1 - 1 / 9}
    inside = 0
    for seed in range(300):
        if name in known:
            random = np.random.default_rng(seed)
            actual = random.normal(0, 3, 300)
            residuals = random.normal(0, 1, 300)
            made = {"rmse": rmse(residuals), "mae": mae(residuals), "r2": r_squared(actual, residuals)}
            found, value = made[name], known[name]
        else:
            labels, scores = binary(300, seed=seed)
            kinds = {
                "accuracy": lambda: accuracy(labels, scores.argmax(axis=1)),  # noqa: B023
                "roc_auc": lambda: roc_auc(labels, scores),  # noqa: B023
                "log_loss": lambda: log_loss(labels, scores),  # noqa: B023
            }
            found, value = kinds[name](), truth[name].value or 0.0
        inside += (found.ci_low or 0.0) <= value <= (found.ci_high or 0.0)
    assert 0.92 <= inside / 300 <= 0.985


def test_one_class_only_is_not_enough_data_for_an_area() -> None:
    labels = np.ones(10, np.int32)
    scores = np.tile([0.4, 0.6], (10, 1))
    report = evaluate_classification(labels, scores.argmax(axis=1), [0, 1], scores)
    found = by_name(report)
    assert found["roc_auc"].value is None
    assert "Not enough data" in found["roc_auc"].note
    assert found["accuracy"].value == 1.0
    assert found["accuracy"].ci_high == pytest.approx(1.0)
    assert found["accuracy"].ci_low == pytest.approx(stats.binomtest(10, 10).proportion_ci(method="wilson").low)
    assert "roc" not in report.curves


def test_a_single_row_has_values_without_intervals() -> None:
    found = by_name(evaluate_regression(np.array([1.0]), np.array([1.5])))
    assert (found["rmse"].value, found["rmse"].ci_low) == (0.5, None)
    assert "Not enough data" in found["rmse"].note
    assert found["r2"].value is None


def test_a_target_that_does_not_vary_has_no_r2() -> None:
    assert by_name(evaluate_regression(np.full(5, 2.0), np.arange(5.0)))["r2"].value is None


def test_equal_scores_everywhere_are_chance() -> None:
    labels = np.array([0, 1] * 20)
    found = roc_auc(labels, np.full((40, 2), 0.5))
    assert found.value == 0.5
    assert found.ci_low is None


def test_perfect_separation_says_that_it_has_no_interval() -> None:
    labels = np.array([0] * 5 + [1] * 5)
    found = roc_auc(labels, np.column_stack([1 - labels, labels]).astype(float))
    assert found.value == 1.0
    assert found.ci_low is None
    assert "Not enough data" in found.note


def test_an_unknown_label_counts_as_wrong_and_has_a_place_in_the_matrix() -> None:
    actual, predicted = np.array([0, 1, UNKNOWN]), np.array([0, 1, UNKNOWN])
    report = evaluate_classification(actual, predicted, ["a", "b"])
    assert by_name(report)["accuracy"].value == pytest.approx(2 / 3)
    assert report.curves["confusion"]["labels"] == ["a", "b", "other"]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_are_refused_with_their_number(bad: float) -> None:
    labels, scores = binary(10)
    scores[3, 1] = bad
    with pytest.raises(ValueError, match="1 of 10 rows"):
        evaluate_classification(labels, labels, [0, 1], scores)
    with pytest.raises(ValueError, match="1 of 2 rows"):
        evaluate_regression(np.array([1.0, 2.0]), np.array([1.0, bad]))


def test_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="no rows"):
        evaluate_regression(np.array([]), np.array([]))


def test_scores_that_are_no_probabilities_rank_but_have_no_log_loss() -> None:
    labels, scores = binary(50)
    found = by_name(evaluate_classification(labels, scores.argmax(axis=1), [0, 1], scores * 7 - 3))
    assert found["roc_auc"].value is not None
    assert found["log_loss"].value is None


def test_a_thinned_curve_keeps_its_shape() -> None:
    labels, scores = binary(50_000, shift=3.0)
    curve = evaluate_classification(labels, scores.argmax(axis=1), [0, 1], scores).curves["roc"]
    false_rate, true_rate = np.array(curve["false_positive_rate"]), np.array(curve["true_positive_rate"])
    assert len(false_rate) <= MAX_CURVE_POINTS
    assert (false_rate[0], true_rate[0], false_rate[-1], true_rate[-1]) == (0, 0, 1, 1)
    area = reference.roc_auc_score(labels, scores[:, 1])
    assert np.trapezoid(true_rate, false_rate) == pytest.approx(area, abs=2e-4)
    full_false, full_true, _ = reference.roc_curve(labels, scores[:, 1])
    gaps = np.abs(np.interp(full_false + full_true, false_rate + true_rate, true_rate) - full_true)
    assert gaps.max() < 0.01


def test_curves_are_json_without_nan() -> None:
    labels, scores = binary(300)
    curves = evaluate_classification(labels, scores.argmax(axis=1), [0, 1], scores).curves
    curves |= evaluate_regression(labels.astype(float), scores[:, 1]).curves
    assert json.loads(json.dumps(curves, allow_nan=False)) == curves
