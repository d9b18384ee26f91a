"""What the database and the services hold about models and versions."""

from __future__ import annotations

import pytest
from django.db import IntegrityError, transaction

from apps.core.errors import Conflict, NotAllowed
from apps.jobs.runner import run_inline
from apps.jobs.services import cancel_job
from apps.registry import services
from apps.registry.models import ModelVersion, RegisteredModel
from tests import builders
from tests.conftest import Cast


def test_a_decided_version_never_changes(cast: Cast) -> None:
    """Not through the ORM, whatever the code: the database refuses."""
    version = builders.ready_version(cast)
    other = builders.ready_version(cast)
    rows = ModelVersion.objects.filter(pk=version.pk)
    for change in (
        {"signature": {"inputs": [], "outputs": []}},
        {"artifact": other.artifact},
        {"number": 7},
        {"warmup_ms": 0.1},
        {"notes": "rewritten"},
        {"uploaded_by": cast.operator.user},
        {"state": "VALIDATING"},
        {"state": "REJECTED", "rejected_reason": "x"},
    ):
        with pytest.raises(IntegrityError, match="immutable"), transaction.atomic():
            rows.update(**change)
    with pytest.raises(IntegrityError, match="immutable"), transaction.atomic():
        rows.delete()
    rows.update(job=None)
    rows.update(state="ARCHIVED")
    with pytest.raises(IntegrityError, match="immutable"), transaction.atomic():
        rows.update(state="READY")


def test_states_need_their_facts(cast: Cast) -> None:
    """READY needs a signature, REJECTED a reason; a number is given once."""
    version = builders.uploaded_version(cast)
    rows = ModelVersion.objects.filter(pk=version.pk)
    for change, constraint in (
        ({"state": "READY"}, "version_ready_has_signature"),
        ({"state": "REJECTED"}, "version_rejected_has_reason"),
    ):
        with pytest.raises(IntegrityError, match=constraint), transaction.atomic():
            rows.update(**change)
    version.pk = None
    with pytest.raises(IntegrityError, match="version_number_once"), transaction.atomic():
        version.save(force_insert=True)


def test_numbers_count_up_per_model(cast: Cast) -> None:
    """A rejected version keeps its number."""
    model = builders.model(cast)
    assert [builders.uploaded_version(cast, model).number for _ in range(3)] == [1, 2, 3]
    assert builders.uploaded_version(cast).number == 1


def test_names_are_per_team(cast: Cast) -> None:
    """Two teams may use the same name; one team may not use it twice."""
    model = builders.model(cast, "fraud-scorer")
    services.register_model(cast.actor("outsider"), team=cast.other_team, name=model.name, task="REGRESSION")
    with pytest.raises(Conflict, match="already"):
        builders.model(cast, "fraud-scorer")
    assert RegisteredModel.objects.for_team(cast.team).count() == 1


def test_who_may_change_the_registry(cast: Cast) -> None:
    """Data scientists only."""
    version = builders.ready_version(cast)
    for role in ("analyst", "operator", "compliance_officer", "admin"):
        actor = cast.actor(role)
        with pytest.raises(NotAllowed):
            services.register_model(actor, team=cast.team, name="mine", task="REGRESSION")
        with pytest.raises(NotAllowed):
            services.upload_model_version(actor, model=version.model, file=builders.upload(b"x"))
        with pytest.raises(NotAllowed):
            services.set_alias(actor, model_version=version, name="champion")
        with pytest.raises(NotAllowed):
            services.archive_version(actor, model_version=version)


def test_a_cancelled_validation_decides_nothing(cast: Cast) -> None:
    """The version stays open, and trying the job again finishes it."""
    from apps.jobs.models import Job
    from apps.jobs.runner import claim, execute
    from apps.jobs.services import retry_job

    version = builders.uploaded_version(cast)
    assert version.job is not None
    claimed = claim(version.job.pk)
    assert claimed is not None
    cancel_job(cast.actor("data_scientist"), job=version.job)
    execute(claimed)
    assert ModelVersion.objects.get(pk=version.pk).state == "VALIDATING"
    retry_job(cast.actor("data_scientist"), job=Job.objects.get(pk=version.job.pk))
    run_inline(version.job)
    assert ModelVersion.objects.get(pk=version.pk).state == "READY"
