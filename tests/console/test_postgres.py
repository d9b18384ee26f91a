"""The embedded server starts on any folder, keeps its data through crashes, and lets nobody in but its two roles."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from console.installation import REPOSITORY, Installation, StartupProblem
from console.postgres import EmbeddedPostgres
from console.processes import wait_until

HOLD = """
import sys, time
from pathlib import Path
from console.installation import Installation
from console.postgres import EmbeddedPostgres
server = EmbeddedPostgres(Installation(Path(sys.argv[1])))
server.start()
print(server.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _no_external_database(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE_URL", "DATABASE_OWNER_URL"):
        monkeypatch.delenv(name, raising=False)


def write_row(installation: Installation) -> None:
    with psycopg.connect(installation.database_dsn("owner")) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS note (body text)")
        connection.execute("INSERT INTO note VALUES ('kept')")


def count_rows(installation: Installation) -> int:
    with psycopg.connect(installation.database_dsn("owner")) as connection:
        row = connection.execute("SELECT count(*) FROM note").fetchone()
    assert row is not None
    return int(row[0])


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_data_outlives_a_stop_and_a_kill(installation: Installation) -> None:
    server = EmbeddedPostgres(installation)
    server.start()
    write_row(installation)
    server.stop()
    assert not server.is_ready()

    server.start()
    assert server.is_ready()
    assert server.pid is not None
    write_row(installation)
    os.kill(server.pid, signal.SIGKILL)
    assert wait_until(lambda: server.poll() is not None, 30.0)

    server.start()
    assert count_rows(installation) == 2


def test_roles(installation: Installation) -> None:
    server = EmbeddedPostgres(installation, durable=False)
    server.start()
    with psycopg.connect(installation.database_dsn("owner"), autocommit=True) as owner:
        owner.execute("CREATE DATABASE test_scratch")
        attributes = owner.execute(
            "SELECT rolname FROM pg_roles WHERE rolcanlogin AND rolsuper AND rolname LIKE 'countersign%'"
        )
        assert attributes.fetchall() == []
    with psycopg.connect(installation.database_dsn("app")) as app, pytest.raises(psycopg.errors.InsufficientPrivilege):
        app.execute("CREATE TABLE intruder (id int)")
    with pytest.raises(psycopg.OperationalError, match=r"no pg_hba.conf entry|rejects connection"):
        psycopg.connect(host=str(installation.postgres_socket_dir), user="postgres", dbname="postgres")


def test_new_passwords_are_taken_over(installation: Installation) -> None:
    server = EmbeddedPostgres(installation, durable=False)
    server.start()
    server.stop()
    (installation.secrets_dir / "database_owner_password").unlink()
    server.start()
    write_row(installation)


def test_lock_files_that_name_another_living_process(installation: Installation) -> None:
    server = EmbeddedPostgres(installation)
    server.start()
    socket_lock = installation.postgres_socket_dir / ".s.PGSQL.5432.lock"
    left = {path: path.read_text() for path in (server.data_dir / "postmaster.pid", socket_lock)}
    pid = str(server.pid)
    server.stop()
    # Of the server's own account: it takes no notice of another's processes.
    account = server.data_dir.stat().st_uid if os.geteuid() == 0 else None
    stranger = subprocess.Popen(["sleep", "60"], user=account)  # noqa: S607
    try:
        for path, text in left.items():
            path.write_text(text.replace(pid, str(stranger.pid), 1))
        server.start()
        assert server.is_ready()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_socket_path_longer_than_the_system_allows(tmp_path: Path) -> None:
    installation = Installation(tmp_path / ("long" * 30) / "var")
    server = EmbeddedPostgres(installation, durable=False)
    try:
        server.start()
        write_row(installation)
        assert len(str(installation.postgres_socket_dir)) < 90
        assert installation.postgres_socket_dir.stat().st_mode & 0o777 == 0o700
        server.stop()
        place = installation.postgres_socket_dir
        server.start()
        assert installation.postgres_socket_dir == place
        assert count_rows(installation) == 1
    finally:
        server.destroy()


def test_a_second_server_on_the_same_data_is_refused(installation: Installation) -> None:
    first = EmbeddedPostgres(installation, durable=False)
    first.start()
    with pytest.raises(StartupProblem, match="already running"):
        EmbeddedPostgres(installation).start()
    assert first.is_ready()
    first.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the next start does this")
def test_the_server_stops_cleanly_when_its_starter_is_killed(installation: Installation) -> None:
    starter = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(installation.var_dir)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert starter.stdout is not None
    server_pid = int(starter.stdout.readline())
    write_row(installation)
    starter.kill()
    starter.communicate()
    assert wait_until(lambda: is_gone(server_pid), 30.0)

    server = EmbeddedPostgres(installation)
    server.start()
    assert count_rows(installation) == 1
    assert "database system was not properly shut down" not in server.log_file.read_text()


def test_data_of_another_release_is_left_alone(installation: Installation) -> None:
    server = EmbeddedPostgres(installation, durable=False)
    server.start()
    server.stop()
    (server.data_dir / "PG_VERSION").write_text("17\n")
    with pytest.raises(StartupProblem, match="written by PostgreSQL 17"):
        server.start()


def test_a_full_disk_is_one_sentence(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("console.postgres.MIN_FREE_BYTES", 2**60)
    with pytest.raises(StartupProblem, match="make room and start again"):
        EmbeddedPostgres(installation).start()
