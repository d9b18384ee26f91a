"""The whole product on one machine: database, console, workers and inference under one supervisor."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import psycopg
from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.staticfiles.finders import get_finders
from django.core.management.base import BaseCommand

from console.installation import Installation, SigningKey, StartupProblem
from console.postgres import EmbeddedPostgres
from console.supervisor import Service, Step, StopRequested, Supervisor, check_disk, check_port

NEEDED_DISK_BYTES: Final = 500 * 2**20
READY_TIMEOUT_S: Final = 120.0
MANAGE: Final = (sys.executable, str(settings.BASE_DIR / "manage.py"))
SIGNING_KEYS: Final[tuple[SigningKey, ...]] = ("manifest", "audit", "artifact")
QUIET: Final = {"LOG_LEVEL": "WARNING"}  # the demo's HTTP client logs every request
AS_OWNER: Final = {"COUNTERSIGN_DATABASE_ROLE": "owner"}


class Command(BaseCommand):
    """Start everything, keep it running, and stop it on Ctrl-C."""

    help = __doc__
    requires_system_checks = ()

    def handle(self, *args: Any, **options: Any) -> None:
        """Run until Ctrl-C or SIGTERM. Exits with 1 and one sentence when something has to be put right."""
        started_at = time.monotonic()
        supervisor = Supervisor(settings.INSTALLATION, self._say)
        try:
            with supervisor:
                Stack(supervisor, settings.INSTALLATION).bring_up(started_at)
                supervisor.watch()
        except StartupProblem as problem:
            self._say(f"Cannot start. {problem}")
            sys.exit(1)
        except StopRequested:
            self._say("Stopped.")

    def _say(self, line: str) -> None:
        self.stdout.write(line)
        self.stdout.flush()


class Stack:
    """The steps from nothing to a running product."""

    def __init__(self, supervisor: Supervisor, installation: Installation) -> None:
        self._supervisor = supervisor
        self._installation = installation
        self._web_port = read_port("WEB_PORT", 8000)
        self._inference_port = read_port("INFERENCE_PORT", 8080)
        self._grpc_port = read_port("INFERENCE_GRPC_PORT", 0)  # off

    @property
    def _setup_log(self) -> Path:
        return self._installation.logs / "setup.log"

    def bring_up(self, started_at: float) -> None:
        """Start everything; ``started_at`` is the monotonic time from which the seconds are counted."""
        say = self._supervisor.say
        say(f"Countersign starts; its data lies in {self._installation.var_dir}.")
        check_port(self._web_port, "WEB_PORT")
        check_port(self._inference_port, "INFERENCE_PORT")
        if self._grpc_port:
            check_port(self._grpc_port, "INFERENCE_GRPC_PORT")
        check_disk(self._installation.var_dir, NEEDED_DISK_BYTES)
        self._remove_broken_uploads()
        self._make_secrets()
        static = self._begin_static()
        if not os.environ.get("DATABASE_URL"):
            with self._timed("database"):
                self._supervisor.start_database(EmbeddedPostgres(self._installation))
        with self._timed("database tables"):
            self._manage("prepare_database")
        if static is not None:
            with self._timed("static files (only when they have changed)"):
                self._supervisor.finish_step(static[0], "Collecting the static files")
                self._static_stamp.write_text(static[1], encoding="ascii")
        with self._timed("console, worker, controller and inference"):
            self._supervisor.start_services(self._services())
            self._supervisor.wait_ready(READY_TIMEOUT_S)
        say(f"Ready after {time.monotonic() - started_at:.1f} s; stop it with Ctrl-C.")
        say(f"  console    http://127.0.0.1:{self._web_port}/")
        say(f"  inference  http://127.0.0.1:{self._inference_port}/v2/")
        if self._grpc_port:
            say(f"  gRPC       127.0.0.1:{self._grpc_port}")
        say(f"  logs       {self._installation.logs}")
        self._explain_sign_in()

    def _make_secrets(self) -> None:
        """Services that cannot make a secret themselves find it in place."""
        for name in ("django_secret_key", "token_pepper"):
            self._installation.secret(name)
        for kind in SIGNING_KEYS:
            self._installation.ensure_signing_key(kind)

    def _remove_broken_uploads(self) -> None:
        """What killed processes left: uploads that a web process was receiving, working folders of jobs."""
        for path in self._installation.uploads.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self._supervisor.say(f"  {what}: {time.monotonic() - began:.1f} s")

    def _manage(self, command: str, *arguments: str) -> None:
        step = self._supervisor.begin_step([*MANAGE, command, *arguments], AS_OWNER, self._setup_log)
        self._supervisor.finish_step(step, f"manage.py {command}")

    # Static files

    @property
    def _static_stamp(self) -> Path:
        return self._installation.cache / "static-stamp"

    def _begin_static(self) -> tuple[Step, str] | None:
        """Start collecting when a source differs from the last time; compressing takes a while."""
        stamp = static_digest()
        is_collected = self._static_stamp.exists() and (self._installation.static_root / "staticfiles.json").exists()
        if is_collected and self._static_stamp.read_text(encoding="ascii") == stamp:
            return None
        command = [*MANAGE, "collectstatic", "--no-input", "--clear", "--verbosity=0"]
        return self._supervisor.begin_step(command, {}, self._setup_log), stamp

    # Services

    @property
    def _common(self) -> dict[str, str]:
        return {
            "COUNTERSIGN_VAR": str(self._installation.var_dir),
            "COUNTERSIGN_DATABASE_ROLE": "app",
            "WEB_PORT": str(self._web_port),
            "INFERENCE_PORT": str(self._inference_port),
            "INFERENCE_GRPC_PORT": str(self._grpc_port),
            # Shorter than what the supervisor grants before it ends a service by force.
            "INFERENCE_DRAIN_TIMEOUT_S": os.environ.get("INFERENCE_DRAIN_TIMEOUT_S", "3"),
            "PYTHONUNBUFFERED": "1",
        }

    def _services(self) -> list[Service]:
        common = self._common
        granian = [
            sys.executable,
            "-m",
            "granian",
            "console.wsgi:application",
            "--interface=wsgi",
            "--http=1",
            "--no-ws",
        ]
        limits = ["--workers=1", "--blocking-threads=16", "--workers-kill-timeout=3", "--log-level=warning"]
        address = ["--host=127.0.0.1", f"--port={self._web_port}"]
        inference = {"COUNTERSIGN_DATABASE_DSN": self._installation.database_dsn("app")}
        return [
            Service("web", [*granian, *limits, *address], common, f"http://127.0.0.1:{self._web_port}/healthz"),
            Service("worker", [*MANAGE, "qcluster"], common),
            Service("controller", [*MANAGE, "controller"], common),
            Service(
                "inference",
                [sys.executable, "-m", "inference"],
                common | inference,
                f"http://127.0.0.1:{self._inference_port}/v2/health/ready",
            ),
        ]

    # Signing in

    def _explain_sign_in(self) -> None:
        has_users, wants_demo = self._has_users(), is_on("DEMO", default=True)
        if not has_users and wants_demo:
            self._set_up_demo()
        elif self._installation.demo_accounts_file.exists():
            self._supervisor.say(f"Sign in with an account from {self._installation.demo_accounts_file}.")
        elif not has_users:
            self._supervisor.say(
                "No account exists yet. Create the first one: "
                f"COUNTERSIGN_VAR={self._installation.var_dir} {' '.join(MANAGE)} create_admin"
            )
        if wants_demo and self._installation.demo_traffic_file.exists():
            self._supervisor.start_services([Service("traffic", [*MANAGE, "demo_traffic"], self._common | QUIET)])

    def _set_up_demo(self) -> None:
        self._supervisor.say("This installation is empty: setting up a demo team (DEMO=0 leaves it out).")
        try:
            with self._timed("demo team"):
                step = self._supervisor.begin_step([*MANAGE, "demo"], self._common | QUIET, None)
                self._supervisor.finish_step(step, "manage.py demo")
        except StartupProblem as problem:
            self._supervisor.say(f"{problem} Countersign runs without a complete demo team.")

    def _has_users(self) -> bool:
        # Not through Django: its settings were read before the database's place was known.
        table = psycopg.sql.Identifier(get_user_model()._meta.db_table)
        query = psycopg.sql.SQL("SELECT EXISTS (SELECT FROM {})").format(table)
        with psycopg.connect(self._installation.database_dsn("app"), connect_timeout=5) as connection:
            row = connection.execute(query).fetchone()
        return row is not None and bool(row[0])


def read_port(variable: str, default: int) -> int:
    """The port that the environment ``variable`` names. Raises ``StartupProblem`` when it is no number."""
    written = os.environ.get(variable, "") or str(default)
    if not written.isascii() or not written.isdigit():
        raise StartupProblem(f"{variable} is {written!r}: choose a port from 1 to 65535.")
    return int(written)


def is_on(variable: str, *, default: bool) -> bool:
    """A switch from the environment: 0, false, no and off are off."""
    written = os.environ.get(variable, "").strip().lower()
    return written not in {"0", "false", "no", "off"} if written else default


def static_digest() -> str:
    """One digest over every static file and over what compresses them."""
    digest = hashlib.sha256(f"whitenoise {version('whitenoise')} brotli {version('brotli')}".encode())
    for finder in get_finders():
        for path, storage in finder.list([]):
            with storage.open(path) as file:
                digest.update(f"{path}\0{hashlib.sha256(file.read()).hexdigest()}\n".encode())
    return digest.hexdigest()
