"""Jobs: leases, fencing, retries and parking; one effect whatever dies."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from datetime import timedelta
from typing import Any

import pytest
from django.conf import settings
from django.utils import timezone

from apps.core.errors import Conflict, DomainError
from apps.jobs import runner, services
from apps.jobs.models import Job, JobState
from tests.conftest import Cast


def _succeed(run: runner.JobRun, *, word: str) -> dict[str, Any]:
    run.progress(0.5, "Half way")
    run.log("working")
    return {"word": word}


def _fail(run: runner.JobRun) -> dict[str, Any]:
    raise ValueError("it broke")


def _refuse(run: runner.JobRun) -> dict[str, Any]:
    raise DomainError("The input is not acceptable: choose another one.")


@pytest.fixture(autouse=True)
def _kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, function, attempts in (("t.ok", _succeed, 3), ("t.fail", _fail, 2), ("t.refuse", _refuse, 3)):
        monkeypatch.setitem(runner._kinds, name, runner.Kind(function, 5, attempts))


def _enqueue(cast: Cast, kind: str, **arguments: Any) -> Job:
    return services.enqueue(cast.actor("analyst"), kind, team=cast.team, subject="A job", arguments=arguments)


def test_a_job_runs_reports_and_returns(cast: Cast) -> None:
    job = runner.run_inline(_enqueue(cast, "t.ok", word="done"))
    assert (job.state, job.progress, job.result) == (JobState.SUCCEEDED, 1.0, {"word": "done"})
    assert "working" in job.log_tail
    assert job.lease_until is None


def test_a_refusal_is_final_and_says_why(cast: Cast) -> None:
    job = runner.run_inline(_enqueue(cast, "t.refuse"))
    assert (job.state, job.attempt) == (JobState.FAILED, 1)
    assert job.message == "The input is not acceptable: choose another one."


def test_a_poison_job_is_parked_after_its_attempts(cast: Cast) -> None:
    job = runner.run_inline(_enqueue(cast, "t.fail"))
    assert (job.state, job.attempt) == (JobState.QUEUED, 1)
    job = runner.run_inline(job)
    assert (job.state, job.attempt) == (JobState.PARKED, 2)
    assert "it broke" in job.message
    assert "Traceback" in job.log_tail


def test_a_late_write_of_a_lost_lease_is_refused(cast: Cast) -> None:
    first = runner.claim(_enqueue(cast, "t.ok", word="first").pk)
    assert first is not None
    Job.objects.update(lease_until=timezone.now() - timedelta(seconds=1))
    assert services.recover_jobs() == 1
    second = runner.claim(first.pk)
    assert second is not None
    assert second.attempt == 2
    with pytest.raises(runner.JobCancelled):
        runner.JobRun(first).progress(0.9, "I am late")
    assert runner.JobRun(first).finish(JobState.SUCCEEDED, "Done", result={"word": "late"}) is False
    runner.execute(second)
    assert Job.objects.get(pk=first.pk).result == {"word": "first"}


def test_only_one_worker_claims_a_job(cast: Cast) -> None:
    job = _enqueue(cast, "t.ok", word="x")
    assert runner.claim(job.pk) is not None
    assert runner.claim(job.pk) is None


def test_a_cancelled_job_writes_nothing_more(cast: Cast) -> None:
    job = runner.claim(_enqueue(cast, "t.ok", word="x").pk)
    assert job is not None
    services.cancel_job(cast.actor("analyst"), job=job)
    runner.execute(job)
    assert Job.objects.get(pk=job.pk).state == JobState.CANCELLED
    with pytest.raises(Conflict):
        services.cancel_job(cast.actor("analyst"), job=job)
    assert services.retry_job(cast.actor("analyst"), job=job).state == JobState.QUEUED


def test_a_teams_queue_is_bounded(cast: Cast, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "MAX_UNFINISHED_PER_TEAM", 2)
    _enqueue(cast, "t.ok", word="1")
    _enqueue(cast, "t.ok", word="2")
    with pytest.raises(Conflict, match="too many jobs"):
        _enqueue(cast, "t.ok", word="3")


def test_only_its_owner_or_an_operator_controls_a_job(cast: Cast) -> None:
    job = _enqueue(cast, "t.ok", word="x")
    assert cast.browser("data_scientist").post(f"/jobs/{job.pk}/cancel/").status_code == 403
    assert cast.browser("operator").post(f"/jobs/{job.pk}/cancel/").status_code == 302


@pytest.mark.django_db(transaction=True)
def test_a_child_that_dies_costs_an_attempt_and_not_the_worker(cast: Cast, monkeypatch: pytest.MonkeyPatch) -> None:
    job = _enqueue(cast, "t.fail")
    stand_in = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    real = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda command, **options: real([sys.executable, "-c", stand_in], **options)
    )
    runner.work(job.pk)
    job.refresh_from_db()
    assert (job.state, job.attempt) == (JobState.QUEUED, 1)
    assert "killed by signal 9" in job.message


@pytest.mark.django_db(transaction=True)
def test_an_attempt_over_its_time_is_killed_with_what_it_started(cast: Cast, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(runner._kinds, "t.slow", runner.Kind(_succeed, 0.2, 1))
    monkeypatch.setattr(runner, "_RENEW_SECONDS", 0.1)
    job = _enqueue(cast, "t.slow", word="x")
    real, started = subprocess.Popen, []

    def popen(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        started.append(real([sys.executable, "-c", "import time; time.sleep(60)"], **options))
        return started[0]

    monkeypatch.setattr(subprocess, "Popen", popen)
    began = time.monotonic()
    runner.work(job.pk)
    assert time.monotonic() - began < 5
    job.refresh_from_db()
    assert job.state == JobState.PARKED
    assert "time limit" in job.message
    with pytest.raises(ProcessLookupError):
        os.kill(started[0].pid, 0)


@pytest.mark.django_db(transaction=True)
def test_the_real_child_process_runs_a_job(cast: Cast) -> None:
    """``manage.py run_job`` on the suite's database, with a fencing token that is not the current one: no effect."""
    job = runner.claim(_enqueue(cast, "t.ok", word="x").pk)
    assert job is not None
    environment = os.environ | {"DATABASE_URL": _test_database_url()}
    done = subprocess.run(
        [sys.executable, "manage.py", "run_job", str(job.pk), "00000000-0000-0000-0000-000000000000"],
        cwd=settings.BASE_DIR,
        env=environment,
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr.decode()
    job.refresh_from_db()
    assert job.state == JobState.RUNNING


def _test_database_url() -> str:
    from django.db import connection

    return str(settings.INSTALLATION.database_dsn("owner")).replace(
        "/countersign?", f"/{connection.settings_dict['NAME']}?"
    )
