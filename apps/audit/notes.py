"""Signs text as C2SP describes it (https://c2sp.org/signed-note), with Ed25519. Pure; checking is ``verify.py``'s."""

from __future__ import annotations

import base64
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from apps.audit.verify import Checkpoint, Rejected, VerifierKey, open_checkpoint, verify_note

__all__ = ["Checkpoint", "Rejected", "Signer", "VerifierKey", "open_checkpoint", "sign_note", "verify_note"]


@dataclass(frozen=True, slots=True)
class Signer:
    """A named private key. Load it for the moment of signing and let it go."""

    name: str  # no spaces and no plus, e.g. ``countersign/<installation id>``
    key: Ed25519PrivateKey

    @property
    def verifier_key(self) -> VerifierKey:
        """The public half, which others pin."""
        return VerifierKey(self.name, self.key.public_key().public_bytes_raw())


def sign_note(body: str, *signers: Signer) -> str:
    """The note that says ``body``, with a signature line for each signer.

    ``body`` ends with a newline and has no other control characters; raises ``ValueError`` otherwise. What it means has
    to be clear from its first line, because the same key may sign notes of other kinds.
    """
    if not body.endswith("\n") or any(ord(letter) < 32 and letter != "\n" for letter in body):
        raise ValueError("a note's text ends with a newline and has no other control characters")
    lines = [_signature(body, signer) for signer in signers]
    return f"{body}\n{''.join(lines)}"


def _signature(body: str, signer: Signer) -> str:
    signature = signer.verifier_key.key_id + signer.key.sign(body.encode())
    return f"— {signer.name} {base64.b64encode(signature).decode()}\n"
