"""What a guardrail that is being written would have said of the newest predictions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from apps.core.errors import DomainError
from apps.deployments.models import Endpoint
from apps.deployments.services import current_champion
from apps.deployments.trial import Trial
from apps.monitoring.log_reader import LogFilter, Prediction, read_log
from apps.monitoring.tensors import Tensor
from inference.contracts import Signature

NEWEST: Final = 200
_EXAMPLES: Final = 5


@dataclass(slots=True)
class Replay:
    """How many of the newest predictions were checked and violate the rule, and the newest of those that do.

    ``unchecked`` were not: the log does not hold what the rule reads.
    """

    checked: int = 0
    violated: int = 0
    unchecked: int = 0
    examples: list[Prediction] = field(default_factory=list)


def replay(endpoint: Endpoint, requires: str) -> Replay:
    """Try a rule on the newest ``NEWEST`` rows in the log. Raises ``DomainError`` for one that does not fit."""
    champion = current_champion(endpoint)
    if champion is None:
        raise DomainError(f"Nothing answers on {endpoint.name} yet.")
    trial = Trial(requires, Signature.from_dict(champion.model_version.signature))
    found = Replay()
    for prediction in read_log(endpoint, LogFilter(), size=NEWEST).rows:
        if prediction.columns["role"] == "shadow":
            continue
        try:
            holds = trial.holds(dict(_values(prediction)))
        except DomainError:
            found.unchecked += 1
            continue
        found.checked += 1
        if not holds:
            found.violated += 1
            found.examples = [*found.examples, prediction][:_EXAMPLES]
    return found


def _values(prediction: Prediction) -> Iterator[tuple[str, Any]]:
    """The tensors that the log holds with their values, by ``input.name`` and ``output.name``."""
    for side, tensors in (("input", prediction.inputs), ("output", prediction.outputs)):
        for tensor in tensors:
            if tensor.values is not None:
                yield f"{side}.{tensor.name}", _shaped(tensor)


def _shaped(tensor: Tensor) -> Any:
    if tensor.shape is None or not isinstance(tensor.values, list):
        return tensor.values
    return np.array(tensor.values, object).reshape(tensor.shape).tolist()
