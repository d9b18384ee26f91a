"""Turns sealed spool files into Parquet segments in the store and registers them: exactly once, whatever dies when.

A spool file is deleted only after its segments are in the store and in the catalog. A segment's path follows from
the spool file's name, so a run that repeats the work of a killed one finds the same path: one that the catalog
knows is done, one that it does not know is written again.

Columns: ``RESERVED_LOG_COLUMNS``, then for each tensor ``input.<name>`` / ``output.<name>`` (a scalar if a row has
one element, else a list in row-major order; FP16 widened to float32; null if not stored), and where it is needed
``shape.input.<name>`` (shape or rank vary, or over the cap) and ``digest.input.<name>`` (SHA-256 of the V2 binary form
of a row over the payload cap).
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import sys
import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from secrets import token_hex
from typing import Any, Final

import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq

from inference.datatypes import V2_DATATYPES, Array
from inference.inference_log import (
    OPEN_SUFFIX,
    SEALED_SUFFIX,
    UNREADABLE_SUFFIX,
    Context,
    StoredRecord,
    StoredTensor,
    backlog,
    is_abandoned,
    is_whole,
    read_spool,
    remove_abandoned,
)
from inference.settings import Settings

logger = logging.getLogger("inference.shipper")

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
CONNECT_TIMEOUT_S: Final = 5
MAX_BACKOFF_S: Final = 30.0
MAX_WAIT_S: Final = 10.0  # for which the shipper takes only what nobody else wants of the processor
MAX_SHARE: Final = 0.25  # of the spool's cap up to which it does
UNFINISHED: Final = ".*-v*.parquet.*"
DICTIONARY_COLUMNS: Final = [
    "endpoint",
    "model",
    "model_version",
    "artifact_digest",
    "role",
    "run_us",
    "batch_size",
    "outcome",
    "error",
    "token_id",
]
"""Values that repeat. Trying a dictionary on all the others would cost more than everything else in a segment."""
REGISTER: Final = """
INSERT INTO monitoring_logsegment
    (path, sha256, endpoint_id, endpoint, model_version, started_at, ended_at, row_count, size_bytes, created_at)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, now())
ON CONFLICT (path) DO NOTHING
"""


@dataclass(frozen=True, slots=True)
class Segment:
    """A file in the store, as the catalog describes it."""

    path: str  # relative to the store's root
    sha256: str
    context: Context
    started_at: datetime
    ended_at: datetime
    row_count: int
    size_bytes: int


class Shipper:
    """Ships every spool folder below one root."""

    def __init__(self, settings: Settings) -> None:
        self._spool = settings.spool
        self._store = settings.store
        self._dsn = settings.database_dsn
        self._interval = settings.seal_interval
        self._cap = settings.spool_cap
        self._stopping = threading.Event()

    def run(self) -> None:
        """Ship until stopped, then once more."""
        remove_unfinished(self._store)
        backoff = self._interval
        is_silent = False
        while not self._stopping.wait(backoff):
            waiting, age_s = backlog(self._spool)
            _stand_back(waiting < MAX_SHARE * self._cap and age_s < MAX_WAIT_S)
            try:
                self.ship_all()
                backoff, is_silent = self._interval, False
            except (psycopg.Error, OSError) as error:
                if not is_silent:
                    logger.warning("Predictions stay in the spool for now: %s", str(error).partition("\n")[0])
                backoff, is_silent = min(max(backoff, 0.5) * 2, MAX_BACKOFF_S), True
        _stand_back(False)
        try:
            self.ship_all()
        except (psycopg.Error, OSError) as error:
            logger.warning("Predictions stay in the spool until the next start: %s", str(error).partition("\n")[0])

    def stop(self) -> None:
        """Ask ``run`` to finish."""
        self._stopping.set()

    def ship_all(self) -> None:
        """Ship every sealed file, and all files of replicas that are dead. Raises when store or database is down."""
        if not self._spool.is_dir():
            return
        with psycopg.connect(self._dsn, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S) as connection:
            for directory in sorted(path for path in self._spool.iterdir() if path.is_dir()):
                self._ship_directory(connection, directory)

    def _ship_directory(self, connection: psycopg.Connection, directory: Path) -> None:
        lock = is_abandoned(directory)
        suffixes = (SEALED_SUFFIX,) if lock is None else (SEALED_SUFFIX, OPEN_SUFFIX)
        try:
            for path in sorted(path for path in directory.iterdir() if path.suffix in suffixes):
                self._ship_file(connection, path)
        finally:
            if lock is not None:
                remove_abandoned(directory, lock)

    def _ship_file(self, connection: psycopg.Connection, path: Path) -> None:
        try:
            self._ship_records(connection, path)
        except (pa.ArrowException, ValueError, KeyError, TypeError):
            # Kept for a person to look at, and out of the way of the files behind it.
            logger.exception("%s cannot be turned into segments; it is kept as .unreadable.", path)
            path.rename(path.with_suffix(UNREADABLE_SUFFIX))
        else:
            # An open file of a dead replica may end in a block that was never answered; a sealed one may not.
            if path.suffix == SEALED_SUFFIX and not is_whole(path):
                logger.error("%s is damaged: what was sound is shipped, the file is kept as .unreadable.", path)
                path.rename(path.with_suffix(UNREADABLE_SUFFIX))
            else:
                path.unlink()

    def _ship_records(self, connection: psycopg.Connection, path: Path) -> None:
        for name, records in _group(path).items():
            known = connection.execute("SELECT 1 FROM monitoring_logsegment WHERE path = %s", (name,)).fetchone()
            if known is None:
                _register(connection, write_segment(self._store, name, records))


def _stand_back(does: bool) -> None:
    """Let everything else on the machine go first, or take part as usual. What waits in the spool is safe there."""
    if sys.platform == "linux":
        os.sched_setscheduler(0, os.SCHED_IDLE if does else os.SCHED_OTHER, os.sched_param(0))


def write_segment(store: Path, name: str, records: Sequence[StoredRecord]) -> Segment:
    """Write records of one version as Parquet: aside, synced, then renamed to ``name`` below the store's root."""
    table = to_table(records)
    target = store / name
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{token_hex(8)}")
    try:
        with open(aside, "xb") as file:
            pq.write_table(table, file, compression="zstd", use_dictionary=DICTIONARY_COLUMNS)
            file.flush()
            os.fsync(file.fileno())
        digest = hashlib.sha256(aside.read_bytes()).hexdigest()
        size = aside.stat().st_size
        os.replace(aside, target)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)
    received = [moment for stored in records for moment in stored.record.received_us]
    return Segment(
        name, digest, records[0].context, _moment(min(received)), _moment(max(received)), table.num_rows, size
    )


