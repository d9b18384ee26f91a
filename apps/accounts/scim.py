"""SCIM 2.0 (RFC 7643, 7644), as far as it takes to find members and to deactivate them: users, and their ``active``."""

from __future__ import annotations

import re
from typing import Any, ClassVar

from django.db.models import QuerySet
from django.urls import reverse
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.parsers import JSONParser
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from apps.accounts import services
from apps.accounts.models import Membership
from apps.accounts.roles import Role
from apps.core.api import TeamViewSet
from apps.core.errors import DomainError

_USER = "urn:ietf:params:scim:schemas:core:2.0:User"
_LIST = "urn:ietf:params:scim:api:messages:2.0:ListResponse"
_ERROR = "urn:ietf:params:scim:api:messages:2.0:Error"
_MEDIA_TYPE = "application/scim+json"
_FILTER = re.compile(r'\s*userName\s+eq\s+"([^"\\\x00]{1,254})"\s*', re.IGNORECASE)
MAX_PAGE = 200
MAX_OPERATIONS = 20


class ScimParser(JSONParser):
    """JSON by the protocol's name."""

    media_type = _MEDIA_TYPE


class ScimRenderer(JSONRenderer):
    """JSON by the protocol's name."""

    media_type = _MEDIA_TYPE
    format = "scim"


class ScimOperation(serializers.Serializer[Any]):
    """One change of a PATCH; only ``active`` can be changed here."""

    op = serializers.CharField(max_length=10)
    path = serializers.CharField(max_length=100, required=False)
    value = serializers.JSONField()


class ScimPatch(serializers.Serializer[Any]):
    """A PATCH as RFC 7644 section 3.5.2 has it."""

    Operations = serializers.ListField(child=ScimOperation(), min_length=1, max_length=MAX_OPERATIONS)


class ScimUser(serializers.Serializer[Membership]):
    """A member of the token's team as a SCIM user; the id is the membership's."""

    id = serializers.CharField()
    userName = serializers.EmailField()
    displayName = serializers.CharField()
    active = serializers.BooleanField()

    def to_representation(self, membership: Membership) -> dict[str, Any]:
        """The resource."""
        user = membership.user
        location = reverse("api:scim-user-detail", args=[membership.pk])
        return {
            "schemas": [_USER],
            "id": str(membership.pk),
            "userName": user.email,
            "displayName": user.name,
            "name": {"formatted": user.name},
            "emails": [{"value": user.email, "primary": True}],
            "active": membership.is_active,
            "roles": [{"value": role, "display": str(Role(role).label)} for role in membership.roles],
            "meta": {
                "resourceType": "User",
                "created": membership.created_at.isoformat(),
                "location": self.context["request"].build_absolute_uri(location),
            },
        }


class ScimUserViewSet(TeamViewSet):
    """The team's members, for the system that knows who left. ``active: false`` ends sessions and tokens at once."""

    queryset = Membership.objects.people().select_related("user", "team").order_by("pk")
    serializer_class = ScimUser
    parser_classes = (ScimParser, JSONParser)
    renderer_classes = (ScimRenderer, JSONRenderer)
    pagination_class = None  # type: ignore[assignment]  # SCIM has its own
    lookup_value_regex = "[0-9]{1,18}"
    permissions: ClassVar[dict[str, str]] = {
        "list": "accounts.provision",
        "retrieve": "accounts.provision",
        "partial_update": "accounts.provision",
    }

    def get_queryset(self) -> QuerySet[Any]:
        """The members whom the query's ``filter`` names, if there is one."""
        members = super().get_queryset()
        wanted = self.request.query_params.get("filter", "") if self.action == "list" else ""
        if not wanted:
            return members
        match = _FILTER.fullmatch(wanted)
        if match is None:
            raise DomainError('The only filter here is userName eq "…".', code="invalidFilter")
        return members.filter(user__email__iexact=match[1])

    def list(self, request: Request) -> Response:
        """A page of members: ``startIndex`` from 1, ``count`` up to 200."""
        members = self.get_queryset()
        start, count = _number(request, "startIndex", 1) or 1, min(_number(request, "count", 100), MAX_PAGE)
        page = members[start - 1 : start - 1 + count]
        resources = self.get_serializer(page, many=True).data
        total = {"totalResults": members.count(), "startIndex": start, "itemsPerPage": len(resources)}
        return Response({"schemas": [_LIST], **total, "Resources": resources})

    def retrieve(self, request: Request, pk: str) -> Response:
        """One member."""
        return Response(self.get_serializer(self.get_object()).data)

    @extend_schema(request=ScimPatch)
    def partial_update(self, request: Request, pk: str) -> Response:
        """Deactivate a member, or activate them again."""
        membership = self.get_object()
        patch = ScimPatch(data=request.data)
        patch.is_valid(raise_exception=True)
        is_active = membership.is_active
        for operation in patch.validated_data["Operations"]:
            is_active = _wanted(operation)
        membership = services.change_member(
            request.actor, membership=membership, roles=membership.roles, is_active=is_active
        )
        return Response(self.get_serializer(membership).data)

    def handle_exception(self, exc: Exception) -> Response:
        """The console's refusal in the protocol's words."""
        response = super().handle_exception(exc)
        detail = str(response.data.get("detail", "")) if isinstance(response.data, dict) else ""
        response.data = {"schemas": [_ERROR], "status": str(response.status_code), "detail": detail}
        return response


def _wanted(operation: dict[str, Any]) -> bool:
    """The value for ``active``: with its path, or in an object without one; some systems write it as a word."""
    value = operation["value"]
    if not operation.get("path") and isinstance(value, dict) and set(value) == {"active"}:
        value, path = value["active"], "active"
    else:
        path = operation.get("path", "")
    words = {"true": True, "false": False}
    value = words.get(value.lower(), value) if isinstance(value, str) else value
    if operation["op"].lower() not in ("replace", "add") or path.lower() != "active" or not isinstance(value, bool):
        raise DomainError("Only active can be changed here: replace it with true or false.", code="mutability")
    return value


def _number(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, "")
    return int(text) if re.fullmatch("[0-9]{1,6}", text) else default
