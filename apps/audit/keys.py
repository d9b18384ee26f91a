"""The installation's audit key. It lies outside the database, so whoever can rewrite the one cannot sign for it."""

from __future__ import annotations

import hashlib

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from django.conf import settings

from apps.audit.notes import Signer, VerifierKey


def audit_signer() -> Signer:
    """The key that signs checkpoints and exports; read for each signature, so that it does not stay in memory."""
    key = load_pem_private_key(settings.INSTALLATION.ensure_signing_key("audit").read_bytes(), password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise TypeError("The audit log's signing key is not an Ed25519 key.")
    return Signer(_name(key.public_key().public_bytes_raw()), key)


def audit_key() -> VerifierKey:
    """The public half, which auditors pin."""
    settings.INSTALLATION.ensure_signing_key("audit")
    key = load_pem_public_key(settings.INSTALLATION.public_key_file("audit").read_bytes())
    if not isinstance(key, Ed25519PublicKey):
        raise TypeError("The audit log's public key is not an Ed25519 key.")
    return VerifierKey(_name(key.public_bytes_raw()), key.public_bytes_raw())


def _name(public_bytes: bytes) -> str:
    """The log's name: it is this installation's as long as the key is."""
    return f"countersign/{hashlib.sha256(public_bytes).hexdigest()[:16]}"
