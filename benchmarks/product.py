"""The whole product as one child process of a benchmark: start it, talk to it, stop it, look for leftovers."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil


def free_port() -> int:
    """A TCP port that nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def report(measure: str, **figures: Any) -> None:
    """Print one result as a JSON line."""
    print(json.dumps({"measure": measure, **figures}), flush=True)


def wait_for(condition: Callable[[], bool], timeout_s: float, what: str, *, every_s: float = 0.1) -> float:
    """Seconds until ``condition`` held. Raises ``TimeoutError`` naming ``what``."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > timeout_s:
            raise TimeoutError(f"{what} took longer than {timeout_s:.0f} s")
        time.sleep(every_s)
    return time.monotonic() - began


@dataclass
class Product:
    """An installation in ``var_dir``, run by ``command`` in ``folder``; its output goes to ``var_dir``-side ``log``."""

    folder: Path
    var_dir: Path
    command: Sequence[str]
    web_port: int = field(default_factory=free_port)
    inference_port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        """What the supervisor printed."""
        return self.var_dir.with_name(f"{self.var_dir.name}-console.log")

    def start(self) -> None:
        """Start it; returns at once."""
        environment = os.environ | {
            "COUNTERSIGN_VAR": str(self.var_dir),
            "WEB_PORT": str(self.web_port),
            "INFERENCE_PORT": str(self.inference_port),
        }
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def stop(self, sent: signal.Signals = signal.SIGINT) -> float:
        """Signal the whole group, as Ctrl-C in a terminal does; returns the seconds until it had ended."""
        if self.process is None:
            return 0.0
        began = time.monotonic()
        os.killpg(self.process.pid, sent)
        self.process.wait(30)
        self.process = None
        return time.monotonic() - began

    def leftovers(self) -> list[str]:
        """Command lines of living processes that were started for this installation."""
        found = []
        for process in psutil.process_iter():
            try:
                belongs = process.environ().get("COUNTERSIGN_VAR") == str(self.var_dir)
                if belongs and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(" ".join(process.cmdline()))
            except (psutil.Error, OSError):
                continue
        return found

    def is_alive(self) -> bool:
        """Whether the supervisor runs. Raises ``RuntimeError`` with its last lines when it has given up."""
        if self.process is not None and self.process.poll() is not None:
            raise RuntimeError(f"the product stopped: {self.log.read_text(encoding='utf-8')[-2000:]}")
        return self.process is not None

    def has_printed(self, text: str) -> bool:
        """Whether the supervisor printed ``text``, in any of its runs."""
        return self.is_alive() and text in self.log.read_text(encoding="utf-8")

    def predict(self, request_id: str) -> bool:
        """Send one real row to the demo's endpoint; whether the answer is a prediction."""
        try:
            traffic = json.loads((self.var_dir / "secrets" / "demo-traffic.json").read_bytes())
        except (FileNotFoundError, json.JSONDecodeError):
            return False
        endpoint = next(iter(traffic["rows"]))
        row = traffic["rows"][endpoint][0]
        body = {"id": request_id, "inputs": [{"name": "X", "datatype": "FP32", "shape": [1, len(row)], "data": row}]}
        url = f"http://127.0.0.1:{self.inference_port}/v2/models/{endpoint}/infer"
        try:
            answer = httpx.post(url, json=body, headers={"Authorization": f"Bearer {traffic['token']}"}, timeout=5)
        except httpx.HTTPError:
            return False
        return answer.status_code == 200

    def is_web_up(self) -> bool:
        """Whether the console answers."""
        try:
            return httpx.get(f"http://127.0.0.1:{self.web_port}/healthz", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False
