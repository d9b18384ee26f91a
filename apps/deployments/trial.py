"""Trying a guardrail on one row that a person wrote down."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from apps.core.errors import DomainError
from inference.contracts import Signature, TensorSpec
from inference.datatypes import V2_DATATYPES, Array
from inference.guardrails import Expression, RuleRejected, has_rows

_WRITABLE: Final = 64  # elements


class Trial:
    """An expression, ready to be tried on rows. Raises ``DomainError`` for one that does not fit the model."""

    def __init__(self, requires: str, signature: Signature) -> None:
        self._signature = signature
        try:
            self._expression = Expression(requires, signature)
        except RuleRejected as error:
            raise DomainError(str(error), field="requires") from error

    def holds(self, row: Mapping[str, Any]) -> bool:
        """Whether it holds for a row: values by tensor name (or ``input.name``), null is NaN.

        Raises ``DomainError`` for a row that does not fit the model, or lacks what the expression reads.
        """
        tensors = [self._given(side, spec, row) for side, spec in _sides(self._signature)]
        try:
            with np.errstate(all="ignore"):
                return bool(np.all(self._expression.evaluate(tensors)))
        except (ValueError, TypeError, IndexError, OverflowError):
            return False  # as in service: what cannot be checked does not hold

    def _given(self, side: str, spec: TensorSpec, row: Mapping[str, Any]) -> Array:
        is_batch = has_rows(self._signature)
        if (side, spec.name) not in self._expression.reads:
            return _filled(spec, is_batch=is_batch)[np.newaxis]
        for key in (f"{side}.{spec.name}", spec.name):
            if key in row:
                return _row(row[key], spec, is_batch=is_batch)
        raise DomainError(f"The rule reads the {side} “{spec.name}”: give it a value, too.", field="sample")


def require_computable(requires: str, signature: Signature) -> None:
    """Raise ``DomainError`` if no row at all can be checked: in service such a rule would refuse every request."""
    row = [_filled(spec, is_batch=has_rows(signature))[np.newaxis] for _, spec in _sides(signature)]
    try:
        with np.errstate(all="ignore"):
            Expression(requires, signature).evaluate(row)
    except (ValueError, TypeError, IndexError, OverflowError) as error:
        raise DomainError(
            "This puts tensors of different sizes side by side. Use an index, as in x[0], or all(…), any(…), sum(…).",
            field="requires",
        ) from error


def example_row(signature: Signature) -> dict[str, Any]:
    """A row that fits, of all tensors that a person could write down: zeros, empty texts, false."""
    names = [spec.name for _, spec in _sides(signature)]
    row = {}
    for side, spec in _sides(signature):
        filled = _filled(spec, is_batch=has_rows(signature))
        key = spec.name if names.count(spec.name) == 1 else f"{side}.{spec.name}"
        if filled.size <= _WRITABLE:
            row[key] = filled.item() if filled.size == 1 else filled.tolist()
    return row


def _sides(signature: Signature) -> list[tuple[str, TensorSpec]]:
    """All tensors with the side that they are on, in the order in which a rule is given them."""
    return [("input", spec) for spec in signature.inputs] + [("output", spec) for spec in signature.outputs]


def _filled(spec: TensorSpec, *, is_batch: bool) -> Array:
    """One row of a tensor: zeros, empty texts, false; free dimensions have one element."""
    shape = spec.shape[1:] if is_batch else spec.shape
    filler: Any = {"BYTES": "", "BOOL": False}.get(spec.datatype, 0)
    return np.full([abs(size) for size in shape], filler, V2_DATATYPES[spec.datatype])


def _row(value: Any, spec: TensorSpec, *, is_batch: bool) -> Array:
    """One row of a tensor, with the dimension that counts the rows in front."""
    shape = spec.shape[1:] if is_batch else spec.shape
    try:
        array = np.asarray(value, V2_DATATYPES[spec.datatype])
    except (TypeError, ValueError, OverflowError) as error:
        raise DomainError(f"The value of “{spec.name}” is not {spec.datatype}.", field="sample") from error
    if math.prod(abs(size) for size in shape) == array.size:
        array = array.reshape([abs(size) for size in shape])
    if array.ndim != len(shape) or any(want not in (-1, size) for want, size in zip(shape, array.shape, strict=True)):
        raise DomainError(f"A row of “{spec.name}” has the shape {list(shape)}.", field="sample")
    return array[np.newaxis]
