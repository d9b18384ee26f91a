"""Rows of the database as JSON documents, by one rule, so that what a table gains later is in the packs, too."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final

from django.db import models

from apps.audit.chain import timestamp

MAX_ROWS: Final = 5_000
_PRIVATE: Final = frozenset({"accounts.user", "accounts.membership", "accounts.apitoken"})


def document(row: models.Model, *, without: Iterable[str] = ()) -> dict[str, Any]:
    """All columns of a row by name; what another row is, is said by its id and its name, people by name alone."""
    left_out = set(without)
    return {
        field.name: _value(row, field)
        for field in row._meta.concrete_fields
        if field.name not in left_out and not isinstance(field, models.GeneratedField)
    }


def _value(row: models.Model, field: models.Field[Any, Any]) -> Any:
    if isinstance(field, models.ForeignKey):
        other = getattr(row, field.name)
        if other is None:
            return None
        is_private = other._meta.label_lower in _PRIVATE
        return str(other) if is_private else {"id": other.pk, "name": str(other)}
    value = getattr(row, field.name)
    if isinstance(value, datetime):
        return timestamp(value)
    return str(value) if isinstance(value, uuid.UUID) else value


def related(row: models.Model, apps: Iterable[str]) -> dict[str, list[models.Model]]:
    """Every row of these apps that belongs to this one, by the name of its table, oldest first."""
    found: dict[str, list[models.Model]] = {}
    for relation in row._meta.related_objects:
        model = relation.related_model
        if isinstance(model, type) and model._meta.app_label in set(apps) and relation.one_to_many:
            rows = model._base_manager.filter(**{relation.field.name: row}).order_by("pk")[:MAX_ROWS]
            found[model._meta.model_name or ""] = list(rows)
    return found
