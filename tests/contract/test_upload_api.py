"""Pushing models over REST, with real files through the real upload handler, store and sandbox."""

from __future__ import annotations

import gc
import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core.files import storage  # not default_storage: pytest would look into it before the settings are made
from django.core.files.uploadedfile import SimpleUploadedFile
from django.http import UnreadablePostError
from django.test import RequestFactory
from rest_framework.test import APIClient

from apps.accounts.roles import Scope
from apps.audit.models import AuditEvent
from apps.jobs.models import Job
from apps.jobs.runner import run_inline
from apps.registry.models import Artifact, ModelVersion, RegisteredModel
from tests.conftest import Cast
from tests.registry import hostile

VERSIONS = "/api/v1/models/fraud-scorer/versions/"


@pytest.fixture
def api(cast: Cast) -> APIClient:
    """A data scientist's client, with a model to push to."""
    client = cast.api("data_scientist")
    answer = client.post("/api/v1/models/", {"name": "fraud-scorer", "task": "REGRESSION"}, format="json")
    assert answer.status_code == 201
    assert answer.json()["aliases"] == {}
    return client


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    """Whatever a test uploads, no temporary file survives it."""
    yield
    assert list(Path(settings.FILE_UPLOAD_TEMP_DIR).iterdir()) == []


def push(client: APIClient, content: bytes, *, name: str = "model.onnx", **fields: Any) -> Any:
    """POST a version as multipart."""
    return client.post(VERSIONS, {"file": SimpleUploadedFile(name, content), **fields}, format="multipart")


def validated(answer: Any) -> ModelVersion:
    """The pushed version after its validation job."""
    version = ModelVersion.objects.with_facts().get(model__name="fraud-scorer", number=answer.json()["number"])
    assert run_inline(Job.objects.get(pk=version.job_id)).state == "SUCCEEDED"
    return ModelVersion.objects.with_facts().get(pk=version.pk)


