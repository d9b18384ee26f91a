"""Merges the many small segments of an endpoint, a version and a day into few: a search opens every file.

Exactly once, whatever dies when. The merged file is written aside, synced and renamed; then one transaction puts it
into the catalog and takes its parts out; only then, and after the searches that had begun are through, the parts'
files go. A part keeps its row for a while, so that the shipper, which looks for its path, never ships it again; its
SHA-256 stays with the merged segment for good. A part that is not what was registered is never merged: that would give
altered predictions a digest that checks.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, timedelta
from pathlib import Path
from secrets import token_hex
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq
from django.conf import settings
from django.db import connection, transaction
from django.utils import timezone

from apps.monitoring.log_reader import is_intact
from apps.monitoring.models import LogSegment
from inference.contracts import RESERVED_LOG_COLUMNS

logger = logging.getLogger(__name__)

SETTLED_AFTER: Final = timedelta(minutes=10)
SMALL_BYTES: Final = 4 * 1024**2
MAX_MERGED_BYTES: Final = 16 * 1024**2
MAX_PARTS: Final = 64
MIN_PARTS: Final = 16
"""Fewer are merged only when their day is over."""
BUDGET_S: Final = 1.0
"""The controller has other things to do: no merge begins after this long."""
GRACE: Final = timedelta(minutes=1)
"""How long a search that began before a merge may still want its parts' files."""
REMEMBERED: Final = timedelta(days=7)
"""How long a merged part keeps its row. No spool file waits that long to be shipped."""
_INSPECTED: Final = 500
_REMOVED: Final = 2_000
_ROW_GROUP_BYTES: Final = 32 * 1024**2
_STRAY_AFTER_S: Final = 3_600
_PREFIX: Final = "merged-"

_GROUP: Final = """
SELECT endpoint_id, model_version, layout, date_trunc('day', started_at AT TIME ZONE 'UTC') AS day
FROM monitoring_logsegment
WHERE merged_into_id IS NULL AND size_bytes < %s AND length(layout) = 64 AND created_at < %s
GROUP BY endpoint_id, model_version, layout, day
HAVING count(*) >= %s
    OR (count(*) > 1 AND date_trunc('day', started_at AT TIME ZONE 'UTC') < date_trunc('day', now() AT TIME ZONE 'UTC'))
ORDER BY count(*) DESC
LIMIT 1
"""
_UNREADABLE: Final = "unreadable"


def merge_segments() -> int:
    """Merge until the time is up or there is nothing left to merge; returns how many segments were merged."""
    stop_at = time.monotonic() + BUDGET_S
    _inspect()
    merged = 0
    while time.monotonic() < stop_at:
        parts = _next_parts()
        if not parts:
            break
        merged += _merge(parts)
    return merged


def remove_merged_files() -> int:
    """Delete the files of merged parts, and after a week their rows; returns how many files went."""
    now = timezone.now()
    merged = LogSegment.objects.exclude(merged_into=None)
    gone = list(merged.filter(is_file_removed=False, merged_at__lt=now - GRACE).order_by("merged_at")[:_REMOVED])
    for segment in gone:
        _absolute(segment.path).unlink(missing_ok=True)
    LogSegment.objects.filter(pk__in=[segment.pk for segment in gone]).update(is_file_removed=True)
    forgotten = merged.filter(is_file_removed=True, merged_at__lt=now - REMEMBERED).order_by("merged_at")
    LogSegment.objects.filter(pk__in=list(forgotten.values_list("pk", flat=True)[:_REMOVED])).delete()
    return len(gone)


def _inspect() -> None:
    """Note for settled segments what they can be merged with."""
    fresh = LogSegment.objects.current().filter(layout="", created_at__lt=timezone.now() - SETTLED_AFTER)
    for segment in fresh.order_by("pk")[:_INSPECTED]:
        try:
            layout = _layout(_absolute(segment.path))
        except (OSError, pa.ArrowException, StopIteration):
            layout = _UNREADABLE  # the reader names it; a person has to restore it
        LogSegment.objects.filter(pk=segment.pk).update(layout=layout)


def _layout(path: Path) -> str:
    """A digest of the artifact and of the tensors' columns. Columns of a digest or a shape come and go: nulls do."""
    with pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        digests = next(file.iter_batches(batch_size=1, columns=["artifact_digest"])).column(0).to_pylist()
    tensors = [f"{field.name} {field.type}" for field in schema if field.name.startswith(("input.", "output."))]
    return hashlib.sha256("\n".join([*digests, *sorted(tensors)]).encode()).hexdigest()


def _next_parts() -> list[LogSegment]:
    """The oldest small segments that belong together, as many as one file may hold; empty if there are none."""
    with connection.cursor() as cursor:
        cursor.execute(_GROUP, [SMALL_BYTES, timezone.now() - SETTLED_AFTER, MIN_PARTS])
        row = cursor.fetchone()
    if row is None:
        return []
    endpoint_id, model_version, layout, day = row
    start = day.replace(tzinfo=UTC)
    segments = (
        LogSegment.objects.current()
        .of_endpoint(endpoint_id)
        .filter(
            model_version=model_version,
            layout=layout,
            size_bytes__lt=SMALL_BYTES,
            created_at__lt=timezone.now() - SETTLED_AFTER,
            started_at__gte=start,
            started_at__lt=start + timedelta(days=1),
        )
    )
    parts: list[LogSegment] = []
    for segment in segments.order_by("started_at", "pk")[:MAX_PARTS]:
        if sum(part.size_bytes for part in parts) + segment.size_bytes > MAX_MERGED_BYTES:
            break
        parts.append(segment)
    return parts


