"""Replica, shipper and database of the inference service die by SIGKILL at random while callers call."""

from __future__ import annotations

import os
import random
import signal
import statistics
import time
from typing import Final

from benchmarks.load import LOAD_CORE, SERVER_CORE
from benchmarks.models import Model, make_model
from benchmarks.product import report, wait_for
from benchmarks.storm_callers import Order, StormCallers
from benchmarks.storm_service import Kind, StormService

TARGETS: Final = ("replica", "shipper", "database")
CORES: Final = (SERVER_CORE, LOAD_CORE)
CONNECTIONS: Final = 16
CALLER_PAUSE_S: Final = 0.02
SEAL_S: Final = "0.5"  # more is under way when something dies
MAX_PAUSE_S: Final = 1.0  # so that a death meets every stage of the half second between two seals
RECOVERY_LIMIT_S: Final = 60.0
PROBES: Final = 6
"""New connections that must be answered: the kernel spreads them over the replicas."""
SEED: Final = 20


def run(count: int) -> bool:
    """Kill each target ``count`` times, in random order, then compare what was answered with the log."""
    model, chance = make_model("lr"), random.Random(SEED)
    order = [target for target in TARGETS for _ in range(count)]
    chance.shuffle(order)
    took: dict[str, list[float]] = {target: [] for target in TARGETS}
    with StormService({"INFERENCE_SEAL_S": SEAL_S}) as service:
        service.publish({model.name: model})
        service.start(cores=CORES)
        address = f"127.0.0.1:{service.port}"
        callers = StormCallers(Order(address, model.name, service.token, model.rows, CONNECTIONS, CALLER_PAUSE_S))
        callers.start()
        began = time.monotonic()
        for target in order:
            time.sleep(chance.uniform(0, MAX_PAUSE_S))
            took[target].append(_kill(service, model, target, chance))
        seconds = time.monotonic() - began
        ledger = callers.stop()
        for target, times in took.items():
            report(
                "storm_kills",
                target=target,
                kills=len(times),
                recovered_p50_s=round(statistics.median(times), 2),
                recovered_longest_s=round(max(times), 2),
                limit=RECOVERY_LIMIT_S,
            )
        kinds = {failure.text[:100] for failure in ledger.failures}
        rate = round(len(ledger.answered) / seconds)
        report("storm_callers", part="kills", rate=rate, not_answered=len(ledger.failures), kinds=sorted(kinds)[:5])
        return service.check_log("kills", ledger.answered)


def _kill(service: StormService, model: Model, target: str, chance: random.Random) -> float:
    """Seconds until what was killed does its work again. Raises ``TimeoutError``."""
    began = time.monotonic()
    if target == "replica":
        _kill_child(service, "replica", chance)
        for _ in range(PROBES):
            wait_for(lambda: service.answers(model), RECOVERY_LIMIT_S, "answering after a replica's death")
        return time.monotonic() - began
    if target == "shipper":
        _kill_child(service, "shipper", chance)
    else:
        service.kill_database()
        service.start_database()
    before = service.segment_count()
    wait_for(lambda: service.segment_count() > before, RECOVERY_LIMIT_S, f"shipping after the {target}'s death")
    return time.monotonic() - began


def _kill_child(service: StormService, kind: Kind, chance: random.Random) -> None:
    """Kill one and wait until there is another in its place."""
    alive = service.children(kind)
    os.kill(chance.choice(alive), signal.SIGKILL)
    wait_for(lambda: len(set(service.children(kind)) - set(alive)) == 1, RECOVERY_LIMIT_S, f"restarting the {kind}")
