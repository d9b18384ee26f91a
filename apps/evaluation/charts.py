"""Charts of the evaluation pages as plain dicts in plotly.js' schema, each with a sentence and a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, Final

from apps.evaluation.models import EvaluationRun, MetricValue

_SHARES: Final = frozenset({"accuracy", "roc_auc", "r2"})
"""Metrics on one scale, 1 being perfect; the others are errors, 0 being perfect."""
_MAX_CELL_TEXTS: Final = 12
_SPARK_WIDTH: Final = 96
_SPARK_HEIGHT: Final = 24

Chart = dict[str, Any]


def metric_intervals(metrics: Iterable[MetricValue]) -> Chart | None:
    """A dot with its interval for each metric, scores and errors on an axis of their own; None without a value."""
    known = [metric for metric in metrics if metric.value is not None]
    groups = [group for group in (_scores(known), _errors(known)) if group]
    if not groups:
        return None
    layout: dict[str, Any] = {
        "height": 80 + 36 * max(len(group) for group in groups),
        "hovermode": "closest",
        "margin": {"l": 70},
    }
    for position, group in enumerate(groups):
        axis = str(position + 1) if position else ""
        left = position / len(groups)
        layout[f"xaxis{axis}"] = {
            "domain": [left + (0.1 if position else 0), left + 1 / len(groups) - (0 if position else 0.02)],
            "anchor": f"y{axis}",
            "title": {"text": "1 is perfect" if group[0].name in _SHARES else "0 is perfect"},
        }
        layout[f"yaxis{axis}"] = {"anchor": f"x{axis}", "autorange": "reversed", "showgrid": False}
    return {
        "data": [
            _interval_trace(group, str(position + 1) if position else "") for position, group in enumerate(groups)
        ],
        "layout": layout,
        "summary": "; ".join(_sentence(metric) for metric in known) + ".",
        "table": {
            "columns": ["Metric", "Value", "95% from", "95% to"],
            "rows": [[one.label, one.value, one.ci_low, one.ci_high] for one in known],
        },
    }


def metric_by_version(newest: EvaluationRun, beside: Iterable[EvaluationRun]) -> Chart | None:
    """The key metric of ``newest`` for each version of its model that was evaluated on the same rows.

    ``beside`` holds runs newest first; the newest one of each version counts. None if there is only one version.
    """
    name = newest.key_metric.name if newest.key_metric else ""
    found: dict[int, MetricValue] = {}
    for run in beside:
        metric = next((one for one in run.metrics.all() if one.name == name and one.value is not None), None)
        if metric is not None:
            found.setdefault(run.model_version.number, metric)
    if len(found) < 2 or newest.model_version.number not in found:
        return None
    numbers = sorted(found)
    own = numbers.index(newest.model_version.number)
    trace = _interval_trace([found[number] for number in numbers], "")
    trace["y"] = [f"v{number}" for number in numbers]
    trace["marker"] = {"size": 9, "color": ["c1" if place == own else "muted" for place in range(len(numbers))]}
    trace["error_x"]["color"] = "muted"
    label = found[numbers[own]].label
    return {
        "data": [trace],
        "layout": {
            "height": 90 + 30 * len(numbers),
            "hovermode": "closest",
            "xaxis": {"title": {"text": label}},
            "yaxis": {"type": "category", "showgrid": False},
        },
        "summary": f"{label} of {len(numbers)} versions on {newest.dataset_version}, each with its 95% interval: "
        + "; ".join(f"v{number} {found[number].value:,.4g}" for number in numbers)
        + ".",
        "table": {
            "columns": ["Version", label, "95% from", "95% to"],
            "rows": [[f"v{n}", found[n].value, found[n].ci_low, found[n].ci_high] for n in numbers],
        },
    }


def is_score(name: str) -> bool:
    """Whether more is better, 1 being perfect; the other metrics are errors, 0 being perfect."""
    return name in _SHARES


def run_charts(run: EvaluationRun) -> list[tuple[str, str, Chart]]:
    """(id, title, chart) for everything that a finished run has curves for."""
    found = []
    metrics = {metric.name: metric for metric in run.metrics.all()}
    if roc := run.result.get("roc"):
        found.append(("roc", "ROC curve", roc_curve(roc, metrics.get("roc_auc"))))
    if confusion := run.result.get("confusion"):
        found.append(("confusion", "Confusion matrix", confusion_matrix(confusion)))
    if residuals := run.result.get("residuals"):
        found.append(("residuals", "Residuals", residual_histogram(residuals)))
    if sample := run.result.get("sample"):
        found.append(("sample", "Predicted against actual", predicted_against_actual(sample)))
    return found


def roc_curve(curve: dict[str, Any], area: MetricValue | None = None) -> Chart:
    """The ROC curve over its diagonal."""
    false_rate, true_rate = curve["false_positive_rate"], curve["true_positive_rate"]
    at_tenth = max((t for f, t in zip(false_rate, true_rate, strict=True) if f <= 0.1), default=0.0)
    said = f"The area under the curve is {area.value:.4f}. " if area is not None and area.value is not None else ""
    return {
        "data": [
            {
                "type": "scatter",
                "x": [0, 1],
                "y": [0, 1],
                "mode": "lines",
                "name": "Chance",
                "line": {"color": "muted", "dash": "dot", "width": 1},
                "hoverinfo": "skip",
            },
            {
                "type": "scatter",
                "x": false_rate,
                "y": true_rate,
                "mode": "lines",
                "name": f"Class {curve['positive']}",
                "line": {"color": "c1"},
            },
        ],
        "layout": {
            "height": 320,
            "xaxis": {"title": {"text": "False positive rate"}, "range": [0, 1]},
            "yaxis": {"title": {"text": "True positive rate"}, "range": [0, 1.01]},
        },
        "summary": (
            f"{said}At a false positive rate of up to 10%, the model finds {at_tenth:.1%} of class {curve['positive']}."
        ),
        "table": {
            "columns": ["False positive rate", "True positive rate", "Threshold"],
            "rows": [list(row) for row in zip(false_rate, true_rate, curve["threshold"], strict=True)],
        },
    }


def confusion_matrix(confusion: dict[str, Any]) -> Chart:
    """Actual by predicted class; the colour is the share of the actual class, the text the count."""
    labels, counts = confusion["labels"], confusion["counts"]
    shares = [[count / max(sum(row), 1) for count in row] for row in counts]
    total, right = sum(map(sum, counts)), sum(row[position] for position, row in enumerate(counts))
    trace = {
        "type": "heatmap",
        "x": labels,
        "y": labels,
        "z": shares,
        "zmin": 0,
        "zmax": 1,
        "colorscale": [[0, "sunken"], [1, "c1"]],
        "showscale": False,
        "customdata": counts,
        "hovertemplate": "actual %{y}, predicted %{x}: %{customdata} (%{z:.1%} of the class)<extra></extra>",
    }
    layout: dict[str, Any] = {
        "height": 320,
        "hovermode": "closest",
        "xaxis": {"title": {"text": "Predicted"}, "type": "category"},
        "yaxis": {"title": {"text": "Actual"}, "type": "category", "autorange": "reversed", "showgrid": False},
    }
    if len(labels) <= _MAX_CELL_TEXTS:
        layout["annotations"] = [
            {
                "x": x,
                "y": y,
                "text": f"{counts[y][x]:,}",
                "font": {"size": 12, "color": "surface" if shares[y][x] > 0.5 else "text"},
            }
            for y in range(len(labels))
            for x in range(len(labels))
        ]
    return {
        "data": [trace],
        "layout": layout,
        "summary": f"{right:,} of {total:,} rows are on the diagonal, predicted right.{_worst(labels, counts)}",
        "table": {
            "columns": ["Actual \\ predicted", *labels],
            "rows": [[label, *row] for label, row in zip(labels, counts, strict=True)],
        },
    }


def residual_histogram(residuals: dict[str, Any]) -> Chart:
    """How far predictions are off: predicted minus actual."""
    edges, counts = residuals["edges"], residuals["counts"]
    middles = [(low + high) / 2 for low, high in pairwise(edges)]
    over = sum(count for middle, count in zip(middles, counts, strict=True) if middle > 0)
    trace = {
        "type": "bar",
        "x": middles,
        "y": counts,
        "width": [(high - low) * 0.94 for low, high in pairwise(edges)],
        "name": "Rows",
        "marker": {"color": "c1"},
    }
    zero = {"type": "line", "x0": 0, "x1": 0, "yref": "paper", "y0": 0, "y1": 1, "layer": "above"}
    return {
        "data": [trace],
        "layout": {
            "height": 320,
            "bargap": 0,
            "shapes": [zero | {"line": {"color": "muted", "width": 1, "dash": "dot"}}],
            "xaxis": {"title": {"text": "Predicted minus actual"}},
            "yaxis": {"title": {"text": "Rows"}},
        },
        "summary": f"About {over / max(sum(counts), 1):.0%} of the predictions are too high, the rest too low.",
        "table": {
            "columns": ["From", "To", "Rows"],
            "rows": [[low, high, count] for low, high, count in zip(edges, edges[1:], counts, strict=False)],
        },
    }


def predicted_against_actual(sample: dict[str, Any]) -> Chart:
    """A sample of the rows around the diagonal on which a perfect model would put them."""
    actual, predicted = sample["actual"], sample["predicted"]
    low, high = min(*actual, *predicted), max(*actual, *predicted)
    return {
        "data": [
            {
                "type": "scatter",
                "x": [low, high],
                "y": [low, high],
                "mode": "lines",
                "name": "Perfect",
                "line": {"color": "muted", "dash": "dot", "width": 1},
                "hoverinfo": "skip",
            },
            {
                "type": "scatter",
                "x": actual,
                "y": predicted,
                "mode": "markers",
                "name": "Rows",
                "marker": {"color": "c1", "size": 5, "opacity": 0.55},
            },
        ],
        "layout": {
            "height": 320,
            "hovermode": "closest",
            "xaxis": {"title": {"text": "Actual"}},
            "yaxis": {"title": {"text": "Predicted"}},
        },
        "summary": f"{len(actual):,} rows, drawn at random with a fixed seed if there are more.",
        "table": {
            "columns": ["Actual", "Predicted"],
            "rows": [list(row) for row in zip(actual[:100], predicted[:100], strict=True)],
        },
    }


def spark_path(counts: Sequence[int]) -> str:
    """The outline of a histogram as an SVG path in a box of 96 by 24."""
    top = max(counts, default=0)
    if top == 0:
        return ""
    step = _SPARK_WIDTH / len(counts)
    heights = [_SPARK_HEIGHT * (1 - count / top) for count in counts]
    steps = "".join(f"V{y:.1f}H{(position + 1) * step:.1f}" for position, y in enumerate(heights))
    return f"M0 {_SPARK_HEIGHT}{steps}V{_SPARK_HEIGHT}"


def _scores(metrics: list[MetricValue]) -> list[MetricValue]:
    return [metric for metric in metrics if metric.name in _SHARES]


def _errors(metrics: list[MetricValue]) -> list[MetricValue]:
    return [metric for metric in metrics if metric.name not in _SHARES]


def _interval_trace(metrics: list[MetricValue], axis: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "Value",
        "showlegend": False,
        "xaxis": f"x{axis}",
        "yaxis": f"y{axis}",
        "x": [metric.value for metric in metrics],
        "y": [metric.label for metric in metrics],
        "marker": {"color": "c1", "size": 9},
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [_arm(metric.value, metric.ci_high) for metric in metrics],
            "arrayminus": [_arm(metric.value, metric.ci_low) for metric in metrics],
            "color": "c1",
            "thickness": 1.5,
        },
    }


def _arm(value: float | None, end: float | None) -> float:
    return 0.0 if value is None or end is None else abs(end - value)


def _sentence(metric: MetricValue) -> str:
    said = f"{metric.label} {metric.value:,.4g}"
    if metric.ci_low is None or metric.ci_high is None:
        return said
    return f"{said} (95% interval {metric.ci_low:,.4g} to {metric.ci_high:,.4g})"


def _worst(labels: list[str], counts: list[list[int]]) -> str:
    """The most frequent mistake as a sentence; empty when there is none."""
    mistakes = [
        (count, actual, predicted)
        for actual, row in enumerate(counts)
        for predicted, count in enumerate(row)
        if actual != predicted and count
    ]
    if not mistakes:
        return ""
    count, actual, predicted = max(mistakes, key=lambda one: one[0])
    return f" The most frequent mistake: {labels[actual]} taken for {labels[predicted]}, {count:,} times."
