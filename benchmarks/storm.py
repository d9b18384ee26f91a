"""The heavier proofs: processes killed under load, ten times the load, minutes without the database, races.

Prints JSON lines; exits with 1 when a part fails. Parts:

``product``: every process of the whole product is killed once; it recovers, and log and audit are complete.
``kills``: replica, shipper and database of the inference service are killed at random, 50 times each.
``overload``: 5 minutes of ten times what an endpoint can answer, beside a polite caller of another team.
``races``: everybody decides on the same promotion request at once, 500 times.
``outage``: 5 minutes without the database, in which a replica dies too.
``audit``: 64 writers of 200,000 events whose backends are killed; 24 kinds of tampering at 100 places each; every
mutating route with the audit insert broken.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable
from typing import Final

import psycopg

from benchmarks import storm_audit, storm_kills, storm_outage, storm_overload, storm_product, storm_races
from benchmarks.load import CannotMeasure
from benchmarks.product import report
from inference.load_generator import LoadFailed

KILLS: Final = 50
OVERLOAD_S: Final = 300.0
OUTAGE_S: Final = 300.0
PARTS: Final = ("product", "kills", "overload", "races", "outage", "audit")


def main() -> int:
    """Run the parts one after the other, each on an installation of its own, which is removed afterwards."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.storm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default=",".join(PARTS), metavar="A,B", help="which to run (default: all)")
    parser.add_argument("--scale", type=float, default=1.0, metavar="X", help="share of the kills and minutes")
    options = parser.parse_args()
    chosen = options.parts.split(",")
    if not set(chosen) <= set(PARTS):
        parser.error(f"the parts are {', '.join(PARTS)}")
    if not 0.02 <= options.scale <= 100:
        parser.error("the scale must be from 0.02 to 100")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # through the clean-up
    scale: float = options.scale
    runs: dict[str, Callable[[], bool]] = {
        "product": lambda: storm_product.run(max(round(scale), 1)),
        "kills": lambda: storm_kills.run(max(round(KILLS * scale), 1)),
        "overload": lambda: storm_overload.run(OVERLOAD_S * scale),
        "races": lambda: storm_races.run(scale),
        "outage": lambda: storm_outage.run(OUTAGE_S * scale),
        "audit": lambda: storm_audit.run(scale),
    }
    results = [_passes(part, runs[part]) for part in PARTS if part in chosen]
    return 0 if all(results) else 1


def _passes(part: str, run: Callable[[], bool]) -> bool:
    try:
        passed = run()
    except (RuntimeError, TimeoutError, psycopg.Error, CannotMeasure, LoadFailed) as error:
        report("storm_part", part=part, passed=False, reason=str(error))
        return False
    report("storm_part", part=part, passed=passed)
    return passed


if __name__ == "__main__":
    sys.exit(main())
