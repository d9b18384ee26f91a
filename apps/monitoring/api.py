"""The inference log over REST."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, ClassVar, Final

from django.http import StreamingHttpResponse
from django.shortcuts import get_object_or_404
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers, status
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import ViewSet

from apps.accounts.models import slug_validator
from apps.core.errors import DomainError, NotFound
from apps.deployments.models import Endpoint
from apps.evaluation.models import DatasetVersion
from apps.monitoring.export import CONTENT_TYPE, as_document, export_lines
from apps.monitoring.forms import LogFilterForm, ProvenanceForm, read_filter
from apps.monitoring.log_reader import LogFilter, LogKey, LogPage, Prediction, read_log
from apps.monitoring.log_samples import keep_rows
from apps.monitoring.provenance import Answer, answers_to, serving_at
from apps.monitoring.services import record_read

_NOT_IN_LOG: Final = "The log holds no request with this id. A prediction takes a few seconds to get there."


class PredictionSerializer(serializers.Serializer[Prediction]):
    """A row of the inference log: its reserved columns, then the tensors by name."""

    received_at = serializers.DateTimeField()
    inputs = serializers.DictField()
    outputs = serializers.DictField()

    def to_representation(self, instance: Prediction) -> dict[str, Any]:
        """One flat object for the columns that every prediction has."""
        return as_document(instance)


class LogPageSerializer(serializers.Serializer[LogPage]):
    """A page of the log. ``next`` is ``before`` of the next page; a search out of time says how far back it came."""

    next = serializers.CharField(allow_null=True)
    searched_back_to = serializers.DateTimeField(allow_null=True)
    unreadable_segments = serializers.ListField(child=serializers.CharField())
    results = PredictionSerializer(many=True)

    def to_representation(self, instance: LogPage) -> dict[str, Any]:
        """The page with its rows."""
        return {
            "next": None if instance.next_key is None else str(instance.next_key),
            "searched_back_to": instance.searched_back_to,
            "unreadable_segments": instance.unreadable,
            "results": [PredictionSerializer(row).data for row in instance.rows],
        }


class PredictionViewSet(ViewSet):
    """Predictions of one endpoint, newest first; filters: request_id, since, until, outcome, model_version,
    guardrail.
    """

    lookup_field = "request_id"
    lookup_value_regex = ".+"  # a client may choose an id with a slash in it
    permissions: ClassVar[dict[str, str]] = {"list": "team.view", "retrieve": "team.view"}

    @extend_schema(
        parameters=[OpenApiParameter(name, str) for name in (*LogFilterForm.base_fields, "before")],
        responses=LogPageSerializer,
    )
    def list(self, request: Request, endpoint_name: str) -> Response:
        """A page of at most 50 predictions."""
        before = request.query_params.get("before", "")
        endpoint, wanted = _endpoint(request, endpoint_name), read_filter(request.query_params)
        log = read_log(endpoint, wanted, before=LogKey.parse(before) if before else None)
        if log.rows:
            record_read(request.actor, "inference_log.viewed", endpoint=endpoint, **asdict(wanted))
        return Response(LogPageSerializer(log).data)

    @extend_schema(responses=LogPageSerializer)
    def retrieve(self, request: Request, endpoint_name: str, request_id: str) -> Response:
        """The newest 50 predictions of one request, a row each; 404 when the log does not hold it, or not yet."""
        endpoint = _endpoint(request, endpoint_name)
        log = read_log(endpoint, LogFilter(request_id=request_id))
        if not log.rows:
            raise NotFound(_NOT_IN_LOG)
        record_read(request.actor, "prediction.viewed", endpoint=endpoint, request_id=request_id, rows=len(log.rows))
        return Response(LogPageSerializer(log).data)


class KeepRowsSerializer(serializers.Serializer[Any]):
    """The dataset that takes the rows; it is created if there is none of this name."""

    dataset = serializers.CharField(max_length=63, validators=[slug_validator])


class KeptRowsSerializer(serializers.Serializer[DatasetVersion]):
    """The dataset version that took the rows; its job reads it."""

    dataset = serializers.CharField(source="dataset.name")
    number = serializers.IntegerField()
    sha256 = serializers.CharField()
    job = serializers.IntegerField(source="job_id")


class KeptRowsViewSet(ViewSet):
    """Rows of an endpoint's log as datasets."""

    permissions: ClassVar[dict[str, str]] = {"create": "registry.upload"}

    @extend_schema(
        parameters=[OpenApiParameter(name, str) for name in LogFilterForm.base_fields],
        request=KeepRowsSerializer,
        responses={201: KeptRowsSerializer},
    )
    def create(self, request: Request, endpoint_name: str) -> Response:
        """Keep the inputs of the newest 2,000 answered predictions that the filter lets through."""
        endpoint = _endpoint(request, endpoint_name)
        serializer = KeepRowsSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        version = keep_rows(
            request.actor,
            endpoint=endpoint,
            wanted=read_filter(request.query_params),
            name=serializer.validated_data["dataset"],
        )
        return Response(KeptRowsSerializer(version).data, status=status.HTTP_201_CREATED)


