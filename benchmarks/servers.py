"""Who is measured: the product's inference service, the yardstick, the in-process limit and the peers."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime as ort
import psutil

from benchmarks.answers import WrongAnswer, check_answers
from benchmarks.dialects import BENTOML, MLFLOW, V2, V2_BINARY, V2_WITH_ID, Dialect
from benchmarks.load import SERVER_CORE, CannotMeasure, Measurement, Target, pinned, process_tree, put_load
from benchmarks.models import PEERS, Model
from benchmarks.product import free_port, wait_for
from benchmarks.service import Service

FOLDER: Final = Path(__file__).resolve().parent
YARDSTICK_SOURCE: Final = FOLDER / "yardstick" / "server.cpp"
START_TIMEOUT_S: Final = 120.0
STOP_TIMEOUT_S: Final = 10.0
LIMIT_S: Final = 1.0
ONE_THREAD: Final = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}


class Contestant(ABC):
    """Something whose speed is measured: ``prepare`` once, ``start`` with a model, ``measure`` often, ``stop``."""

    name: str

    def prepare(self) -> None:  # noqa: B027 - not everybody needs something
        """Build or install what it needs. Raises ``CannotMeasure`` when that does not work here."""

    @abstractmethod
    def start(self, model: Model) -> None:
        """Get ready to serve a model on the server's core. Raises ``CannotMeasure``."""

    @abstractmethod
    def measure(self, *, connections: int, seconds: float, is_binary: bool) -> Measurement | None:
        """One run, its answers checked before and after; None if it does not speak binary. Raises ``CannotMeasure``."""

    @abstractmethod
    def stop(self) -> None:
        """Leave nothing running."""


class Limit(Contestant):
    """ONNX Runtime alone, in a process of its own."""

    name = "limit"

    def start(self, model: Model) -> None:
        self._rows = PEERS / "models" / f"{model.name}.npy"
        np.save(self._rows, model.rows)
        self._model = model

    def measure(self, *, connections: int, seconds: float, is_binary: bool) -> Measurement | None:
        command = [sys.executable, "-m", "benchmarks.limit", str(self._model.path), str(self._rows), str(LIMIT_S)]
        finished = subprocess.run(
            command, cwd=FOLDER.parent, capture_output=True, text=True, check=True, preexec_fn=pinned(SERVER_CORE)
        )
        return Measurement(rate=float(finished.stdout))

    def stop(self) -> None:
        """Nothing runs between measurements."""


class Server(Contestant):
    """Something that answers over HTTP."""

    json: Dialect = V2
    binary: Dialect | None = None
    lead_in_s = 1.0

    @abstractmethod
    def target(self, dialect: Dialect) -> Target:
        """Where to ask for the model that it was started with."""

    def settle(self) -> None:
        """Wait until it has finished what its last requests left to do."""

    def measure(self, *, connections: int, seconds: float, is_binary: bool) -> Measurement | None:
        dialect = self.binary if is_binary else self.json
        if dialect is None:
            return None
        target = self.target(dialect)
        check_answers(target)

        def finish() -> None:
            check_answers(target)
            self.settle()

        measured = put_load(target, connections=connections, lead_in_s=self.lead_in_s, seconds=seconds, settle=finish)
        if measured.failed:
            raise CannotMeasure(f"{self.name}: {measured.failed} requests failed under load.")
        return measured


class Countersign(Server):
    """The product's inference service with everything that it always does."""

    name = "ours"
    binary = V2_BINARY
    lead_in_s = 4.0  # until the shipper has its first files, and works during the run as under lasting load

    def __init__(self, service: Service) -> None:
        self._service = service

    def start(self, model: Model) -> None:
        self._model = model
        self._service.publish({model.name: model})
        self._service.start()

    def target(self, dialect: Dialect) -> Target:
        return Target(self._service.url, self._model, dialect, self._service.headers, self._service.pid)

    def settle(self) -> None:
        self._service.settle()

    def stop(self) -> None:
        self._service.stop()


class Unlogged(Countersign):
    """The same service, except that it forgets its log."""

    name = "unlogged"