def _merge(parts: Sequence[LogSegment]) -> int:
    """Put parts into one file and swap the catalog's rows; returns how many were merged."""
    sound = [part for part in parts if _is_sound(part)]
    if len(sound) < 2:
        return 0
    folder = f"segments/{sound[0].endpoint}/{sound[0].started_at:%Y-%m-%d}"
    name = hashlib.sha256("\n".join(part.path for part in sound).encode()).hexdigest()[:32]
    path = f"{folder}/{_PREFIX}{name}.parquet"
    _remove_strays(_absolute(folder))
    try:
        digest, size = _write(_absolute(path), sound)
    except (pa.ArrowException, ValueError):
        logger.exception("%s segments of %s cannot be merged; they stay as they are.", len(sound), sound[0].endpoint)
        LogSegment.objects.filter(pk__in=[part.pk for part in sound]).update(layout=_UNREADABLE)
        return 0
    _swap(sound, path, digest, size)
    return len(sound)


def _is_sound(part: LogSegment) -> bool:
    """Whether the part's file is what was registered. One that is not stays as it is, for the reader to name."""
    if is_intact(part):
        return True
    logger.error("%s is not the file that was registered: it is not merged.", part.path)
    LogSegment.objects.filter(pk=part.pk).update(layout=_UNREADABLE)
    return False


def _write(target: Path, parts: Sequence[LogSegment]) -> tuple[str, int]:
    """Write the parts' rows aside, synced, then renamed. Returns the file's SHA-256 and size."""
    schema = _union(pq.read_schema(_absolute(part.path)) for part in parts)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{token_hex(8)}")
    try:
        with open(aside, "xb") as file:
            with pq.ParquetWriter(file, schema, compression="zstd") as writer:
                for table in _tables(parts, schema):
                    writer.write_table(table)
            file.flush()
            os.fsync(file.fileno())
        with open(aside, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            rows = pq.read_metadata(file).num_rows
        if rows != sum(part.row_count for part in parts):
            raise ValueError(f"{rows} rows were written, not those of the parts")
        size = aside.stat().st_size
        os.replace(aside, target)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)
    return digest, size


def _union(schemas: Iterator[pa.Schema]) -> pa.Schema:
    """All columns that any part has, the reserved ones first."""
    whole = pa.unify_schemas([schema.remove_metadata() for schema in schemas])
    names = [name for name in RESERVED_LOG_COLUMNS if name in whole.names]
    return pa.schema([whole.field(name) for name in [*names, *(n for n in whole.names if n not in names)]])


def _tables(parts: Sequence[LogSegment], schema: pa.Schema) -> Iterator[pa.Table]:
    """The parts' rows in pieces of a bounded size, with nulls in the columns that a part does not have."""
    waiting: list[pa.Table] = []
    size = 0
    for part in parts:
        with pq.ParquetFile(_absolute(part.path)) as file:
            table = file.read(use_threads=False).replace_schema_metadata(None)
        waiting.append(pa.concat_tables([schema.empty_table(), table], promote_options="default"))
        size += table.nbytes
        if size >= _ROW_GROUP_BYTES:
            yield pa.concat_tables(waiting).combine_chunks()
            waiting, size = [], 0
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks()


@transaction.atomic
def _swap(parts: Sequence[LogSegment], path: str, digest: str, size: int) -> None:
    """Have the catalog name the merged file instead of its parts, all or nothing."""
    current = LogSegment.objects.current().select_for_update().filter(pk__in=[part.pk for part in parts])
    if len(current) != len(parts):
        return  # pruned meanwhile; the merged file is a stray then
    merged = LogSegment.objects.create(
        path=path,
        sha256=digest,
        endpoint_id=parts[0].endpoint_id,
        endpoint=parts[0].endpoint,
        model_version=parts[0].model_version,
        started_at=min(part.started_at for part in parts),
        ended_at=max(part.ended_at for part in parts),
        row_count=sum(part.row_count for part in parts),
        size_bytes=size,
        layout=parts[0].layout,
        parts=[sha256 for part in parts for sha256 in (part.parts or [part.sha256])],
    )
    current.update(merged_into=merged, merged_at=timezone.now())


def _remove_strays(folder: Path) -> None:
    """Delete what a merge that was killed has left in a folder."""
    if not folder.is_dir():
        return
    old = time.time() - _STRAY_AFTER_S
    names = [entry.name for entry in os.scandir(folder) if _PREFIX in entry.name and entry.stat().st_mtime < old]
    paths = {f"segments/{folder.parent.name}/{folder.name}/{name}" for name in names}
    known = set(LogSegment.objects.filter(path__in=paths).values_list("path", flat=True))
    for path in paths - known:
        _absolute(path).unlink(missing_ok=True)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _absolute(path: str) -> Path:
    return Path(settings.INSTALLATION.store) / path
