"""Sends anchored checkpoints on to a webhook or into a bucket, in their order, and tries again until they are there."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote, urlsplit

from django.conf import settings
from django.utils import timezone

from apps.audit import anchors
from apps.audit.models import AuditEvent, Checkpoint
from apps.core import outgoing
from apps.core.errors import DomainError

MAX_AT_ONCE: Final = 5
"""The controller has other things to do."""
_TRIED: Final = "The anchor was tried and answered "


def forward_checkpoints() -> int:
    """The controller's duty: send what is not there yet; returns how many arrived. Stops at the first that did not."""
    if not settings.AUDIT_ANCHOR_URL:
        return 0
    waiting = Checkpoint.objects.filter(forwarded_at=None).order_by("tree_size")[:MAX_AT_ONCE]
    for sent, checkpoint in enumerate(waiting):
        error = _send(checkpoint)
        done_at = None if error else timezone.now()
        Checkpoint.objects.filter(pk=checkpoint.pk).update(forwarded_at=done_at, forward_error=error[:300])
        if error:
            return sent
    return len(waiting)


def _send(checkpoint: Checkpoint) -> str:
    """Send one record; returns what went wrong, empty if it arrived."""
    before = Checkpoint.objects.filter(tree_size__lt=checkpoint.tree_size).order_by("-tree_size").first()
    begin = before.tree_size if before else 0
    hashes = AuditEvent.objects.filter(seq__gt=begin, seq__lte=checkpoint.tree_size).order_by("seq")
    leaves = b"".join(bytes.fromhex(text or "") for text in hashes.values_list("leaf_hash", flat=True))
    body = json.dumps(anchors.record_of(checkpoint.note, begin, leaves)).encode() + b"\n"
    try:
        status = _put(checkpoint, body) if settings.AUDIT_ANCHOR_URL.startswith("s3://") else _post(body)
    except (OSError, DomainError) as error:
        return str(error)
    return "" if 200 <= status < 300 else f"{_TRIED}{status}."


def _post(body: bytes) -> int:
    return outgoing.send("POST", settings.AUDIT_ANCHOR_URL, body, {"Content-Type": "application/json"})


def _put(checkpoint: Checkpoint, body: bytes) -> int:
    """One object for each checkpoint, never written over where the store can promise that."""
    parts = urlsplit(settings.AUDIT_ANCHOR_URL)
    endpoint = os.environ.get("AUDIT_ANCHOR_S3_ENDPOINT", "").rstrip("/") or "https://s3.amazonaws.com"
    key = "/".join(filter(None, [parts.path.strip("/"), f"{checkpoint.tree_size:018d}.jsonl"]))
    url = f"{endpoint}/{parts.netloc}/{quote(key)}"
    headers = sign_put(
        url,
        body,
        at=datetime.now(UTC),
        region=os.environ.get("AWS_REGION", "us-east-1"),
        access_key=os.environ.get("AWS_ACCESS_KEY_ID", ""),
        secret_key=os.environ.get("AWS_SECRET_ACCESS_KEY", ""),
    )
    # Not signed: some stores do not know it. Where it is known, 412 says that the object is there already.
    status = outgoing.send("PUT", url, body, headers | {"If-None-Match": "*"})
    return 200 if status == 412 else status


def sign_put(
    url: str, body: bytes, *, at: datetime, region: str, access_key: str, secret_key: str, **more: str
) -> dict[str, str]:
    """The headers that sign a PUT as AWS Signature Version 4 wants it; ``more`` are further headers to sign."""
    parts, stamp = urlsplit(url), at.strftime("%Y%m%dT%H%M%SZ")
    payload = hashlib.sha256(body).hexdigest()
    signed = {name.replace("_", "-"): value for name, value in more.items()}
    signed |= {"host": parts.netloc, "x-amz-content-sha256": payload, "x-amz-date": stamp}
    names = ";".join(sorted(signed))
    lines = "".join(f"{name}:{signed[name]}\n" for name in sorted(signed))
    request = f"PUT\n{parts.path}\n{parts.query}\n{lines}\n{names}\n{payload}"
    scope = f"{stamp[:8]}/{region}/s3/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    key = f"AWS4{secret_key}".encode()
    for part in scope.split("/"):
        key = _hmac(key, part)
    authorization = f"AWS4-HMAC-SHA256 Credential={access_key}/{scope}, SignedHeaders={names}, Signature="
    del signed["host"]  # the client sends it anyway
    return signed | {"Authorization": authorization + _hmac(key, text).hex()}


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.new(key, text.encode(), hashlib.sha256).digest()


def describe() -> dict[str, Any]:
    """Where checkpoints go beside the folder, for the page: the kind and the host, never a path or a key."""
    parts = urlsplit(settings.AUDIT_ANCHOR_URL)
    return {"kind": "bucket" if parts.scheme == "s3" else "webhook", "host": parts.netloc} if parts.netloc else {}
