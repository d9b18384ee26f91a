"""The audit log under 64 writers whose backends are killed, under tampering, and with its insert broken.

The writers run on an installation of its own; tampering is tried in memory; the routes are tried by the test that
``make test`` runs, too.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks import storm_audit_tampering
from benchmarks.product import report, wait_for
from console.installation import REPOSITORY, Installation
from console.postgres import EmbeddedPostgres

WRITERS: Final = 64
EVENTS: Final = 200_000
ROLLED_BACK: Final = 0.2
ROUTES_TEST: Final = "tests/contract/test_no_change_without_event.py"
_MANAGE: Final = [sys.executable, str(REPOSITORY / "manage.py")]
_TERMINATE_EVERY_S: Final = 0.5
_CRASH_EVERY_S: Final = 15.0
_MAX_IN_ONE: Final = 5
_PATIENCE_S: Final = 60.0


def run(scale: float = 1.0) -> bool:
    """All three; ``scale`` is the share of events, places and clean logs."""
    with installation("storm-audit") as environment:
        command = [sys.executable, "-m", "benchmarks.storm_audit", str(max(round(EVENTS * scale), 2_000))]
        held = subprocess.run(command, env=environment, cwd=REPOSITORY, check=False).returncode == 0
    found = storm_audit_tampering.run(
        max(round(storm_audit_tampering.EVENTS * scale), 5_000),
        max(round(storm_audit_tampering.PLACES * scale), 2),
        max(round(storm_audit_tampering.CLEAN_LOGS * scale), 2),
    )
    return all([held, found, _try_routes()])


@contextmanager
def installation(name: str) -> Iterator[dict[str, str]]:
    """The environment of an installation with a database and all tables, which is removed afterwards."""
    work = Path(tempfile.mkdtemp(prefix=f"countersign-{name}-"))
    work.chmod(0o711)  # as root, the embedded database's account must be able to pass
    database = EmbeddedPostgres(Installation(work / "var"))
    environment = os.environ | {"COUNTERSIGN_VAR": str(work / "var"), "LOG_LEVEL": "CRITICAL"}
    try:
        Installation(work / "var").prepare()
        database.start()
        owner = environment | {"COUNTERSIGN_DATABASE_ROLE": "owner"}
        subprocess.run([*_MANAGE, "prepare_database"], env=owner, check=True)
        yield environment
    finally:
        database.destroy()
        shutil.rmtree(work, ignore_errors=True)


def _try_routes() -> bool:
    """Every mutating route with the audit insert broken."""
    command = [sys.executable, "-m", "pytest", ROUTES_TEST, "-q"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    last = (result.stdout.strip().splitlines() or [""])[-1]
    report("storm_audit_broken_insert", passed=result.returncode == 0, said=last)
    return result.returncode == 0


@dataclass
class Storm:
    """What the writers know of their transactions, in the process that has set Django up."""

    target: int
    confirmed: set[str] = field(default_factory=set)
    rolled_back: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)
    terminated: int = 0
    crashed: int = 0
    is_over: threading.Event = field(default_factory=threading.Event)

    @property
    def written(self) -> int:
        """Events that were written, kept or not."""
        return len(self.confirmed) + len(self.rolled_back) + len(self.unknown)

    def write(self, number: int, team: Any) -> None:
        """One writer: transactions of a few events, a fifth of them rolled back, until there are enough."""
        from django.db import DatabaseError, close_old_connections, connection

        rng = random.Random(number)
        turn = 0
        while self.written < self.target:
            turn += 1
            markers = [f"{number}-{turn}-{place}" for place in range(rng.randint(1, _MAX_IN_ONE))]
            is_kept = rng.random() >= ROLLED_BACK
            try:
                self._transaction(team, markers, is_kept)
            except DatabaseError:
                self.unknown.update(markers)  # the backend died: before its commit or after it
                connection.close()
                time.sleep(0.05)
                close_old_connections()
            else:
                (self.confirmed if is_kept else self.rolled_back).update(markers)
        connection.close()

    def _transaction(self, team: Any, markers: list[str], is_kept: bool) -> None:
        from django.db import transaction

        from apps.audit.actor import Actor
        from apps.audit.services import record

        with transaction.atomic():
            for marker in markers:
                record(Actor.system("storm"), "storm.written", team, team=team, after={"marker": marker})
            transaction.set_rollback(not is_kept)

    def sign(self) -> None:
        """The controller's part: a checkpoint each second."""
        from django.db import DatabaseError, connection

        from apps.audit.checkpoints import checkpoint_now

        while not self.is_over.wait(1.0):
            try:
                checkpoint_now()
            except DatabaseError:
                connection.close()

    def kill(self) -> None:
        """Terminate backends, and now and then kill one as the kernel does, which takes the server through recovery."""
        from django.db import DatabaseError, connection

        crash_at = time.monotonic() + _CRASH_EVERY_S
        while not self.is_over.wait(_TERMINATE_EVERY_S):
            try:
                pids = _backends()
            except DatabaseError:
                connection.close()
                continue
            if not pids:
                continue
            if time.monotonic() > crash_at:
                os.kill(random.choice(pids), signal.SIGKILL)
                self.crashed += 1
                crash_at = time.monotonic() + _CRASH_EVERY_S
            else:
                self.terminated += _terminate(random.choice(pids))


