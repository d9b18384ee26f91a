"""A load test from its form to the evidence, with the real job on a real version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import pytest
from django.conf import settings
from django.db import connection, transaction
from django.db.utils import IntegrityError
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from apps.audit.models import AuditEvent
from apps.core.errors import Conflict, DomainError, NotAllowed
from apps.evaluation import services
from apps.evaluation.evidence import load_test_evidence
from apps.evaluation.load_results import Objective, caveats, judge
from apps.evaluation.models import LoadTest
from apps.jobs import runner
from apps.jobs.models import Job
from apps.jobs.services import cancel_job
from apps.promotions.evidence import collect_evidence
from apps.registry import services as registry
from apps.registry.models import ModelVersion
from tests import builders
from tests.conftest import Cast

pytestmark = pytest.mark.django_db

STEP: dict[str, Any] = {
    "seconds": 1.0,
    "answered": 100,
    "errors": {},
    "throughput": 100.0,
    "cpu_s_per_thousand": 0.5,
    "service_cores": 0.05,
    "generator_cores": 0.1,
    "other_cores": 0.0,
    "mean_ms": 9.0,
    "p50_ms": 8.0,
    "p95_ms": 12.0,
    "p99_ms": 15.0,
    "max_ms": 20.0,
}


def result_of(**slo_step: Any) -> dict[str, Any]:
    """What the engine returns, with one step at an objective's rate if figures of it are given."""
    closed = [STEP | {"concurrency": 1}, STEP | {"concurrency": 2, "throughput": 150.0, "p99_ms": 30.0}]
    opened = [STEP | {"rate": 75.0, "fraction": 0.5, "unanswered": 0, "is_cut_short": False}]
    if slo_step:
        opened.append(STEP | {"rate": 120.0, "fraction": None, "unanswered": 0, "is_cut_short": False} | slo_step)
    host = {"hostname": "here", "cpu": "Abacus", "cores": 2, "memory_bytes": 1, "system": "L", "python": "3"}
    return {
        "format": "countersign/load-test/v1",
        "closed": closed,
        "open": opened,
        "capacity": 150.0,
        "capacity_concurrency": 2,
        "knee": closed[0],
        "host": host | {"onnxruntime": "1", "countersign": "0"},
        "distinct_requests": 3,
        "rows_per_request": 1,
        "request_bytes": 80,
        "loaded_rss_bytes": 90_000_000,
        "peak_rss_bytes": 99_000_000,
    }


def finished(cast: Cast, version: ModelVersion, result: dict[str, Any] | None = None, **options: Any) -> LoadTest:
    """A load test with this result, without driving anything."""
    test = services.start_load_test(cast.actor("analyst"), model_version=version, **options)
    assert services.finish_load_test(cast.actor("analyst"), test=test, result=result or result_of())
    return LoadTest.objects.with_facts().get(pk=test.pk)


def test_a_version_is_driven_by_its_job_and_shown(cast: Cast) -> None:
    """The whole path in a browser, three steps' worth of real load."""
    version, dataset = builders.ready_version(cast), builders.ready_dataset(cast)
    name = version.model.name
    analyst = cast.browser("analyst")
    tab = reverse("evaluation:version-load-tests", args=[name, 1])
    assert "Start load test" in analyst.get(tab).content.decode()
    form = {
        "dataset_version": dataset.pk,
        "max_concurrency": 1,
        "step_s": 1,
        "arrivals": "constant",
        "slo_rate": "20",
        "slo_p99_ms": "60000",
        "cpu_hour_price": "0.04",
        "slo_cost": "0.0000000001",
    }
    answer = analyst.post(reverse("evaluation:load-test-start", args=[name, 1]), form)
    assert answer.status_code == 302, answer.content.decode()
    test = LoadTest.objects.get()
    assert test.features == ["a", "b", "c"]  # all but the last: the model takes three columns
    assert "hx-trigger" in analyst.get(answer.url).content.decode()
    assert test.job is not None
    left = Path(settings.FILE_UPLOAD_TEMP_DIR) / "load-test-of-a-killed-job"
    (left / "spool").mkdir(parents=True)
    job = runner.run_inline(test.job)
    assert job.state == "SUCCEEDED", job.message + job.log_tail
    assert not list(left.parent.glob("load-test-*"))
    test.refresh_from_db()
    assert (test.capacity or 0) > 20
    assert test.result["distinct_requests"] == 40
    assert [line["is_met"] for line in test.result["slo"]] == [True, False]
    assert test.is_slo_met is False
    assert test.cost_per_thousand == pytest.approx((test.cpu_s_per_thousand or 0) * 0.04 / 3600)
    page = analyst.get(answer.url).content.decode()
    for words in (
        "Capacity",
        "p99 at the knee",
        "Latency by arrival rate",
        "missed",
        "Valid on this host",
        "Objective",
    ):
        assert words in page
    assert "missed" in analyst.get(tab).content.decode()
    actions = set(AuditEvent.objects.values_list("action", flat=True))
    assert {"load_test.requested", "load_test.finished"} <= actions
    assert runner.kind_of("evaluation.load_test").function(None, load_test_id=test.pk) == {"capacity": test.capacity}


