"""Changes to models and their versions."""

from __future__ import annotations

from typing import Any, Final

from django.db import IntegrityError, transaction
from django.db.models import Max

from apps.audit.actor import Actor
from apps.audit.services import record
from apps.core.errors import Conflict, DomainError
from apps.core.uploads import Upload, keep, refuse_over_cap
from apps.jobs.services import enqueue
from apps.registry.artifact_signing import attach_signature, read_upload
from apps.registry.models import Alias, Artifact, ModelVersion, ModelVersionState, RegisteredModel
from inference.formats import HEAD_BYTES, why_not_onnx

MAX_MODELS_PER_TEAM: Final = 5_000
_USABLE: Final = (ModelVersionState.VALIDATING, ModelVersionState.READY)


@transaction.atomic
def register_model(actor: Actor, *, team: Any, name: str, task: str, description: str = "") -> RegisteredModel:
    """A new model without versions."""
    actor.require("registry.upload")
    if RegisteredModel.objects.for_team(team).count() >= MAX_MODELS_PER_TEAM:
        raise Conflict(f"A team has at most {MAX_MODELS_PER_TEAM} models.")
    try:
        with transaction.atomic():
            model = RegisteredModel.objects.create(
                team=team, name=name, task=task, description=description, created_by_id=actor.person_id
            )
    except IntegrityError as error:
        raise Conflict(
            f"Your team has a model “{name}” already. Push a version to it instead.", field="name"
        ) from error
    record(actor, "model.registered", model, team=team, after={"name": name, "task": task})
    return model


@transaction.atomic
def upload_model_version(
    actor: Actor, *, model: RegisteredModel, file: Upload, notes: str = "", signature_bundle: Upload | None = None
) -> ModelVersion:
    """Store an uploaded artifact, with its OpenSSF model signature if one is given, and queue its validation.

    A file that surely is no ONNX model is refused at once; everything else is for the sandbox to find out.
    """
    actor.require("registry.upload")
    refuse_over_cap(file)
    file.seek(0)
    if reason := why_not_onnx(file.read(HEAD_BYTES)):
        raise DomainError(reason, field="file")
    file.seek(0)
    bundle = read_upload(signature_bundle) if signature_bundle else None
    model = RegisteredModel.objects.select_for_update(of=("self",)).select_related("team").get(pk=model.pk)
    size = file.size or 0
    artifact, _ = Artifact.objects.get_or_create(
        sha256=file.sha256,
        defaults={"size_bytes": size, "path": keep(file, folder="artifacts", suffix=".onnx")},
    )
    twin = model.versions.filter(artifact=artifact, state__in=_USABLE).first()
    if twin is not None:
        raise Conflict(f"These very bytes are {model.name} v{twin.number} already.", field="file")
    number = (model.versions.aggregate(last=Max("number"))["last"] or 0) + 1
    version = ModelVersion.objects.create(
        model=model,
        number=number,
        artifact=artifact,
        file_name=(file.name or "model.onnx")[:200],
        notes=notes,
        uploaded_by_id=actor.person_id,
    )
    if bundle is not None:
        attach_signature(version, bundle)
    version.job = enqueue(
        actor,
        "registry.validate_model_version",
        team=model.team,
        subject=f"Validate {version}",
        subject_url=version.get_absolute_url(),
        arguments={"model_version_id": version.pk},
    )
    version.save(update_fields=["job"])
    after = {"artifact_digest": artifact.sha256, "size_bytes": size, "file_name": version.file_name}
    if bundle is not None:
        after["signature_bundle_digest"] = bundle.sha256
    record(actor, "model_version.uploaded", version, team=model.team, after=after)
    return version


@transaction.atomic
def accept_version(actor: Actor, *, model_version: ModelVersion, report: dict[str, Any]) -> bool:
    """Write what validation found and mark the version READY; False if it was decided before."""
    version = _validating(model_version)
    if version is None:
        return False
    version.state = ModelVersionState.READY
    version.signature = report["signature"]
    version.opset = report["opset"]
    version.producer = report["producer"]
    version.node_count = report["node_count"]
    version.warmup_ms = report["warmup_ms"]
    version.validation = {key: report[key] for key in ("load_ms", "is_batchable", "warnings", "confinement")}
    version.save()
    record(actor, "model_version.accepted", version, team=version.model.team, after={"state": version.state})
    return True


@transaction.atomic
def reject_version(actor: Actor, *, model_version: ModelVersion, reason: str) -> bool:
    """Mark the version REJECTED; False if it was decided before."""
    version = _validating(model_version)
    if version is None:
        return False
    version.state, version.rejected_reason = ModelVersionState.REJECTED, reason
    version.save(update_fields=["state", "rejected_reason"])
    record(
        actor, "model_version.rejected", version, team=version.model.team, after={"state": version.state}, reason=reason
    )
    return True


def _validating(model_version: ModelVersion) -> ModelVersion | None:
    locked = ModelVersion.objects.select_for_update(of=("self",)).select_related("model__team")
    found: ModelVersion | None = locked.filter(pk=model_version.pk, state=ModelVersionState.VALIDATING).first()
    return found


@transaction.atomic
def set_alias(actor: Actor, *, model_version: ModelVersion, name: str) -> Alias:
    """Point an alias of the model at a version."""
    actor.require("registry.upload")
    if not model_version.is_ready:
        raise Conflict(f"{model_version} is not ready: an alias points at a version that passed validation.")
    model = (
        RegisteredModel.objects.select_for_update(of=("self",)).select_related("team").get(pk=model_version.model_id)
    )
    before = Alias.objects.filter(model=model, name=name).select_related("model_version").first()
    alias, _ = Alias.objects.update_or_create(model=model, name=name, defaults={"model_version": model_version})
    record(
        actor,
        "alias.set",
        alias,
        team=model.team,
        before={"model_version": before.model_version.number if before else None},
        after={"model_version": model_version.number},
    )
    return alias


@transaction.atomic
def archive_version(actor: Actor, *, model_version: ModelVersion) -> ModelVersion:
    """Take a version out of use: no alias, no new evaluation, no new promotion. What it serves, it goes on serving."""
    actor.require("registry.upload")
    locked = ModelVersion.objects.select_for_update(of=("self",)).select_related("model__team")
    version: ModelVersion = locked.get(pk=model_version.pk)
    if version.state != ModelVersionState.READY:
        raise Conflict(
            f"Only a version that is ready can be archived; {version} is {version.get_state_display().lower()}."
        )
    aliases = list(version.aliases.values_list("name", flat=True))
    version.aliases.all().delete()
    version.state = ModelVersionState.ARCHIVED
    version.save(update_fields=["state"])
    record(
        actor,
        "model_version.archived",
        version,
        team=version.model.team,
        before={"state": ModelVersionState.READY, "aliases": aliases},
        after={"state": version.state, "aliases": []},
    )
    return version