def remove_unfinished(store: Path) -> None:
    """Delete what a shipper that was killed had begun to write: no catalog knows it, so nothing else ever would.

    There is only one shipper at a time. Merged segments have other names and are not its own.
    """
    for path in (store / "segments").glob(f"*/*/{UNFINISHED}"):
        path.unlink(missing_ok=True)


def to_table(records: Sequence[StoredRecord]) -> pa.Table:
    """One row per prediction. All records belong to contexts with the same tensors."""
    columns = _request_columns(records)
    context = records[0].context
    sides = [("input", spec) for spec in context.inputs] + [("output", spec) for spec in context.outputs]
    for position, (side, (tensor, datatype, shape)) in enumerate(sides):
        columns |= _tensor_columns(f"{side}.{tensor}", datatype, shape, position, records)
    return pa.table(columns)


def _group(path: Path) -> dict[str, list[StoredRecord]]:
    """The records of a spool file by the path of the segment that they belong to."""
    groups: dict[tuple[Any, ...], list[StoredRecord]] = defaultdict(list)
    for stored in read_spool(path):
        context = stored.context
        if stored.row_count:
            key = (context.endpoint, context.model_version, context.artifact_digest, context.is_batch)
            groups[key].append(stored)
    named = {}
    for position, ((endpoint, version, *_), records) in enumerate(groups.items()):
        day = _moment(records[0].record.received_us[0]).date().isoformat()
        file_name = f"{path.parent.name}-{path.stem}.{position}-v{version}.parquet"
        named[f"segments/{endpoint}/{day}/{file_name}"] = records
    return named


def _request_columns(records: Sequence[StoredRecord]) -> dict[str, Any]:
    counts = np.array([rows for stored in records for rows in stored.record.rows], np.int64)
    sizes = np.array([stored.row_count for stored in records], np.int64)
    ends = np.cumsum(counts)
    row = np.arange(sizes.sum()) - np.repeat(ends - counts, counts)
    by_request = None if (counts == 1).all() else pa.array(np.repeat(np.arange(len(counts)), counts))
    by_record = pa.array(np.repeat(np.arange(len(records)), sizes))

    def spread(name: str, kind: pa.DataType) -> pa.Array:
        values = pa.array(list(chain.from_iterable(getattr(stored.record, name) for stored in records)), kind)
        return values if by_request is None else values.take(by_request)

    def described(name: str, kind: pa.DataType) -> pa.Array:
        return pa.array([getattr(stored.context, name) for stored in records], kind).take(by_record)

    def recorded(name: str, kind: pa.DataType) -> pa.Array:
        return pa.array([getattr(stored.record, name) for stored in records], kind).take(by_record)

    return {
        "request_id": spread("request_ids", pa.string()),
        "row": pa.array(row, pa.int32()),
        "endpoint": described("endpoint", pa.string()),
        "model": described("model", pa.string()),
        "model_version": described("model_version", pa.int32()),
        "artifact_digest": described("artifact_digest", pa.string()),
        "role": described("role", pa.string()),
        "received_at": spread("received_us", pa.timestamp("us", "UTC")),
        "queue_us": spread("queue_us", pa.int64()),
        "run_us": recorded("run_us", pa.int64()),
        "total_us": spread("total_us", pa.int64()),
        "batch_size": recorded("batch_size", pa.int32()),
        "outcome": recorded("outcome", pa.string()),
        "error": recorded("error", pa.string()),
        "token_id": spread("token_ids", pa.int64()),
        "guardrails": _violated(records, int(sizes.sum())),
        "traceparent": _traceparents(records, counts),
    }


