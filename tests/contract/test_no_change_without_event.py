"""Every mutating route twice: as it is, what it changes comes with an event; with the audit insert broken, it
changes nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connection, transaction

from tests import builders
from tests.conftest import Cast
from tests.contract.test_route_matrix import HOLDERS, ROUTES, World, world

__all__ = ["world"]  # the fixture

MUTATING = ("POST", "PUT", "PATCH", "DELETE")
# Tables that hold no facts of the team: sessions, the log itself, and what a sign-in leaves behind.
SILENT = ("django_session", "console_cache", "audit_", "django_migrations", "django_content_type", "auth_permission")
# The role that makes the most of a route whose permission several roles hold.
ROLES = {"team.view": "data_scientist", "signed-in": "data_scientist", "public": "data_scientist"}
BROKEN = """
CREATE FUNCTION audit_is_broken() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'no event can be written' USING ERRCODE = 'disk_full'; END $$;
CREATE TRIGGER a_broken BEFORE INSERT ON audit_auditevent FOR EACH ROW EXECUTE FUNCTION audit_is_broken();
"""

Payload = Callable[[World], dict[str, Any]]


# What to send where an empty body changes nothing. ``method route`` -> body.
BODIES: dict[str, Payload] = {
    "POST accounts:member-list": lambda _: {"email": "more@example.com", "roles": ["analyst"]},
    "POST accounts:member-edit": lambda _: {"roles": ["analyst", "operator"], "is_active": "on"},
    "POST accounts:token-list": lambda _: {"name": "t", "scopes": ["read"], "lifetime_days": "30"},
    "POST registry:model-create": lambda _: {"name": "fresh-model", "task": "REGRESSION"},
    "POST api:model-list": lambda _: {"name": "fresh-model", "task": "REGRESSION"},
    "POST registry:version-upload": lambda _: {"file": builders.upload(builders.linear_onnx(77.0))},
    "POST api:model-version-list": lambda _: {"file": builders.upload(builders.linear_onnx(78.0))},
    "POST registry:alias-set": lambda _: {"name": "challenger"},
    "POST api:model-version-alias": lambda _: {"name": "challenger"},
    "POST evaluation:dataset-upload": lambda _: {"name": "fresh-data", "file": builders.upload(b"a,b\n1,2\n", "r.csv")},
    "POST api:dataset-list": lambda _: {"name": "fresh-data"},
    "POST api:dataset-version-list": lambda _: {"file": builders.upload(b"a,b\n1,2\n", "r.csv")},
    "POST evaluation:load-test-start": lambda _: {
        "step_s": "1", "max_concurrency": "1", "arrivals": "poisson", "dataset_version": ""
    },
    "POST deployments:endpoint-create": lambda _: {"name": "fresh-endpoint", "environment": "staging"},
    "POST api:endpoint-list": lambda _: {"name": "fresh-endpoint"},
    "POST deployments:guardrail-create": lambda _: {"name": "fresh-rule", "requires": "y[0] < 9", "action": "flag"},
    "POST deployments:guardrail-edit": lambda _: {"name": "bounded", "requires": "y[0] < 7", "action": "flag"},
    "POST api:guardrail-list": lambda _: {"name": "fresh-rule", "requires": "y[0] < 9", "action": "flag"},
    "PUT api:guardrail-detail": lambda _: {"name": "bounded", "requires": "y[0] < 7", "action": "flag"},
    "POST deployments:endpoint-settings": lambda _: {
        "queue_rows": "100", "timeout_ms": "1000", "batch_rows": "8", "payload_cap_bytes": "1000"
    },
    "PATCH api:endpoint-settings": lambda _: {"timeout_ms": 1234},
}  # fmt: skip


@pytest.fixture
def clients(world: World) -> dict[tuple[str, bool], Any]:
    """A browser and a token for each role."""
    made: dict[tuple[str, bool], Any] = {}
    for role in ("analyst", "data_scientist", "operator", "compliance_officer", "admin"):
        made[role, False], made[role, True] = world.cast.browser(role), world.cast.api(role)
        made[role, False].raise_request_exception = made[role, True].raise_request_exception = False
        made[role, True].get("/api/v1/tokens/")  # that a token was used is noted once a minute
    return made


def _cases() -> Iterator[tuple[str, str, str]]:
    for name, methods in ROUTES.items():
        for method in MUTATING:
            if method in methods:
                role = ROLES.get(methods[method]) or max(HOLDERS[methods[method]], default="data_scientist")
                yield method, name, role


def _call(world: World, client: Any, method: str, name: str) -> int:
    cookies = copy.deepcopy(client.cookies)
    body = BODIES.get(f"{method} {name}", lambda _: {})(world)
    is_json = name.startswith("api:") and "file" not in body
    arguments = {"format": "json" if is_json else "multipart"} if name.startswith("api:") else {}
    response = getattr(client, method.lower())(world.url(name), body, **arguments)
    client.cookies = cookies
    return int(response.status_code)


def _tables() -> list[str]:
    return [name for name in connection.introspection.table_names() if not name.startswith(SILENT)]


def _facts(tables: list[str]) -> dict[str, str]:
    """A digest of every table."""
    parts = [
        f"SELECT '{name}', coalesce(md5(string_agg(md5(t::text), '' ORDER BY md5(t::text))), '') FROM {name} t"  # noqa: S608
        for name in tables
    ]
    with connection.cursor() as cursor:
        cursor.execute(" UNION ALL ".join(parts))
        return dict(cursor.fetchall())


def _events() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM audit_auditevent")
        return int(cursor.fetchone()[0])


def _effect(world: World, client: Any, method: str, name: str, before: dict[str, str]) -> tuple[set[str], int, int]:
    """The tables that a call changes, the events that it writes, and its status; all of it is undone."""
    with transaction.atomic():
        events = _events()
        status = _call(world, client, method, name)
        after = _facts(list(before))
        changed = {table for table in before if before[table] != after[table]}
        written = _events() - events
        transaction.set_rollback(True)
    return changed, written, status


def test_whatever_a_route_changes_comes_with_an_event(world: World, clients: dict[tuple[str, bool], Any]) -> None:
    before, silent, ineffective, effective = _facts(_tables()), [], [], 0
    for method, name, role in _cases():
        changed, written, status = _effect(world, clients[role, name.startswith("api:")], method, name, before)
        effective += bool(changed)
        if changed and not written:
            silent.append(f"{method} {name} changed {changed} without an event (status {status})")
        if not changed and f"{method} {name}" in BODIES:
            ineffective.append(f"{method} {name} as {role} changed nothing (status {status})")
    assert "\n".join(silent) == ""
    assert "\n".join(ineffective) == ""
    assert effective >= 30


def test_with_the_audit_insert_broken_no_route_changes_anything(
    world: World, clients: dict[tuple[str, bool], Any], cast: Cast
) -> None:
    before = _facts(_tables())
    with connection.cursor() as cursor:
        cursor.execute(BROKEN)
    changes = []
    for method, name, role in _cases():
        changed, _, status = _effect(world, clients[role, name.startswith("api:")], method, name, before)
        if changed:
            changes.append(f"{method} {name} changed {changed} (status {status})")
    assert "\n".join(changes) == ""
