"""Runs the product's processes on one machine: start, watch, restart with backoff, stop, and clean up after a crash."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Final
from urllib.parse import urlsplit

import psutil

from console.installation import REPOSITORY, Installation, StartupProblem, write_private
from console.postgres import EmbeddedPostgres
from console.processes import AlreadyLocked, die_with_parent, signal_group, take_lock, wait_until

MARK: Final = "COUNTERSIGN_SUPERVISED"
"""Environment variable by which a process is known as one of a run's, whatever group or parent it has moved to."""

TICK_S: Final = 0.2
STEADY_S: Final = 30.0  # a service that ran this long is no longer "dying at its start"
FIRST_DELAY_S: Final = 0.5
LONGEST_DELAY_S: Final = 30.0
FAILURES_TO_REPORT: Final = 4
SERVICE_STOP_S: Final = 4.0  # with the database's own limit below the 10 s that a stop may take
LOG_LIMIT_BYTES: Final = 50 * 2**20
PROBLEM_LINES: Final = 5  # shown of each log in each window
PROBLEM_WINDOW_S: Final = 10.0

LOW_DISK_BYTES: Final = 300 * 2**20
DISK_INTERVAL_S: Final = 60.0

PROBLEM: Final = re.compile(r"\b(ERROR|CRITICAL|FATAL|PANIC)\b|^[\w.]*(Error|Exception)\b")
DATABASE_PROBLEM: Final = re.compile(r"\b(FATAL|PANIC)\b|No space left on device")
"""A failed statement is the sender's to report."""

STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequested(BaseException):
    """Raised once, in the main thread, by Ctrl-C or a terminating signal."""


@dataclass(frozen=True, slots=True)
class Service:
    """A long-running child, ready when ``health_url`` answers 200; without one, when it has run for ``settle_s``."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    health_url: str = ""
    settle_s: float = 3.0


class LogTail:
    """Follows a log file: new problem lines for the console, the last line for an error, and a bound on its size."""

    def __init__(self, path: Path, problem: re.Pattern[str] = PROBLEM) -> None:
        self.path = path
        self._problem = problem
        self._offset = path.stat().st_size if path.exists() else 0
        self._window_at = 0.0
        self._shown = 0
        self._hidden = 0

    def problems(self) -> list[str]:
        """New lines since the last call that tell of a problem; of many in a row, a handful and a count."""
        now = time.monotonic()
        lines = []
        if now - self._window_at > PROBLEM_WINDOW_S:
            if self._hidden:
                lines.append(f"... {self._hidden} more problem lines in {self.path}")
            self._window_at, self._shown, self._hidden = now, 0, 0
        found = [line for line in self._new_lines() if self._problem.search(line)]
        shown = found[: PROBLEM_LINES - self._shown]
        self._shown += len(shown)
        self._hidden += len(found) - len(shown)
        return lines + shown

    def _new_lines(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError), open(self.path, "rb") as log:
            size = os.fstat(log.fileno()).st_size
            log.seek(min(self._offset, size))
            # A line that is still being written is left for the next time, unless it is endless.
            chunk = log.read(2**20)
            complete = chunk[: chunk.rfind(b"\n") + 1] or (chunk if len(chunk) == 2**20 else b"")
            self._offset = log.tell() - len(chunk) + len(complete)
            if size > LOG_LIMIT_BYTES:
                self._rotate()
            return complete.decode("utf-8", "replace").splitlines()
        return []

    def last_line(self) -> str:
        """The line at the end that says most: an exception's first line, else the last one."""
        with contextlib.suppress(FileNotFoundError), open(self.path, "rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - 8192))
            lines = [line.strip() for line in log.read().decode("utf-8", "replace").splitlines() if line.strip()]
            exceptions = [line for line in lines[-5:] if PROBLEM.search(line)]
            return (exceptions or lines or ["it printed nothing"])[-1]
        return "it printed nothing"

    def _rotate(self) -> None:
        # Children hold the file open for appending, so it is emptied in place.
        with contextlib.suppress(OSError):  # on a full disk, room matters more than the old lines
            shutil.copyfile(self.path, self.path.with_suffix(".log.1"))
        os.truncate(self.path, 0)
        self._offset = 0


class _Child:
    """One service's process and its restarts."""

    def __init__(self, service: Service, mark: str, log_file: Path) -> None:
        self.service = service
        self.tail = LogTail(log_file)
        self.mark = f"{mark}/{service.name}"
        self.process: subprocess.Popen[bytes] | None = None
        self.started_at = 0.0
        self.start_at = 0.0
        self.failures = 0
        self.last_code = 0
        self.is_ready = False

    def start(self) -> None:
        with open(self.tail.path, "ab", opener=_private_opener) as log:
            self.process = subprocess.Popen(
                self.service.command,
                cwd=REPOSITORY,
                env={**os.environ, **self.service.environment, MARK: self.mark},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent(signal.SIGTERM),
            )
        self.started_at = time.monotonic()

    def check_ready(self) -> bool:
        if not self.is_ready and self.process is not None and self.process.poll() is None:
            url = self.service.health_url
            has_settled = time.monotonic() - self.started_at >= self.service.settle_s
            self.is_ready = answers(url) if url else has_settled
        return self.is_ready

    def note_death(self, code: int) -> float:
        """Count the failure; returns the seconds to wait before the next start."""
        self.last_code = code
        if time.monotonic() - self.started_at > STEADY_S:
            self.failures = 0
        delay_s = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0**self.failures)
        self.failures += 1
        self.is_ready = False
        self.process = None
        self.start_at = time.monotonic() + delay_s
        return delay_s

    def complaint(self) -> str:
        return (
            f"{self.service.name} keeps stopping right after its start ({_ending(self.last_code)}): "
            f"{self.tail.last_line()} (full log: {self.tail.path})"
        )


