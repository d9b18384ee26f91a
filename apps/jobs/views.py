"""The job list, a job's page and its live progress."""

from __future__ import annotations

from collections.abc import Callable

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.views.decorators.http import require_GET, require_POST

from apps.audit.actor import Actor
from apps.core.errors import NotAllowed
from apps.core.htmx import render
from apps.core.pagination import KeysetPage
from apps.core.permissions import require
from apps.jobs import services
from apps.jobs.models import Job


@require_GET
@require("team.view")
def job_list(request: HttpRequest) -> HttpResponse:
    """The team's jobs, newest first."""
    page = KeysetPage.of(Job.objects.for_team(request.team).select_related("requested_by"), request.GET)
    return render(request, "jobs/job_list.html", {"page": page}, fragment="jobs/_jobs.html")


@require_GET
@require("team.view")
def job_detail(request: HttpRequest, pk: int) -> HttpResponse:
    """One job: progress, outcome, log tail."""
    job = get_object_or_404(Job.objects.for_team(request.team).select_related("requested_by"), pk=pk)
    context = {"job": job, "may_control": may_control(request, job), "may_retry": job.state in services.RETRYABLE}
    return render(request, "jobs/job_detail.html", context)


@require_GET
@require("team.view")
def job_progress(request: HttpRequest, pk: int) -> HttpResponse:
    """The progress fragment that polls itself; when the job ends, the page around it is loaded again."""
    job = get_object_or_404(Job.objects.for_team(request.team), pk=pk)
    response = render(request, "jobs/_progress.html", {"job": job})
    if job.is_finished and request.headers.get("HX-Request"):
        response["HX-Refresh"] = "true"
    return response


def may_control(request: HttpRequest, job: Job) -> bool:
    """Whoever asked for a job may stop it and try it again; operators may for everybody."""
    actor: Actor = request.actor
    return job.requested_by_id == actor.user_id or actor.can("deployments.operate")


@require_POST
@require("team.view")
def job_cancel(request: HttpRequest, pk: int) -> HttpResponse:
    """Stop a job."""
    return _control(request, pk, services.cancel_job, "Cancelled.")


@require_POST
@require("team.view")
def job_retry(request: HttpRequest, pk: int) -> HttpResponse:
    """Queue a job again."""
    return _control(request, pk, services.retry_job, "Queued again.")


def _control(request: HttpRequest, pk: int, service: Callable[..., Job], done: str) -> HttpResponse:
    job = get_object_or_404(Job.objects.for_team(request.team), pk=pk)
    if not may_control(request, job):
        raise NotAllowed("Only the person who started this job, or an operator, can do this.")
    service(request.actor, job=job)
    messages.success(request, done)
    return redirect("jobs:job-detail", pk=pk)
