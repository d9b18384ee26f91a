"""Whether a server answers correctly: different rows at the same time, each compared with in-process ONNX Runtime."""

from __future__ import annotations

import http.client
from concurrent.futures import ThreadPoolExecutor
from typing import Final
from urllib.parse import urlsplit

import numpy as np

from benchmarks.load import REQUEST_TIMEOUT_S, CannotMeasure, Target

CALLERS: Final = 16
REQUESTS_PER_CALLER: Final = 8
TOLERANCE: Final = 1e-5  # kernels for one row and for several may round differently


class WrongAnswer(CannotMeasure):
    """A server answered something else than the model says."""


def check_answers(target: Target) -> None:
    """Ask for rows from several connections at once. Raises ``WrongAnswer`` or ``CannotMeasure``."""
    with ThreadPoolExecutor(CALLERS) as callers:
        for finished in [callers.submit(_call, target, number) for number in range(CALLERS)]:
            finished.result()


def _call(target: Target, number: int) -> None:
    connection = http.client.HTTPConnection(urlsplit(target.url).netloc, timeout=REQUEST_TIMEOUT_S)
    try:
        for turn in range(REQUESTS_PER_CALLER):
            _ask(connection, target, (number + turn * CALLERS) % len(target.model.rows))
    except (OSError, http.client.HTTPException) as error:
        raise CannotMeasure(f"{target.url}{target.path} does not answer: {error}") from error
    finally:
        connection.close()


def _ask(connection: http.client.HTTPConnection, target: Target, index: int) -> None:
    headers, body = target.dialect.encode(target.model.rows[index])
    connection.request("POST", target.path, body, {**headers, **target.headers})
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != 200:
        raise CannotMeasure(
            f"{target.url}{target.path} answered {answer.status}: {content[:300].decode(errors='replace')}"
        )
    outputs = target.dialect.decode({name.lower(): value for name, value in answer.getheaders()}, content)
    expected = target.model.expected[index]
    if "probabilities" not in outputs or not outputs.keys() <= expected.keys():
        raise WrongAnswer(f"{target.url}{target.path} answered with the outputs {sorted(outputs)}.")
    for name, values in outputs.items():
        # MLServer gives a list of labels as a column.
        if values.size != expected[name].size or not np.allclose(
            values.ravel(), expected[name].ravel(), atol=TOLERANCE
        ):
            raise WrongAnswer(f"{target.url}{target.path} got row {index} wrong: {name} is {values.tolist()}.")
