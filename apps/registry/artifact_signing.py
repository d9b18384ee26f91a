"""Signatures of artifacts: whom a team believes, what came with an upload, and what this installation signs itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from django.conf import settings
from django.core.files.storage import default_storage
from django.db import IntegrityError, transaction
from django.utils import timezone

from apps.audit.actor import Actor
from apps.audit.services import record
from apps.core.errors import Conflict, DomainError
from apps.core.uploads import Upload
from apps.jobs.services import enqueue
from apps.registry.model_signatures import (
    MAX_BUNDLE_BYTES,
    BadBundle,
    BadSigner,
    Bundle,
    Finding,
    Signer,
    check,
    read_bundle,
    read_signer,
    sign,
)
from apps.registry.models import (
    ArtifactSignature,
    ModelVersion,
    SignatureOrigin,
    SignatureState,
    TrustedSigner,
)

MAX_TRUSTED_SIGNERS: Final = 200
INSTALLATION_SIGNER: Final = "This installation"


@transaction.atomic
def trust_signer(actor: Actor, *, team: Any, name: str, pem: str) -> TrustedSigner:
    """Believe signatures by this key, or by whomever this certificate authority vouches for."""
    actor.require("promotions.set_policy")
    if TrustedSigner.objects.for_team(team).trusted().count() >= MAX_TRUSTED_SIGNERS:
        raise Conflict(f"A team trusts at most {MAX_TRUSTED_SIGNERS} signers.")
    try:
        signer = read_signer(name, pem)
    except BadSigner as error:
        raise DomainError(str(error), field="pem") from error
    try:
        with transaction.atomic():
            trusted = TrustedSigner.objects.create(
                team=team,
                name=name,
                kind=signer.kind,
                pem=signer.pem,
                fingerprint=signer.fingerprint,
                added_by_id=actor.person_id,
            )
    except IntegrityError as error:
        raise Conflict("Your team trusts this key or certificate already.", field="pem") from error
    after = {"name": name, "kind": signer.kind, "fingerprint": signer.fingerprint}
    record(actor, "trusted_signer.added", trusted, team=team, after=after)
    return trusted


@transaction.atomic
def revoke_signer(actor: Actor, *, signer: TrustedSigner) -> None:
    """Believe a signer no more. What was verified before stays on record as it was found."""
    actor.require("promotions.set_policy")
    if not TrustedSigner.objects.trusted().filter(pk=signer.pk).update(revoked_at=timezone.now()):
        raise Conflict("This signer is not trusted any more.")
    before = {"name": signer.name, "fingerprint": signer.fingerprint}
    record(actor, "trusted_signer.revoked", signer, team=signer.team, before=before)


def read_upload(file: Upload) -> Bundle:
    """The bundle in an uploaded file. Raises ``DomainError``."""
    file.seek(0)
    try:
        return read_bundle(file.read(MAX_BUNDLE_BYTES + 1))
    except BadBundle as error:
        raise DomainError(str(error), field="signature_bundle") from error


def attach_signature(model_version: ModelVersion, bundle: Bundle) -> ArtifactSignature:
    """Keep the bundle that came with an upload, in the upload's transaction; the validation job checks it."""
    return ArtifactSignature.objects.create(
        model_version=model_version, origin=SignatureOrigin.UPLOAD, bundle=bundle.text, sha256=bundle.sha256
    )


def check_signature(actor: Actor, *, signature: ArtifactSignature) -> Finding:
    """Check an uploaded signature against the signers that the team trusts now, and write down what was found."""
    version = signature.model_version
    trusted = TrustedSigner.objects.for_team(version.model.team).trusted()
    signers = [Signer(row.name, row.kind, row.pem, row.fingerprint) for row in trusted]
    artifact = Path(default_storage.path(version.artifact.path))
    finding = check(artifact, read_bundle(signature.bundle.encode()), signers, workspace=settings.INSTALLATION.uploads)
    _write_finding(actor, signature, finding)
    return finding


@transaction.atomic
def _write_finding(actor: Actor, signature: ArtifactSignature, finding: Finding) -> None:
    signature.state = SignatureState(finding.state)
    signature.signer_name, signature.reason, signature.checked_at = finding.signer, finding.reason, timezone.now()
    signature.save(update_fields=["state", "signer_name", "reason", "checked_at"])
    version = signature.model_version
    after = {"state": finding.state, "signer": finding.signer, "bundle_digest": signature.sha256}
    action = f"artifact_signature.{finding.state.lower()}"
    record(actor, action, version, team=version.model.team, after=after, reason=finding.reason)


