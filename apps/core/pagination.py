"""Keyset pages: as fast on the millionth row as on the first, and stable while rows are added."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from django.db.models import QuerySet
from django.http import QueryDict

from apps.core.errors import DomainError


@dataclass(frozen=True, slots=True)
class KeysetPage:
    """One page of a list, newest first, with the query strings that lead to the next and to the first page."""

    rows: list[Any]
    next_query: str
    first_query: str

    @classmethod
    def of(cls, queryset: QuerySet[Any], query: QueryDict, *, key: str = "pk", size: int = 50) -> Self:
        """Cut a page out of ``queryset`` by a unique, growing whole number, below ``?before=`` if that is given."""
        before = query.get("before", "")
        if before:
            if not before.isdecimal() or len(before) > 18:
                raise DomainError("“before” is the number of a row. Go back to the first page.", field="before")
            queryset = queryset.filter(**{f"{key}__lt": int(before)})
        rows = list(queryset.order_by(f"-{key}")[: size + 1])
        following = query.copy()
        following["before"] = str(getattr(rows[size - 1], key)) if len(rows) > size else ""
        first = query.copy()
        first.pop("before", None)
        return cls(
            rows=rows[:size],
            next_query=following.urlencode() if following["before"] else "",
            first_query=first.urlencode() if before else "",
        )
