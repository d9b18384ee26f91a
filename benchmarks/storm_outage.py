"""Minutes without the database, in which a replica dies too: serving goes on, and afterwards the log is complete."""

from __future__ import annotations

import os
import signal
import time
from typing import Final

from benchmarks.models import make_model
from benchmarks.product import report, wait_for
from benchmarks.storm_callers import Order, StormCallers
from benchmarks.storm_service import StormService

CONNECTIONS: Final = 4
CALLER_PAUSE_S: Final = 0.04
LEAD_IN_S: Final = 5.0
KILL_AFTER_SHARE: Final = 0.4
RESTART_LIMIT_S: Final = 60.0


def run(seconds: float) -> bool:
    """Take the database away for so long. Requests may only be lost inside the replica that is killed."""
    model = make_model("lr")
    with StormService() as service:
        service.publish({model.name: model})
        service.start()
        address = f"127.0.0.1:{service.port}"
        callers = StormCallers(Order(address, model.name, service.token, model.rows, CONNECTIONS, CALLER_PAUSE_S))
        callers.start()
        time.sleep(LEAD_IN_S)
        service.stop_database()
        began = time.monotonic()
        time.sleep(seconds * KILL_AFTER_SHARE)
        (killed,), killed_at = service.children("replica"), time.monotonic()
        os.kill(killed, signal.SIGKILL)
        wait_for(lambda: killed not in service.children("replica"), RESTART_LIMIT_S, "the replica's end")
        wait_for(lambda: service.answers(model), RESTART_LIMIT_S, "the replica's restart from the last good manifest")
        back_at = time.monotonic()
        time.sleep(max(began + seconds - time.monotonic(), 0))
        waiting, lasted = service.spooled_bytes(), time.monotonic() - began
        service.start_database()
        ledger = callers.stop()
        of_the_kill = [one for one in ledger.failures if killed_at <= one.at <= back_at]
        failed = [one for one in ledger.failures if one not in of_the_kill]
        report(
            "storm_outage",
            seconds=round(lasted, 1),
            answered=len(ledger.answered),
            failed=len(failed),
            kinds=sorted({one.text[:100] for one in failed})[:5],
            lost_in_the_killed_replica=len(of_the_kill),
            replica_back_after_s=round(back_at - killed_at, 2),
            spooled_bytes=waiting,
        )
        is_complete = service.check_log("outage", ledger.answered)
        return is_complete and not failed and len(of_the_kill) <= CONNECTIONS
