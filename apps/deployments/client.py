"""Calling the inference service for a person who is signed in to the console."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any, Final

import httpx
from django.conf import settings

from apps.core.errors import DomainError
from apps.deployments.manifest import console_token
from apps.deployments.models import Endpoint

_TIMEOUT_S: Final = 10.0
_ANSWER_CAP: Final = 200_000


@dataclass(frozen=True, slots=True)
class Answer:
    """What the endpoint said: HTTP status, its body as indented text, milliseconds seen from the console."""

    status: int
    text: str
    request_id: str
    elapsed_ms: float

    @property
    def is_ok(self) -> bool:
        """True for a prediction."""
        return self.status == 200


def predict(endpoint: Endpoint, body: dict[str, Any], *, request_id: str) -> Answer:
    """Send one request. Raises ``DomainError`` if the service cannot be reached."""
    started = time.perf_counter()
    try:
        response = httpx.post(
            f"{settings.INFERENCE_URL}/v2/models/{endpoint.name}/infer",
            json=body,
            headers={"Authorization": f"Bearer {console_token()}", "X-Request-ID": request_id},
            timeout=_TIMEOUT_S,
            trust_env=False,
        )
    except httpx.HTTPError as error:
        raise DomainError(f"The inference service does not answer ({type(error).__name__}). Is it running?") from error
    elapsed_ms = (time.perf_counter() - started) * 1000
    try:
        text = json.dumps(response.json(), indent=2, ensure_ascii=False)
    except ValueError:
        text = response.text
    answered_id = response.headers.get("X-Request-ID", request_id)
    return Answer(response.status_code, text[:_ANSWER_CAP], answered_id, elapsed_ms)


def write_request(request: dict[str, Any]) -> str:
    """The request as JSON that a person can edit: one line for each tensor."""
    inputs = ",\n".join(f"  {json.dumps(tensor)}" for tensor in request["inputs"])
    return f'{{"inputs": [\n{inputs}\n]}}'


def example_request(signature: dict[str, Any]) -> dict[str, Any]:
    """A request that fits a signature: zeros (or empty strings), one row, free dimensions 1."""
    inputs = []
    for spec in signature["inputs"]:
        shape = [max(dimension, 1) if dimension != -1 else 1 for dimension in spec["shape"]]
        size = 1
        for dimension in shape:
            size *= dimension
        filler: Any = {"BYTES": "", "BOOL": False}.get(
            spec["datatype"], 0.0 if spec["datatype"].startswith("FP") else 0
        )
        inputs.append(
            {"name": spec["name"], "shape": shape, "datatype": spec["datatype"], "data": [filler] * min(size, 4096)}
        )
    return {"inputs": inputs}
