"""Uploads: hashed while they stream to disk, bounded, and kept under the name of their content."""

from __future__ import annotations

import hashlib
import os
from typing import Any, Protocol

from django.conf import settings
from django.core.files.storage import default_storage
from django.core.files.uploadedfile import UploadedFile
from django.core.files.uploadhandler import TemporaryFileUploadHandler

from apps.core.errors import TooLarge


class Upload(Protocol):
    """An uploaded file with the digest (hex SHA-256) that the handler computed."""

    name: str | None
    size: int | None
    sha256: str

    def seek(self, offset: int, /) -> Any:
        """Go to a position."""

    def read(self, count: int, /) -> bytes:
        """The next bytes."""


class HashingUploadHandler(TemporaryFileUploadHandler):
    """Stream an upload to a temporary file beside the store and give it ``sha256`` (hex) on the way.

    ``UploadCapMiddleware`` has bounded the request; an upload that breaks off leaves nothing behind.
    """

    def new_file(self, *args: Any, **kwargs: Any) -> None:
        """Begin a file."""
        super().new_file(*args, **kwargs)
        self._sha256 = hashlib.sha256()

    def receive_data_chunk(self, raw_data: bytes, start: int) -> None:
        """Hash and write; at most one chunk is in memory."""
        self._sha256.update(raw_data)
        super().receive_data_chunk(raw_data, start)

    def file_complete(self, file_size: int) -> UploadedFile[Any] | None:
        """The finished file with its digest, safe on the disk before anything refers to it."""
        file = super().file_complete(file_size)
        if file is not None:
            file.flush()
            os.fsync(file.fileno())
            file.sha256 = self._sha256.hexdigest()
        return file


def cap_sentence() -> str:
    """What a person is told whose file is too large."""
    cap = settings.UPLOAD_MAX_BYTES / 1024**2
    return f"The file is over this installation's cap of {cap:,.0f} MiB. Make it smaller, or raise UPLOAD_MAX_BYTES."


def refuse_over_cap(file: Upload) -> None:
    """Hold the cap to the byte; the middleware only bounds the whole request. Raises ``TooLarge``."""
    if (file.size or 0) > settings.UPLOAD_MAX_BYTES:
        raise TooLarge(cap_sentence(), field="file")


def keep(file: Any, *, folder: str, suffix: str) -> str:
    """Move an upload into the store under its digest; returns its path there. Storing twice stores once."""
    digest: str = file.sha256
    path = f"{folder}/{digest[:2]}/{digest}{suffix}"
    if default_storage.exists(path) and not _is_intact(path, digest):
        default_storage.delete(path)  # so that uploading again repairs a damaged copy
    if not default_storage.exists(path):
        saved = default_storage.save(path, file)
        if saved != path:  # somebody stored the same content meanwhile
            default_storage.delete(saved)
    return path


def _is_intact(path: str, digest: str) -> bool:
    with default_storage.open(path) as stored:
        return hashlib.file_digest(stored, "sha256").hexdigest() == digest
