"""The console's side of the database, for tests of the inference service that need one."""

from __future__ import annotations

from typing import Any

import psycopg

from tests.inference.installation import Installation, wait_for


class Console:
    """Publishes manifests into the database, as the console does."""

    def __init__(self, installation: Installation, dsn: str) -> None:
        self.installation = installation
        self.dsn = dsn
        self.connection = psycopg.connect(dsn, autocommit=True)

    def publish(self, document: dict[str, Any] | None = None) -> int:
        """Insert a manifest and notify; returns its generation."""
        document = document or self.installation.manifest()
        with self.connection.transaction():
            self.connection.execute(
                "INSERT INTO deployments_servingmanifest (generation, body, signature, content_digest, created_at)"
                " VALUES (%s, %s, %s, '', now())",
                (document["generation"], document["body"], document["signature"]),
            )
            self.connection.execute("SELECT pg_notify('serving_manifest', %s)", (str(document["generation"]),))
        return int(document["generation"])

    def replica(self) -> dict[str, Any]:
        """What the replica reports; empty before its first report."""
        cursor = self.connection.execute(
            "SELECT generation, state, loaded, errors, pid, seen_at FROM deployments_replica"
            " WHERE replica_id = 'test-1'"
        )
        found = cursor.fetchone()
        names = [column.name for column in cursor.description or ()]
        return dict(zip(names, found, strict=True)) if found else {}

    def wait_for_generation(self, generation: int) -> dict[str, Any]:
        """Wait until the replica serves a generation."""
        wait_for(lambda: self.replica().get("generation") == generation, 20)
        return self.replica()
