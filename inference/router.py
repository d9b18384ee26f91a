"""Which version answers a request: an integer-weighted split, random or sticky by a key. No I/O."""

from __future__ import annotations

import random
from collections.abc import Sequence
from hashlib import blake2b
from itertools import accumulate

POSITIONS = 100
"""A sticky key falls on one of as many positions as there are per cents, so that weights are met exactly."""


class Router:
    """Picks an index by weight.

    Version ``i`` owns the positions between the cumulated weights before and after it, so a change of weights
    moves only the keys in the positions that change hands.
    """

    def __init__(self, salt: str, weights: Sequence[int]) -> None:
        """``salt`` (the endpoint's name) keeps the same caller from being unlucky on every endpoint."""
        if not any(weights) or min(weights) < 0:
            raise ValueError("At least one weight must be positive and none negative.")
        self._salt = salt.encode()[:64]
        self._bounds = tuple(accumulate(weights))
        positive = [index for index, weight in enumerate(weights) if weight]
        self._only = positive[0] if len(positive) == 1 else None

    def pick(self, key: bytes | None = None) -> int:
        """The index for a sticky ``key``, or a random one without a key."""
        if self._only is not None:
            return self._only
        total = self._bounds[-1]
        if key is None:
            position = random.random() * total  # noqa: S311 - no secret hangs on it
        else:
            digest = blake2b(key, digest_size=8, key=self._salt).digest()
            position = int.from_bytes(digest) % POSITIONS * total / POSITIONS
        return next(index for index, bound in enumerate(self._bounds) if position < bound)
