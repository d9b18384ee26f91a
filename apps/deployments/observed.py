"""Desired beside observed: is what should serve what the replicas say they serve?"""

from __future__ import annotations

from collections import Counter, defaultdict
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
    serving: Counter[int | None]  # how many replicas have loaded a deployment, by its id
    errors: dict[int | None, list[str]]  # what the replicas say is wrong with it; None: with the manifest

    @classmethod
    def read(cls) -> Self:
        """As it is now."""
        newest = ServingManifest.objects.order_by("-generation").values_list("generation", flat=True).first()
        live = list(Replica.objects.live())
        serving: Counter[int | None] = Counter(
            key for replica in live for key in {item["deployment_id"] for item in replica.loaded}
        )
        errors: defaultdict[int | None, list[str]] = defaultdict(list)
        for replica in live:
            for error in replica.errors:
                errors[error.get("deployment_id")].append(error["message"])
        return cls(live, newest or 0, serving, dict(errors))


def observe(deployment: Deployment | None, fleet: Fleet | None = None) -> ObservedState:
    """Compare a deployment with what the live replicas report."""
    fleet = fleet or Fleet.read()
    live = fleet.replicas
    wanted = deployment.pk if deployment else None
    serving, errors = fleet.serving[wanted], fleet.errors.get(wanted, [])
    if not live:
        state = "OFFLINE"
    elif errors:
        state = "FAILED"
    else:
        state = "SERVING" if serving == len(live) else "LOADING"
    return ObservedState(state, fleet.desired_generation, live, serving, errors)
