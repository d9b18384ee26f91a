"""``manage.py up`` as a person runs it: what it refuses in one sentence, and the whole product up and down."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from console.installation import REPOSITORY, Installation
from console.processes import wait_until
from tests.console.conftest import marked_processes

COMMAND = [sys.executable, str(REPOSITORY / "manage.py"), "up"]


@pytest.fixture
def environment(installation: Installation) -> dict[str, str]:
    """What a shell would pass on, with ports and an installation of its own and no demo team."""
    dropped = {"COUNTERSIGN_DATABASE_ROLE", "DATABASE_URL", "DATABASE_OWNER_URL", "INFERENCE_URL"}
    inherited = {name: value for name, value in os.environ.items() if name not in dropped}
    own = {"COUNTERSIGN_VAR": str(installation.var_dir), "DEMO": "0"}
    ports = ("WEB_PORT", "INFERENCE_PORT", "INFERENCE_GRPC_PORT")
    return inherited | own | {name: str(free_port()) for name in ports}


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    yield
    for process in marked_processes():
        process.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def refuse(environment: dict[str, str]) -> str:
    result = subprocess.run(COMMAND, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 1
    assert "Traceback" not in result.stdout + result.stderr
    return (result.stdout + result.stderr).splitlines()[-1]


@pytest.mark.parametrize("variable", ["WEB_PORT", "INFERENCE_PORT", "INFERENCE_GRPC_PORT"])
def test_a_taken_port(environment: dict[str, str], variable: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", int(environment[variable])))
        taken.listen()
        said = refuse(environment)
    assert f"Port {environment[variable]} is in use by another program" in said
    assert f"set {variable} to a free port" in said


@pytest.mark.parametrize("port", ["web", "0", "65536", "-1"])
def test_a_port_that_is_none(environment: dict[str, str], port: str) -> None:
    assert "choose a port from 1 to 65535" in refuse(environment | {"WEB_PORT": port})


def test_a_folder_that_cannot_be_used(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert "set COUNTERSIGN_VAR" in refuse(environment | {"COUNTERSIGN_VAR": str(tmp_path / "file")})


class Run:
    """One run of the product, from its start to a Ctrl-C."""

    def __init__(self, environment: dict[str, str], output: Path) -> None:
        self._output = output
        with open(output, "wb") as file:
            self.process = subprocess.Popen(COMMAND, env=environment, stdout=file, stderr=file)

    @property
    def output(self) -> str:
        return self._output.read_text(encoding="utf-8")

    def wait_ready(self) -> None:
        wait_until(lambda: "No account exists" in self.output or self.process.poll() is not None, 240.0, 0.1)
        assert self.process.poll() is None, self.output
        assert "Ready after" in self.output

    def stop(self) -> float:
        began = time.monotonic()
        self.process.send_signal(signal.SIGINT)
        self.process.wait(30.0)
        return time.monotonic() - began


def test_the_whole_product_starts_is_killed_starts_again_and_stops(
    installation: Installation, environment: dict[str, str], tmp_path: Path
) -> None:
    web, inference = (f"http://127.0.0.1:{environment[name]}" for name in ("WEB_PORT", "INFERENCE_PORT"))
    first = Run(environment, tmp_path / "first.txt")
    first.wait_ready()
    assert httpx.get(f"{web}/sign-in/").status_code == 200
    assert httpx.get(f"{inference}/v2/health/ready").status_code == 200
    assert "create_admin" in first.output
    assert "already runs" in refuse(environment)
    first.process.kill()
    first.process.wait()

    second = Run(environment, tmp_path / "second.txt")
    second.wait_ready()
    assert "static files" not in second.output
    assert second.stop() < 10.0
    assert marked_processes() == []
    if sys.platform == "linux":
        assert "not properly shut down" not in (installation.logs / "postgres.log").read_text(encoding="utf-8")
