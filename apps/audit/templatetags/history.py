"""``{% history object … %}``: the place on an object's page where its history is fetched when somebody gets there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django import template
from django.db.models import Model

register = template.Library()
_MAX_OBJECTS = 100


@register.inclusion_tag("audit/_history_slot.html")
def history(*subjects: Model | Iterable[Model]) -> dict[str, Any]:
    """Objects, or lists of them, whose events make up the history; what is over a hundred is left out."""
    objects = [one for subject in subjects for one in ([subject] if isinstance(subject, Model) else subject)]
    return {"of": ",".join(f"{one._meta.label_lower}:{one.pk}" for one in objects[:_MAX_OBJECTS])}
