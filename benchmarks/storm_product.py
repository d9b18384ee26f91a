"""Kill every process of a running product in turn, under traffic, and check that it recovers and has lost nothing."""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import Final

import psutil
import pyarrow.parquet as pq

from benchmarks.product import Product, report, wait_for
from console.installation import Installation
from console.supervisor import MARK

REPOSITORY: Final = Path(__file__).resolve().parent.parent
MANAGE: Final = [sys.executable, str(REPOSITORY / "manage.py")]
TARGETS: Final = ("inference", "web", "worker", "controller", "database", "supervisor")
RECOVERY_LIMIT_S: Final = 30.0
PAUSE_S: Final = 3.0


class Client(threading.Thread):
    """Sends one prediction after another and remembers which were answered."""

    def __init__(self, product: Product) -> None:
        super().__init__(daemon=True)
        self._product = product
        self._is_done = threading.Event()
        self.answered: list[str] = []
        self.failed = 0

    def run(self) -> None:
        """Until ``finish``."""
        while not self._is_done.is_set():
            request_id = f"storm-{uuid.uuid4()}"
            if self._product.predict(request_id):
                self.answered.append(request_id)
            else:
                self.failed += 1
            time.sleep(0.01)

    def finish(self) -> None:
        """Stop sending."""
        self._is_done.set()
        self.join(15)


def run(rounds: int = 1) -> bool:
    """Kill each process ``rounds`` times, on an installation of its own, which is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="countersign-storm-", ignore_cleanup_errors=True) as work:
        Path(work).chmod(0o711)  # as root, the embedded database's account must be able to pass
        product = Product(REPOSITORY, Path(work) / "var", [*MANAGE, "up"])
        product.start()
        try:
            wait_for(lambda: product.has_printed("demo team: ") and product.predict("warm-up"), 300, "the start")
            return _storm(product, rounds)
        finally:
            product.stop()


def _storm(product: Product, rounds: int) -> bool:
    client = Client(product)
    client.start()
    results = [_kill(product, target) for _ in range(rounds) for target in TARGETS]
    client.finish()
    results += [_check_log(product, client), _check_audit(product)]
    seconds = product.stop()
    leftovers = product.leftovers()
    report("storm_stop", seconds=round(seconds, 2), leftover_processes=leftovers)
    return all(results) and not leftovers


def _kill(product: Product, target: str) -> bool:
    killed = _pid(product, target)
    os.kill(killed, signal.SIGKILL)
    if target == "supervisor" and product.process is not None:
        product.process.wait()
        product.start()
    try:
        seconds = wait_for(lambda: _has_recovered(product, target, killed), RECOVERY_LIMIT_S, target)
    except TimeoutError:
        report("storm_kill", target=target, recovered=False, limit=RECOVERY_LIMIT_S)
        return False
    report("storm_kill", target=target, recovered=True, seconds=round(seconds, 2), limit=RECOVERY_LIMIT_S)
    time.sleep(PAUSE_S)
    return True


def _has_recovered(product: Product, target: str, killed: int) -> bool:
    try:
        is_back = product.is_alive() and _pid(product, target) != killed
    except (LookupError, OSError, ValueError):
        return False
    return is_back and product.is_web_up() and product.predict(f"probe-{uuid.uuid4()}")


def _pid(product: Product, target: str) -> int:
    """The process to kill. Raises ``LookupError`` while there is none."""
    if target == "supervisor" and product.process is not None:
        return product.process.pid
    if target == "database":
        pid_file = Installation(product.var_dir).postgres_home / "data" / "postmaster.pid"
        return int(pid_file.read_text(encoding="ascii").split("\n")[0])
    for process in psutil.Process(product.process.pid if product.process else None).children():
        try:
            if process.environ().get(MARK, "").endswith(f"/{target}"):
                return process.pid
        except psutil.Error:
            continue
    raise LookupError(target)


def _check_log(product: Product, client: Client) -> bool:
    """Every answered request is in the inference log, once."""
    answered = set(client.answered)
    logged: collections.Counter[str] = collections.Counter()

    def is_complete() -> bool:
        logged.clear()
        for segment in (product.var_dir / "store" / "segments").rglob("*.parquet"):
            logged.update(pq.read_table(segment, columns=["request_id"])["request_id"].to_pylist())
        return answered <= logged.keys()

    with contextlib.suppress(TimeoutError):
        wait_for(is_complete, 30, "shipping the log")
    missing = len(answered - logged.keys())
    twice = sum(1 for request_id in answered if logged[request_id] > 1)
    report("storm_log", answered=len(answered), not_answered=client.failed, missing=missing, logged_twice=twice)
    return missing == 0 and twice == 0


def _check_audit(product: Product) -> bool:
    environment = os.environ | {"COUNTERSIGN_VAR": str(product.var_dir)}
    result = subprocess.run([*MANAGE, "verify_audit"], env=environment, capture_output=True, text=True, check=False)
    report("storm_audit", verified=result.returncode == 0, said=(result.stdout + result.stderr).strip()[-300:])
    return result.returncode == 0
