"""Desired beside observed: is what should serve what the replicas say they serve?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from apps.deployments.models import Deployment, Replica, ServingManifest


@dataclass(frozen=True, slots=True)
class ObservedState:
    """How far the replicas have come with a deployment.

    ``state`` is SERVING, LOADING, FAILED or OFFLINE (no replica reports).
    """

    state: str
    desired_generation: int
    replicas: list[Replica]
    serving: int
    errors: list[str]

    @property
    def sentence(self) -> str:
        """The state in words."""
        if not self.replicas:
            return "No inference process has reported in the last 10 seconds."
        if self.errors:
            return self.errors[0]
        return f"{self.serving} of {len(self.replicas)} inference processes serve it."


@dataclass(frozen=True, slots=True)
class Fleet:
    """The live replicas and the generation that they are to follow, read once for many comparisons."""

    replicas: list[Replica]
    desired_generation: int

    @classmethod
    def read(cls) -> Self:
        """As it is now."""
        newest = ServingManifest.objects.order_by("-generation").values_list("generation", flat=True).first()
        return cls(list(Replica.objects.live()), newest or 0)


def observe(deployment: Deployment | None, fleet: Fleet | None = None) -> ObservedState:
    """Compare a deployment with what the live replicas report."""
    fleet = fleet or Fleet.read()
    live = fleet.replicas
    wanted = deployment.pk if deployment else None
    serving = sum(any(item["deployment_id"] == wanted for item in replica.loaded) for replica in live)
    errors = [error["message"] for replica in live for error in replica.errors if error.get("deployment_id") == wanted]
    if not live:
        state = "OFFLINE"
    elif errors:
        state = "FAILED"
    else:
        state = "SERVING" if serving == len(live) else "LOADING"
    return ObservedState(state, fleet.desired_generation, live, serving, errors)
