"""The in-process limit: how many single rows per second ONNX Runtime itself answers on the server's core.

Run as a process of its own, ``python -m benchmarks.limit MODEL.onnx ROWS.npy SECONDS``: prints rows per second.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.models import INPUT
from inference.runtime import load_session

CLOCK_EVERY: Final = 16


def main(model: str, rows: str, seconds: str) -> None:
    """Run one row after another, each alone, as a caller inside the process would."""
    session = load_session(Path(model))
    feeds = [{INPUT: row[None]} for row in np.load(rows)]
    names = [output.name for output in session.get_outputs()]
    for feed in feeds:
        session.run(names, feed)
    count, began = 0, time.perf_counter()
    until = began + float(seconds)
    while time.perf_counter() < until:
        for position in range(count, count + CLOCK_EVERY):
            session.run(names, feeds[position % len(feeds)])
        count += CLOCK_EVERY
    print(count / (time.perf_counter() - began))


if __name__ == "__main__":
    main(*sys.argv[1:])
