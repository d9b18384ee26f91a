"""Model bytes whose SHA-256 was checked a moment ago: from the local cache, else from the store."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from inference.contracts import DeploymentEntry
from inference.errors import ArtifactRejected

DIGEST: Final = re.compile(r"[0-9a-f]{64}")
MAX_IN_LINE: Final = 1024 * 1024
"""Larger artifacts are handed on as a file: ONNX Runtime copies bytes while it keeps Python from running."""


class ArtifactCache:
    """A folder of artifacts named by their digest, shared by the replicas of a machine."""

    def __init__(self, store: Path, cache: Path) -> None:
        self._store = store
        self._cache = cache / "artifacts"
        self._cache.mkdir(mode=0o700, parents=True, exist_ok=True)

    def read(self, entry: DeploymentEntry) -> bytes:
        """The artifact's bytes, hashed on every call. Raises ``ArtifactRejected`` when they are not those approved."""
        digest = entry.artifact_digest
        if not DIGEST.fullmatch(digest):
            raise ArtifactRejected("The manifest's artifact digest is not a SHA-256.")
        cached = self._cache / f"{digest}.onnx"
        content = _read_if_intact(cached, entry)
        if content is None:
            content = self._fetch(entry)
            _replace(cached, content)
        return content

    @contextlib.contextmanager
    def open(self, entry: DeploymentEntry) -> Iterator[bytes | str]:
        """The same for ONNX Runtime: bytes, or the path of a file that only this process can reach or change."""
        content = self.read(entry)
        if len(content) <= MAX_IN_LINE or sys.platform != "linux":
            yield content
            return
        descriptor = os.memfd_create("artifact")
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(descriptor, view) :]
            del content, view
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)

    def keep(self, digests: Iterable[str]) -> None:
        """Remove cached artifacts other than ``digests``."""
        wanted = {f"{digest}.onnx" for digest in digests}
        for path in self._cache.glob("*.onnx"):
            if path.name not in wanted:
                path.unlink(missing_ok=True)

    def _fetch(self, entry: DeploymentEntry) -> bytes:
        path = (self._store / entry.artifact_path).resolve()
        if not path.is_relative_to(self._store.resolve()):
            raise ArtifactRejected("The artifact's path leads out of the store.")
        try:
            size = path.stat().st_size
            content = path.read_bytes() if size == entry.artifact_size else b""
        except OSError as error:
            raise ArtifactRejected(f"The artifact cannot be read from the store: {error.strerror}.") from error
        if size != entry.artifact_size or hashlib.sha256(content).hexdigest() != entry.artifact_digest:
            raise ArtifactRejected(
                "The artifact in the store is not the one that was approved: its SHA-256 does not match the manifest."
            )
        return content


def _read_if_intact(path: Path, entry: DeploymentEntry) -> bytes | None:
    try:
        if path.stat().st_size != entry.artifact_size:
            return None
        content = path.read_bytes()
    except OSError:
        return None
    return content if hashlib.sha256(content).hexdigest() == entry.artifact_digest else None


def _replace(path: Path, content: bytes) -> None:
    """Write aside and rename, so that another replica never sees half a file. A full disk costs only the cache."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        aside.write_bytes(content)
        os.replace(aside, path)
    except OSError:
        aside.unlink(missing_ok=True)
