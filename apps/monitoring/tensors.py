"""A logged tensor, as text and as JSON. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

_SHOWN_ITEMS: Final = 8
_SHOWN_CHARACTERS: Final = 80


@dataclass(frozen=True, slots=True)
class Tensor:
    """A prediction's part of one tensor, as it was logged: a scalar or a list in row-major order.

    ``values`` is None when it was not stored: over the payload cap (then ``digest`` and ``shape`` are), redacted, or
    the model did not run. ``shape`` is also given where it may vary.
    """

    name: str
    values: Any
    shape: list[int] | None = None
    digest: str | None = None

    @property
    def text(self) -> str:
        """A line for a person: the first values, or shape and digest of what was too large to store."""
        shape = "×".join(str(size) for size in self.shape or ())
        if self.digest is not None:
            return f"{shape} sha256:{self.digest[:8]}…".strip()
        if self.values is None:
            return "not stored"
        if not isinstance(self.values, list):
            return _short(self.values)
        shown = ", ".join(_short(item) for item in self.values[:_SHOWN_ITEMS])
        more = ", …" if len(self.values) > _SHOWN_ITEMS else ""
        return f"{shape} [{shown}{more}]".strip()

    @property
    def json(self) -> Any:
        """The value, or an object with values, shape and digest where there is more to say."""
        values = _finite(self.values)
        if self.shape is None and self.digest is None:
            return values
        return {"values": values, "shape": self.shape, "digest": self.digest}


def _short(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become the strings ``nan``, ``inf`` and ``-inf``."""
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
