"""How far the answers of shadows agree with those that callers got, over the newest copies in the log."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import numpy as np

from apps.deployments.models import Endpoint
from apps.monitoring.log_reader import LogFilter, Prediction, read_log

NEWEST: Final = 500
"""Copies that are compared."""
_ANSWERS: Final = 2_000

_Place = tuple[datetime, str, int]


@dataclass(frozen=True, slots=True)
class Agreement:
    """One output of one shadow beside the answers: how many rows are equal, and for numbers the mean difference."""

    model: str
    model_version: int
    output: str
    rows: int
    equal_percent: float
    mean_difference: float | None

    @property
    def version(self) -> str:
        """How the version is called."""
        return f"{self.model} v{self.model_version}"


def agreement(endpoint: Endpoint) -> list[Agreement]:
    """A row for each shadow and output that the log holds on both sides; none without copies."""
    copies = read_log(endpoint, LogFilter(outcome="shadow"), size=NEWEST).rows
    if not copies:
        return []
    span = LogFilter(since=copies[-1].received_at, until=copies[0].received_at)
    answers = {
        _place(row): row
        for row in read_log(endpoint, span, size=_ANSWERS).rows
        if row.columns["role"] != "shadow" and row.columns["outcome"] == "ok"
    }
    pairs: dict[tuple[str, int, str], list[tuple[Any, Any]]] = defaultdict(list)
    for copy in copies:
        answer = answers.get(_place(copy))
        for name, mine, theirs in _outputs(copy, answer) if answer else ():
            pairs[copy.columns["model"], copy.columns["model_version"], name].append((mine, theirs))
    return [Agreement(*key, len(values), *_compared(values)) for key, values in sorted(pairs.items())]


def _place(row: Prediction) -> _Place:
    """What a copy and its answer have in common."""
    return row.received_at, row.columns["request_id"], row.columns["row"]


def _outputs(copy: Prediction, answer: Prediction) -> Iterable[tuple[str, Any, Any]]:
    theirs = {tensor.name: tensor.values for tensor in answer.outputs}
    for tensor in copy.outputs:
        other = theirs.get(tensor.name)
        if tensor.values is not None and other is not None and np.shape(tensor.values) == np.shape(other):
            yield tensor.name, tensor.values, other


def _compared(pairs: list[tuple[Any, Any]]) -> tuple[float, float | None]:
    """Per cent of the rows that are equal in every element, and the mean absolute difference of their numbers."""
    equal = 100 * sum(mine == theirs for mine, theirs in pairs) / len(pairs)
    if not all(np.asarray(mine).dtype.kind == "f" for mine, _ in pairs):
        return equal, None
    distances = [np.abs(np.asarray(mine, float) - np.asarray(theirs, float)).mean() for mine, theirs in pairs]
    return equal, float(np.mean(distances))
