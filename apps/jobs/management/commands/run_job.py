"""``manage.py run_job``: one attempt at a job, in a process of its own. Started by the worker."""

from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from apps.jobs.models import Job, JobState
from apps.jobs.runner import execute, stop_with_parent


class Command(BaseCommand):
    """Run the attempt that the fencing token names, and nothing if it is not the current one."""

    help = "Run one claimed attempt at a job (the worker calls this)."
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        """Job id and fencing token."""
        parser.add_argument("job_id", type=int)
        parser.add_argument("fencing_token")

    def handle(self, *args: Any, **options: Any) -> None:
        """Execute it."""
        stop_with_parent()
        job = Job.objects.filter(
            pk=options["job_id"], state=JobState.RUNNING, fencing_token=options["fencing_token"]
        ).first()
        if job is not None:
            execute(job)
