"""The pack as a ZIP: the same files give the same bytes, and a signed list of their digests goes with them. Pure."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from typing import IO, Final

from apps.audit.verify import PACK_FORMAT

MANIFEST: Final = "manifest.note"
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)  # the earliest time that a ZIP can hold
_REGULAR_FILE: Final = 0o100644 << 16


def manifest_body(pack_id: str, files: Mapping[str, bytes]) -> str:
    """What is signed: the format, the pack, and a line ``<sha256>  <path>`` for each file, in the order of paths."""
    lines = [f"{hashlib.sha256(files[path]).hexdigest()}  {path}" for path in sorted(files)]
    return "\n".join((PACK_FORMAT, pack_id, *lines, ""))


def write_archive(target: IO[bytes], files: Mapping[str, bytes], manifest: str) -> None:
    """Write the ZIP; ``manifest`` is the signed note over ``manifest_body`` of these files."""
    if MANIFEST in files:
        raise ValueError(f"{MANIFEST} is written last, over all other files")
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for path, content in ((MANIFEST, manifest.encode()), *sorted(files.items())):
            entry = zipfile.ZipInfo(path, _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3  # Unix, on every platform
            entry.external_attr = _REGULAR_FILE
            archive.writestr(entry, content)
