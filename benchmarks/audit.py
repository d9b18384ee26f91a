"""How long it takes to verify a million events, live and offline, and what an audit event adds to a request.

On an installation of its own. Prints JSON lines; exits with 1 when a limit is missed.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import django

from benchmarks.product import report
from benchmarks.storm_audit import installation
from console.installation import REPOSITORY

EVENTS: Final = 1_000_000
VERIFY_LIMIT_S: Final = 60.0
WRITE_LIMIT_MS: Final = 5.0
_WRITES: Final = 400
_AT_ONCE: Final = 20_000
_MANAGE: Final = [sys.executable, str(REPOSITORY / "manage.py")]
_INSERT: Final = """
INSERT INTO audit_auditevent (body)
SELECT json_build_object(
    'action', 'endpoint.settings_changed', 'actor_address', '127.0.0.1', 'actor_id', n %% 40,
    'actor_name', 'Person ' || n %% 40, 'after', json_build_object('timeout_ms', n), 'before',
    json_build_object('timeout_ms', n - 1), 'object_id', (n %% 500)::text, 'object_label', 'endpoint-' || n %% 500,
    'object_type', 'deployments.endpoint', 'reason', '', 'request_id', md5(n::text), 'team_id', 1, 'token_id', null
)::text
FROM generate_series(%s, %s) AS n
"""


def main() -> int:
    """Run on an installation that is removed afterwards."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.audit", description=__doc__)
    parser.add_argument("--events", type=int, default=EVENTS, metavar="N")
    events = parser.parse_args().events
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # through the clean-up
    with installation("bench-audit") as environment:
        os.environ |= environment | {"DJANGO_SETTINGS_MODULE": "console.settings"}
        django.setup()
        results = [_measure_writes(), _measure_verification(events)]
    return 0 if all(results) else 1


def _measure_writes() -> bool:
    """A service's transaction with its event and the same one without, in turn; each commits durably."""
    from django.db import transaction

    from apps.accounts.models import Team
    from apps.accounts.services import create_team
    from apps.audit.actor import Actor
    from apps.audit.services import record

    actor = Actor.system("benchmark")
    team = create_team(actor, slug="bench", name="Bench")
    taken: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(2 * _WRITES):
        has_event = turn % 2 == 0
        began = time.perf_counter()
        with transaction.atomic():
            Team.objects.filter(pk=team.pk).update(name=f"Bench {turn}")
            if has_event:
                record(actor, "team.renamed", team, team=team, before={"name": "Bench"}, after={"name": f"{turn}"})
        taken[has_event].append((time.perf_counter() - began) * 1_000)
    with_event, without = statistics.median(taken[True]), statistics.median(taken[False])
    tail = statistics.quantiles(taken[True], n=20)[-1] - statistics.quantiles(taken[False], n=20)[-1]
    added = with_event - without
    report(
        "audit_write",
        transactions=_WRITES,
        median_ms_with=round(with_event, 3),
        median_ms_without=round(without, 3),
        added_ms=round(added, 3),
        added_ms_at_p95=round(tail, 3),
        limit_ms=WRITE_LIMIT_MS,
    )
    return added <= WRITE_LIMIT_MS


def _measure_verification(events: int) -> bool:
    """Events as the database writes them, signed as the controller does it, then verified live and from an export."""
    from django.db import connection

    from apps.audit.checkpoints import checkpoint_now
    from apps.audit.keys import audit_key

    began = time.perf_counter()
    for first in range(1, events + 1, _AT_ONCE):
        with connection.cursor() as cursor:
            cursor.execute(_INSERT, [first, min(first + _AT_ONCE - 1, events)])
    report("audit_filled", events=events, seconds=round(time.perf_counter() - began, 1))
    began = time.perf_counter()
    checkpoint_now(max_steps=10 * events)
    report("audit_signed", seconds=round(time.perf_counter() - began, 1))
    connection.close()
    work = Path(os.environ["COUNTERSIGN_VAR"])
    export, anchors = work / "whole.jsonl", work / "anchors"
    is_live = _timed("audit_verify_live", [*_MANAGE, "verify_audit"])
    subprocess.run([*_MANAGE, "export_audit", str(export)], check=True, capture_output=True)
    verifier = [sys.executable, str(REPOSITORY / "apps" / "audit" / "verify.py"), str(export)]
    is_offline = _timed("audit_verify_export", [*verifier, "--key", str(audit_key()), "--anchor", str(anchors)])
    return is_live and is_offline


def _timed(measure: str, command: list[str]) -> bool:
    began = time.perf_counter()
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    said: dict[str, Any] = {"said": (result.stdout + result.stderr).strip()[-200:]}
    report(measure, seconds=round(seconds, 1), limit_s=VERIFY_LIMIT_S, **said)
    return result.returncode == 0 and seconds < VERIFY_LIMIT_S


if __name__ == "__main__":
    sys.exit(main())