class Foreign(Server):
    """A server that is started by one command and serves one model."""

    environment: Mapping[str, str] = {}

    @abstractmethod
    def command(self, model: Model, port: int) -> Sequence[str]:
        """How to serve ``model`` on ``port``."""

    def start(self, model: Model) -> None:
        self._model = model
        self._port = free_port()
        folder = PEERS / self.name
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / "server.log"
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                self.command(model, self._port),
                cwd=folder,
                env={**os.environ, **ONE_THREAD, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=pinned(SERVER_CORE),
            )
        try:
            wait_for(self._answers, START_TIMEOUT_S, f"starting {self.name}")
        except TimeoutError as error:
            raise CannotMeasure(f"{self.name} did not start: {self._last_lines()}") from error
        self._signal(signal.SIGSTOP)

    def measure(self, *, connections: int, seconds: float, is_binary: bool) -> Measurement | None:
        """As any server, but it stands still while others are measured: some poll when they have nothing to do."""
        self._signal(signal.SIGCONT)
        try:
            return super().measure(connections=connections, seconds=seconds, is_binary=is_binary)
        finally:
            self._signal(signal.SIGSTOP)

    def target(self, dialect: Dialect) -> Target:
        return Target(f"http://127.0.0.1:{self._port}", self._model, dialect, {}, self._process.pid)

    def stop(self) -> None:
        if not hasattr(self, "_process"):
            return
        processes = process_tree(self._process.pid)
        self._signal(signal.SIGCONT)
        self._signal(signal.SIGTERM)
        _, alive = psutil.wait_procs(processes, STOP_TIMEOUT_S)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait(STOP_TIMEOUT_S)

    def _answers(self) -> bool:
        if self._process.poll() is not None:
            raise CannotMeasure(f"{self.name} ended at its start: {self._last_lines()}")
        try:
            check_answers(self.target(self.json))
        except WrongAnswer:
            raise
        except CannotMeasure:
            return False
        return True

    def _last_lines(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")[-1000:]

    def _signal(self, number: signal.Signals) -> None:
        for process in process_tree(self._process.pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)


class Yardstick(Foreign):
    """The minimal C++ server, over the library that the product's own wheel brings."""

    name = "yardstick"
    binary = V2_BINARY

    def prepare(self) -> None:
        compiler = shutil.which("g++") or shutil.which("clang++")
        if compiler is None:
            raise CannotMeasure("The yardstick needs a C++ compiler: apt-get install g++")
        self._program.parent.mkdir(parents=True, exist_ok=True)
        command = [compiler, "-std=c++17", "-O3", "-o", str(self._program), str(YARDSTICK_SOURCE), "-ldl"]
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
        if finished.returncode:
            raise CannotMeasure(f"The yardstick does not compile: {finished.stderr[-1000:]}")

    def command(self, model: Model, port: int) -> Sequence[str]:
        libraries = sorted((Path(ort.__file__).parent / "capi").glob("libonnxruntime.so.*"))
        if not libraries:
            raise CannotMeasure("This build of onnxruntime has no shared library that the yardstick could load.")
        return [str(self._program), str(model.path), str(port), str(libraries[0])]

    @property
    def _program(self) -> Path:
        return PEERS / self.name / "server"


class Peer(Foreign):
    """A serving library from the package index, in a virtual environment of its own with pinned versions."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.json = PEER_DIALECTS[name]
        self._venv = PEERS / name / "venv"
        # Some start their servers by the name of a program.
        self.environment = {"PATH": f"{self._venv / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"}

    def prepare(self) -> None:
        requirements = FOLDER / "peer_requirements" / f"{self.name}.txt"
        installed = self._venv / "installed.txt"
        wanted = requirements.read_bytes()
        if installed.exists() and installed.read_bytes() == wanted:
            return
        install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile", "--requirement"]
        for command in (
            [sys.executable, "-m", "venv", "--clear", str(self._venv)],
            [str(self._python), *install, str(requirements)],
        ):
            finished = subprocess.run(command, capture_output=True, text=True, check=False)
            if finished.returncode:
                raise CannotMeasure(f"{self.name} cannot be installed: {finished.stderr[-500:]}")
        installed.write_bytes(wanted)

    def command(self, model: Model, port: int) -> Sequence[str]:
        script = FOLDER / "peer_servers" / f"run_{self.name}.py"
        return [str(self._python), str(script), str(model.path), model.name, str(port)]

    @property
    def _python(self) -> Path:
        return self._venv / "bin" / "python"


PEER_DIALECTS: Final = {
    "mlserver": V2,
    "kserve": V2_WITH_ID,
    "mlflow": MLFLOW,
    "litserve": V2,
    "bentoml": BENTOML,
}
"""The peers, and the format in which each takes its requests."""