def _violated(records: Sequence[StoredRecord], total: int) -> pa.Array:
    """For each row the names of the guardrails that it violates."""
    kind = pa.list_(pa.string())
    if not any(stored.record.violations for stored in records):
        return pa.nulls(total, kind)
    names: list[list[str] | None] = [None] * total
    start = 0
    for stored in records:
        for rule, rows in stored.record.violations:
            for row in rows:
                known = names[start + row]
                names[start + row] = [rule] if known is None else [*known, rule]
        start += stored.row_count
    return pa.array(names, kind)


def _traceparents(records: Sequence[StoredRecord], counts: Array) -> pa.Array:
    if not any(stored.record.traceparents for stored in records):
        return pa.nulls(int(counts.sum()), pa.string())
    given: list[str | None] = []
    for stored in records:
        given += stored.record.traceparents or [None] * len(stored.record.request_ids)
    return pa.array(given, pa.string()).take(pa.array(np.repeat(np.arange(len(counts)), counts)))


def _tensor_columns(
    name: str, datatype: str, shape: tuple[int, ...], position: int, records: Sequence[StoredRecord]
) -> dict[str, pa.Array]:
    is_batch = records[0].context.is_batch
    row_shape = shape[1:] if is_batch else shape
    tensors = [stored.tensors[position] if position < len(stored.tensors) else None for stored in records]
    # ONNX Runtime tells no scalar from a tensor whose rank is unknown, so what there is decides.
    is_known = bool(shape) or not any(tensor.shape for tensor in tensors if tensor is not None)
    is_scalar = is_known and -1 not in row_shape and math.prod(row_shape) == 1
    columns = {name: _values(records, tensors, _arrow_type(datatype), is_scalar=is_scalar)}
    has_digests = any(tensor is not None and tensor.digests for tensor in tensors)
    if has_digests or not is_known or (-1 in row_shape and len(row_shape) > 1):
        shapes: list[Any] = []
        for stored, tensor in zip(records, tensors, strict=True):
            known = None if tensor is None else list(tensor.shape[1:] if is_batch else tensor.shape)
            shapes += [known] * stored.row_count
        columns[f"shape.{name}"] = pa.array(shapes, pa.list_(pa.int64()))
    if has_digests:
        digests: list[str | None] = []
        for stored, tensor in zip(records, tensors, strict=True):
            digests += [None] * stored.row_count if tensor is None or tensor.digests is None else tensor.digests
        columns[f"digest.{name}"] = pa.array(digests, pa.string())
    return columns


def _values(
    records: Sequence[StoredRecord], tensors: Sequence[StoredTensor | None], kind: pa.DataType, *, is_scalar: bool
) -> pa.Array:
    """The column of a tensor. All values are gone over at once: segments have many records of a few rows each."""
    kept = [None if tensor is None or tensor.values is None else tensor.values.reshape(-1) for tensor in tensors]
    present = [values for values in kept if values is not None]
    flat = np.concatenate(present) if present else np.empty(0)
    array = pa.array(flat.astype(np.float32) if flat.dtype == np.float16 else flat, kind if present else None)
    rows = np.array([stored.row_count for stored in records], np.int64)
    is_kept = np.repeat([values is not None for values in kept], rows)
    if is_scalar:
        if len(present) == len(kept):
            return array
        places = np.where(is_kept, np.cumsum(is_kept) - 1, 0)
        return array.cast(kind).take(pa.array(places, mask=~is_kept)) if present else pa.nulls(len(places), kind)
    sizes = np.array([0 if values is None else len(values) for values in kept], np.int64)
    lengths = np.repeat(sizes // np.maximum(rows, 1), rows)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    # A null in the offsets is how Arrow's builder is told of a null list; the last one only ends the column.
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32(), mask=np.append(~is_kept, False)), array.cast(kind))


def _arrow_type(datatype: str) -> pa.DataType:
    if datatype == "BYTES":
        return pa.string()
    if datatype == "FP16":
        return pa.float32()  # exact, and readable everywhere
    return pa.from_numpy_dtype(V2_DATATYPES[datatype])


def _register(connection: psycopg.Connection, segment: Segment) -> None:
    connection.execute(
        REGISTER,
        (
            segment.path,
            segment.sha256,
            segment.context.endpoint_id,
            segment.context.endpoint,
            segment.context.model_version,
            segment.started_at,
            segment.ended_at,
            segment.row_count,
            segment.size_bytes,
        ),
    )


def _moment(microseconds: int) -> datetime:
    return EPOCH + timedelta(microseconds=microseconds)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
