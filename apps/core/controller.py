"""The knock on the controller's door."""

from django.db import connection

CHANNEL = "countersign_controller"


def wake_controller() -> None:
    """Have the controller look at once, when this transaction commits, instead of at its next tick."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_notify(%s, '')", [CHANNEL])