class Supervisor:
    """Runs a database and services until it is told to stop; a context manager that leaves no process behind.

    Use it from the main thread only: Linux ties the children's lives to the thread that starts them.
    """

    def __init__(self, installation: Installation, say: Callable[[str], None]) -> None:
        self._installation = installation
        self._say_line = say
        self._database: EmbeddedPostgres | None = None
        self._database_tail: LogTail | None = None
        self._database_start_at = 0.0
        self._database_failures = 0
        self._children: list[_Child] = []
        self._token = secrets.token_hex(16)
        self._disk_at = 0.0
        self._has_started = False
        self._is_stopping = False
        self._lock: IO[bytes] | None = None

    @property
    def _record(self) -> Path:
        return self._installation.run / "supervisor.json"

    def say(self, line: str) -> None:
        """Print one line; a terminal that is gone is no reason to fail."""
        with contextlib.suppress(OSError, ValueError):
            self._say_line(line)

    def __enter__(self) -> Supervisor:
        self._installation.prepare()
        try:
            self._lock = take_lock(self._installation.run / "supervisor.lock")
        except AlreadyLocked as error:
            raise StartupProblem(
                f"Countersign already runs in {self._installation.var_dir} (process {error.holder}): use that one, "
                "stop it first, or set COUNTERSIGN_VAR, WEB_PORT and INFERENCE_PORT for a second installation."
            ) from None
        for sent in STOP_SIGNALS:
            # nohup has it that the end of the terminal is ignored.
            if sent is not signal.SIGHUP or signal.getsignal(sent) is not signal.SIG_IGN:
                signal.signal(sent, self._on_signal)
        try:
            self._clean_up_last_run()
            write_private(self._record, json.dumps({"token": self._token, "pid": os.getpid()}).encode())
        except BaseException:
            self._release_lock()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self._is_stopping:
            self._is_stopping = True
            raise StopRequested

    def _clean_up_last_run(self) -> None:
        try:
            token = json.loads(self._record.read_bytes())["token"]
        except (FileNotFoundError, ValueError, KeyError):
            return
        if left := end_marked(token, grace_s=2.0):
            self.say(f"Ended {left} processes that an earlier run left behind.")

    # Start

    def start_database(self, database: EmbeddedPostgres) -> None:
        """Start ``database`` and keep it running."""
        self._database_tail = LogTail(database.log_file, DATABASE_PROBLEM)
        database.start()
        self._database = database

    def start_services(self, services: Sequence[Service]) -> None:
        """Start ``services`` and keep them running."""
        for service in services:
            child = _Child(service, self._token, self._installation.logs / f"{service.name}.log")
            self._children.append(child)
            child.start()

    def wait_ready(self, timeout_s: float) -> None:
        """Return when every service is ready. Raises ``StartupProblem`` about the first one that cannot start."""
        deadline = time.monotonic() + timeout_s
        while not all(child.check_ready() for child in self._children):
            self.tick()
            for child in self._children:
                if child.failures >= FAILURES_TO_REPORT and not child.is_ready:
                    raise StartupProblem(child.complaint())
                if time.monotonic() > deadline and not child.is_ready:
                    raise StartupProblem(
                        f"{child.service.name} was not ready after {timeout_s:.0f} s: {child.tail.last_line()} "
                        f"(full log: {child.tail.path})"
                    )
            time.sleep(TICK_S / 2)
        self._has_started = True

    def begin_step(self, command: Sequence[str], environment: Mapping[str, str], log_file: Path | None) -> Step:
        """Start a command that ends by itself; its output goes to ``log_file``, or to the console without one."""
        return Step(command, {**environment, MARK: f"{self._token}/step"}, log_file)

    def finish_step(self, step: Step, what: str) -> None:
        """Wait for ``step`` and keep watching the rest. Raises ``StartupProblem`` when it fails."""
        while (code := step.process.poll()) is None:
            self.tick()
            time.sleep(TICK_S / 4)
        if code != 0:
            where = f": {step.tail.last_line()} (full log: {step.tail.path})" if step.tail else ""
            raise StartupProblem(f"{what} failed ({_ending(code)}){where}.")

    # Watch

    def watch(self) -> None:
        """Keep everything running until ``StopRequested``."""
        while True:
            self.tick()
            time.sleep(TICK_S)

    def tick(self) -> None:
        """Report problems from the logs and restart what has died."""
        if self._database is not None and self._database_tail is not None:
            self._report("database", self._database_tail)
            self._revive_database(self._database)
        for child in self._children:
            self._report(child.service.name, child.tail)
            self._revive(child)
        self._report_disk()

    def _report(self, name: str, tail: LogTail) -> None:
        for line in tail.problems():
            self.say(f"{name}: {line}")

    def _report_disk(self) -> None:
        if time.monotonic() < self._disk_at:
            return
        self._disk_at = time.monotonic() + DISK_INTERVAL_S
        try:
            check_disk(self._installation.var_dir, LOW_DISK_BYTES)
        except StartupProblem as problem:
            self.say(str(problem))

    def _revive(self, child: _Child) -> None:
        if child.process is None:
            if time.monotonic() >= child.start_at:
                self._start_again(child)
            return
        code = child.process.poll()
        if code is None:
            return
        signal_group(child.process.pid, signal.SIGKILL)
        end_marked(child.mark, grace_s=0.0)
        delay_s = child.note_death(code)
        self.say(f"{child.service.name} stopped ({_ending(code)}), starting it again in {delay_s:g} s.")
        if self._has_started and child.failures == FAILURES_TO_REPORT:
            self.say(child.complaint())

    def _start_again(self, child: _Child) -> None:
        try:
            child.start()
        except OSError as error:
            delay_s = child.note_death(1)
            self.say(f"{child.service.name} cannot be started ({error.strerror}), trying again in {delay_s:g} s.")

    def _revive_database(self, database: EmbeddedPostgres) -> None:
        code = database.poll()
        if code is None:
            return
        if self._database_start_at == 0.0:
            self.say(f"database stopped ({_ending(code)}), starting it again.")
        if time.monotonic() < self._database_start_at:
            return
        try:
            database.start()
        except StartupProblem as problem:
            delay_s = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0**self._database_failures)
            self._database_failures += 1
            self._database_start_at = time.monotonic() + delay_s
            self.say(f"{problem} Trying again in {delay_s:g} s.")
        else:
            self._database_failures = 0
            self._database_start_at = 0.0
            self.say("database runs again.")

    # Stop

    def stop(self) -> None:
        """Stop the services, then the database; bounded, and nothing is left running."""
        self._is_stopping = True
        running = [child.process for child in self._children if child.process is not None]
        for process in running:
            process.send_signal(signal.SIGTERM)
        wait_until(lambda: all(process.poll() is not None for process in running), SERVICE_STOP_S)
        for process in running:
            if process.poll() is None:
                signal_group(process.pid, signal.SIGKILL)
        end_marked(self._token, grace_s=0.0)
        for process in running:
            process.wait()
        self._children.clear()
        if self._database is not None:
            self._database.stop()
            self._database = None
        self._record.unlink(missing_ok=True)
        self._release_lock()

    def _release_lock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None


