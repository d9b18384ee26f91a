"""The supervisor as a process among processes: what it starts, restarts, and never leaves behind."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable

import psycopg
import pytest

from console.installation import Installation
from console.processes import wait_until
from tests.console.conftest import Stack, marked_processes

StartStack = Callable[..., Stack]

SLEEPER = [sys.executable, "-c", "import time; time.sleep(60)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)",
]
# A parent whose child has left its group and session, as a job's subprocess may.
PARENT = [
    sys.executable,
    "-c",
    "import subprocess, sys, time\n"
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True)\n"
    "time.sleep(60)",
]
BROKEN = [sys.executable, "-c", "raise SystemExit('libexample.so.1: cannot open shared object file')"]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stop_leaves_nothing(installation: Installation, start_stack: StartStack, sent: signal.Signals) -> None:
    stack = start_stack({"sleeper": SLEEPER, "parent": PARENT}, "database")
    stack.wait_for("ready")
    assert wait_until(lambda: len(marked_processes()) == 3, 30.0, interval_s=0.1)
    assert stack.end(sent) < 10.0
    assert stack.process.returncode == 0
    assert marked_processes() == []
    assert "database system is shut down" in (installation.logs / "postgres.log").read_text().splitlines()[-1]


def test_a_service_that_ignores_the_stop_is_ended(installation: Installation, start_stack: StartStack) -> None:
    stack = start_stack({"stubborn": STUBBORN})
    stack.wait_for("ready")
    assert wait_until(lambda: "deaf" in (installation.logs / "stubborn.log").read_text(), 30.0)
    assert stack.end(signal.SIGINT) < 10.0
    assert marked_processes() == []


def test_a_killed_service_comes_back_without_its_leftovers(start_stack: StartStack) -> None:
    stack = start_stack({"parent": PARENT})
    stack.wait_for("ready")
    assert wait_until(lambda: len(marked_processes()) == 2, 30.0, interval_s=0.1)
    first = {process.pid for process in marked_processes()}
    os.kill(min(first), signal.SIGKILL)
    stack.wait_for("parent stopped (SIGKILL), starting it again")
    assert wait_until(lambda: len(marked_processes()) == 2, 30.0, interval_s=0.1)
    assert first.isdisjoint(process.pid for process in marked_processes())


def test_a_killed_database_comes_back(installation: Installation, start_stack: StartStack) -> None:
    stack = start_stack({}, "database")
    stack.wait_for("ready")
    with psycopg.connect(installation.database_dsn("owner")) as connection:
        connection.execute("CREATE TABLE note (body text)")
        row = connection.execute("SELECT pg_backend_pid()").fetchone()
    assert row is not None
    pid_file = installation.postgres_home / "data" / "postmaster.pid"
    os.kill(int(pid_file.read_text().split("\n")[0]), signal.SIGKILL)
    stack.wait_for("database runs again")
    with psycopg.connect(installation.database_dsn("owner")) as connection:
        assert connection.execute("SELECT count(*) FROM note").fetchone() == (0,)


def test_a_killed_supervisor_leaves_nothing_for_long(installation: Installation, start_stack: StartStack) -> None:
    stack = start_stack({"sleeper": SLEEPER, "stubborn": STUBBORN}, "database")
    stack.wait_for("ready")
    assert wait_until(lambda: "deaf" in (installation.logs / "stubborn.log").read_text(), 30.0)
    sleeper, stubborn = stack.pid_of("sleeper"), stack.pid_of("stubborn")
    stack.end(signal.SIGKILL)
    if sys.platform == "linux":
        assert wait_until(lambda: sleeper not in [process.pid for process in marked_processes()], 30.0, interval_s=0.1)

    again = start_stack({"sleeper": SLEEPER}, "database")
    again.wait_for("ready")
    assert "an earlier run left behind" in again.output
    assert stubborn not in [process.pid for process in marked_processes()]
    assert len(marked_processes()) == 1


def test_a_second_supervisor_is_refused(start_stack: StartStack) -> None:
    first = start_stack({"sleeper": SLEEPER})
    first.wait_for("ready")
    second = start_stack({"sleeper": SLEEPER})
    assert second.process.wait(60.0) == 1
    assert "already runs" in second.output
    assert f"process {first.process.pid}" in second.output
    assert len(second.output.splitlines()) == 1
    assert len(marked_processes()) == 1


def test_a_taken_port_is_one_sentence(start_stack: StartStack) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        stack = start_stack({"sleeper": SLEEPER}, f"port={port}")
        assert stack.process.wait(60.0) == 1
    assert f"Port {port} is in use" in stack.output
    assert "set WEB_PORT" in stack.output
    assert len(stack.output.splitlines()) == 1


def test_a_service_that_cannot_start_is_named_with_its_last_line(
    installation: Installation, start_stack: StartStack
) -> None:
    stack = start_stack({"broken": BROKEN, "sleeper": SLEEPER, "unready": SLEEPER}, "unready=http://127.0.0.1:9/")
    assert stack.process.wait(60.0) == 1
    last = stack.output.splitlines()[-1]
    assert "broken keeps stopping right after its start (exit code 1)" in last
    assert "libexample.so.1: cannot open shared object file" in last
    assert str(installation.logs / "broken.log") in last
    assert "Traceback" not in stack.output
    assert marked_processes() == []


def test_problems_in_a_log_reach_the_console(start_stack: StartStack) -> None:
    code = "import time\nprint('all is well')\nprint('ERROR the store is unreachable', flush=True)\ntime.sleep(60)"
    stack = start_stack({"talker": [sys.executable, "-c", code]})
    stack.wait_for("talker: ERROR the store is unreachable")
    assert "all is well" not in stack.output
