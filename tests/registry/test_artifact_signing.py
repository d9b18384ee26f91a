"""OpenSSF model signatures: with the real package, made outside and inside, by key and by certificate."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from django.conf import settings
from django.core.files import storage

from apps.audit.models import AuditEvent
from apps.core.errors import Conflict, DomainError, NotAllowed
from apps.jobs.models import Job
from apps.jobs.runner import run_inline
from apps.registry import artifact_signing, services
from apps.registry.model_signatures import BadBundle, read_bundle
from apps.registry.models import ArtifactSignature, ModelVersion
from tests import builders
from tests.conftest import Cast

PEM = serialization.Encoding.PEM


def signed(content: bytes, private_key: bytes, folder: Path, *, as_folder: bool = False, **certificates: Any) -> bytes:
    """What ``model_signing sign`` writes for a file with this content, or for a folder with it alone."""
    from model_signing import signing

    key, bundle, model = folder / "key.pem", folder / "bundle.json", folder / "model"
    key.write_bytes(private_key)
    if as_folder:
        model.mkdir()
    (model / "model.onnx" if as_folder else model).write_bytes(content)
    config = signing.Config()  # type: ignore[no-untyped-call]
    if certificates:
        config.use_certificate_signer(private_key=key, **certificates)
    else:
        config.use_elliptic_key_signer(private_key=key)
    config.sign(model, bundle)
    return bundle.read_bytes()


def upload_signed(cast: Cast, content: bytes, bundle: bytes) -> ModelVersion:
    """Upload with a signature, and run the real validation."""
    version = services.upload_model_version(
        cast.actor("data_scientist"),
        model=builders.model(cast),
        file=builders.upload(content),
        signature_bundle=builders.upload(bundle, "model.sig"),
    )
    assert version.job is not None
    assert run_inline(version.job).state == "SUCCEEDED"
    return ModelVersion.objects.with_facts().get(pk=version.pk)


@pytest.mark.parametrize("as_folder", [False, True])
def test_a_signature_by_a_trusted_key_is_verified(cast: Cast, tmp_path: Path, as_folder: bool) -> None:
    _, private = builders.trusted_signer(cast)
    content = builders.linear_onnx(1.25)
    version = upload_signed(cast, content, signed(content, private, tmp_path, as_folder=as_folder))
    signature = version.signatures.get()
    assert (version.state, signature.state, signature.signer_name) == ("READY", "VERIFIED", "Training pipeline")
    evidence = artifact_signing.signature_evidence(version)
    assert evidence is not None
    assert evidence["is_verified"] is True
    page = cast.browser("analyst").get(version.get_absolute_url()).content.decode()
    assert "Training pipeline" in page
    api = cast.api("analyst").get(f"/api/v1/models/{version.model.name}/versions/1/").json()
    assert api["artifact_signatures"][0]["state"] == "VERIFIED"


def test_a_signature_for_other_bytes_rejects_the_version(cast: Cast, tmp_path: Path) -> None:
    _, private = builders.trusted_signer(cast)
    version = upload_signed(cast, builders.linear_onnx(1.5), signed(builders.linear_onnx(1.75), private, tmp_path))
    assert version.state == "REJECTED"
    assert "made for other bytes" in version.rejected_reason


def test_a_forged_signature_rejects_the_version(cast: Cast, tmp_path: Path) -> None:
    """The statement is right and names the trusted key; the signature is not by it."""
    signer, _ = builders.trusted_signer(cast)
    content = builders.linear_onnx(2.25)
    stranger = ec.generate_private_key(ec.SECP256R1())
    pem = stranger.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    bundle = json.loads(signed(content, pem, tmp_path))
    bundle["verificationMaterial"]["publicKey"]["hint"] = signer.fingerprint
    version = upload_signed(cast, content, json.dumps(bundle).encode())
    assert version.state == "REJECTED"
    assert "not made with the key of Training pipeline" in version.rejected_reason


def test_an_unknown_signer_is_untrusted_until_somebody_trusts_it(cast: Cast, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    pem = key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    content = builders.linear_onnx(2.5)
    version = upload_signed(cast, content, signed(content, pem, tmp_path))
    assert (version.state, version.signatures.get().state) == ("READY", "UNTRUSTED")
    public = key.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()
    officer = cast.browser("compliance_officer")
    assert officer.post("/settings/signers/", {"name": "Vendor", "pem": public}).status_code == 302
    assert officer.post("/settings/signers/", {"name": "Vendor", "pem": public}).status_code == 422
    page = f"{version.get_absolute_url()}signatures/check/"
    assert cast.browser("data_scientist").post(page).status_code == 302
    run_inline(Job.objects.get(kind="registry.check_signature"))
    assert version.signatures.get().signer_name == "Vendor"


def test_a_certificate_of_a_trusted_authority(cast: Cast, tmp_path: Path) -> None:
    root_key, root = certificate("Example Root")
    leaf_key, leaf = certificate("Model builder", issuer=(root, root_key))
    content = builders.linear_onnx(2.75)
    pem = leaf_key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    files = {"signing_certificate": tmp_path / "leaf.pem", "certificate_chain": [tmp_path / "root.pem"]}
    (tmp_path / "leaf.pem").write_bytes(leaf.public_bytes(PEM))
    (tmp_path / "root.pem").write_bytes(root.public_bytes(PEM))
    bundle = signed(content, pem, tmp_path, **files)
    other_root = certificate("Other Root")[1]
    officer = cast.actor("compliance_officer")
    trust = artifact_signing.trust_signer
    trust(officer, team=cast.team, name="Other", pem=other_root.public_bytes(PEM).decode())
    version = upload_signed(cast, content, bundle)
    assert version.signatures.get().state == "UNTRUSTED"
    trust(officer, team=cast.team, name="Example", pem=root.public_bytes(PEM).decode())
    artifact_signing.request_check(cast.actor("data_scientist"), model_version=version)
    run_inline(Job.objects.get(kind="registry.check_signature"))
    assert version.signatures.get().signer_name == "CN=Model builder, vouched for by Example"


def certificate(name: str, issuer: tuple[x509.Certificate, Any] | None = None) -> tuple[Any, x509.Certificate]:
    """A P-256 key and its certificate: an authority's own, or one for signing that the issuer vouches for."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[0].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=0 if issuer else 1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(_usage(is_authority=issuer is None), critical=True)
    )
    return key, builder.sign(issuer[1] if issuer else key, hashes.SHA256())


