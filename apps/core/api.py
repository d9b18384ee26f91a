"""What every REST endpoint shares: team scope, newest-first cursor pages, and RFC 9457 problem documents."""

from __future__ import annotations

import re
from typing import Any, ClassVar

from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import Http404
from rest_framework import exceptions, status, viewsets
from rest_framework.pagination import CursorPagination
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import set_rollback

from apps.core.errors import DomainError

_ROW_NUMBER = re.compile("[0-9]{1,18}")
PROBLEM_TYPE = "application/problem+json"


class NewestFirstPagination(CursorPagination):
    """Cursor pages ``{next, previous, results}``; stable while rows are added."""

    ordering = "-pk"
    page_size = 50
    page_size_query_param = "page_size"
    max_page_size = 200

    def decode_cursor(self, request: Request) -> Any:
        """The caller's cursor; a position that is not a row's number is refused, before the database is asked."""
        cursor = super().decode_cursor(request)
        if cursor is not None and cursor.position is not None and not _ROW_NUMBER.fullmatch(str(cursor.position)):
            raise exceptions.NotFound(self.invalid_cursor_message)
        return cursor


class TeamViewSet(viewsets.GenericViewSet[Any]):
    """Base of all viewsets: the queryset is scoped to the caller's team here and nowhere else.

    Subclasses set ``queryset`` (a ``TeamScopedQuerySet``), ``serializer_class`` and ``permissions``,
    a map from action to the permission it needs.
    """

    pagination_class = NewestFirstPagination
    permissions: ClassVar[dict[str, str]] = {}
    lookup_value_regex = r"[^/\x00]+"

    def get_queryset(self) -> QuerySet[Any]:
        """All rows of the caller's team."""
        queryset = super().get_queryset()
        if getattr(self, "swagger_fake_view", False):
            return queryset.none()
        return queryset.for_team(self.request.team)  # type: ignore[no-any-return]


def problem(code: int, title: str, detail: str, *, errors: list[dict[str, str]] | None = None) -> Response:
    """An RFC 9457 problem document."""
    body: dict[str, Any] = {"type": "about:blank", "title": title, "status": code, "detail": detail}
    if errors:
        body["errors"] = errors
    return Response(body, status=code, content_type=PROBLEM_TYPE)


def _pointers(detail: Any, pointer: str = "") -> list[dict[str, str]]:
    """Flatten DRF's nested error detail into ``{"pointer", "detail"}`` pairs (RFC 6901 pointers)."""
    if isinstance(detail, dict):
        return [
            error
            for key, value in detail.items()
            for error in _pointers(value, pointer if key == "non_field_errors" else f"{pointer}/{key}")
        ]
    if isinstance(detail, list):
        if all(not isinstance(item, dict | list) for item in detail):
            return [{"pointer": pointer or "/", "detail": str(item)} for item in detail]
        return [error for index, item in enumerate(detail) for error in _pointers(item, f"{pointer}/{index}")]
    return [{"pointer": pointer or "/", "detail": str(detail)}]


def problem_response(error: Exception, context: dict[str, Any]) -> Response | None:
    """DRF's exception handler: every expected error becomes a problem document, an unexpected one stays a 500."""
    response: Response | None = None
    if isinstance(error, DomainError):
        errors = [{"pointer": f"/{error.field}", "detail": error.message}] if error.field else None
        response = problem(error.status, error.title, error.message, errors=errors)
    elif isinstance(error, Http404):
        response = problem(404, "Not found", "There is no such object in your team.")
    elif isinstance(error, PermissionDenied):
        response = problem(403, "Not allowed", "Your roles do not allow this.")
    elif isinstance(error, exceptions.ValidationError):
        response = problem(
            status.HTTP_422_UNPROCESSABLE_ENTITY,
            "Invalid input",
            "One or more fields are not acceptable.",
            errors=_pointers(error.detail),
        )
    elif isinstance(error, exceptions.APIException):
        response = problem(error.status_code, str(error.default_detail).rstrip("."), str(error.detail))
        if error.status_code == status.HTTP_401_UNAUTHORIZED:
            response["WWW-Authenticate"] = 'Bearer realm="countersign"'
        if getattr(error, "wait", None):
            response["Retry-After"] = str(int(error.wait))
    if response is not None:
        set_rollback()
    return response
