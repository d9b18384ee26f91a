"""Labels as codes, and which label each of a model's score columns stands for. Pure NumPy."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from apps.core.errors import DomainError
from apps.evaluation.metrics import UNKNOWN, Array

Label = str | int

MAX_LABELS: Final = 1_000
_AGREEMENT: Final = 0.8
"""Share of rows in which the best-scored class has to be the predicted label. Some classifiers (support vector machines
with calibrated probabilities) differ from themselves in a few rows; columns in another order differ in most."""


class LabelIndex:
    """Gives each label that occurs a code, in the order of appearance."""

    def __init__(self) -> None:
        self._codes: dict[Label, int] = {}

    @property
    def labels(self) -> list[Label]:
        """The labels by code."""
        return list(self._codes)

    def encode(self, values: Array) -> Array:
        """Int32 codes [n] of labels [n]: text, whole numbers, booleans (0 and 1), or floats that are whole."""
        distinct, positions = np.unique(values, return_inverse=True)
        codes = [self._codes.setdefault(_plain(value), len(self._codes)) for value in distinct]
        if len(self._codes) > MAX_LABELS:
            raise DomainError(
                f"More than {MAX_LABELS:,} different labels: this is no target of a classification.", field="target"
            )
        return np.array(codes, dtype=np.int32)[positions.ravel()]


def name_columns(seen: list[Label], scores: Array, predicted: list[Label] | None = None) -> list[Label] | None:
    """The class of each column of ``scores`` [n, c]; None if it cannot be told.

    Libraries order the columns by label, or number the classes from 0. ``predicted`` are the model's own labels, if it
    gives any: they decide, and have to agree with the best-scored column.
    """
    count = scores.shape[1]
    candidates: list[list[Label]] = []
    if all(isinstance(label, int) and 0 <= label < count for label in seen):
        candidates.append(list(range(count)))
    if len(seen) == count:
        candidates.append(in_order(seen))
    if predicted is None:
        return candidates[0] if candidates else None
    best = scores.argmax(axis=1)
    for classes in candidates:
        winners = np.array(classes, dtype=object)[best]
        if np.mean(winners == np.array(predicted, dtype=object)) >= _AGREEMENT:
            return classes
    return None


def in_order(labels: list[Label]) -> list[Label]:
    """Labels sorted as libraries sort classes; numbers before text where both occur."""
    return sorted(labels, key=lambda label: (isinstance(label, str), label))


def recode(codes: Array, labels: list[Label], classes: list[Label]) -> Array:
    """Codes of a ``LabelIndex`` as positions in ``classes``; ``UNKNOWN`` for what is not among them."""
    position = {label: index for index, label in enumerate(classes)}
    return np.array([position.get(label, UNKNOWN) for label in labels], dtype=np.int32)[codes]


def _plain(value: Any) -> Label:
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if float(value) != int(value):
        raise DomainError(
            f"The label {value} is no whole number: this is no target of a classification.", field="target"
        )
    return int(value)
