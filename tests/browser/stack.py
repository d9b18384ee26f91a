"""The real stack in a directory of its own, as ``make up`` starts it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def find_chromium() -> str | None:
    """The browser that Debian, Ubuntu or a person installed, if there is one."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def free_port() -> int:
    """A port that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Stack:
    """A running product."""

    web: str
    inference: str
    environment: dict[str, str]
    log: Path

    def manage(self, *arguments: str, stdin: str = "") -> str:
        """Run a management command in this installation; returns what it prints."""
        done = subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=PROJECT,
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@contextmanager
def running_stack(var: Path, *, demo: bool) -> Iterator[Stack]:
    """Start everything, wait until it is ready, and stop it as Ctrl-C does."""
    web, inference = free_port(), free_port()
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("COUNTERSIGN", "DJANGO", "TEST_DATABASE"))}
    environment = inherited | {
        "COUNTERSIGN_VAR": str(var),
        "WEB_PORT": str(web),
        "INFERENCE_PORT": str(inference),
        "DEMO": "1" if demo else "0",
        "PYTHONUNBUFFERED": "1",
    }
    log = var.parent / f"{var.name}-up.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "manage.py", "up"], cwd=PROJECT, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        _wait_ready(process, log, "printed only now" if demo else "No account exists yet")
        yield Stack(f"http://127.0.0.1:{web}", f"http://127.0.0.1:{inference}", environment, log)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


def _wait_ready(process: subprocess.Popen[bytes], log: Path, words: str) -> None:
    deadline = time.monotonic() + 240
    while words not in log.read_text(errors="replace"):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"The stack did not start:\n{log.read_text(errors='replace')[-4000:]}")
        time.sleep(0.2)
