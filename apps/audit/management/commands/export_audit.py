"""``manage.py export_audit FILE``: the whole audit log, for the offline verifier and for safe keeping."""

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from apps.audit.export import export_whole
from apps.audit.keys import audit_key


class Command(BaseCommand):
    """Write every event up to the newest checkpoint, as JSON Lines with a signed trailer."""

    help = "Export the whole audit log; check it with: python apps/audit/verify.py FILE --key KEY"

    def add_arguments(self, parser: CommandParser) -> None:
        """Where to write."""
        parser.add_argument("file", type=Path)

    def handle(self, *args: Any, **options: Any) -> None:
        """Refuses to write over a file."""
        with open(options["file"], "xb") as file:
            for line in export_whole():
                file.write(line)
        self.stdout.write(f"Pin this key: {audit_key()}")