class Step:
    """A command that ends by itself, in its own group."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log_file: Path | None) -> None:
        self.tail = LogTail(log_file) if log_file else None
        with contextlib.ExitStack() as stack:
            log = stack.enter_context(open(log_file, "ab", opener=_private_opener)) if log_file else None
            self.process: subprocess.Popen[bytes] = subprocess.Popen(
                command,
                cwd=REPOSITORY,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent(signal.SIGTERM),
            )


def answers(url: str) -> bool:
    """Whether ``url`` answers 200 within a second."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=1.0)
    try:
        connection.request("GET", parts.path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def check_port(port: int, variable: str) -> None:
    """Raise ``StartupProblem`` when ``port`` on this machine is taken; ``variable`` is what chooses another."""
    if not 0 < port < 65536:
        raise StartupProblem(f"{variable} is {port}: choose a port from 1 to 65535.")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except PermissionError:
            raise StartupProblem(f"This account may not use port {port}: set {variable} to one above 1023.") from None
        except OSError:
            raise StartupProblem(
                f"Port {port} is in use by another program: stop that program, or set {variable} to a free port."
            ) from None


def check_disk(folder: Path, needed_bytes: int) -> None:
    """Raise ``StartupProblem`` when the disk of ``folder`` has less than ``needed_bytes`` free."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise StartupProblem(
            f"Only {free // 2**20} MB are free on the disk of {folder}, and {needed_bytes // 2**20} MB are needed: "
            "make room, or set COUNTERSIGN_VAR to a folder on a larger disk."
        )


def end_marked(mark: str, *, grace_s: float) -> int:
    """End every process marked with ``mark`` or below it, by force after ``grace_s``; returns how many there were."""
    marked = _marked_processes(mark)
    for process in marked if grace_s else ():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, left = psutil.wait_procs(marked, timeout=grace_s)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=2.0)
    return len(marked)


def _marked_processes(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and f"{process.environ().get(MARK, '')}/".startswith(f"{mark}/"):
                found.append(process)
    return found


def _ending(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


def _private_opener(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
