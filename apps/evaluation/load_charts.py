"""Charts of a load test as plain dicts in plotly.js' schema, each with a sentence and a table."""

from __future__ import annotations

from math import log10
from typing import Any, Final

from apps.evaluation.charts import Chart
from apps.evaluation.models import LoadTest

_PERCENTILES: Final = (("p50_ms", "p50", "c1"), ("p95_ms", "p95", "c2"), ("p99_ms", "p99", "c4"))
_DASHES: Final = {"p50_ms": "solid", "p95_ms": "dash", "p99_ms": "dot"}


def load_charts(test: LoadTest) -> list[tuple[str, str, Chart]]:
    """(id, title, chart) of a finished test."""
    result = test.result
    return [
        ("throughput", "Throughput by callers", throughput_by_callers(result)),
        ("latency", "Latency by callers", latency_by_callers(result)),
        ("arrivals", "Latency by arrival rate", latency_by_rate(result, test.slo_p99_ms)),
    ]


def throughput_by_callers(result: dict[str, Any]) -> Chart:
    """What the closed loop got through, with the knee marked."""
    steps, knee = result["closed"], result["knee"]
    callers = [step["concurrency"] for step in steps]
    return {
        "data": [
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": callers,
                "y": [step["throughput"] for step in steps],
                "name": "Requests/s",
                "line": {"color": "c1"},
            }
        ],
        "layout": {
            "height": 300,
            "xaxis": _callers_axis(callers),
            "yaxis": {"title": {"text": "Requests/s"}, "rangemode": "tozero"},
            **_marked(knee["concurrency"], "knee"),
        },
        "summary": (
            f"Up to {result['capacity']:,.0f} requests/s, with {_callers(result['capacity_concurrency'])}. "
            f"The knee is at {_callers(knee['concurrency'])}: past it, more callers wait more than they get."
        ),
        "table": {
            "columns": ["Callers", "Requests/s", "Answers", "Failed", "CPU s per 1,000", "Cores of the service"],
            "rows": [[step["concurrency"], step["throughput"], *_costs(step)] for step in steps],
        },
    }


def latency_by_callers(result: dict[str, Any]) -> Chart:
    """Latency percentiles of the closed loop, on logarithmic axes."""
    steps, knee = result["closed"], result["knee"]
    callers = [step["concurrency"] for step in steps]
    return {
        "data": _percentile_traces(steps, callers),
        "layout": {
            "height": 300,
            "xaxis": _callers_axis(callers),
            "yaxis": {"title": {"text": "Latency, ms"}, "type": "log"},
            **_marked(knee["concurrency"], "knee"),
        },
        "summary": f"At the knee half are answered within {_ms(knee['p50_ms'])}, 99% within {_ms(knee['p99_ms'])}.",
        "table": {
            "columns": ["Callers", "p50, ms", "p95, ms", "p99, ms", "Mean, ms", "Longest, ms"],
            "rows": [[step["concurrency"], *_latencies(step)] for step in steps],
        },
    }


def latency_by_rate(result: dict[str, Any], limit_ms: float | None) -> Chart:
    """Latency percentiles of the open loop over the arrival rate, the objective's limit as a line."""
    steps = sorted(result["open"], key=lambda step: float(step["rate"]))
    rates = [step["rate"] for step in steps]
    layout: dict[str, Any] = {
        "height": 320,
        "xaxis": {"title": {"text": "Arrivals per second"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": "Latency, ms"}, "type": "log"},
    }
    if limit_ms is not None:
        line, ends = {"color": "bad", "width": 1.5}, {"xref": "paper", "x0": 0, "x1": 1, "y0": limit_ms, "y1": limit_ms}
        layout["shapes"] = [{"type": "line", "layer": "above", "line": line, **ends}]
        label = {"xref": "paper", "x": 0, "xanchor": "left", "yanchor": "bottom", "text": "p99 at most"}
        layout["annotations"] = [label | {"y": log10(limit_ms), "font": {"color": "bad"}}]
    quiet, busy = steps[0], steps[-1]
    return {
        "data": _percentile_traces(steps, rates),
        "layout": layout,
        "summary": (
            f"99% are answered within {_ms(quiet['p99_ms'])} at {quiet['rate']:,.0f} arrivals per second and within "
            f"{_ms(busy['p99_ms'])} at {busy['rate']:,.0f}, counted from the moment a request was due."
        ),
        "table": {
            "columns": [
                "Arrivals/s",
                "Share of the capacity",
                "Answered/s",
                "p50, ms",
                "p95, ms",
                "p99, ms",
                "Mean, ms",
                "Longest, ms",
                "Failed",
                "Left waiting",
                "CPU s per 1,000",
            ],
            "rows": [
                [
                    step["rate"],
                    f"{step['rate'] / result['capacity']:.0%}",
                    step["throughput"],
                    *_latencies(step),
                    sum(step["errors"].values()),
                    step["unanswered"],
                    step["cpu_s_per_thousand"],
                ]
                for step in steps
            ],
        },
    }


def _percentile_traces(steps: list[dict[str, Any]], x: list[Any]) -> list[dict[str, Any]]:
    return [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "x": x,
            "y": [step[key] for step in steps],
            "name": name,
            "line": {"color": colour, "dash": _DASHES[key]},
        }
        for key, name, colour in _PERCENTILES
    ]


def _callers_axis(callers: list[int]) -> dict[str, Any]:
    return {"title": {"text": "Callers"}, "type": "log", "tickmode": "array", "tickvals": callers, "ticktext": callers}


def _marked(callers: int, word: str) -> dict[str, Any]:
    """A vertical line with a word; on a logarithmic axis shapes take values, and annotations their logarithm."""
    line = {"color": "muted", "width": 1, "dash": "dot"}
    return {
        "shapes": [{"type": "line", "x0": callers, "x1": callers, "yref": "paper", "y0": 0, "y1": 1, "line": line}],
        "annotations": [
            {"x": log10(callers), "xanchor": "left", "yref": "paper", "y": 1, "yanchor": "top", "text": word}
        ],
    }


def _latencies(step: dict[str, Any]) -> list[float | None]:
    return [step["p50_ms"], step["p95_ms"], step["p99_ms"], step["mean_ms"], step["max_ms"]]


def _costs(step: dict[str, Any]) -> list[Any]:
    return [step["answered"], sum(step["errors"].values()), step["cpu_s_per_thousand"], step["service_cores"]]


def _ms(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.3g} ms"


def _callers(count: int) -> str:
    return f"{count} caller{'' if count == 1 else 's'}"
