"""Where one installation keeps its files and secrets; importable before Django is set up."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal
from urllib.parse import quote, urlencode

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

REPOSITORY: Final = Path(__file__).resolve().parent.parent
DATABASE_NAME: Final = "countersign"
DATABASE_ROLES: Final = ("app", "owner")

SigningKey = Literal["manifest", "audit", "artifact"]


class StartupProblem(Exception):
    """Something that a person has to put right; the message is one sentence that says what to do."""


def write_private(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content`` in one step, readable by its owner only."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@dataclass(frozen=True, slots=True)
class Installation:
    """The folder (``var/`` by default) that holds everything one installation owns."""

    var_dir: Path

    @classmethod
    def from_environ(cls) -> Installation:
        """The installation that ``COUNTERSIGN_VAR`` names, ``var/`` beside the code without it."""
        configured = os.environ.get("COUNTERSIGN_VAR", "")
        return cls(Path(configured).expanduser().resolve() if configured else REPOSITORY / "var")

    @property
    def secrets_dir(self) -> Path:
        """One 0600 file for each secret."""
        return self.var_dir / "secrets"

    @property
    def store(self) -> Path:
        """Artifacts, datasets and log segments when the store is a local folder."""
        return self.var_dir / "store"

    @property
    def spool(self) -> Path:
        """The inference log before it is shipped."""
        return self.var_dir / "spool"

    @property
    def run(self) -> Path:
        """Locks and the record of running processes; of no value once they have stopped."""
        return self.var_dir / "run"

    @property
    def logs(self) -> Path:
        """One log file for each process."""
        return self.var_dir / "logs"

    @property
    def uploads(self) -> Path:
        """Uploads in progress; on the store's file system, so that keeping one is a rename."""
        return self.var_dir / "uploads"

    @property
    def cache(self) -> Path:
        """Inference's verified copies of artifacts and its last good manifest."""
        return self.var_dir / "cache"

    @property
    def anchors(self) -> Path:
        """The audit log's checkpoints, outside the database."""
        return self.var_dir / "anchors"

    @property
    def static_root(self) -> Path:
        """Collected and compressed static files."""
        return self.var_dir / "static"

    @property
    def demo_accounts_file(self) -> Path:
        """Sign-in details of the demo team, 0600."""
        return self.var_dir / "demo-accounts.txt"

    @property
    def demo_traffic_file(self) -> Path:
        """The token and the rows that the demo's traffic consists of."""
        return self.secrets_dir / "demo-traffic.json"

    @property
    def postgres_home(self) -> Path:
        """The embedded database's folder: ``var/postgres`` unless its server cannot reach that."""
        return Path(self._postgres_places().get("home", self.var_dir / "postgres"))

    @property
    def postgres_socket_dir(self) -> Path:
        """The folder of the embedded database's socket."""
        return Path(self._postgres_places().get("socket", self.postgres_home / "socket"))

    def record_postgres_places(self, **places: Path) -> None:
        """Remember a ``home`` or ``socket`` that lies outside ``var_dir`` for later starts and other processes."""
        known = self._postgres_places() | {name: str(path) for name, path in places.items()}
        write_private(self._postgres_places_file, json.dumps(known, indent=1).encode())

    @property
    def _postgres_places_file(self) -> Path:
        return self.var_dir / "postgres-places.json"

    def _postgres_places(self) -> dict[str, str]:
        try:
            places: dict[str, str] = json.loads(self._postgres_places_file.read_bytes())
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise StartupProblem(
                f"{self._postgres_places_file} is damaged ({error}): restore it, it says where the database lies."
            ) from error
        return places

    def prepare(self) -> None:
        """Create the folders. Raises ``StartupProblem`` when they cannot be written."""
        try:
            # The embedded server's account has to pass through var_dir, but need not list it.
            self.var_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
            folders = (
                self.secrets_dir,
                self.store,
                self.spool,
                self.run,
                self.logs,
                self.uploads,
                self.cache,
                self.anchors,
            )
            for folder in folders:
                folder.mkdir(mode=0o700, exist_ok=True)
                if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
                    raise PermissionError(13, "Permission denied", str(folder))
        except OSError as error:
            raise StartupProblem(
                f"Cannot use {error.filename or self.var_dir} ({error.strerror}): "
                "start as the user who owns it, or set COUNTERSIGN_VAR to a folder that you can write."
            ) from error

    def secret(self, name: str) -> str:
        """The secret called ``name``: 64 random URL-safe characters, generated on first use."""
        path = self.secrets_dir / name
        with self._secrets_lock(path) as is_missing:
            if is_missing:
                write_private(path, secrets.token_urlsafe(48).encode())
        return path.read_text(encoding="ascii")

    def ensure_signing_key(self, kind: SigningKey) -> Path:
        """The PEM file of the private key for ``kind``; the public key lies beside it.

        Ed25519, but for artifacts, whose signatures others check with OpenSSF's tools: those know P-256 and no Ed25519.
        """
        path = self.secrets_dir / f"{kind}_signing_key.pem"
        with self._secrets_lock(path, self.public_key_file(kind)) as is_missing:
            if is_missing:
                self._write_signing_key(kind, path)
        return path

    def public_key_file(self, kind: SigningKey) -> Path:
        """The PEM file of the public key for ``kind``; call ``ensure_signing_key`` before reading it."""
        return self.secrets_dir / f"{kind}_public_key.pem"

    def _write_signing_key(self, kind: SigningKey, path: Path) -> None:
        if not path.exists():
            generated = ec.generate_private_key(ec.SECP256R1()) if kind == "artifact" else Ed25519PrivateKey.generate()
            private_pem = generated.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            write_private(path, private_pem)
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        public_pem = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        write_private(self.public_key_file(kind), public_pem)

    @contextlib.contextmanager
    def _secrets_lock(self, *paths: Path) -> Iterator[bool]:
        """Yield whether one of ``paths`` is still to be made; if so, no other process makes it meanwhile."""
        if all(path.exists() for path in paths):
            yield False
            return
        self.prepare()
        with open(self.secrets_dir / ".lock", "ab", opener=_private_opener) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield not all(path.exists() for path in paths)

    def database_dsn(self, role: str = "app") -> str:
        """The libpq URL for ``app`` or ``owner``: ``DATABASE_URL`` / ``DATABASE_OWNER_URL``, else the embedded server.

        ``psycopg.conninfo.conninfo_to_dict`` takes it apart. Raises ``StartupProblem`` for any other role.
        """
        if role not in DATABASE_ROLES:
            raise StartupProblem(f"The database has no role {role!r}: set COUNTERSIGN_DATABASE_ROLE to app or owner.")
        if external := os.environ.get("DATABASE_URL", ""):
            return os.environ.get("DATABASE_OWNER_URL", "") or external if role == "owner" else external
        password = quote(self.secret(f"database_{role}_password"), safe="")
        query = urlencode({"host": str(self.postgres_socket_dir)})
        return f"postgresql://countersign_{role}:{password}@/{DATABASE_NAME}?{query}"


def _private_opener(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
