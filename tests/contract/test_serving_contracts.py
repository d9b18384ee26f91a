"""The serving manifest: what the console signs is what the inference service accepts, and nothing else."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.conf import settings

from apps.deployments.manifest import publish_manifest
from apps.deployments.models import ServingManifest as Published
from inference.artifacts import ArtifactCache
from inference.contracts import (
    LATENCY_BUCKETS_US,
    MANIFEST_DOMAIN,
    ServingManifest,
    open_manifest,
    sign_manifest,
    token_digest,
)
from inference.errors import ManifestRejected
from inference.runtime import load_session, read_signature
from inference.settings import Settings
from tests import builders
from tests.conftest import Cast

KEY = Ed25519PrivateKey.generate()


def test_a_manifest_survives_the_journey_byte_for_byte() -> None:
    manifest = ServingManifest(7, "2026-11-23T12:00:00Z", ())
    body = manifest.to_bytes()
    opened = open_manifest(body, sign_manifest(body, KEY), KEY.public_key())
    assert opened == manifest
    assert opened.to_bytes() == body


def test_any_other_signature_is_refused() -> None:
    body = ServingManifest(7, "2026-11-23T12:00:00Z", ()).to_bytes()
    signature = sign_manifest(body, KEY)
    without_domain = base64.b64encode(KEY.sign(body)).decode()
    refused = [
        (body.replace(b"7", b"8"), signature),
        (body, sign_manifest(body, Ed25519PrivateKey.generate())),
        (body, without_domain),
        (MANIFEST_DOMAIN + body, signature),
        (body, ""),
        (body, "not base64!"),
    ]
    for changed, signed in refused:
        with pytest.raises(ManifestRejected):
            open_manifest(changed, signed, KEY.public_key())


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"null", b'{"generation":1}', b"\xff"])
def test_a_signed_body_of_another_shape_is_refused(body: bytes) -> None:
    with pytest.raises(ManifestRejected):
        open_manifest(body, sign_manifest(body, KEY), KEY.public_key())


@pytest.mark.django_db
def test_the_service_accepts_what_the_console_publishes(cast: Cast, tmp_path: Path) -> None:
    deployment = builders.deployment(cast)
    token = cast.token("data_scientist")
    publish_manifest()
    published = Published.objects.latest("generation")
    service = Settings.from_environment({"COUNTERSIGN_VAR": str(settings.INSTALLATION.var_dir)})

    manifest = open_manifest(published.body.encode(), published.signature, service.manifest_key())
    (endpoint,) = (one for one in manifest.endpoints if one.name == deployment.endpoint.name)
    (entry,) = endpoint.deployments
    assert manifest.generation == published.generation
    assert manifest.to_bytes().decode() == published.body
    assert (endpoint.team, entry.role, entry.weight) == (cast.team.slug, "champion", 100)
    assert entry.promotion_request_id is not None
    assert token_digest(token, service.token_pepper()) in {one.digest for one in endpoint.access}
    artifact = ArtifactCache(service.store, tmp_path).read(entry)
    assert read_signature(load_session(artifact)) == entry.signature


def test_latency_buckets_are_part_of_the_stored_format() -> None:
    assert (LATENCY_BUCKETS_US[0], LATENCY_BUCKETS_US[-1], len(LATENCY_BUCKETS_US)) == (50, 52_428_800, 41)
    assert list(LATENCY_BUCKETS_US) == sorted(set(LATENCY_BUCKETS_US))
    assert json.loads(json.dumps(LATENCY_BUCKETS_US[:3])) == [50, 70, 100]
