"""Charts of the traffic pages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import attrgetter, methodcaller
from typing import Any, Final

from apps.deployments.models import Deployment
from apps.monitoring.traffic import Sample

MAX_TABLE_ROWS: Final = 60
_OTHERS: Final = ("c2", "c3", "c4", "c5", "c6")
_COLOURS: Final = ("c1", *_OTHERS)
_PERCENTILES: Final = ((0.5, "p50", 0.5), (0.95, "p95", 0.75), (0.99, "p99", 1.0))  # quantile, name, opacity
_SPARK_SIZE: Final = (96, 24)

Measure = Callable[[Sample], float | None]


@dataclass(frozen=True, slots=True)
class Line:
    """A deployment's samples on the grid of a window's steps; None where it had no traffic."""

    label: str
    colour: str
    is_champion: bool
    samples: list[Sample | None]
    serving: list[bool]


def lines(samples: Sequence[Sample], deployments: Sequence[Deployment], grid: Sequence[datetime]) -> list[Line]:
    """One line for each deployment that served or had traffic, the champion first. ``deployments`` newest first."""
    found = {(sample.deployment_id, sample.at): sample for sample in samples}
    colours = iter(_OTHERS * (len(deployments) // len(_OTHERS) + 1))
    ordered = sorted(deployments, key=lambda row: not _is_champion(row))
    return [
        Line(
            label=label(deployment),
            colour="c1" if _is_champion(deployment) else next(colours),
            is_champion=_is_champion(deployment),
            samples=[found.get((deployment.pk, at)) for at in grid],
            serving=[_serves(deployment, at) for at in grid],
        )
        for deployment in ordered
    ]


def label(deployment: Deployment) -> str:
    """How a version is called in a chart."""
    return f"v{deployment.model_version.number}"


def live_charts(
    samples: Sequence[Sample], deployments: Sequence[Deployment], grid: Sequence[datetime]
) -> list[dict[str, Any]]:
    """Requests per second, latency, errors and CPU: each with ``id``, ``title`` and ``figure``, on one axis of time."""
    drawn = lines(samples, deployments, grid)
    layout = _layout(deployments, grid)
    return [
        {"id": "live-rate", "title": "Requests per second", "figure": _rate(drawn, grid, layout)},
        {"id": "live-latency", "title": "Latency", "figure": _latency(drawn, grid, layout)},
        {"id": "live-errors", "title": "Errors", "figure": _errors(drawn, grid, layout)},
        {"id": "live-cpu", "title": "CPU per thousand predictions", "figure": _cpu(drawn, grid, layout)},
    ]


def violation_chart(grid: Sequence[datetime], by_rule: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Rows per step that violated each rule; at most as many rules as there are colours, the most violated first."""
    ordered = sorted(by_rule, key=lambda rule: -sum(by_rule[rule]))[: len(_COLOURS)]
    traces = [
        {
            "type": "bar",
            "name": rule,
            "x": [_stamp(at) for at in grid],
            "y": list(by_rule[rule]),
            "marker": {"color": colour},
        }
        for rule, colour in zip(ordered, _COLOURS, strict=False)
    ]
    total = sum(sum(counts) for counts in by_rule.values())
    summary = f"{total:,} violations in the last 24 hours." if total else "No row violated a rule in the last 24 hours."
    values: list[list[float | None]] = [[count or None for count in by_rule[rule]] for rule in ordered]
    layout = _layout([], grid) | {"barmode": "stack"}
    return _figure(traces, layout, "rows in 10 minutes", summary, ordered, values, grid)


def sparkline(rates: Sequence[float]) -> str:
    """The ``d`` of an SVG path, 96 by 24, over requests/s of each minute; flat at the bottom without traffic."""
    width, height = _SPARK_SIZE
    top = max(rates, default=0.0) or 1.0
    across = width / max(len(rates) - 1, 1)
    points = [f"{index * across:.1f} {height - 1 - rate / top * (height - 2):.1f}" for index, rate in enumerate(rates)]
    return "M" + "L".join(points) if points else ""


def _rate(drawn: list[Line], grid: Sequence[datetime], layout: dict[str, Any]) -> dict[str, Any]:
    traces, columns, values = [], [], []
    for line in drawn:
        # Serving without a request is a rate of zero; not serving is no rate at all.
        rates = [
            sample.requests_per_s if sample else (0.0 if serves else None)
            for sample, serves in zip(line.samples, line.serving, strict=True)
        ]
        traces.append(_trace(line, line.label, grid, rates))
        columns.append(f"{line.label}, requests/s")
        values.append(rates)
    peak = max((rate for rates in values for rate in rates if rate is not None), default=0.0)
    summary = f"At most {peak:,.1f} requests/s in this window." if peak else "No requests in this window."
    return _figure(traces, layout, "requests/s", summary, columns, values, grid)


