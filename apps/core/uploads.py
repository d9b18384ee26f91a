"""Uploads: hashed while they stream to disk, and kept under the name of their content."""

from __future__ import annotations

import hashlib
from typing import Any

from django.core.files.storage import default_storage
from django.core.files.uploadedfile import TemporaryUploadedFile, UploadedFile
from django.core.files.uploadhandler import TemporaryFileUploadHandler


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

    def file_complete(self, file_size: int) -> TemporaryUploadedFile | None:
        """The finished file with its digest."""
        file = super().file_complete(file_size)
        if file is not None:
            file.sha256 = self._sha256.hexdigest()
        return file


def keep(file: UploadedFile, *, folder: str, suffix: str) -> str:
    """Move an upload into the store under its digest; returns its path there. Storing twice stores once."""
    digest: str = file.sha256
    path = f"{folder}/{digest[:2]}/{digest}{suffix}"
    if not default_storage.exists(path):
        saved = default_storage.save(path, file)
        if saved != path:  # somebody stored the same content meanwhile
            default_storage.delete(saved)
    return path