def _backends() -> list[int]:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
            "AND state <> 'idle'"
        )
        return [row[0] for row in cursor.fetchall()]


def _answers() -> bool:
    from django.db import DatabaseError, connection

    try:
        _backends()
    except DatabaseError:
        connection.close()
        return False
    return True


def _terminate(pid: int) -> bool:
    from django.db import DatabaseError, connection

    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(%s)", [pid])
            row = cursor.fetchone()
            return bool(row and row[0])
    except DatabaseError:
        connection.close()
        return False


def main(events: int) -> int:
    """The writers' process; its environment names the installation."""
    import django

    os.environ["DJANGO_SETTINGS_MODULE"] = "console.settings"
    django.setup()
    from apps.accounts.services import create_team
    from apps.audit.actor import Actor

    team = create_team(Actor.system("storm"), slug="storm", name="Storm")
    storm, began = Storm(events), time.monotonic()
    helpers = [threading.Thread(target=work, daemon=True) for work in (storm.sign, storm.kill)]
    writers = [threading.Thread(target=storm.write, args=(number, team), daemon=True) for number in range(WRITERS)]
    for thread in (*helpers, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    storm.is_over.set()
    for thread in helpers:
        thread.join(_PATIENCE_S)
    wait_for(_answers, _PATIENCE_S, "the database's recovery")
    return 0 if _judge(storm, time.monotonic() - began) else 1


def _judge(storm: Storm, seconds: float) -> bool:
    """Nothing confirmed is missing, nothing rolled back is there, nothing is there twice, and the chain is one."""
    from django.db import connection

    from apps.audit.checkpoints import checkpoint_now
    from apps.audit.verification import verify_live

    checkpoint_now(max_steps=1_000)
    verdict = verify_live()
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*), count(seq), coalesce(max(seq), 0), count(DISTINCT previous_hash) FROM audit_auditevent"
        )
        row = cursor.fetchone()
        cursor.execute("SELECT body::jsonb->'after'->>'marker' FROM audit_auditevent WHERE action = 'storm.written'")
        found = [marker for (marker,) in cursor.fetchall()]
    rows, numbered, newest, predecessors = row or (0, 0, 0, 0)
    figures = {
        "gaps": newest - numbered + (rows - numbered),
        "duplicates": len(found) - len(set(found)),
        "forks": rows - predecessors,
        "lost": len(storm.confirmed - set(found)),
        "kept_though_rolled_back": len(storm.rolled_back & set(found)),
        "out_of_nowhere": len(set(found) - storm.confirmed - storm.unknown),
    }
    report(
        "storm_audit_writers",
        writers=WRITERS,
        events_written=storm.written,
        rolled_back=len(storm.rolled_back),
        backends_terminated=storm.terminated,
        backends_killed=storm.crashed,
        seconds=round(seconds, 1),
        **figures,
        verified=str(verdict),
    )
    return verdict.is_ok and verdict.anchored == newest and not any(figures.values())


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
