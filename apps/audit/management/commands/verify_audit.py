"""``manage.py verify_audit``: is the audit log whole and unchanged?"""

import os
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from apps.audit.verification import finish_verification, verify_live


class Command(BaseCommand):
    """Check every event's number, link and hash and every checkpoint, and name the first bad event."""

    help = "Check the audit log from its first event to its last, against the checkpoints outside the database."

    def add_arguments(self, parser: CommandParser) -> None:
        """Where else checkpoints lie, and whose request this is."""
        parser.add_argument(
            "--anchor", action="append", type=Path, default=[], help="a copy of anchors, or a checkpoint"
        )
        parser.add_argument("--record", type=int, help="id of the verification to keep the outcome with")

    def handle(self, *args: Any, **options: Any) -> None:
        """Exit with 0 and the head if the log is sound, with 1 and the first bad seq if not."""
        if options["record"]:
            os.nice(10)
        verdict = verify_live(tuple(options["anchor"]))
        if options["record"]:
            finish_verification(options["record"], verdict)
        for warning in verdict.warnings:
            self.stdout.write(f"Note: {warning}.")
        if not verdict.is_ok:
            raise CommandError(f"The audit log is {verdict}")
        self.stdout.write(self.style.SUCCESS(str(verdict)))