def test_the_same_over_rest(cast: Cast) -> None:
    version = builders.ready_version(cast)
    api = cast.api("data_scientist")
    asked = {"model": version.model.name, "model_version": 1, "step_s": 1, "max_concurrency": 2}
    answer = api.post("/api/v1/load-tests/", asked, format="json")
    assert answer.status_code == 201, answer.content
    body = answer.json()
    assert (body["state"], body["dataset"], body["arrivals"]) == ("QUEUED", None, "poisson")
    assert answer["Location"] == f"/api/v1/load-tests/{body['id']}/"
    services.finish_load_test(
        cast.actor("analyst"), test=LoadTest.objects.get(pk=body["id"]), result=result_of(p99_ms=3.0)
    )
    found = api.get(answer["Location"]).json()
    assert (found["state"], found["capacity"], found["knee_p99_ms"]) == ("SUCCEEDED", 150.0, 15.0)
    assert len(found["result"]["open"]) == 2
    listed = api.get("/api/v1/load-tests/", {"model": version.model.name}).json()["results"]
    assert [one["id"] for one in listed] == [body["id"]]
    assert "result" not in listed[0]
    assert api.get("/api/v1/load-tests/", {"model": "another"}).json()["results"] == []
    for wrong, field in (
        ({"step_s": 31}, "step_s"),
        ({"max_concurrency": 257}, "max_concurrency"),
        ({"slo_rate": 10}, "slo_p99_ms"),
        ({"slo_cost": 1}, "cpu_hour_price"),
        ({"slo_rate": float(10**7), "slo_p99_ms": 1}, "slo_rate"),
        ({"cpu_hour_price": -1}, "cpu_hour_price"),
        ({"dataset": "rows"}, "dataset_version"),
        ({"arrivals": "bursts"}, "arrivals"),
    ):
        answer = api.post("/api/v1/load-tests/", asked | wrong, format="json")
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, f"/{field}"), wrong
    missing = api.post("/api/v1/load-tests/", asked | {"dataset": "none", "dataset_version": 1}, format="json")
    assert missing.status_code == 404


def test_who_may_start_one_and_who_sees_it(cast: Cast) -> None:
    version = builders.ready_version(cast)
    test = builders.started_load_test(cast, version)
    with pytest.raises(NotAllowed):
        services.start_load_test(cast.actor("compliance_officer"), model_version=version)
    start = reverse("evaluation:load-test-start", args=[version.model.name, 1])
    assert cast.browser("admin").post(start, {}).status_code == 403
    assert (
        "An analyst, a data scientist"
        in cast.browser("admin")
        .get(reverse("evaluation:version-load-tests", args=[version.model.name, 1]))
        .content.decode()
    )
    outsider = cast.browser("outsider")
    assert outsider.get(test.get_absolute_url()).status_code == 404
    assert outsider.post(start, {}).status_code == 404
    api = cast.api("outsider")
    assert api.get(f"/api/v1/load-tests/{test.pk}/").status_code == 404
    assert api.get("/api/v1/load-tests/").json()["results"] == []
    asked = {"model": version.model.name, "model_version": 1}
    assert api.post("/api/v1/load-tests/", asked, format="json").status_code == 404


def test_what_cannot_be_driven_is_refused_before_anything_is_queued(cast: Cast) -> None:
    version = builders.ready_version(cast)
    dataset = builders.ready_dataset(cast)
    start = {"model_version": version, "dataset_version": dataset}
    with pytest.raises(DomainError, match="takes 3 columns; the dataset has 2 named"):
        services.start_load_test(cast.actor("analyst"), **start, features=["a", "b"])
    with pytest.raises(DomainError, match="no column “z”"):
        services.start_load_test(cast.actor("analyst"), **start, features=["a", "b", "z"])
    with pytest.raises(Conflict, match="not ready"):
        services.start_load_test(cast.actor("analyst"), model_version=builders.uploaded_version(cast))
    registry.archive_version(cast.actor("data_scientist"), model_version=version)
    version.refresh_from_db()
    with pytest.raises(Conflict, match="not ready"):
        services.start_load_test(cast.actor("analyst"), model_version=version)
    assert not LoadTest.objects.exists()
    page = cast.browser("analyst").post(
        reverse("evaluation:load-test-start", args=[version.model.name, 1]), {"step_s": 99, "max_concurrency": 1}
    )
    assert page.status_code == 422


