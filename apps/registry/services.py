"""Changes to models and their versions."""

from __future__ import annotations

import re
from typing import Any, Final

from django.db import IntegrityError, transaction
from django.db.models import Max

from apps.accounts.models import Membership, User
from apps.audit.actor import Actor
from apps.audit.services import record
from apps.core.errors import Conflict, DomainError, NotAllowed
from apps.core.uploads import Upload, keep, refuse_over_cap
from apps.jobs.services import enqueue
from apps.registry.artifact_signing import attach_signature, read_upload
from apps.registry.models import Alias, AliasProtection, Artifact, ModelVersion, ModelVersionState, RegisteredModel
from inference.formats import HEAD_BYTES, why_not_onnx

MAX_MODELS_PER_TEAM: Final = 5_000
MAX_TRAINING_FILES: Final = 50
MAX_PROTECTED_ALIASES: Final = 50
_SHA256: Final = re.compile("[0-9a-fA-F]{64}")
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
    actor: Actor,
    *,
    model: RegisteredModel,
    file: Upload,
    notes: str = "",
    signature_bundle: Upload | None = None,
    trained_by: str = "",
    training_data: str = "",
) -> ModelVersion:
    """Store an uploaded artifact, with its OpenSSF model signature if one is given, and queue its validation.

    ``trained_by`` is the email of the member who trained it, if that was somebody else; ``training_data`` has a line
    ``<sha256> <name>`` for each file that it was trained on, as sha256sum writes them.

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
        trained_by=_trainer(model.team, trained_by),
        training_data=_parse_training_data(training_data),
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
    if version.trained_by is not None:
        after["trained_by"] = version.trained_by.name
    record(actor, "model_version.uploaded", version, team=model.team, after=after)
    return version


def _trainer(team: Any, email: str) -> User | None:
    if not email:
        return None
    membership = Membership.objects.for_team(team).select_related("user").filter(user__email__iexact=email).first()
    if membership is None:
        raise DomainError(f"{email} is no member of your team, so the console cannot know them.", field="trained_by")
    trainer: User = membership.user
    return trainer


def _parse_training_data(text: str) -> list[dict[str, str]]:
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    if len(lines) > MAX_TRAINING_FILES:
        raise DomainError(f"Name at most {MAX_TRAINING_FILES} files.", field="training_data")
    for line in lines:
        if len(line) != 2 or not _SHA256.fullmatch(line[0]) or len(line[1]) > 200:
            raise DomainError(
                "Write one line for each file: its SHA-256, a space and its name, as sha256sum does.",
                field="training_data",
            )
    return [{"name": name.strip().lstrip("*"), "sha256": digest.lower()} for digest, name in lines]


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
def set_alias(actor: Actor, *, model_version: ModelVersion, name: str, approved_request_id: int | None = None) -> Alias:
    """Point an alias of the model at a version.

    A protected alias moves only by a request that was approved, whose id the caller gives; it needs no permission then.
    """
    if approved_request_id is None:
        actor.require("registry.upload")
        if AliasProtection.objects.for_team(model_version.model.team).filter(name=name).exists():
            raise Conflict(
                f"“{name}” is a protected alias: it moves by an approved request. Choose “Request promotion” on this "
                "version’s page.",
                field="name",
            )
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
        after={"model_version": model_version.number, "promotion_request_id": approved_request_id},
    )
    return alias


@transaction.atomic
def protect_alias(actor: Actor, *, team: Any, name: str) -> AliasProtection:
    """Have an alias move by approved requests only, on all models of the team. Withdraws a proposal to lift that."""
    actor.require("promotions.set_policy")
    if AliasProtection.objects.for_team(team).count() >= MAX_PROTECTED_ALIASES:
        raise Conflict(f"A team has at most {MAX_PROTECTED_ALIASES} protected aliases.", field="name")
    protection, is_new = AliasProtection.objects.update_or_create(
        team=team,
        name=name,
        defaults={"lifting_proposed_by": None},
        create_defaults={"protected_by_id": actor.person_id},
    )
    record(actor, "alias.protected", protection, team=team, after={"name": name, "is_new": is_new})
    return protection


@transaction.atomic
def unprotect_alias(actor: Actor, *, protection: AliasProtection) -> bool:
    """Propose to lift a protection, or lift it if another compliance officer proposed that; True if it is lifted."""
    actor.require("promotions.set_policy")
    locked = AliasProtection.objects.select_for_update(of=("self",)).select_related("team")
    found = locked.filter(pk=protection.pk).first()
    if found is None:
        raise Conflict(f"{protection} is not protected any more.")
    if found.lifting_proposed_by_id == actor.person_id:
        raise NotAllowed("You proposed this, so another compliance officer must confirm it.")
    if found.lifting_proposed_by_id is None:
        found.lifting_proposed_by_id = actor.person_id
        found.save(update_fields=["lifting_proposed_by"])
        record(actor, "alias.unprotection_proposed", found, team=found.team)
        return False
    record(actor, "alias.unprotected", found, team=found.team, before={"proposed_by": found.lifting_proposed_by_id})
    found.delete()
    return True


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
    held = AliasProtection.objects.for_team(version.model.team).filter(name__in=aliases).first()
    if held is not None:
        raise Conflict(f"{version} is {held}, which is protected. Move that alias by an approved request first.")
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
