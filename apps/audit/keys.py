"""The installation's audit key. It lies outside the database, so whoever can rewrite the one cannot sign for it."""

from __future__ import annotations

import hashlib

from apps.audit.notes import Signer, VerifierKey
from apps.core.signing_keys import public_key, signing_key


def audit_signer() -> Signer:
    """The key that signs checkpoints, exports and evidence packs."""
    key = signing_key("audit")
    return Signer(_name(key.public_key().public_bytes_raw()), key)


def audit_key() -> VerifierKey:
    """The public half, which auditors pin."""
    public_bytes = public_key("audit").public_bytes_raw()
    return VerifierKey(_name(public_bytes), public_bytes)


def _name(public_bytes: bytes) -> str:
    """The log's name: it is this installation's as long as the key is."""
    return f"countersign/{hashlib.sha256(public_bytes).hexdigest()[:16]}"