def _latency(drawn: list[Line], grid: Sequence[datetime], layout: dict[str, Any]) -> dict[str, Any]:
    traces, columns, values = [], [], []
    for line in drawn:
        for quantile, name, opacity in _PERCENTILES:
            latencies = _measured(line, methodcaller("percentile_ms", quantile))
            traces.append(_trace(line, f"{line.label} {name}", grid, latencies, opacity=opacity))
            columns.append(f"{line.label}, {name} ms")
            values.append(latencies)
    slowest = max((value for row in values[2::3] for value in row if value is not None), default=None)
    summary = "No requests in this window." if slowest is None else f"p99 at most {slowest:,.1f} ms within the service."
    return _figure(traces, layout, "ms", summary, columns, values, grid)


def _errors(drawn: list[Line], grid: Sequence[datetime], layout: dict[str, Any]) -> dict[str, Any]:
    traces, columns, values = [], [], []
    for line in drawn:
        shares = _measured(line, attrgetter("error_percent"))
        traces.append(_trace(line, line.label, grid, shares))
        columns.append(f"{line.label}, errors %")
        values.append(shares)
    known = [share for shares in values for share in shares if share is not None]
    if not known:
        summary = "No requests in this window."
    elif max(known) == 0:
        summary = "None was refused, none failed."
    else:
        summary = f"At most {max(known):.1f}% refused or failed."
    return _figure(traces, layout, "% of requests", summary, columns, values, grid)


def _cpu(drawn: list[Line], grid: Sequence[datetime], layout: dict[str, Any]) -> dict[str, Any]:
    traces, columns, values = [], [], []
    for line in drawn:
        costs = _measured(line, attrgetter("cpu_s_per_thousand"))
        traces.append(_trace(line, line.label, grid, costs))
        columns.append(f"{line.label}, CPU s")
        values.append(costs)
    known = [cost for costs in values for cost in costs if cost is not None]
    summary = f"At most {max(known):,.3f} CPU seconds of the whole service." if known else "No requests in this window."
    return _figure(traces, layout, "CPU seconds", summary, columns, values, grid)


def _measured(line: Line, measure: Measure) -> list[float | None]:
    return [None if sample is None else measure(sample) for sample in line.samples]


def _trace(
    line: Line, name: str, grid: Sequence[datetime], values: Sequence[float | None], *, opacity: float = 1.0
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines+markers" if _has_lone_value(values) else "lines",
        "name": name,
        "x": [_stamp(at) for at in grid],
        "y": [None if value is None else round(value, 4) for value in values],
        "opacity": opacity,
        "line": {"color": line.colour, "dash": "solid" if line.is_champion else "dash"},
        "marker": {"color": line.colour, "size": 3},
    }


def _figure(
    traces: list[dict[str, Any]],
    layout: dict[str, Any],
    unit: str,
    summary: str,
    columns: list[str],
    values: list[list[float | None]],
    grid: Sequence[datetime],
) -> dict[str, Any]:
    table = [[at, *row] for at, *row in zip(grid, *values, strict=True)]
    with_traffic = [row for row in table if any(value is not None for value in row[1:])]
    return {
        "data": traces,
        "layout": layout | {"yaxis": {"title": {"text": unit}, "rangemode": "tozero"}},
        "summary": summary,
        "table": {"columns": ["From (UTC)", *columns], "rows": with_traffic[: -MAX_TABLE_ROWS - 1 : -1]},
    }


def _layout(deployments: Sequence[Deployment], grid: Sequence[datetime]) -> dict[str, Any]:
    """One axis of time in UTC, with a dotted line where a version began to serve."""
    markers = [row for row in deployments if grid and grid[0] <= row.activated_at <= grid[-1]]
    return {
        "height": 220,
        "xaxis": {
            "type": "date",
            "range": [_stamp(grid[0]), _stamp(grid[-1])] if grid else None,
            "tickformat": "%H:%M",
            "hoverformat": "%Y-%m-%d %H:%M:%S UTC",
            "nticks": 6,
            "tickangle": 0,
        },
        "shapes": [
            {
                "type": "line",
                "x0": _stamp(row.activated_at),
                "x1": _stamp(row.activated_at),
                "yref": "paper",
                "y0": 0,
                "y1": 1,
                "line": {"color": "muted", "dash": "dot", "width": 1},
            }
            for row in markers
        ],
        "annotations": [
            {
                "x": _stamp(row.activated_at),
                "yref": "paper",
                "y": 1,
                "yanchor": "top",
                "xanchor": "left",
                "text": label(row),
                "font": {"color": "muted"},
            }
            for row in markers
        ],
    }


def _has_lone_value(values: Sequence[float | None]) -> bool:
    """Whether a value stands between gaps, where no line would show it."""
    padded = [None, *values, None]
    triples = zip(padded, padded[1:], padded[2:], strict=False)
    return any(value is not None and before is None and after is None for before, value, after in triples)


def _is_champion(deployment: Deployment) -> bool:
    return deployment.role == "champion" and deployment.retired_at is None


def _serves(deployment: Deployment, at: datetime) -> bool:
    return deployment.activated_at <= at and (deployment.retired_at is None or at < deployment.retired_at)


def _stamp(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")
