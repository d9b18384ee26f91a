"""Checkpoints beyond the machine: a webhook and a bucket, and no way into the machine's own network."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from apps.accounts import services as accounts
from apps.audit.actor import Actor
from apps.audit.checkpoints import checkpoint_now
from apps.audit.forwarding import forward_checkpoints, sign_put
from apps.audit.keys import audit_key
from apps.audit.models import Checkpoint
from apps.audit.verify import Anchors
from apps.core.outgoing import may_be_called

SYSTEM = Actor.system("test")


class _Receiver(BaseHTTPRequestHandler):
    def _take(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append((self.command, self.path, body))  # type: ignore[attr-defined]
        self.send_response(self.server.status)  # type: ignore[attr-defined]
        self.end_headers()

    do_POST = do_PUT = _take

    def log_message(self, *unused: Any) -> None:
        """Quiet."""


@pytest.fixture
def receiver() -> Iterator[Any]:
    server: Any = HTTPServer(("127.0.0.1", 0), _Receiver)
    server.received, server.status = [], 200
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def signed(transactional_db: None) -> None:
    for number in range(2):
        accounts.create_team(SYSTEM, slug=f"t{number}", name=f"T{number}")
        checkpoint_now()


def _reads_as_anchor(*records: bytes) -> int:
    known = Anchors()
    for record in records:
        known.add_record(json.loads(record), [audit_key()], "the anchor")
    return known.size


def test_a_webhook_gets_each_checkpoint_once_and_in_order(receiver: Any, signed: None, settings: Any) -> None:
    settings.AUDIT_ANCHOR_URL = f"http://127.0.0.1:{receiver.server_port}/anchor?team=risk"
    settings.OUTGOING_NETWORKS = ["127.0.0.0/8"]
    receiver.status = 503
    assert forward_checkpoints() == 0
    assert Checkpoint.objects.order_by("tree_size")[0].forward_error == "The anchor was tried and answered 503."
    receiver.status, receiver.received = 204, []
    assert forward_checkpoints() == 2
    assert forward_checkpoints() == 0
    assert [(method, path) for method, path, _ in receiver.received] == [("POST", "/anchor?team=risk")] * 2
    assert _reads_as_anchor(*(body for _, _, body in receiver.received)) == 2
    assert not Checkpoint.objects.filter(forwarded_at=None).exists()


def test_a_bucket_gets_one_object_for_each_checkpoint(
    receiver: Any, signed: None, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.AUDIT_ANCHOR_URL = "s3://worm/audit"
    settings.OUTGOING_NETWORKS = ["127.0.0.0/8"]
    monkeypatch.setenv("AUDIT_ANCHOR_S3_ENDPOINT", f"http://127.0.0.1:{receiver.server_port}")
    assert forward_checkpoints() == 2
    assert [(method, path) for method, path, _ in receiver.received] == [
        ("PUT", "/worm/audit/000000000000000001.jsonl"),
        ("PUT", "/worm/audit/000000000000000002.jsonl"),
    ]
    receiver.status = 412  # it is there already
    Checkpoint.objects.update(forwarded_at=None)
    assert forward_checkpoints() == 2


def test_the_own_machine_is_not_called(receiver: Any, signed: None, settings: Any) -> None:
    for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]"):
        settings.AUDIT_ANCHOR_URL = f"http://{host}:{receiver.server_port}/"
        assert forward_checkpoints() == 0
        assert "of this machine or its network" in Checkpoint.objects.order_by("tree_size")[0].forward_error
    assert receiver.received == []


@pytest.mark.parametrize(
    ("address", "is_allowed"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),  # noqa: S104
        ("224.0.0.1", False),
        ("::1", False),
        ("::ffff:10.0.0.1", False),
        ("2002:0a00:0001::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("192.0.2.7", False),
    ],
)
def test_only_public_addresses_may_be_called(address: str, is_allowed: bool) -> None:
    assert may_be_called(address, []) is is_allowed
    assert may_be_called("10.1.2.3", ["10.0.0.0/8"])


def test_a_put_is_signed_as_the_standard_shows_it() -> None:
    """The example of an object upload in the documentation of AWS Signature Version 4."""
    headers = sign_put(
        "https://examplebucket.s3.amazonaws.com/test%24file.text",
        b"Welcome to Amazon S3.",
        at=datetime(2013, 5, 24, tzinfo=UTC),
        region="us-east-1",
        access_key="AKIAIOSFODNN7EXAMPLE",
        secret_key="wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
        date="Fri, 24 May 2013 00:00:00 GMT",
        x_amz_storage_class="REDUCED_REDUNDANCY",
    )
    expected = "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd"
    assert headers["Authorization"].endswith(f"Signature={expected}")
