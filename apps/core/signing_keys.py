"""The installation's own Ed25519 keys, read from their files for each signature, so that none stays in memory.

What a signature means is said in what is signed: a manifest has its own prefix, a note its first line. So one key's
signature can never be taken for another's.
"""

from __future__ import annotations

from typing import Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from django.conf import settings

Kind = Literal["manifest", "audit"]


def signing_key(kind: Kind) -> Ed25519PrivateKey:
    """The private key, for the moment of signing: let it go at once."""
    key = load_pem_private_key(settings.INSTALLATION.ensure_signing_key(kind).read_bytes(), password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise TypeError(f"The {kind} signing key is not an Ed25519 key: restore its file.")
    return key


def public_key(kind: Kind) -> Ed25519PublicKey:
    """The public half, which others pin."""
    settings.INSTALLATION.ensure_signing_key(kind)
    key = load_pem_public_key(settings.INSTALLATION.public_key_file(kind).read_bytes())
    if not isinstance(key, Ed25519PublicKey):
        raise TypeError(f"The {kind} public key is not an Ed25519 key: restore its file.")
    return key
