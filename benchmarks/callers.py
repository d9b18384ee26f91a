"""Callers of an endpoint through tritonclient, in a process of their own, that note when which version said what."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Final

import numpy as np
from tritonclient.http import InferInput
from tritonclient.http.aio import InferenceServerClient

CONNECTIONS: Final = 32
COLUMNS: Final = 3
TIMEOUT_S: Final = 60.0
MAX_FAILURES: Final = 20  # told in words; all are counted


@dataclass(frozen=True)
class Call:
    """One answered request; times are of the monotonic clock, which all processes of a machine share."""

    sent_at: float
    answered_at: float
    model_version: int
    is_right: bool  # the output is what this version computes


@dataclass
class Calls:
    """What happened while the callers ran."""

    answered: list[Call] = field(default_factory=list)
    failed: int = 0
    failures: list[str] = field(default_factory=list)


class Callers:
    """Call from 32 connections, one request after another on each, until stopped.

    The endpoint's model versions compute ``y = number * sum(x)``, so a version is known by its answer.
    """

    def __init__(self, address: str, endpoint: str, token: str) -> None:
        """``address``: host and port."""
        self._pipe, other = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=_run, args=(address, endpoint, token, other), daemon=True)

    def start(self) -> None:
        """Begin to call; returns when answers come. Raises ``TimeoutError`` when none do."""
        self._process.start()
        self._receive("begin")

    def stop(self) -> Calls:
        """Let requests under way finish. Raises ``TimeoutError`` when the callers do not answer."""
        self._pipe.send(None)
        calls: Calls = self._receive("stop")
        self._process.join(TIMEOUT_S)
        return calls

    def _receive(self, what: str) -> Any:
        if not self._pipe.poll(TIMEOUT_S):
            raise TimeoutError(f"The callers do not {what}.")
        return self._pipe.recv()


def _run(address: str, endpoint: str, token: str, pipe: Connection) -> None:
    pipe.send(asyncio.run(_call_all(address, endpoint, token, pipe)))


async def _call_all(address: str, endpoint: str, token: str, pipe: Connection) -> Calls:
    calls, stopping = Calls(), asyncio.Event()
    asyncio.get_running_loop().add_reader(pipe.fileno(), stopping.set)
    async with InferenceServerClient(address, conn_limit=CONNECTIONS) as client:
        callers = (_call(client, endpoint, token, seed, calls, stopping) for seed in range(CONNECTIONS))
        running = asyncio.gather(*callers)
        while not (calls.answered or calls.failed):
            await asyncio.sleep(0.01)
        pipe.send(None)
        await running
    asyncio.get_running_loop().remove_reader(pipe.fileno())
    return calls


async def _call(
    client: InferenceServerClient, endpoint: str, token: str, seed: int, calls: Calls, stopping: asyncio.Event
) -> None:
    random = np.random.default_rng(seed)
    while not stopping.is_set():
        row = random.integers(1, 100, (1, COLUMNS)).astype(np.float32)  # sums and products are exact
        given = InferInput("x", list(row.shape), "FP32")
        given.set_data_from_numpy(row)
        sent_at = time.monotonic()
        try:
            result = await client.infer(endpoint, [given], headers={"Authorization": f"Bearer {token}"})
            version = int(result.get_response()["model_version"])
            is_right = bool(np.array_equal(result.as_numpy("y"), version * row.sum(axis=1, keepdims=True)))
        except Exception as error:  # whatever it is, the caller got no answer
            calls.failed += 1
            calls.failures += [f"{type(error).__name__}: {error}"][: MAX_FAILURES - len(calls.failures)]
        else:
            calls.answered.append(Call(sent_at, time.monotonic(), version, is_right))
