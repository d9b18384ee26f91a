"""Callers with request ids of their own, in a process of their own, that remember which were answered."""

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

from benchmarks.models import INPUT, Array

TIMEOUT_S: Final = 60.0
AFTER_FAILURE_S: Final = 0.02


@dataclass(frozen=True)
class Failure:
    """A request without an answer; ``at`` (monotonic) is when that was known."""

    at: float
    text: str


@dataclass
class Ledger:
    """What the callers saw."""

    answered: set[str] = field(default_factory=set)
    failures: list[Failure] = field(default_factory=list)


@dataclass(frozen=True)
class Order:
    """Whom to call, from how many keep-alive connections, and how long each pauses after an answer."""

    address: str  # host and port
    endpoint: str
    token: str
    rows: Array
    connections: int
    pause_s: float


class StormCallers:
    """Call, one row and one request after another on each connection, until stopped."""

    def __init__(self, order: Order) -> None:
        self._pipe, other = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=_run, args=(order, other), daemon=True)

    def start(self) -> None:
        """Begin; returns when answers come. Raises ``TimeoutError`` when none do."""
        self._process.start()
        self._receive("begin")

    def stop(self) -> Ledger:
        """Let requests under way finish. Raises ``TimeoutError`` when the callers do not answer."""
        self._pipe.send(None)
        ledger: Ledger = self._receive("stop")
        self._process.join(TIMEOUT_S)
        return ledger

    def _receive(self, what: str) -> Any:
        if not self._pipe.poll(TIMEOUT_S):
            raise TimeoutError(f"The callers do not {what}.")
        return self._pipe.recv()


def _run(order: Order, pipe: Connection) -> None:
    pipe.send(asyncio.run(_call_all(order, pipe)))


async def _call_all(order: Order, pipe: Connection) -> Ledger:
    ledger, stopping = Ledger(), asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(pipe.fileno(), stopping.set)
    async with InferenceServerClient(order.address, conn_limit=order.connections) as client:
        running = asyncio.gather(
            *(_call(client, order, number, ledger, stopping) for number in range(order.connections))
        )
        while not ledger.answered and not running.done():
            await asyncio.sleep(0.01)
        pipe.send(None)
        await running
    loop.remove_reader(pipe.fileno())
    return ledger


async def _call(
    client: InferenceServerClient, order: Order, number: int, ledger: Ledger, stopping: asyncio.Event
) -> None:
    headers, sent = {"Authorization": f"Bearer {order.token}"}, 0
    while not stopping.is_set():
        sent += 1
        request_id = f"storm-{number}-{sent}"
        given = InferInput(INPUT, [1, *order.rows.shape[1:]], "FP32")
        given.set_data_from_numpy(order.rows[sent % len(order.rows)][None].astype(np.float32))
        try:
            result = await client.infer(order.endpoint, [given], request_id=request_id, headers=headers)
            if (found := result.get_response()["id"]) != request_id:
                raise ValueError(f"the answer to {request_id} says {found}")
        except Exception as error:  # whatever it is, the caller got no answer
            ledger.failures.append(Failure(time.monotonic(), f"{type(error).__name__}: {error}"))
            await asyncio.sleep(AFTER_FAILURE_S)
        else:
            ledger.answered.add(request_id)
            await asyncio.sleep(order.pause_s)
