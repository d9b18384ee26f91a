"""Promotions and rollbacks in a row while 32 connections call the endpoint through tritonclient.

On a whole running product. No request may fail, every answer must be what the version named in it computes, and once a
switch is reported done, no answer to a later request may come from the version before. Prints JSON lines; exits with 1
when one of these is violated.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import django
import httpx
import numpy as np
from onnx import TensorProto, helper, numpy_helper

from benchmarks.callers import COLUMNS, Call, Callers
from benchmarks.product import Product, report, wait_for

REPOSITORY: Final = Path(__file__).resolve().parent.parent
ENDPOINT: Final = "switching"
PAIRS: Final = 100
START_TIMEOUT_S: Final = 180.0
DWELL_S: Final = 0.1
"""For requests that must get the new version, because they are sent after the switch was reported done."""


@dataclass(frozen=True)
class Switch:
    """From the call that asks for a version until it is reported as serving; monotonic clock."""

    kind: str
    began_at: float
    done_at: float
    model_version: int

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.done_at - self.began_at


def main() -> int:
    """Run on an installation of its own, which is removed afterwards."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.promotions", description=__doc__)
    parser.add_argument("--pairs", type=int, default=PAIRS, metavar="N", help="promotions, and as many rollbacks")
    pairs = parser.parse_args().pairs
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # through the clean-up
    with tempfile.TemporaryDirectory(prefix="countersign-promotions-", ignore_cleanup_errors=True) as work:
        Path(work).chmod(0o711)  # as root, the embedded database's account must be able to pass
        os.environ |= {"COUNTERSIGN_VAR": str(Path(work) / "var"), "DEMO": "0", "LOG_LEVEL": "ERROR"}
        product = Product(REPOSITORY, Path(work) / "var", [sys.executable, str(REPOSITORY / "manage.py"), "up"])
        product.start()
        try:
            wait_for(lambda: product.has_printed("Ready after"), START_TIMEOUT_S, "the start")
            return 0 if _measure(product, pairs) else 1
        except (RuntimeError, TimeoutError) as error:
            report("promotions_failed", reason=str(error))
            return 1
        finally:
            product.stop()


def _measure(product: Product, pairs: int) -> bool:
    os.environ["DJANGO_SETTINGS_MODULE"] = "console.settings"
    django.setup()
    from benchmarks.people import People  # its models can be imported only now

    people = People()
    first, second = people.register("multiplier", _multiplier(1), _multiplier(2))
    endpoint, token = people.create_endpoint(ENDPOINT)
    switches = [_timed("first", 1, lambda: people.promote(first, endpoint))]
    address = f"127.0.0.1:{product.inference_port}"
    wait_for(lambda: _is_callable(address, token), START_TIMEOUT_S, "the token to be known")
    callers = Callers(address, ENDPOINT, token)
    callers.start()
    try:
        for _ in range(pairs):
            switches.append(_timed("promotion", 2, lambda: people.promote(second, endpoint)))
            switches.append(_timed("rollback", 1, lambda: people.roll_back(endpoint)))
    finally:
        calls = callers.stop()
    for kind in ("promotion", "rollback"):
        _report_latencies(kind, [switch.seconds for switch in switches if switch.kind == kind])
    wrong = [call for call in calls.answered if not call.is_right]
    stale = find_stale(calls.answered, switches)
    seconds = max(call.answered_at for call in calls.answered) - min(call.sent_at for call in calls.answered)
    versions = {number: sum(call.model_version == number for call in calls.answered) for number in (1, 2)}
    figures = {"failed": calls.failed, "wrong_output": len(wrong), "wrong_version": len(stale)}
    rate = round(len(calls.answered) / seconds)
    _print("promotions", switches=2 * pairs, answered=len(calls.answered), by_version=versions, rate=rate, **figures)
    for failure in calls.failures:
        print(failure, file=sys.stderr)
    return not any(figures.values()) and all(versions.values())


def find_stale(calls: Sequence[Call], switches: Sequence[Switch]) -> list[Call]:
    """Answers of a version that was neither serving for certain when the request was sent nor on its way since.

    ``switches`` are in order and do not overlap.
    """
    done_at = [switch.done_at for switch in switches]
    began_at = [switch.began_at for switch in switches]
    stale = []
    for call in calls:
        serving = bisect_right(done_at, call.sent_at) - 1
        begun = bisect_right(began_at, call.answered_at)
        possible = {switch.model_version for switch in switches[max(serving, 0) : begun]}
        if call.model_version not in possible:
            stale.append(call)
    return stale


def _timed(kind: str, model_version: int, switch: Callable[[], None]) -> Switch:
    began_at = time.monotonic()
    switch()
    done_at = time.monotonic()
    time.sleep(DWELL_S)
    return Switch(kind, began_at, done_at, model_version)


def _report_latencies(kind: str, seconds: Sequence[float]) -> None:
    ordered = sorted(seconds)
    p99 = ordered[min(int(0.99 * len(ordered)), len(ordered) - 1)]
    figures = {"p50_s": statistics.median(ordered), "p99_s": p99, "longest_s": ordered[-1]}
    _print(f"{kind}_latency", count=len(ordered), **{name: round(value, 3) for name, value in figures.items()})


def _print(bench: str, **figures: Any) -> None:
    print(json.dumps({"bench": bench, **figures}), flush=True)


def _is_callable(address: str, token: str) -> bool:
    headers = {"Authorization": f"Bearer {token}"}
    try:
        return httpx.get(f"http://{address}/v2/models/{ENDPOINT}/ready", headers=headers, timeout=5).is_success
    except httpx.HTTPError:
        return False


def _multiplier(number: int) -> bytes:
    """``y = number * sum(x)`` for float32 rows [n, COLUMNS]; ``y`` is [n, 1]."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "multiplier",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", COLUMNS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])],
        [numpy_helper.from_array(np.full((COLUMNS, 1), number, np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    content: bytes = model.SerializeToString()
    return content


if __name__ == "__main__":
    sys.exit(main())