def test_columns_are_those_of_the_last_evaluation(cast: Cast) -> None:
    version, dataset = builders.ready_version(cast), builders.ready_dataset(cast)
    services.start_evaluation(
        cast.actor("analyst"),
        model_version=version,
        dataset_version=dataset,
        target="target",
        features=["c", "a", "b"],
    )
    test = services.start_load_test(cast.actor("analyst"), model_version=version, dataset_version=dataset)
    assert test.features == ["c", "a", "b"]


def test_a_cancelled_test_leaves_no_process_and_no_result(cast: Cast, monkeypatch: pytest.MonkeyPatch) -> None:
    test = services.start_load_test(cast.actor("analyst"), model_version=builders.ready_version(cast), step_s=30)
    claimed = runner.claim(test.job.pk)
    assert claimed is not None
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    started: list[int] = []
    progress = runner.JobRun.progress

    def cancel_in_the_middle(run: runner.JobRun, share: float, message: str) -> None:
        if message.startswith("Step 1") and not started:
            started.extend(child.pid for child in psutil.Process().children(recursive=True))
            cancel_job(cast.actor("analyst"), job=Job.objects.get(pk=claimed.pk))
            run._reported_at = 0.0
        progress(run, share, message)

    monkeypatch.setattr(runner.JobRun, "progress", cancel_in_the_middle)
    runner.execute(claimed)
    assert len(set(started) - before) >= 4  # supervisor, replica, shipper, generator
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before
    test.refresh_from_db()
    assert (test.state, test.result) == ("CANCELLED", {})


