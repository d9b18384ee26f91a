"""The inference log's catalog and the traffic's rollups. Written by the inference service, in plain SQL."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Self

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models.functions import Now


class LogSegmentQuerySet(models.QuerySet["LogSegment"]):
    """Reads of the catalog."""

    def current(self) -> Self:
        """Those whose rows are read: not the ones that were merged into another."""
        return self.filter(merged_into=None)

    def of_endpoint(self, endpoint_id: int) -> Self:
        """The segments that hold predictions of one endpoint."""
        return self.filter(endpoint_id=endpoint_id)

    def within(self, since: datetime | None, until: datetime | None) -> Self:
        """Those that may hold predictions received from ``since`` through ``until``; None leaves an end open."""
        rows = self if since is None else self.filter(ended_at__gte=since)
        return rows if until is None else rows.filter(started_at__lte=until)

    def older_than(self, segment: LogSegment) -> Self:
        """Those that come after ``segment`` when the newest come first."""
        return self.filter(
            models.Q(ended_at__lt=segment.ended_at) | models.Q(ended_at=segment.ended_at, pk__lt=segment.pk)
        )


class LogSegment(models.Model):
    """A Parquet file with predictions of one model version on one endpoint, received within a span of time.

    Small ones are merged. A merged part stays in the catalog for a while: its path tells the shipper that the
    predictions of a spool file are in the log already.
    """

    path = models.TextField(unique=True)  # relative to the store's root
    sha256 = models.CharField(max_length=64)
    # Plain numbers: a segment outlives what it tells of.
    endpoint_id = models.BigIntegerField()
    endpoint = models.TextField()
    model_version = models.IntegerField()
    started_at = models.DateTimeField()
    ended_at = models.DateTimeField()
    row_count = models.BigIntegerField()
    size_bytes = models.BigIntegerField()
    created_at = models.DateTimeField(db_default=Now())
    # What only the console fills in. ``layout`` is equal for segments that can be merged; empty until it was looked at.
    layout = models.CharField(max_length=64, db_default="")
    parts = ArrayField(models.CharField(max_length=64), db_default=[])  # SHA-256 of the segments merged into this one
    merged_into = models.ForeignKey("self", null=True, on_delete=models.CASCADE, related_name="+")
    merged_at = models.DateTimeField(null=True)
    is_file_removed = models.BooleanField(db_default=False)
    audit_event_id = models.BigIntegerField(null=True)  # that holds its digest; null until then

    objects = LogSegmentQuerySet.as_manager()

    class Meta:
        ordering = ("-ended_at", "-id")
        indexes = (
            models.Index(
                fields=("endpoint_id", "-ended_at", "-id"),
                name="logsegment_newest",
                condition=models.Q(merged_into=None),
            ),
            models.Index(fields=("id",), name="logsegment_unsealed", condition=models.Q(audit_event_id__isnull=True)),
            models.Index(
                fields=("merged_at",), name="logsegment_merged", condition=models.Q(merged_into__isnull=False)
            ),
        )

    def __str__(self) -> str:
        return self.path


class MetricRollupQuerySet(models.QuerySet["MetricRollup"]):
    """Reads of rollups."""

    def of_endpoints(self, endpoint_ids: Iterable[int]) -> Self:
        """The rollups of some endpoints."""
        return self.filter(endpoint_id__in=list(endpoint_ids))


class MetricRollup(models.Model):
    """What one replica did on one deployment within one second."""

    endpoint_id = models.BigIntegerField()
    deployment_id = models.BigIntegerField()
    second = models.DateTimeField()
    replica_id = models.TextField()
    requests = models.BigIntegerField()
    rows = models.BigIntegerField()
    errors = models.BigIntegerField()
    is_shadow = models.BooleanField(db_default=False)  # its requests are copies: they are nobody's traffic
    cpu_us = models.BigIntegerField(db_default=0)  # CPU time of the whole service, shared out by what each version used
    guardrails = models.JSONField(db_default={})  # rows that violated a rule, by the rule's name
    latency_histogram = ArrayField(models.BigIntegerField())  # counts by inference.contracts.LATENCY_BUCKETS_US

    objects = MetricRollupQuerySet.as_manager()

    class Meta:
        constraints = (
            models.UniqueConstraint(
                fields=("endpoint_id", "deployment_id", "second", "replica_id"), name="metricrollup_once"
            ),
        )
        indexes = (
            models.Index(fields=("endpoint_id", "second"), name="metricrollup_window"),
            models.Index(fields=("second",), name="metricrollup_age"),
        )

    def __str__(self) -> str:
        return f"{self.replica_id} on deployment {self.deployment_id} at {self.second:%H:%M:%S}"
