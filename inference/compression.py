"""Content codings of HTTP bodies (RFC 9110, 8.4): gzip and deflate, never unpacked beyond a bound. No I/O."""

from __future__ import annotations

import zlib
from functools import lru_cache
from typing import Final

from inference.errors import RequestRejected, RequestTooLarge, UnsupportedCoding

WINDOW_BITS: Final = {"gzip": 31, "deflate": 15}
"""What tells zlib the wrapping; deflate is in zlib's own, as the RFC says."""
LEVEL: Final = 1  # numbers hardly become smaller with more effort


def unpack(body: bytes | bytearray, coding: str, limit: int) -> bytes:
    """The content of a coded body, at most ``limit`` bytes.

    Raises ``UnsupportedCoding``, ``RequestTooLarge``, and ``RequestRejected`` for a body that is damaged.
    """
    bits = WINDOW_BITS.get(coding)
    if bits is None:
        raise UnsupportedCoding(f"must be {' or '.join(WINDOW_BITS)}.", "content-encoding")
    inflater = zlib.decompressobj(bits)
    try:
        content = inflater.decompress(body, limit + 1)
    except zlib.error as error:
        raise RequestRejected(f"the body is not {coding}.", "content-encoding") from error
    if len(content) > limit:
        raise RequestTooLarge(f"The body has more than {limit} bytes when it is unpacked.")
    if not inflater.eof or inflater.unused_data:
        raise RequestRejected(f"the body is not one whole {coding} stream.", "content-encoding")
    return content


def pack(body: bytes, coding: str) -> bytes:
    """The body in a coding that ``negotiate`` chose."""
    return zlib.compress(body, LEVEL, WINDOW_BITS[coding])


@lru_cache(maxsize=256)
def negotiate(accepted: bytes) -> str | None:
    """The coding to answer in, by the value of an Accept-Encoding header; None to leave the body as it is."""
    weights = dict(_weight(part) for part in accepted.decode("latin-1").lower().split(","))
    others = weights.get("*", 0.0)
    best = max(WINDOW_BITS, key=lambda coding: weights.get(coding, others))  # of equal ones the first
    weight = weights.get(best, others)
    return best if weight > 0 and weight >= weights.get("identity", 0.0) else None


def _weight(part: str) -> tuple[str, float]:
    coding, _, parameter = part.partition(";")
    name, _, value = parameter.partition("=")
    try:
        weight = float(value) if name.strip() == "q" else 1.0
    except ValueError:
        weight = 0.0
    return coding.strip(), weight
