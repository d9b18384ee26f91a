"""Charts of the promotion pages."""

from __future__ import annotations

from typing import Any

from apps.evaluation.charts import is_score


def metric_comparison(differences: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Candidate and champion, a dot with its confidence interval for each score; None without one.

    Errors have scales of their own and stay in the table beside it.
    """
    rows = [row for row in differences if row["candidate"]["value"] is not None and is_score(row["metric"])]
    if not rows:
        return None
    traces = [_dots(rows, "candidate", "Candidate", "c2")]
    if any(row["champion"] for row in rows):
        traces.append(_dots([row for row in rows if row["champion"]], "champion", "Champion", "c1"))
    return {
        "data": traces,
        "layout": {
            "height": 110 + 46 * len(rows),
            "hovermode": "closest",
            "xaxis": {"title": {"text": "1 is perfect"}},
            "yaxis": {"autorange": "reversed", "showgrid": False},
        },
        "summary": _summary(rows),
        "table": {
            "columns": ["Metric", "Dataset", "Candidate", "Champion"],
            "rows": [
                [row["label"], row["dataset"], _interval(row["candidate"]), _interval(row["champion"])] for row in rows
            ],
        },
    }


def _dots(rows: list[dict[str, Any]], side: str, name: str, colour: str) -> dict[str, Any]:
    values = [row[side] for row in rows]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [value["value"] for value in values],
        "y": [row["label"] for row in rows],
        "marker": {"color": colour, "size": 9, "symbol": "circle" if side == "champion" else "diamond"},
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [_arm(value, "ci_high") for value in values],
            "arrayminus": [_arm(value, "ci_low") for value in values],
            "color": colour,
            "thickness": 1.5,
        },
    }


def _arm(value: dict[str, Any], end: str) -> float:
    return abs(value[end] - value["value"]) if value[end] is not None else 0.0


def _interval(value: dict[str, Any] | None) -> str:
    if value is None or value["value"] is None:
        return "–"
    if value["ci_low"] is None:
        return f"{value['value']:.4f}"
    return f"{value['value']:.4f} ({value['ci_low']:.4f} to {value['ci_high']:.4f})"


def _summary(rows: list[dict[str, Any]]) -> str:
    compared = [row for row in rows if row["change"] is not None]
    if not compared:
        return (
            "The candidate's metrics with 95% confidence intervals; nothing serves yet that it could be compared with."
        )
    return (
        "Against the champion: "
        + "; ".join(f"{row['label']} {row['change']:+.4f} ({row['verdict']})" for row in compared)
        + "."
    )
