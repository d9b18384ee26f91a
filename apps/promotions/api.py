"""Promotion requests over REST. There is no route to approve: that takes a person in the console."""

from __future__ import annotations

from typing import Any, ClassVar

from django.shortcuts import get_object_or_404
from rest_framework import mixins, serializers, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from apps.core.api import TeamViewSet
from apps.core.errors import DomainError
from apps.deployments.models import Endpoint
from apps.promotions import comments, reviews, services
from apps.promotions.models import Comment, CommentRevision, Finding, PromotionRequest, Review
from apps.registry.models import ModelVersion


class ReviewSerializer(serializers.ModelSerializer[Review]):
    """A signed decision."""

    meaning = serializers.CharField(source="get_meaning_display", read_only=True)

    class Meta:
        model = Review
        fields = (
            "round",
            "reviewer_name",
            "reviewer_roles",
            "decision",
            "meaning",
            "comment",
            "artifact_digest",
            "evidence_digest",
            "approval_digest",
            "factors",
            "signed_at",
            "voided_at",
            "void_reason",
        )


class FindingSerializer(serializers.ModelSerializer[Finding]):
    """A condition of an approval."""

    owner = serializers.CharField(source="owner.name", read_only=True)

    class Meta:
        model = Finding
        fields = (
            "id",
            "title",
            "severity",
            "owner",
            "due_at",
            "state",
            "opened_by",
            "opened_at",
            "resolution",
            "closed_by",
            "closed_at",
        )


class CommentRevisionSerializer(serializers.ModelSerializer[CommentRevision]):
    """What a comment said before."""

    class Meta:
        model = CommentRevision
        fields = ("body", "replaced_at")


class CommentSerializer(serializers.ModelSerializer[Comment]):
    """Something that was said, with its earlier texts."""

    revisions = CommentRevisionSerializer(many=True, read_only=True)

    class Meta:
        model = Comment
        fields = ("id", "author_name", "body", "created_at", "edited_at", "revisions")
        read_only_fields = ("author_name", "created_at", "edited_at")


class PromotionRequestSerializer(serializers.ModelSerializer[PromotionRequest]):
    """A promotion request."""

    endpoint = serializers.CharField(source="endpoint.name", read_only=True)
    model = serializers.CharField(source="model_version.model.name", read_only=True)
    model_version = serializers.IntegerField(source="model_version.number", read_only=True)
    requested_by = serializers.CharField(source="requested_by.name", read_only=True)
    reviews = ReviewSerializer(many=True, read_only=True)
    findings = FindingSerializer(many=True, read_only=True)

    class Meta:
        model = PromotionRequest
        fields = (
            "id",
            "endpoint",
            "model",
            "model_version",
            "state",
            "state_reason",
            "round",
            "is_break_glass",
            "review_due_at",
            "reviewed_at",
            "rollout",
            "rollout_message",
            "initial_weight",
            "justification",
            "artifact_digest",
            "evidence_digest",
            "approval_digest",
            "requested_by",
            "requested_at",
            "expires_at",
            "decided_at",
            "apply_after",
            "applied_at",
            "reviews",
            "findings",
        )


class PromotionRequestDetailSerializer(PromotionRequestSerializer):
    """A promotion request with its frozen evidence, and what exactly a signature on it stands for."""

    class Meta:
        model = PromotionRequest
        fields = (*PromotionRequestSerializer.Meta.fields, "evidence", "binding")


class NewPromotionSerializer(serializers.Serializer[Any]):
    """What to promote where, and why."""

    endpoint = serializers.CharField(max_length=63)
    model = serializers.CharField(max_length=63)
    model_version = serializers.IntegerField(min_value=1, max_value=2**31 - 1)
    justification = serializers.CharField(max_length=4_000)
    initial_weight = serializers.IntegerField(min_value=1, max_value=100, default=100)
    is_draft = serializers.BooleanField(default=False)


class RevisionSerializer(serializers.Serializer[Any]):
    """What to ask for instead."""

    justification = serializers.CharField(max_length=4_000)
    initial_weight = serializers.IntegerField(min_value=1, max_value=100, default=100)


class ChangesSerializer(serializers.Serializer[Any]):
    """What has to change, in the request that this digest names."""

    comment = serializers.CharField(max_length=4_000)
    approval_digest = serializers.CharField(max_length=64)


class PromotionRequestViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, TeamViewSet):
    """The team's promotion requests, newest first."""

    queryset = PromotionRequest.objects.with_names().prefetch_related("reviews", "findings__owner")
    lookup_value_regex = "[0-9]{1,18}"
    permissions: ClassVar[dict[str, str]] = {
        "list": "team.view",
        "retrieve": "team.view",
        "create": "promotions.request",
        "cancel": "promotions.request",
        "submit": "promotions.request",
        "revise": "promotions.request",
        "request_changes": "promotions.comment",
        "comments": "team.view",
        "add_comment": "promotions.comment",
        "edit_comment": "promotions.comment",
    }

    def get_serializer_class(self) -> type[serializers.BaseSerializer[Any]]:
        """The list leaves the evidence out: it may be large."""
        return PromotionRequestSerializer if self.action == "list" else PromotionRequestDetailSerializer

    def create(self, request: Request) -> Response:
        """Submit a request; the evidence is frozen now."""
        serializer = NewPromotionSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        wanted = serializer.validated_data
        endpoint = Endpoint.objects.for_team(request.team).filter(name=wanted["endpoint"]).first()
        if endpoint is None:
            raise DomainError("There is no endpoint of this name in your team.", field="endpoint")
        model_version = (
            ModelVersion.objects.for_team(request.team)
            .select_related("model", "artifact", "uploaded_by")
            .filter(model__name=wanted["model"], number=wanted["model_version"])
            .first()
        )
        if model_version is None:
            raise DomainError("There is no such model version in your team.", field="model_version")
        create = services.draft_promotion if wanted["is_draft"] else services.request_promotion
        promotion = create(
            request.actor,
            team=request.team,
            model_version=model_version,
            endpoint=endpoint,
            justification=wanted["justification"],
            initial_weight=wanted["initial_weight"],
        )
        return Response(self.get_serializer(promotion).data, status=status.HTTP_201_CREATED)

    @action(detail=True, methods=["post"])
    def submit(self, request: Request, pk: str) -> Response:
        """Hand one's own draft to the reviewers."""
        services.submit_promotion(request.actor, request=self._promotion(pk))
        return Response(self.get_serializer(self.get_object()).data)

    @action(detail=True, methods=["post"])
    def revise(self, request: Request, pk: str) -> Response:
        """Change what one's own request asks for; the reviewers start over."""
        promotion, serializer = self._promotion(pk), RevisionSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        services.revise_promotion(request.actor, request=promotion, **serializer.validated_data)
        return Response(self.get_serializer(self.get_object()).data)

    @action(detail=True, methods=["post"], url_path="request-changes")
    def request_changes(self, request: Request, pk: str) -> Response:
        """Hand a request back to the requester, as one of those who may decide on it. It is no signature."""
        promotion, serializer = self._promotion(pk), ChangesSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        reviews.ask_for_changes(request.actor, request=promotion, **serializer.validated_data)
        return Response(self.get_serializer(self.get_object()).data)

    @action(detail=True, methods=["get"])
    def comments(self, request: Request, pk: str) -> Response:
        """What was said, the oldest first; there are at most 500."""
        rows = self._promotion(pk).comments.prefetch_related("revisions")
        return Response(CommentSerializer(rows, many=True).data)

    @comments.mapping.post
    def add_comment(self, request: Request, pk: str) -> Response:
        """Say something."""
        promotion, serializer = self._promotion(pk), CommentSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        comment = comments.add_comment(request.actor, request=promotion, body=serializer.validated_data["body"])
        return Response(CommentSerializer(comment).data, status=status.HTTP_201_CREATED)

    @action(detail=True, methods=["patch"], url_path="comments/(?P<comment_id>[0-9]{1,18})", url_name="comment")
    def edit_comment(self, request: Request, pk: str, comment_id: str) -> Response:
        """Change one's own comment; the earlier text is kept."""
        rows = Comment.objects.filter(request=self._promotion(pk)).select_related("request")
        comment = get_object_or_404(rows, pk=comment_id)
        serializer = CommentSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        body = serializer.validated_data["body"]
        return Response(CommentSerializer(comments.edit_comment(request.actor, comment=comment, body=body)).data)

    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: str) -> Response:
        """Withdraw one's own request."""
        services.cancel_promotion(request.actor, request=self._promotion(pk))
        return Response(self.get_serializer(self.get_object()).data)

    def _promotion(self, pk: str) -> PromotionRequest:
        promotion: PromotionRequest = get_object_or_404(PromotionRequest.objects.for_team(self.request.team), pk=pk)
        return promotion
