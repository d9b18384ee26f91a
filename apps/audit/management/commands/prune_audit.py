"""``manage.py prune_audit``: take the bodies of old audit events; the log stays verifiable."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError

from apps.audit.actor import Actor
from apps.audit.retention import MIN_DAYS, prune_bodies
from apps.core.errors import DomainError


class Command(BaseCommand):
    """Run as the tables' owner: ``COUNTERSIGN_DATABASE_ROLE=owner manage.py prune_audit --older-than-days 3650``."""

    help = "Empty the bodies of old audit events and keep their hashes, with an event that says so."

    def add_arguments(self, parser: CommandParser) -> None:
        """How old."""
        parser.add_argument("--older-than-days", type=int, required=True, help=f"at least {MIN_DAYS}")

    def handle(self, *args: Any, **options: Any) -> None:
        """Says how many bodies went."""
        try:
            count = prune_bodies(Actor.system("prune_audit"), older_than_days=options["older_than_days"])
        except DomainError as error:
            raise CommandError(error.message) from error
        except DatabaseError as error:
            raise CommandError(f"Run this as the tables' owner (COUNTERSIGN_DATABASE_ROLE=owner): {error}") from error
        self.stdout.write(f"{count} bodies are gone; the log is verified as before.")