class PredictionExportViewSet(ViewSet):
    """Predictions of one endpoint as JSON Lines, with the filters of the list."""

    permissions: ClassVar[dict[str, str]] = {"list": "team.view"}

    @extend_schema(
        parameters=[OpenApiParameter(name, str) for name in (*LogFilterForm.base_fields, "before")],
        responses={(200, CONTENT_TYPE): str},
    )
    def list(self, request: Request, endpoint_name: str) -> StreamingHttpResponse:
        """At most 100,000 predictions, newest first; the last line says how many, and where the next export begins."""
        before = request.query_params.get("before", "")
        endpoint, wanted = _endpoint(request, endpoint_name), read_filter(request.query_params)
        lines = export_lines(endpoint, wanted, LogKey.parse(before) if before else None)
        record_read(request.actor, "inference_log.exported", endpoint=endpoint, **asdict(wanted))
        return StreamingHttpResponse(lines, content_type=CONTENT_TYPE)


class AnswerSerializer(serializers.Serializer[Answer]):
    """A version that answered or served, and the approval that put it there, as the audit log had it then."""

    model = serializers.CharField()
    model_version = serializers.IntegerField()
    artifact_digest = serializers.CharField()
    role = serializers.CharField()
    weight = serializers.IntegerField(allow_null=True)
    at = serializers.DateTimeField()
    activated_at = serializers.DateTimeField(source="deployment.activated_at", default=None)
    approval = serializers.SerializerMethodField()

    def get_approval(self, answer: Answer) -> dict[str, Any] | None:
        """Who requested and who signed, what the signatures bind (evidence, artifact, policy), and the events."""
        approval = answer.approval
        if approval is None:
            return None
        return {
            "promotion_request": approval.request_id,
            "requested_by": approval.requested_by,
            "signed_by": [
                {"name": event.actor_name, "at": event.at, "seq": event.seq} for event in approval.signatures
            ],
            "bound": approval.bound,
            "audit_events": [event.seq for event in approval.events],
        }


class ProvenanceViewSet(ViewSet):
    """Which version answered a request (``?request_id=``) or served at a moment (``?at=``), and who approved it."""

    permissions: ClassVar[dict[str, str]] = {"list": "team.view"}

    @extend_schema(
        parameters=[OpenApiParameter(name, str) for name in ProvenanceForm.base_fields],
        responses=AnswerSerializer(many=True),
    )
    def list(self, request: Request, endpoint_name: str) -> Response:
        """One entry for each version that had a part in it."""
        endpoint, form = _endpoint(request, endpoint_name), ProvenanceForm(request.query_params)
        if not form.is_valid():
            field, messages = next(iter(form.errors.items()))
            raise DomainError(str(messages[0]), field=field)
        request_id, at = form.cleaned_data["request_id"], form.cleaned_data["at"]
        if not request_id and not at:
            raise DomainError("Name a request or a moment.", field="request_id")
        answers = serving_at(endpoint, at).answers if at else answers_to(endpoint, request_id)
        if request_id and not answers:
            raise NotFound(_NOT_IN_LOG)
        return Response([AnswerSerializer(answer).data for answer in answers])


def _endpoint(request: Request, name: str) -> Endpoint:
    endpoint: Endpoint = get_object_or_404(Endpoint.objects.for_team(request.team), name=name)
    return endpoint