def test_push_validate_download(api: APIClient) -> None:
    """201 with a Location, READY with the signature, and the very bytes back."""
    content = hostile.harmless()
    digest = hashlib.sha256(content).hexdigest()
    answer = push(api, content, notes="First")
    assert answer.status_code == 201
    assert answer["Location"] == f"{VERSIONS}1/"
    body = answer.json()
    assert (body["state"], body["sha256"], body["size_bytes"]) == ("VALIDATING", digest, len(content))

    validated(answer)
    body = api.get(answer["Location"]).json()
    assert body["state"] == "READY"
    assert body["signature"]["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]
    assert (body["opset"], body["producer"], body["node_count"], body["uploaded_by"]) == (17, "tests 1", 2, "Mira Sato")
    assert body["warmup_ms"] > 0
    downloaded = api.get(f"{VERSIONS}1/artifact/")
    assert b"".join(downloaded.streaming_content) == content  # type: ignore[attr-defined]
    assert "fraud-scorer-v1.onnx" in downloaded["Content-Disposition"]


def test_equal_bytes_are_stored_once(api: APIClient, cast: Cast) -> None:
    """Another model may hold the same artifact; the same model may not hold it twice."""
    assert push(api, hostile.harmless()).status_code == 201
    again = push(api, hostile.harmless())
    assert again.status_code == 409
    assert "fraud-scorer v1 already" in again.json()["detail"]
    api.post("/api/v1/models/", {"name": "other", "task": "REGRESSION"}, format="json")
    file = SimpleUploadedFile("m.onnx", hostile.harmless())
    assert api.post("/api/v1/models/other/versions/", {"file": file}, format="multipart").status_code == 201
    assert Artifact.objects.count() == 1
    assert ModelVersion.objects.count() == 2


def test_a_damaged_copy_in_the_store_is_not_validated_and_repaired_by_the_next_upload(api: APIClient) -> None:
    """Weights swapped after hashing never get READY."""
    answer = push(api, hostile.harmless())
    artifact = Artifact.objects.get()
    Path(storage.default_storage.path(artifact.path)).write_bytes(hostile.harmless(bias=9.0))
    version = validated(answer)
    assert version.state == "REJECTED"
    assert "not those that were uploaded" in version.rejected_reason
    assert validated(push(api, hostile.harmless())).state == "READY"


def test_a_hostile_model_is_rejected_by_its_job(api: APIClient) -> None:
    """The upload succeeds, the validation does not; the reason is in the resource and in the audit log."""
    version = validated(push(api, bytes(hostile.external("../../etc/passwd").SerializeToString())))
    body = api.get(f"{VERSIONS}{version.number}/").json()
    assert body["state"] == "REJECTED"
    assert "save_as_external_data=False" in body["rejected_reason"]
    assert body["signature"] is None
    event = AuditEvent.objects.get(action="model_version.rejected")
    assert json.loads(event.body)["reason"] == body["rejected_reason"]
    assert api.post(f"{VERSIONS}{version.number}/alias/", {"name": "champion"}, format="json").status_code == 409


def test_validation_runs_once(api: APIClient) -> None:
    """A second run of the job changes nothing and writes nothing."""
    from apps.jobs.runner import JobRun
    from apps.registry.jobs import validate_model_version

    version = validated(push(api, hostile.harmless()))
    events = AuditEvent.objects.count()
    assert version.job is not None
    assert validate_model_version(JobRun(version.job), model_version_id=version.pk) == {"state": "READY"}
    assert AuditEvent.objects.count() == events


@pytest.mark.parametrize(
    ("content", "reason"),
    [(hostile.a_pickle(), "pickle"), (hostile.a_zip(), "ZIP"), (b"x,y\n1,2\n3,4\n5,6\n7,8\n", "text file")],
)
def test_what_surely_is_no_model_is_refused_at_once(api: APIClient, content: bytes, reason: str) -> None:
    """422 with a pointer to the file; no version, no job, nothing kept."""
    answer = push(api, content)
    assert answer.status_code == 422
    assert answer["Content-Type"] == "application/problem+json"
    [error] = answer.json()["errors"]
    assert error["pointer"] == "/file"
    assert reason in error["detail"]
    assert not ModelVersion.objects.exists()
    assert not Artifact.objects.exists()


def test_empty_or_missing_file(api: APIClient) -> None:
    """422 in both cases."""
    assert push(api, b"").status_code == 422
    assert api.post(VERSIONS, {"notes": "no file"}, format="multipart").status_code == 422
    assert api.post(VERSIONS, {"file": "a string"}, format="json").status_code == 422


def test_over_the_cap(api: APIClient, settings: Any) -> None:
    """413 by the announced length before anything is read, and to the byte after it."""
    settings.UPLOAD_MAX_BYTES = 1_000
    to_the_byte = push(api, hostile.harmless() + bytes(1_000))
    assert to_the_byte.status_code == 413
    assert "UPLOAD_MAX_BYTES" in to_the_byte.json()["detail"]
    announced = push(api, bytes(2_000_000))
    assert announced.status_code == 413
    assert announced["Content-Type"] == "application/problem+json"
    assert "UPLOAD_MAX_BYTES" in announced.json()["detail"]
    assert not ModelVersion.objects.exists()


class _BrokenBody(io.BytesIO):
    """A body that breaks off half-way."""

    def read(self, size: int | None = -1) -> bytes:
        """A part of it, then a broken connection."""
        if self.tell() > 100_000:
            raise OSError("connection reset")
        return super().read(65_536 if size is None or size < 0 else min(size, 65_536))


def test_an_upload_that_breaks_off_leaves_nothing() -> None:
    """The temporary file goes with the request; the fixture looks."""
    body = (
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="m.onnx"\r\n\r\n'
        + bytes(300_000)
        + b"\r\n--b--\r\n"
    )
    request = RequestFactory().generic(
        "POST", VERSIONS, body, "multipart/form-data; boundary=b", **{"wsgi.input": _BrokenBody(body)}
    )
    with pytest.raises(UnreadablePostError):
        request.FILES.get("file")
    del request
    gc.collect()


def test_roles_teams_and_scopes(api: APIClient, cast: Cast) -> None:
    """Another team sees 404 everywhere, a wrong role or scope 403, a stranger 401."""
    push(api, hostile.harmless())
    outsider = cast.api("outsider")
    assert push(outsider, hostile.harmless(bias=2.0)).status_code == 404
    for path in (VERSIONS, f"{VERSIONS}1/", f"{VERSIONS}1/artifact/", "/api/v1/models/fraud-scorer/"):
        assert outsider.get(path).status_code == 404, path
    for action in ("alias", "archive"):
        assert outsider.post(f"{VERSIONS}1/{action}/", {"name": "champion"}, format="json").status_code == 404
    for role in ("analyst", "operator", "compliance_officer", "admin"):
        member = cast.api(role)
        assert push(member, hostile.harmless(bias=3.0)).status_code == 403, role
        assert member.get(f"{VERSIONS}1/").status_code == 200, role
    assert push(cast.api("data_scientist", Scope.READ), hostile.harmless(bias=3.0)).status_code == 403
    assert push(APIClient(), hostile.harmless(bias=3.0)).status_code == 401
    assert ModelVersion.objects.count() == 1


def test_aliases_and_archiving(api: APIClient) -> None:
    """An alias moves; an archived version loses it and comes back only as a new version."""
    for bias in (1.0, 2.0):
        validated(push(api, hostile.harmless(bias=bias)))
    for number in (1, 2):
        assert api.post(f"{VERSIONS}{number}/alias/", {"name": "challenger"}, format="json").status_code == 200
    assert api.get("/api/v1/models/fraud-scorer/").json()["aliases"] == {"challenger": 2}
    assert api.post(f"{VERSIONS}1/alias/", {"name": "No Slug"}, format="json").status_code == 422
    archived = api.post(f"{VERSIONS}2/archive/")
    assert (archived.status_code, archived.json()["state"], archived.json()["aliases"]) == (200, "ARCHIVED", [])
    assert api.post(f"{VERSIONS}2/archive/").status_code == 409
    assert push(api, hostile.harmless(bias=2.0)).status_code == 201


def test_unknown_names_and_numbers(api: APIClient) -> None:
    """404 for what does not exist, however it is spelt; 422 for a name that cannot be."""
    for path in ("nope/versions/", "fraud-scorer/versions/999999999/", "fraud-scorer/versions/99999999999999999999/"):
        assert api.get(f"/api/v1/models/{path}").status_code == 404, path
    for name in ("../etc", "Fraud", "a" * 64, "nul\0", ""):
        answer = api.post("/api/v1/models/", {"name": name, "task": "REGRESSION"}, format="json")
        assert answer.status_code == 422, name
    twice = api.post("/api/v1/models/", {"name": "fraud-scorer", "task": "REGRESSION"}, format="json")
    assert twice.status_code == 409
    assert RegisteredModel.objects.count() == 1


def test_a_hostile_file_name_is_only_a_label(api: APIClient) -> None:
    """What the client calls its file decides nothing about where it lies."""
    answer = push(api, hostile.harmless(), name="../../../etc/cron.d/evil<script>.onnx")
    assert answer.status_code == 201
    assert "/" not in answer.json()["file_name"]
    artifact = Artifact.objects.get()
    assert artifact.path == f"artifacts/{artifact.sha256[:2]}/{artifact.sha256}.onnx"
