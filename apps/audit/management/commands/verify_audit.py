"""``manage.py verify_audit``: is the audit log whole and unchanged?"""

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from apps.audit import chain, services


class Command(BaseCommand):
    """Check every event's number, link and hash, and name the first bad one."""

    help = "Check the audit log from its first event to its last."

    def handle(self, *args: Any, **options: Any) -> None:
        """Exit with 0 and the head if the log is sound, with 1 and the first bad seq if not."""
        verdict = chain.verify(services.links())
        if not verdict.is_ok:
            raise CommandError(
                f"The audit log is broken at seq {verdict.bad_seq}: {verdict.reason}. "
                f"The {verdict.checked} events before it are sound."
            )
        self.stdout.write(self.style.SUCCESS(f"OK: {verdict.checked} events, head {verdict.head}"))
