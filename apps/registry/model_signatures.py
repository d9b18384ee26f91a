"""OpenSSF model signatures: reading a bundle, checking a file against one, and making one. No database.

The ``model-signing`` package takes half a second and 45 MB to load, so only jobs do, when they need it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

MEDIA_TYPE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
MAX_BUNDLE_BYTES: Final = 64 * 1024
MAX_PEM_CHARACTERS: Final = 64 * 1024
_CURVES: Final = ("secp256r1", "secp384r1", "secp521r1")


class BadBundle(Exception):
    """The text is no signature bundle that could be checked; the message says why."""


class BadSigner(Exception):
    """The text is no public key or certificate that could check a signature; the message says why."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """What a bundle says before anything is checked: the file's name in it, and the hint of the key that signed."""

    text: str
    resource: str
    key_hint: str
    certificate: bytes  # DER of the one that signed; empty if it was a key

    @property
    def subject(self) -> str:
        """Whom the certificate names."""
        return x509.load_der_x509_certificate(self.certificate).subject.rfc4514_string()[:120]

    @property
    def sha256(self) -> str:
        """Hex digest of the bundle itself."""
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Signer:
    """Whom to believe."""

    name: str
    kind: Literal["KEY", "CERTIFICATE"]
    pem: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of a check; ``signer`` is the name of the one who is believed, ``reason`` says why not."""

    state: Literal["VERIFIED", "UNTRUSTED", "FAILED"]
    signer: str = ""
    reason: str = ""


def read_bundle(content: bytes) -> Bundle:
    """Take a bundle apart, with nothing checked but its shape. Raises ``BadBundle``."""
    if len(content) > MAX_BUNDLE_BYTES:
        raise BadBundle(f"A signature bundle has at most {MAX_BUNDLE_BYTES // 1024} KiB.")
    try:
        text = content.decode()
        document = json.loads(text)
        statement = json.loads(base64.b64decode(document["dsseEnvelope"]["payload"], validate=True))
        material = document["verificationMaterial"]
        media_type, predicate = document["mediaType"], statement["predicate"]
        resources = [(row["name"], row["digest"]) for row in predicate["resources"]]
        method = predicate["serialization"]["method"]
        hint = (material.get("publicKey") or {}).get("hint") or ""
        chain = (material.get("x509CertificateChain") or {}).get("certificates") or []
        certificate = base64.b64decode(chain[0]["rawBytes"], validate=True) if chain else b""
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, binascii.Error) as error:
        raise BadBundle("This is no OpenSSF model signature: sign the file with “model_signing sign”.") from error
    if media_type != MEDIA_TYPE:
        raise BadBundle(f"The bundle is of another type than {MEDIA_TYPE}.")
    if method != "files" or len(resources) != 1 or not isinstance(resources[0][0], str):
        raise BadBundle("The signature is not over this one file: sign the ONNX file as a whole.")
    return Bundle(text, resources[0][0], str(hint), certificate)


def read_signer(name: str, pem: str) -> Signer:
    """A public key (P-256, P-384, P-521) or certificate as PEM. Raises ``BadSigner``."""
    content = pem.strip().encode()
    if len(content) > MAX_PEM_CHARACTERS:
        raise BadSigner("That is too long for a key or a certificate.")
    try:
        if b"BEGIN CERTIFICATE" in content:
            certificates = x509.load_pem_x509_certificates(content)
            normal = "".join(row.public_bytes(serialization.Encoding.PEM).decode() for row in certificates)
            return Signer(name, "CERTIFICATE", normal, certificates[0].fingerprint(hashes.SHA256()).hex())
        key = serialization.load_pem_public_key(content)
    except ValueError as error:
        raise BadSigner("Paste a public key or a certificate as PEM, beginning with “-----BEGIN”.") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _CURVES:
        raise BadSigner("OpenSSF model signatures are checked with an elliptic-curve key: P-256, P-384 or P-521.")
    normal = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()
    return Signer(name, "KEY", normal, hashlib.sha256(normal.encode()).hexdigest())


def check(artifact: Path, bundle: Bundle, signers: Sequence[Signer], *, workspace: Path) -> Finding:
    """Whether one of the signers signed this file; ``workspace`` is a folder on the file's own file system.

    Works offline. Keyless signatures, which would not, are untrusted.
    """
    candidates = [row for row in signers if _may_have_signed(bundle, row)]
    if not candidates:
        return Finding("UNTRUSTED", reason=_why_unknown(bundle))
    reasons = []
    for signer in candidates:
        try:
            _verify(artifact, bundle, signer, workspace)
        except Exception as error:  # the package raises whatever its parts raise
            reasons.append((signer.name, error))
        else:
            name = f"{bundle.subject}, vouched for by {signer.name}" if bundle.certificate else signer.name
            return Finding("VERIFIED", signer=name)
    if bundle.certificate and not any(_is_mismatch(error) for _, error in reasons):
        return Finding(
            "UNTRUSTED", reason="No certificate authority that your team trusts vouches for its certificate."
        )
    return Finding("FAILED", reason=_explain(*reasons[-1]))


def _may_have_signed(bundle: Bundle, signer: Signer) -> bool:
    if bundle.certificate:
        return signer.kind == "CERTIFICATE"
    return signer.kind == "KEY" and bundle.key_hint in ("", signer.fingerprint)


def _why_unknown(bundle: Bundle) -> str:
    if bundle.certificate:
        return "Your team trusts no certificate authority: a compliance officer can add one."
    if bundle.key_hint:
        return f"Your team does not trust the key that it names ({bundle.key_hint[:12]}…)."
    return "It names no key, and your team trusts none. Keyless signatures cannot be checked offline."


def _verify(artifact: Path, bundle: Bundle, signer: Signer, workspace: Path) -> None:
    from model_signing import verifying

    with tempfile.TemporaryDirectory(prefix="signature-", dir=workspace) as folder:
        bundle_file, signer_file = Path(folder, "bundle.json"), Path(folder, "signer.pem")
        bundle_file.write_text(bundle.text)
        signer_file.write_text(signer.pem)
        config = verifying.Config()  # type: ignore[no-untyped-call]
        if signer.kind == "KEY":
            config.use_elliptic_key_verifier(public_key=signer_file)
        else:
            config.use_certificate_verifier(certificate_chain=[signer_file])
        with _as_signed(artifact, bundle.resource, Path(folder, "model")) as target:
            config.verify(target, bundle_file)


@contextmanager
def _as_signed(artifact: Path, resource: str, folder: Path) -> Iterator[Path]:
    """The path to check: the file itself, or a folder that holds it under the name by which it was signed."""
    if resource == ".":
        yield artifact
        return
    folder.mkdir()
    # A hard link: the package follows no symbolic ones. A name with a path in it fails to fit, as it should.
    os.link(artifact, folder / Path(resource).name)
    yield folder


def _is_mismatch(error: Exception) -> bool:
    return "mismatch" in str(error).lower() or isinstance(error, InvalidSignature)


def _explain(signer: str, error: Exception) -> str:
    if isinstance(error, InvalidSignature):
        return f"It was not made with the key of {signer}, or it was changed since."
    if "Signature mismatch" in str(error):
        return "It was made for other bytes than these."
    return f"It does not hold: {type(error).__name__}."


def sign(artifact: Path, private_key: Path, *, workspace: Path) -> str:
    """A bundle over the file, made with a P-256 private key in PEM; the key is in memory while this runs."""
    from model_signing import signing

    with tempfile.TemporaryDirectory(prefix="signature-", dir=workspace) as folder:
        bundle_file = Path(folder, "bundle.json")
        config = signing.Config()  # type: ignore[no-untyped-call]
        config.use_elliptic_key_signer(private_key=private_key).sign(artifact, bundle_file)
        return bundle_file.read_text()