@transaction.atomic
def request_check(actor: Actor, *, model_version: ModelVersion) -> None:
    """Queue another check of the uploaded signature, for when the team trusts somebody new."""
    actor.require("registry.upload")
    signature = model_version.signatures.filter(origin=SignatureOrigin.UPLOAD).first()
    if signature is None:
        raise Conflict("No signature came with this version.")
    if signature.state == SignatureState.VERIFIED:
        raise Conflict("This signature is verified already.")
    _enqueue(actor, "registry.check_signature", f"Check the signature of {model_version}", model_version)
    record(actor, "artifact_signature.check_requested", model_version, team=model_version.model.team)


@transaction.atomic
def request_signature(actor: Actor, *, model_version: ModelVersion, promotion_request_id: int) -> None:
    """Have the artifact of an approved version signed with the installation's key; in the approval's transaction.

    A job signs, so that no process that answers requests ever holds the key. Signing twice signs once.
    """
    if model_version.signatures.filter(origin=SignatureOrigin.INSTALLATION).exists():
        return
    arguments = {"promotion_request_id": promotion_request_id}
    _enqueue(actor, "registry.sign_artifact", f"Sign {model_version}", model_version, **arguments)


def _enqueue(actor: Actor, kind: str, subject: str, model_version: ModelVersion, **arguments: Any) -> None:
    enqueue(
        actor,
        kind,
        team=model_version.model.team,
        subject=subject,
        subject_url=model_version.get_absolute_url(),
        arguments={"model_version_id": model_version.pk, **arguments},
    )


def sign_artifact(actor: Actor, *, model_version: ModelVersion, promotion_request_id: int) -> ArtifactSignature:
    """Sign the artifact and keep the bundle. Called by a job that has checked the artifact's digest."""
    existing = model_version.signatures.filter(origin=SignatureOrigin.INSTALLATION).first()
    if existing is not None:
        return existing
    key = settings.INSTALLATION.ensure_signing_key("artifact")
    artifact = Path(default_storage.path(model_version.artifact.path))
    bundle = read_bundle(sign(artifact, key, workspace=settings.INSTALLATION.uploads).encode())
    with transaction.atomic():
        signature, is_new = ArtifactSignature.objects.get_or_create(
            model_version=model_version,
            origin=SignatureOrigin.INSTALLATION,
            defaults={
                "bundle": bundle.text,
                "sha256": bundle.sha256,
                "state": SignatureState.VERIFIED,
                "signer_name": INSTALLATION_SIGNER,
                "checked_at": timezone.now(),
                "promotion_request_id": promotion_request_id,
            },
        )
        if is_new:
            after = {
                "bundle_digest": bundle.sha256,
                "artifact_digest": model_version.artifact.sha256,
                "key": bundle.key_hint,
                "promotion_request": promotion_request_id,
            }
            record(actor, "artifact.signed", model_version, team=model_version.model.team, after=after)
    return signature


def installation_public_key() -> bytes:
    """The PEM of the public key that checks what this installation signed."""
    settings.INSTALLATION.ensure_signing_key("artifact")
    return settings.INSTALLATION.public_key_file("artifact").read_bytes()


def signature_evidence(model_version: ModelVersion) -> dict[str, Any] | None:
    """The signature that came with the upload as a JSON document for a request's evidence; None without one."""
    signature: ArtifactSignature | None = model_version.signatures.filter(origin=SignatureOrigin.UPLOAD).first()
    return None if signature is None else signature_document(signature)


def signature_document(signature: ArtifactSignature) -> dict[str, Any]:
    """What is known of a signature, without the bundle."""
    return {
        "origin": signature.origin,
        "state": signature.state,
        "is_verified": signature.state == SignatureState.VERIFIED,
        "signer": signature.signer_name,
        "reason": signature.reason,
        "signed_at": None,  # a bundle without a timestamp authority says nothing that could be believed
        "checked_at": signature.checked_at.isoformat() if signature.checked_at else None,
        "sha256": signature.sha256,
    }
