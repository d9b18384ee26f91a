"""An installation of its own for each test, and the supervisor as a real process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from console.installation import REPOSITORY, Installation
from console.postgres import EmbeddedPostgres
from console.processes import wait_until
from console.supervisor import MARK


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Installation]:
    """An empty installation; a database that was made for it goes afterwards, wherever it lies."""
    installation = Installation(tmp_path / "var")
    yield installation
    EmbeddedPostgres(installation).destroy()


class Stack:
    """A supervisor process whose printed lines and children can be looked at."""

    def __init__(self, installation: Installation, services: dict[str, Sequence[str]], *options: str) -> None:
        self._installation = installation
        self._output = installation.var_dir.with_name(f"output-{time.monotonic_ns()}.txt")
        command = [sys.executable, "-m", "tests.console.tiny_stack", str(installation.var_dir), json.dumps(services)]
        with open(self._output, "wb") as output:
            self.process = subprocess.Popen([*command, *options], cwd=REPOSITORY, stdout=output, stderr=output)

    @property
    def output(self) -> str:
        """Everything it has printed."""
        return self._output.read_text(encoding="utf-8")

    def wait_for(self, text: str, timeout_s: float = 60.0) -> None:
        """Return when ``text`` has been printed."""
        assert wait_until(lambda: text in self.output or self.process.poll() is not None, timeout_s), self.output
        assert text in self.output

    def pid_of(self, service: str, timeout_s: float = 30.0) -> int:
        """The living process that ``service`` consists of at the moment."""
        assert wait_until(lambda: bool(self._pids(service)), timeout_s, interval_s=0.1), self.output
        return self._pids(service)[0]

    def _pids(self, service: str) -> list[int]:
        return [process.pid for process in marked_processes() if process.environ()[MARK].endswith(f"/{service}")]

    def end(self, sent: signal.Signals) -> float:
        """Send ``sent``; returns the seconds until the supervisor was gone."""
        began = time.monotonic()
        self.process.send_signal(sent)
        self.process.wait(30.0)
        return time.monotonic() - began


@pytest.fixture
def start_stack(installation: Installation) -> Iterator[Callable[..., Stack]]:
    """Start supervisors; they and everything of theirs are gone after the test."""
    stacks: list[Stack] = []

    def start(services: dict[str, Sequence[str]], *options: str) -> Stack:
        stacks.append(Stack(installation, services, *options))
        return stacks[-1]

    yield start
    for stack in stacks:
        if stack.process.poll() is None:
            stack.end(signal.SIGTERM)
    for process in marked_processes():
        process.kill()


def marked_processes() -> list[psutil.Process]:
    """Living supervised processes that belong to this test run and not to a product running beside it."""
    found = []
    for process in psutil.process_iter():
        try:
            environment = process.environ()
        except (psutil.Error, OSError):
            continue
        if MARK in environment and environment.get("TEST_RUN") == str(os.getpid()):
            found.append(process)
    return found


@pytest.fixture(autouse=True)
def _name_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_RUN", str(os.getpid()))
