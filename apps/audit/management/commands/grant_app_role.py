"""``manage.py grant_app_role``: what the application's database role may do. Run as the owner after ``migrate``."""

from typing import Any

from django.core.management.base import BaseCommand
from django.db import connection
from psycopg import sql

APP_ROLE = "countersign_app"


class Command(BaseCommand):
    """Grant the application everything but a way to change the audit log."""

    help = "Grant the application's database role its rights; the audit log can only be read and appended to."

    def handle(self, *args: Any, **options: Any) -> None:
        """Idempotent. Without a separate role (an external database with one user) it says what that means."""
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [APP_ROLE])
            if cursor.fetchone() is None:
                self.stderr.write(
                    f"The database has no role {APP_ROLE}: the application runs as the tables' owner, and only the "
                    "trigger protects the audit log. Create the role and set DATABASE_OWNER_URL to separate them."
                )
                return
            for statement in (
                "GRANT USAGE ON SCHEMA public TO {role}",
                "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}",
                "GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA public TO {role}",
                "REVOKE UPDATE, DELETE, TRUNCATE ON audit_auditevent FROM {role}",
                "REVOKE UPDATE, DELETE, TRUNCATE ON audit_merklenode FROM {role}",
                "REVOKE DELETE, TRUNCATE ON audit_checkpoint FROM {role}",
            ):
                cursor.execute(sql.SQL(statement).format(role=sql.Identifier(APP_ROLE)))