def test_a_test_waits_for_another_one_on_the_host(cast: Cast, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two at once would falsify each other. The lock is the session's, so a second session plays the other worker."""
    import platform

    test = builders.started_load_test(cast)
    claimed = runner.claim(test.job.pk)
    assert claimed is not None
    other = connection.copy()
    said: list[str] = []

    def progress(run: runner.JobRun, share: float, message: str) -> None:
        said.append(message)
        if message.startswith("Waiting"):
            raise runner.JobCancelled

    monkeypatch.setattr(runner.JobRun, "progress", progress)
    try:
        with other.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(hashtext(%s))", [f"load test on {platform.node()}"])
        runner.execute(claimed)
    finally:
        other.close()
    assert said[-1] == "Waiting for another load test on this host to end"


def test_a_version_that_fails_on_the_rows_fails_the_test_with_its_words(cast: Cast) -> None:
    """A table of four entries, asked for the ninth."""
    from tests.inference import onnx_models

    version = builders.ready_version(cast, content=onnx_models.pick(4))
    dataset = services.upload_dataset(
        cast.actor("data_scientist"),
        team=cast.team,
        name="x",
        description="",
        file=builders.upload(b"x\n9\n9\n", "x.csv"),
    )
    runner.run_inline(dataset.job)
    dataset.refresh_from_db()
    test = services.start_load_test(
        cast.actor("analyst"), model_version=version, dataset_version=dataset, step_s=1, max_concurrency=1
    )
    assert runner.run_inline(test.job).state == "FAILED"
    test = LoadTest.objects.with_facts().get(pk=test.pk)
    assert "The model failed on these inputs" in test.failure
    assert "There are no results" in cast.browser("analyst").get(test.get_absolute_url()).content.decode()


def test_other_versions_on_the_same_host_stand_beside_it(cast: Cast) -> None:
    model = builders.model(cast)
    first, second = builders.ready_version(cast, model), builders.ready_version(cast, model)
    registry.set_alias(cast.actor("data_scientist"), model_version=first, name="champion")
    finished(cast, first)
    newest = finished(cast, first)
    elsewhere = result_of()
    elsewhere["host"]["hostname"] = "there"
    finished(cast, builders.ready_version(cast, model), elsewhere)
    finished(cast, builders.ready_version(cast))
    test = finished(cast, second)
    assert [one.pk for one in LoadTest.objects.beside(test)] == [newest.pk]
    page = cast.browser("analyst").get(test.get_absolute_url()).content.decode()
    assert "Beside the other versions" in page
    assert "@champion" in page


@pytest.mark.parametrize(
    ("figures", "is_met", "note"),
    [
        ({"p99_ms": 9.9}, True, ""),
        ({"p99_ms": 10.1}, False, ""),
        ({"p99_ms": 1.0, "errors": {"HTTP 503": 2}}, False, "2 requests failed, 2 of them with HTTP 503"),
        ({"p99_ms": 1.0, "unanswered": 1}, False, "the service could not keep up: requests were left waiting"),
        ({"p99_ms": None}, False, ""),
        ({"p99_ms": 9.9, "other_cores": 1.5}, True, ""),
        (
            {"p99_ms": 10.1, "other_cores": 1.5},
            False,
            "others used 1.5 of 2 cores meanwhile: repeat it when the host is quiet",
        ),
    ],
)
def test_an_objective_is_met_only_if_all_were_answered_in_time(
    figures: dict[str, Any], is_met: bool, note: str
) -> None:
    (line,) = judge(result_of(**figures), Objective(rate=120, p99_ms=10), None)
    assert (line["is_met"], line["note"], line["measured"]) == (is_met, note, figures["p99_ms"])
    assert line["demand"] == "p99 latency at 120 requests/s"


def test_costs_are_read_at_the_objectives_rate_or_else_at_the_knee() -> None:
    (line,) = judge(result_of(cpu_s_per_thousand=0.72), Objective(cost=0.0002), 1.0)
    assert (line["measured"], line["is_met"]) == (pytest.approx(0.0002), True)
    (line,) = judge(result_of(), Objective(cost=0.0001), 1.0)
    assert (line["measured"], line["is_met"]) == (pytest.approx(0.5 / 3600), False)
    assert line["demand"] == "Cost per thousand predictions with 1 caller"


def test_what_a_reader_must_know_is_said() -> None:
    assert caveats(result_of(generator_cores=0.5)) == [
        "Throughput was still growing with the last callers: allow more of them to find the capacity."
    ]
    result = result_of(other_cores=1.5, errors={"HTTP 500": 3})
    result["closed"][1]["generator_cores"] = 0.99
    failed, busy, generator = caveats(result)
    assert failed.startswith("3 requests were not answered")
    assert "up to 1.5 of the host’s 2 cores" in busy
    assert "generator was at its own limit" in generator


def test_finished_tests_are_frozen_into_a_request_and_shown_to_the_reviewer(cast: Cast) -> None:
    version = builders.ready_version(cast)
    test = finished(
        cast, version, result_of(p99_ms=12.0), objective=Objective(rate=120, p99_ms=10), cpu_hour_price=0.05
    )
    builders.started_load_test(cast, version)  # unfinished: no evidence
    request = builders.submitted_request(cast, version)
    (frozen,) = request.evidence["candidate"]["load_tests"]
    assert frozen == load_test_evidence(test)
    assert (frozen["capacity"], frozen["is_slo_met"], frozen["host"]["cpu"]) == (150.0, False, "Abacus")
    assert "closed" not in frozen
    page = cast.browser("compliance_officer").get(f"/approvals/{request.pk}/").content.decode()
    for words in ("Load tests", "p99 latency at 120 requests/s", "missed", "Abacus"):
        assert words in page
    evidence = collect_evidence(model_version=version, endpoint=request.endpoint, champion=None, initial_weight=100)
    assert evidence["candidate"]["load_tests"] == [frozen]


def test_a_request_from_before_there_were_load_tests_is_still_shown(cast: Cast) -> None:
    request = builders.submitted_request(cast)
    del request.evidence["candidate"]["load_tests"]
    request.save(update_fields=["evidence"])
    page = cast.browser("compliance_officer").get(f"/approvals/{request.pk}/")
    assert page.status_code == 200
    assert "There was no load test" in page.content.decode()


def test_the_lists_take_the_same_queries_for_many(cast: Cast) -> None:
    version = builders.ready_version(cast)
    client, api = cast.browser("analyst"), cast.api("analyst")
    tab = reverse("evaluation:version-load-tests", args=[version.model.name, 1])
    counts = []
    for _ in range(2):
        finished(cast, version)
        with CaptureQueriesContext(
            connection,
        ) as queries:
            client.get(tab)
            api.get("/api/v1/load-tests/")
        counts.append(len(queries))
    assert counts[0] == counts[1]


def test_the_database_keeps_figures_and_objectives_whole(cast: Cast) -> None:
    test = builders.started_load_test(cast)
    for wrong in ({"slo_rate": 5.0}, {"slo_cost": 1.0}, {"finished_at": test.requested_at}):
        with pytest.raises(IntegrityError), transaction.atomic():
            LoadTest.objects.filter(pk=test.pk).update(**wrong)
