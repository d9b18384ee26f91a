"""How long a newcomer waits: `make up` in a fresh clone to the first served prediction, the stop, and the second start.

Prints one JSON line for each figure; exits with 1 when one is over its limit. The package cache is used as it is.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from benchmarks.product import Product, report, wait_for

REPOSITORY: Final = Path(__file__).resolve().parent.parent
FIRST_START_LIMIT_S: Final = 180.0
SECOND_START_LIMIT_S: Final = 15.0
STOP_LIMIT_S: Final = 10.0


def main() -> int:
    """Measure; the clone and its data are removed afterwards."""
    # Not below a private folder: as root, the embedded database's account must be able to pass.
    work = Path(tempfile.mkdtemp(prefix="countersign-startup-"))
    work.chmod(0o711)
    clone = work / "clone"
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(REPOSITORY), str(clone)], check=True)  # noqa: S607
    product = Product(clone, clone / "var", ["make", "up"])
    try:
        results = [_first_start(product), _stop(product), _second_start(product), _stop(product)]
    except (RuntimeError, TimeoutError) as error:
        report("startup_failed", reason=str(error))
        results = [False]
    finally:
        product.stop()
        shutil.rmtree(work, ignore_errors=True)
    return 0 if all(results) else 1


def _first_start(product: Product) -> bool:
    product.start()
    packages_s = wait_for(lambda: product.has_printed("Countersign starts"), 600, "installing the packages")
    ready_s = packages_s + wait_for(lambda: product.has_printed("Ready after"), 300, "the first start")
    total_s = ready_s + wait_for(lambda: product.is_alive() and product.predict("first"), 300, "the first prediction")
    report("first_start_packages", seconds=round(packages_s, 2))
    report("first_start_ready", seconds=round(ready_s, 2))
    report("first_start_to_first_prediction", seconds=round(total_s, 2), limit=FIRST_START_LIMIT_S)
    wait_for(lambda: product.has_printed("demo team: "), 300, "the demo team")
    return total_s <= FIRST_START_LIMIT_S


def _second_start(product: Product) -> bool:
    product.start()
    seconds = wait_for(
        lambda: product.is_alive() and product.is_web_up() and product.predict("second"), 120, "the second start"
    )
    report("second_start_to_first_prediction", seconds=round(seconds, 2), limit=SECOND_START_LIMIT_S)
    return seconds <= SECOND_START_LIMIT_S


def _stop(product: Product) -> bool:
    seconds = product.stop()
    leftovers = product.leftovers()
    report("stop", seconds=round(seconds, 2), limit=STOP_LIMIT_S, leftover_processes=leftovers)
    return seconds <= STOP_LIMIT_S and not leftovers


if __name__ == "__main__":
    sys.exit(main())
