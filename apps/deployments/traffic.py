"""Who answers on an endpoint and with which share, who only listens, and what a version must fit to join them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from apps.core.errors import Conflict, DomainError
from apps.deployments import trial
from apps.deployments.manifest import guardrail_rule
from apps.deployments.models import Deployment, DeploymentRole, Endpoint
from apps.registry.models import ModelVersion
from inference.contracts import Signature
from inference.guardrails import RuleRejected, check_rule

MAX_ANSWERING: Final = 4
MAX_SHADOWS: Final = 4


@dataclass(frozen=True, slots=True)
class Split:
    """The deployments that answer on an endpoint, the champion first, and its shadows."""

    answering: list[Deployment]
    shadows: list[Deployment]

    @classmethod
    def of(cls, endpoint: Endpoint) -> Self:
        """As it is now."""
        return cls.among(endpoint.deployments.active().with_versions().order_by("pk"))

    @classmethod
    def among(cls, rows: Iterable[Deployment]) -> Self:
        """The split that an endpoint's active deployments make, the oldest first."""
        rows = list(rows)
        answering = sorted((row for row in rows if row.role != DeploymentRole.SHADOW), key=_is_canary)
        return cls(answering, [row for row in rows if row.role == DeploymentRole.SHADOW])

    @property
    def champion(self) -> Deployment | None:
        """The version that answers by default; None while nothing serves."""
        return next((row for row in self.answering if not _is_canary(row)), None)

    @property
    def canaries(self) -> list[Deployment]:
        """What answers a part of the requests beside the champion."""
        return [row for row in self.answering if _is_canary(row)]

    @property
    def idle_shadows(self) -> set[int]:
        """Ids of the shadows that get no copies, because the champion of today takes other inputs than they do."""
        if self.champion is None:
            return set()
        inputs = self.champion.model_version.signature["inputs"]
        return {row.pk for row in self.shadows if row.model_version.signature["inputs"] != inputs}

    @property
    def state(self) -> str:
        """Names the split, e.g. ``12:95,15:5``: deployment ids with their weights."""
        return ",".join(f"{row.pk}:{row.weight}" for row in self.answering)

    @property
    def words(self) -> str:
        """The split for a person, e.g. ``risk v1 95 %, risk v2 5 %``."""
        return ", ".join(f"{row.model_version} {row.weight} %" for row in self.answering)

    def as_document(self) -> dict[str, Any]:
        """The split as the audit log keeps it."""
        return {str(row.model_version): row.weight for row in self.answering}

    def require_seen(self, state: str | None) -> None:
        """Raise ``Conflict`` if somebody decided on another split than this one; None decided on any."""
        if state is not None and state != self.state:
            raise Conflict(f"The traffic is split differently by now: {self.words}. Look at it again, then decide.")


def check_fit(endpoint: Endpoint, model_version: ModelVersion) -> None:
    """Raise ``Conflict`` if a version cannot answer under the endpoint's rules and settings."""
    signature = Signature.from_dict(model_version.signature)
    for row in endpoint.guardrails.all():
        try:
            check_rule(guardrail_rule(row), signature)
            trial.require_computable(row.requires, signature)
        except (RuleRejected, DomainError) as error:
            raise Conflict(
                f"{model_version} does not fit the guardrail “{row.name}” of {endpoint.name}: {error}"
                " Change the guardrail first."
            ) from error
    if endpoint.sticky_input and all(spec.name != endpoint.sticky_input for spec in signature.inputs):
        raise Conflict(
            f"{model_version} has no input “{endpoint.sticky_input}”, by which {endpoint.name} splits its traffic."
            " Change the sticky key first."
        )


def check_canary(endpoint: Endpoint, model_version: ModelVersion, *, weight: int) -> None:
    """Raise ``DomainError`` or ``Conflict`` if a version cannot start as a canary with ``weight`` per cent."""
    split = Split.of(endpoint)
    if split.champion is None:
        raise DomainError(
            f"Nothing answers on {endpoint.name} yet, so its first version takes all traffic: start it with 100 %.",
            field="initial_weight",
        )
    others = [row for row in split.canaries if row.model_version_id != model_version.pk]
    taken = sum(row.weight for row in others)
    if taken + weight > 99:
        raise Conflict(
            f"The canaries on {endpoint.name} take {taken} % already, so {weight} % more leave the champion nothing."
            " Change the traffic first."
        )
    if len(others) + 2 > MAX_ANSWERING:
        raise Conflict(f"At most {MAX_ANSWERING} versions answer on one endpoint. Take a canary out first.")
    if _interface(model_version) != _interface(split.champion.model_version):
        raise Conflict(
            f"{model_version} has other inputs or outputs than {split.champion.model_version}, and a caller cannot"
            " tell which of the two will answer. Start it with 100 %.",
            field="initial_weight",
        )


def check_shadow(endpoint: Endpoint, model_version: ModelVersion) -> None:
    """Raise ``Conflict`` if a version cannot shadow what answers on the endpoint."""
    split = Split.of(endpoint)
    if split.champion is None:
        raise Conflict(f"Nothing answers on {endpoint.name} yet, so there is nothing to copy.")
    if len(split.shadows) >= MAX_SHADOWS:
        raise Conflict(f"An endpoint has at most {MAX_SHADOWS} shadows. Remove one first.")
    if any(row.model_version_id == model_version.pk for row in (*split.answering, *split.shadows)):
        raise Conflict(f"{model_version} is on {endpoint.name} already.", field="model_version")
    if not model_version.is_ready:
        raise Conflict(f"{model_version} is not ready: only a version that passed validation can shadow.")
    if model_version.signature["inputs"] != split.champion.model_version.signature["inputs"]:
        raise Conflict(
            f"{model_version} takes other inputs than {split.champion.model_version}, so it cannot get copies.",
            field="model_version",
        )


def check_weights(split: Split, weights: Mapping[int, int]) -> None:
    """Raise ``DomainError`` unless ``weights`` (deployment id -> per cent) is a split of what answers now."""
    if set(weights) != {row.pk for row in split.answering}:
        raise DomainError("Give every version that answers its share, and no other.", field="weights")
    if any(not 0 <= weight <= 100 for weight in weights.values()) or sum(weights.values()) != 100:
        raise DomainError(
            f"The shares are {sum(weights.values())} % together; they must be 0 to 100 each, and 100 together.",
            field="weights",
        )
    champion = split.champion
    if champion is not None and weights[champion.pk] == 0 and 100 not in weights.values():
        raise DomainError(
            f"{champion.model_version} is the champion and cannot go to 0 % beside several canaries."
            " Give one canary 100 % to put it in its place.",
            field="weights",
        )


def _is_canary(row: Deployment) -> bool:
    return row.role == DeploymentRole.CANARY


def _interface(model_version: ModelVersion) -> set[tuple[str, str, str]]:
    """What a caller has to know of a model: the tensors by side, name and datatype."""
    signature = model_version.signature
    return {(side, spec["name"], spec["datatype"]) for side in ("inputs", "outputs") for spec in signature[side]}
