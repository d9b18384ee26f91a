"""What more endpoints and more processes cost: memory, time to load, and requests per second.

The endpoints serve as many different models; callers choose one at random. Prints JSON lines; exits with 1 when memory
per endpoint grows with their number, or a second process does not pay.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sys
from collections.abc import Sequence
from typing import Any, Final

import httpx
import psutil

from benchmarks.answers import check_answers
from benchmarks.dialects import V2
from benchmarks.load import (
    LOAD_CORE,
    SERVER_CORE,
    CannotMeasure,
    Measurement,
    Target,
    check_machine,
    process_tree,
    put_load,
)
from benchmarks.models import Model, make_model, make_variants
from benchmarks.product import wait_for
from benchmarks.service import Service

ENDPOINTS: Final = (1, 10, 100, 1000)
CONNECTIONS: Final = 32
LEAD_IN_S: Final = 4.0
SECONDS: Final = 3.0
ROUNDS: Final = 3
CHECKED_ENDPOINTS: Final = 10
LOAD_TIMEOUT_S: Final = 120.0
MEMORY_GROWTH_LIMIT: Final = 1.5
"""Memory per endpoint at the largest number, as a multiple of that at a tenth of it."""
SECOND_PROCESS_FLOOR: Final = 1.5
"""Rate of two processes on two cores as a multiple of one's on one, for a model that takes most of the time."""


def main() -> int:
    """Measure endpoints, then processes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--endpoints", type=int, nargs="+", default=ENDPOINTS, metavar="N")
    choice = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # through the clean-up
    try:
        check_machine()
        os.sched_setaffinity(0, {LOAD_CORE})
        with Service() as service:
            results = [_measure_endpoints(service, sorted(choice.endpoints)), _measure_processes(service)]
    except (CannotMeasure, OSError) as problem:
        print(problem, file=sys.stderr)
        return 1
    return 0 if all(results) else 1


def _measure_endpoints(service: Service, numbers: Sequence[int]) -> bool:
    variants = list(make_variants(numbers[-1]))
    memory: dict[int, int] = {}
    for number in numbers:
        models = variants[:number]
        service.publish({model.name: model for model in models})
        seconds = service.start() + wait_for(lambda: _are_ready(service, models), LOAD_TIMEOUT_S, "loading the models")  # noqa: B023
        memory[number] = _memory(service)
        measured = _put_load(service, models)
        _report(
            "endpoints",
            endpoints=number,
            loaded_after_s=round(seconds, 2),
            memory_mib=round(memory[number] / 2**20, 1),
            memory_per_endpoint_kib=_per_endpoint_kib(memory, number),
            memory_after_load_mib=round(_memory(service) / 2**20, 1),
            **_figures(measured),
        )
        service.stop()
    per_endpoint = [one for number in numbers if (one := _per_endpoint_kib(memory, number)) is not None]
    return len(per_endpoint) < 2 or per_endpoint[-1] <= MEMORY_GROWTH_LIMIT * per_endpoint[-2]


def _measure_processes(service: Service) -> bool:
    """The load generator has to share its core with the second process; a large model makes that a small part."""
    model = make_model("cnn")
    service.publish({model.name: model})
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(ROUNDS):
        for cores in ((SERVER_CORE,), (SERVER_CORE, LOAD_CORE)):
            service.start(cores=cores)
            measured = _put_load(service, [model])
            service.stop()
            rates[len(cores)].append(measured.rate)
            _report("processes", processes=len(cores), model=model.name, **_figures(measured))
    ratio = sorted(rates[2])[ROUNDS // 2] / sorted(rates[1])[ROUNDS // 2]
    _report("second_process", ratio=round(ratio, 2), floor=SECOND_PROCESS_FLOOR)
    return ratio >= SECOND_PROCESS_FLOOR


def _put_load(service: Service, models: Sequence[Model]) -> Measurement:
    for model in random.Random(number := len(models)).sample(models, min(number, CHECKED_ENDPOINTS)):
        check_answers(Target(service.url, model, V2, service.headers, service.pid))
    names = [model.name for model in models]
    target = Target(service.url, models[0], V2, service.headers, service.pid, names)
    measured = put_load(target, connections=CONNECTIONS, lead_in_s=LEAD_IN_S, seconds=SECONDS, settle=service.settle)
    if measured.failed:
        raise CannotMeasure(f"{measured.failed} requests failed under load.")
    return measured


def _are_ready(service: Service, models: Sequence[Model]) -> bool:
    with contextlib.suppress(httpx.HTTPError), httpx.Client(base_url=service.url, headers=service.headers) as client:
        return all(client.get(f"/v2/models/{model.name}/ready").is_success for model in models)
    return False


def _memory(service: Service) -> int:
    """Bytes that the whole process tree has for itself; what several share is divided between them."""
    total = 0
    for process in process_tree(service.pid):
        with contextlib.suppress(psutil.Error):
            total += process.memory_full_info().pss
    return total


def _per_endpoint_kib(memory: dict[int, int], number: int) -> float | None:
    """What each endpoint after the first has added; None for the first."""
    first = min(memory)
    return None if number == first else round((memory[number] - memory[first]) / (number - first) / 1024, 1)


def _figures(measured: Measurement) -> dict[str, Any]:
    return {
        "rate": round(measured.rate),
        "p50_ms": measured.p50_ms,
        "p99_ms": measured.p99_ms,
        "user_us": round(measured.user_us, 1),
        "system_us": round(measured.system_us, 1),
    }


def _report(bench: str, **figures: Any) -> None:
    print(json.dumps({"bench": bench, **figures}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
