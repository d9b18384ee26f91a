"""Reads start from the team: a queryset that cannot forget it."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from django.db import models


class TeamScopedQuerySet(models.QuerySet[Any]):
    """Queryset of rows that belong to a team, directly or through ``team_path``."""

    team_path: ClassVar[str] = "team"

    def for_team(self, team: Any) -> Self:
        """Only the rows of ``team``; none when there is no team."""
        return self.none() if team is None else self.filter(**{self.team_path: team})