def _usage(*, is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_authority,
        key_cert_sign=is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff\xfe", b"[" * 60_000, b"x" * 70_000])
def test_what_is_no_bundle(content: bytes) -> None:
    with pytest.raises(BadBundle):
        read_bundle(content)


def test_a_signature_over_pieces_is_refused(cast: Cast, tmp_path: Path) -> None:
    """A tiny shard size in a bundle of a few bytes would make the check list millions of pieces."""
    _, private = builders.trusted_signer(cast)
    bundle = json.loads(signed(builders.linear_onnx(3.25), private, tmp_path))
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    statement["predicate"]["serialization"] |= {"method": "shards", "shard_size": 1}
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
    with pytest.raises(DomainError, match="not over this one file"):
        upload_signed(cast, builders.linear_onnx(3.25), json.dumps(bundle).encode())
    assert not ModelVersion.objects.exists()


def test_an_approved_artifact_is_signed_by_a_job_and_anyone_can_check_it(cast: Cast, tmp_path: Path) -> None:
    from model_signing import verifying

    version = builders.ready_version(cast)
    for _ in range(2):
        artifact_signing.request_signature(cast.actor("operator"), model_version=version, promotion_request_id=7)
    for job in Job.objects.filter(kind="registry.sign_artifact"):
        assert run_inline(job).state == "SUCCEEDED"
    signature = ArtifactSignature.objects.get()
    assert (signature.origin, signature.promotion_request_id) == ("INSTALLATION", 7)
    assert AuditEvent.objects.filter(action="artifact.signed").count() == 1
    browser = cast.browser("analyst")
    (tmp_path / "key.pem").write_bytes(browser.get("/settings/signers/installation.pem").content)
    address = f"{version.get_absolute_url()}signatures/installation.json"
    (tmp_path / "signature.json").write_bytes(browser.get(address).content)
    (tmp_path / "downloaded.onnx").write_bytes(storage.default_storage.open(version.artifact.path).read())
    checker = verifying.Config().use_elliptic_key_verifier(public_key=tmp_path / "key.pem")  # type: ignore[no-untyped-call]
    checker.verify(tmp_path / "downloaded.onnx", tmp_path / "signature.json")
    (tmp_path / "downloaded.onnx").write_bytes(b"something else")
    with pytest.raises(ValueError, match="mismatch"):
        checker.verify(tmp_path / "downloaded.onnx", tmp_path / "signature.json")


def test_damaged_bytes_are_not_signed(cast: Cast) -> None:
    version = builders.ready_version(cast)
    Path(storage.default_storage.path(version.artifact.path)).write_bytes(b"damaged")
    artifact_signing.request_signature(cast.actor("operator"), model_version=version, promotion_request_id=7)
    run_inline(Job.objects.get(kind="registry.sign_artifact"))
    assert not ArtifactSignature.objects.exists()


def test_trust_takes_a_compliance_officer_and_a_key_that_can_check(cast: Cast) -> None:
    signer, _ = builders.trusted_signer(cast)
    trust = artifact_signing.trust_signer
    with pytest.raises(NotAllowed):
        trust(cast.actor("data_scientist"), team=cast.team, name="Me", pem=signer.pem)
    officer = cast.actor("compliance_officer")
    with pytest.raises(DomainError, match="BEGIN"):
        trust(officer, team=cast.team, name="x", pem="nonsense")
    ed25519 = settings.INSTALLATION.ensure_signing_key("manifest").with_name("manifest_public_key.pem").read_text()
    with pytest.raises(DomainError, match="elliptic-curve"):
        trust(officer, team=cast.team, name="x", pem=ed25519)
    artifact_signing.revoke_signer(officer, signer=signer)
    with pytest.raises(Conflict, match="not trusted any more"):
        artifact_signing.revoke_signer(officer, signer=signer)
    assert cast.browser("outsider").post(f"/settings/signers/{signer.pk}/revoke/").status_code == 404
