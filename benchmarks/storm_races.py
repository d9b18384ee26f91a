"""Everybody decides on the same promotion request at the same moment, hundreds of times.

Reviewers approve, reject, ask for changes and press twice; the requester, the uploader and the trainer, who all hold
the reviewing role too, try to approve their own; the requester withdraws; the controller puts into service what is
approved. Afterwards each request has exactly one outcome, and nobody's own signature is on it.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from benchmarks.product import report
from console.installation import REPOSITORY, Installation
from console.postgres import EmbeddedPostgres

RACES: Final = 500
_MANAGE: Final = [sys.executable, str(REPOSITORY / "manage.py")]
_OUTCOMES: Final = (
    "promotion.approved",
    "promotion.approved_with_conditions",
    "promotion.rejected",
    "promotion.changes_requested",
    "promotion.cancelled",
)
_RACES_OF_A_TEAM: Final = 100
_PATIENCE_S: Final = 60.0


def run(scale: float = 1.0) -> bool:
    """``scale`` is the share of the races."""
    with _installation() as environment:
        command = [sys.executable, "-m", "benchmarks.storm_races", str(max(round(RACES * scale), 10))]
        return subprocess.run(command, env=environment, cwd=REPOSITORY, check=False).returncode == 0


@contextmanager
def _installation() -> Iterator[dict[str, str]]:
    """The environment of an installation with a database and all tables, which is removed afterwards."""
    work = Path(tempfile.mkdtemp(prefix="countersign-storm-races-"))
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


def _race(decide: list[Callable[[], object]]) -> list[Exception]:
    """Call all of them at once, each on a thread with a connection of its own; returns what was unexpected."""
    from django.db import connections

    from apps.core.errors import DomainError

    start = threading.Barrier(len(decide))
    unexpected: list[Exception] = []

    def attempt(call: Callable[[], object]) -> None:
        start.wait(_PATIENCE_S)
        try:
            call()
        except DomainError:
            pass  # refused in words, as it should be
        except Exception as error:
            unexpected.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=attempt, args=(call,)) for call in decide]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_PATIENCE_S)
    if any(thread.is_alive() for thread in threads):
        unexpected.append(TimeoutError(f"a decision took longer than {_PATIENCE_S:.0f} s"))
    return unexpected


def _storm(races: int) -> bool:
    from benchmarks.reviewers import Reviewers

    chance = random.Random(races)
    found: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    unexpected: list[Exception] = []
    for number in range(races):
        if number % _RACES_OF_A_TEAM == 0:  # nobody works on the jobs that approvals leave, and a team's are bounded
            people = Reviewers()
        request = people.submit(needs_two=number % 2 == 1)
        decide = people.decisions(request, withdraws=number % 4 == 0, applies=number % 5 == 0)
        chance.shuffle(decide)
        unexpected += _race(decide)
        outcomes[_outcome(request.pk, found)] += 1
    report(
        "storm_races",
        races=races,
        self_approvals=found["self_approvals"],
        double_outcomes=found["double_outcomes"],
        approved_by_too_few=found["approved_by_too_few"],
        served_without_approval=found["served_without_approval"],
        unexpected_errors=[repr(error)[:200] for error in unexpected[:3]],
        outcomes=dict(outcomes),
    )
    return not unexpected and not any(found.values())


def _outcome(pk: int, found: Counter[str]) -> str:
    """How a race ended; counts what must never be."""
    from apps.audit.models import AuditEvent
    from apps.deployments.models import Deployment
    from apps.promotions.models import PromotionRequest
    from apps.promotions.rules import excluded

    request = PromotionRequest.objects.with_names().select_related("team").get(pk=pk)
    events = AuditEvent.objects.about("promotions.promotionrequest", pk).filter(action__in=_OUTCOMES)
    actions = list(events.values_list("action", flat=True))
    signed = list(request.reviews.values_list("reviewer_id", flat=True))
    approved = set(request.reviews.approvals().values_list("reviewer_id", flat=True))
    needed = sum(rule.count for rule in request.policy_version.document.approvals) if request.policy_version else 1
    found["self_approvals"] += len(excluded(request).keys() & set(signed))
    # A request that was handed back ends there, too: nobody revises it here.
    found["double_outcomes"] += max(len(actions) - 1, 0) + (len(signed) - len(set(signed)))
    found["double_outcomes"] += int(len(actions) == 1 and not _fits(actions[0], request.state))
    found["approved_by_too_few"] += int(request.is_approved and len(approved) < needed)
    serves = Deployment.objects.filter(promotion_request_id=pk).count()
    found["served_without_approval"] += int(serves > int(request.is_approved))
    return str(request.state)


def _fits(action: str, state: Any) -> bool:
    return action == f"promotion.{str(state).lower()}"


if __name__ == "__main__":
    import django

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "console.settings")
    django.setup()
    sys.exit(0 if _storm(int(sys.argv[1])) else 1)
