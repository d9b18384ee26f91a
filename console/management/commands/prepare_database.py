"""``manage.py prepare_database``: the tables as this version wants them, and the application's rights on them."""

from typing import Any

from django.core.management import call_command
from django.core.management.base import BaseCommand


class Command(BaseCommand):
    """Migrate and grant in one process, because each start of Python costs more than the work. Run as the owner."""

    help = __doc__

    def handle(self, *args: Any, **options: Any) -> None:
        """Idempotent."""
        call_command("migrate", interactive=False, verbosity=0)
        call_command("grant_app_role")
