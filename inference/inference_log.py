"""The durable spool of predictions: append-only files of checksummed columnar blocks, one block per batch.

A replica appends a block before it answers, so that its death loses nothing that was answered. The shipper
(another process) turns sealed files into Parquet segments. A file is a sequence of blocks, each
``magic, kind, payload length, CRC-32 of kind, length and payload`` and the payload; a block that does not check
out ends the file.

kind CONTEXT: JSON that describes a version on an endpoint, with an ``id`` that records refer to.
kind RECORD: length of the JSON, JSON with one entry per request, then the raw tensors of all rows of the batch.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import orjson

from inference.contracts import DeploymentEntry, EndpointEntry, Outcome
from inference.datatypes import V2_DATATYPES, Array
from inference.errors import Overloaded
from inference.protocol import to_binary

BLOCK: Final = struct.Struct("<4sBxxxII")
CHECKED_HEAD: Final = struct.Struct("<BxxxI")  # zeros after a torn write must not look like an empty block
LENGTH: Final = struct.Struct("<I")
MAGIC: Final = b"CSL1"
CONTEXT, RECORD = 0, 1
SEALED_SUFFIX: Final = ".spool"
OPEN_SUFFIX: Final = ".open"
UNREADABLE_SUFFIX: Final = ".unreadable"  # kept for a person to look at
MAX_FILE_BYTES: Final = 64 * 1024 * 1024
MAX_BLOCK_BYTES: Final = 0xFFFF_0000


class LogUnavailable(Overloaded):
    """The prediction cannot be logged now, so it must not be served."""


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """What all records of one version on one endpoint share. Compared by identity, which costs nothing."""

    endpoint: str
    endpoint_id: int
    deployment_id: int
    model: str
    model_version: int
    artifact_digest: str
    role: str
    is_batch: bool  # each row of a tensor is a prediction; otherwise a request is one, with the whole tensor
    inputs: tuple[tuple[str, str, tuple[int, ...]], ...]  # name, datatype, shape of the signature
    outputs: tuple[tuple[str, str, tuple[int, ...]], ...]
    payload_cap: int  # bytes of one row's tensor
    redacted: tuple[str, ...]

    @classmethod
    def of(cls, endpoint: EndpointEntry, deployment: DeploymentEntry, *, is_batch: bool) -> Self:
        """The context of a deployment."""
        signature = deployment.signature
        return cls(
            endpoint=endpoint.name,
            endpoint_id=endpoint.endpoint_id,
            deployment_id=deployment.deployment_id,
            model=deployment.model,
            model_version=deployment.model_version,
            artifact_digest=deployment.artifact_digest,
            role=deployment.role,
            is_batch=is_batch,
            inputs=tuple((spec.name, spec.datatype, spec.shape) for spec in signature.inputs),
            outputs=tuple((spec.name, spec.datatype, spec.shape) for spec in signature.outputs),
            payload_cap=endpoint.log.payload_cap_bytes,
            redacted=endpoint.log.redact,
        )


@dataclass(slots=True)
class Record:
    """One batch: lists have one entry per request; tensors hold all rows, or are empty if the model did not run."""

    outcome: Outcome
    request_ids: list[str]
    token_ids: list[int]
    received_us: list[int]  # since the epoch
    rows: list[int]
    queue_us: list[int]
    total_us: list[int]
    run_us: int = 0
    batch_size: int = 0  # rows that ran together
    error: str | None = None
    violations: Sequence[tuple[str, list[int]]] = ()  # name of a guardrail, rows of the batch that violate it
    traceparents: Sequence[str | None] = ()  # empty if no request came with one
    inputs: Sequence[Array] = ()
    outputs: Sequence[Array] = ()


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as it was logged: its values, or digest and shape of each row, or nothing when it is redacted."""

    values: Array | None
    digests: list[str] | None
    shape: tuple[int, ...]


@dataclass(slots=True)
class StoredRecord:
    """A record read back; ``tensors`` are the context's inputs, then its outputs, or empty."""

    context: Context
    record: Record
    tensors: list[StoredTensor] = field(default_factory=list)

    @property
    def row_count(self) -> int:
        """How many predictions it holds."""
        return sum(self.record.rows)


class Spool:
    """The spool of one run of a replica. Not thread-safe: the event loop's thread owns it."""

    def __init__(self, root: Path, replica_id: str, *, cap: int, seal_interval: float) -> None:
        self._cap = cap
        self._seal_interval = seal_interval
        self._root = root
        self._lock, self.directory = _claim(root, replica_id)
        self._sequence = 0
        self._descriptor = -1
        self._path = self.directory
        self._size = 0
        self._opened_at = 0.0
        self._known: dict[Context, int] = {}
        self._backlog = 0  # bytes of the whole root at the last look, plus what was written since
        self._syncer = ThreadPoolExecutor(1, thread_name_prefix="fdatasync")
        self._waiting: list[Callable[[Exception | None], None]] = []
        self._sealed_unsynced: list[int] = []
        self._is_syncing = False
        self.measure_backlog()

    @property
    def name(self) -> str:
        """Names this run of the replica in file names, for ever."""
        return self.directory.name

    @property
    def is_full(self) -> bool:
        """Whether the spool has reached its cap, so that nothing more may be served."""
        return self._backlog >= self._cap

    def append(self, context: Context, record: Record) -> None:
        """Write a record whole, or not at all and raise ``LogUnavailable``: the spool or the disk is full."""
        if self.is_full:
            raise LogUnavailable("The inference log is full; predictions are not served unlogged.", 5)
        if self._descriptor >= 0 and (
            self._size >= MAX_FILE_BYTES or time.monotonic() - self._opened_at >= self._seal_interval
        ):
            self.seal()
        try:
            if self._descriptor < 0:
                self._open()
            number = self._known.get(context)
            if number is None:
                number = len(self._known)
                self._write(CONTEXT, orjson.dumps({"id": number, **asdict(context)}))
                self._known[context] = number
            self._write(RECORD, _encode(number, context, record))
        except OSError as error:
            raise LogUnavailable("The inference log cannot be written; nothing is served unlogged.", 5) from error

    def sync(self, done: Callable[[Exception | None], None]) -> None:
        """Call ``done`` on the event loop once everything written so far is on the disk (one fdatasync for many)."""
        self._waiting.append(done)
        if not self._is_syncing:
            self._start_sync()

    def seal(self) -> None:
        """Hand the current file over to the shipper."""
        if self._descriptor < 0:
            return
        if self._waiting:  # a sync still has to cover this file
            self._sealed_unsynced.append(self._descriptor)
        else:
            os.close(self._descriptor)
        self._descriptor = -1
        os.rename(self._path, self._path.with_suffix(SEALED_SUFFIX))

    def seal_if_due(self) -> None:
        """Seal a file that has been open for the seal interval; called by a timer when there is no traffic."""
        if self._descriptor >= 0 and time.monotonic() - self._opened_at >= self._seal_interval:
            self.seal()

    def measure_backlog(self) -> None:
        """Look how many bytes of the root, of all replicas, wait for the shipper."""
        self._backlog = backlog(self._root)[0]

    def close(self) -> None:
        """Seal what is open and let the folder go: the shipper takes what is left."""
        self.seal()
        self._syncer.shutdown()
        os.close(self._lock)

    def _open(self) -> None:
        self._sequence += 1
        self._path = self.directory / f"{self._sequence:08d}{OPEN_SUFFIX}"
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        self._size = 0
        self._opened_at = time.monotonic()
        self._known = {}

    def _write(self, kind: int, payload: bytes) -> None:
        length = len(payload)
        if length > MAX_BLOCK_BYTES:
            raise LogUnavailable("The batch is too large for the inference log.")
        checksum = zlib.crc32(payload, zlib.crc32(CHECKED_HEAD.pack(kind, length)))
        total = length + BLOCK.size
        written = -1
        try:
            written = os.writev(self._descriptor, [BLOCK.pack(MAGIC, kind, length, checksum), payload])
        finally:
            if written != total:
                os.ftruncate(self._descriptor, self._size)
        if written != total:
            raise OSError("short write")
        self._size += total
        self._backlog += total

    def _start_sync(self) -> None:
        waiting, self._waiting = self._waiting, []
        self._is_syncing = True
        loop = asyncio.get_running_loop()
        descriptors, self._sealed_unsynced = self._sealed_unsynced, []
        if self._descriptor >= 0:  # duplicated, because the file may be sealed and closed meanwhile
            descriptors.append(os.dup(self._descriptor))
        future = loop.run_in_executor(self._syncer, _sync, descriptors, self.directory)
        future.add_done_callback(lambda done: self._end_sync(waiting, done.exception()))

    def _end_sync(self, waiting: list[Callable[[Exception | None], None]], error: BaseException | None) -> None:
        self._is_syncing = False
        if self._waiting:
            self._start_sync()
        problem = None if error is None else LogUnavailable("The inference log cannot be synced to the disk.", 5)
        for done in waiting:
            done(problem)


def read_spool(path: Path) -> Iterator[StoredRecord]:
    """Read a spool file up to its end or the first block that does not check out (a torn tail)."""
    contexts: dict[int, Context] = {}
    for kind, payload in _blocks(path):
        if kind == CONTEXT:
            document = orjson.loads(payload)
            number = document.pop("id")
            contexts[number] = _context(document)
        else:
            yield _decode(payload, contexts)


def backlog(root: Path) -> tuple[int, float]:
    """Bytes below a spool's root that wait for the shipper, and the age in seconds of the oldest file among them."""
    found = [_stat(path) for path in root.glob("*/*") if path.suffix != UNREADABLE_SUFFIX]
    oldest = min((one.st_mtime for one in found if one is not None), default=time.time())
    return sum(one.st_size for one in found if one is not None), time.time() - oldest


def is_whole(path: Path) -> bool:
    """Whether every byte of a spool file is in a block that checks out."""
    return sum(BLOCK.size + len(payload) for _, payload in _blocks(path)) == path.stat().st_size


def _blocks(path: Path) -> Iterator[tuple[int, bytes]]:
    """Kind and payload of each block up to the first that does not check out."""
    with open(path, "rb") as file:
        while len(head := file.read(BLOCK.size)) == BLOCK.size:
            magic, kind, length, checksum = BLOCK.unpack(head)
            if magic != MAGIC:
                return
            payload = file.read(length)
            expected = zlib.crc32(payload, zlib.crc32(CHECKED_HEAD.pack(kind, length)))
            if len(payload) != length or checksum != expected:
                return
            yield kind, payload


def is_abandoned(directory: Path) -> int | None:
    """A descriptor that locks the folder if the replica that wrote it is dead; None while it lives."""
    descriptor = os.open(_lock_path(directory), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def remove_abandoned(directory: Path, lock: int) -> None:
    """Remove an empty folder that ``is_abandoned`` locked, and let the lock go."""
    if not any(directory.iterdir()):
        directory.rmdir()
        _lock_path(directory).unlink(missing_ok=True)
    os.close(lock)


def _claim(root: Path, replica_id: str) -> tuple[int, Path]:
    """Lock a new name and make its folder. The lock dies with the process, which is how the shipper knows."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    while True:
        directory = root / f"{replica_id}-{time.time_ns() // 1_000_000:x}"
        lock = is_abandoned(directory)
        if lock is not None:
            try:
                directory.mkdir(mode=0o700)
            except FileExistsError:
                os.close(lock)
            else:
                return lock, directory
        time.sleep(0.002)


def _lock_path(directory: Path) -> Path:
    return directory.with_name(directory.name + ".lock")


def _sync(descriptors: list[int], directory: Path) -> None:
    """Sync the data of files, close them, and sync the folder that names them."""
    sync_data = getattr(os, "fdatasync", os.fsync)  # macOS has no fdatasync
    try:
        for descriptor in descriptors:
            sync_data(descriptor)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    folder = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _encode(number: int, context: Context, record: Record) -> bytes:
    tensors, buffers = [], []
    specs = (*context.inputs, *context.outputs)
    for (name, _, _), array in zip(specs, (*record.inputs, *record.outputs), strict=False):
        entry, buffer = _store(array, name, context)
        tensors.append(entry)
        if buffer is not None:
            buffers.append(buffer)
    text = orjson.dumps(
        (
            number,
            record.outcome,
            record.request_ids,
            record.token_ids,
            record.received_us,
            record.rows,
            record.queue_us,
            record.total_us,
            record.run_us,
            record.batch_size,
            record.error,
            record.violations,
            record.traceparents,
            tensors,
        )
    )
    return b"".join((LENGTH.pack(len(text)), text, *buffers))


def _store(array: Array, name: str, context: Context) -> tuple[Any, bytes | None]:
    """How a tensor is kept: ``[shape, bytes]`` and the bytes, ``[shape, digests]``, or ``[shape]`` if redacted."""
    shape = array.shape
    if name in context.redacted:
        return (shape,), None
    is_text = array.dtype.kind == "O"
    buffer = to_binary(array) if is_text else b""
    size = len(buffer) if is_text else array.nbytes
    rows = shape[0] if context.is_batch else 1
    if size <= context.payload_cap * max(rows, 1):
        return (shape, size), buffer or array.tobytes()
    parts = [array[row : row + 1] for row in range(rows)] if context.is_batch else [array]
    return (shape, [_digest(part) for part in parts]), None


def _digest(array: Array) -> str:
    """SHA-256 of a tensor in its binary form."""
    is_plain = array.dtype.kind != "O" and array.flags.c_contiguous
    return hashlib.sha256(array.data if is_plain else to_binary(array)).hexdigest()


def _decode(payload: bytes, contexts: dict[int, Context]) -> StoredRecord:
    (length,) = LENGTH.unpack_from(payload)
    offset = LENGTH.size + length
    number, *fields, tensors = orjson.loads(payload[LENGTH.size : offset])
    context = contexts[number]
    stored = StoredRecord(context, Record(*fields))
    specs = (*context.inputs, *context.outputs)
    for (_, datatype, _), (shape, *kept) in zip(specs, tensors, strict=False):
        if kept and isinstance(kept[0], int):
            values = _array(payload[offset : offset + kept[0]], datatype, shape)
            stored.tensors.append(StoredTensor(values, None, tuple(shape)))
            offset += kept[0]
        else:
            stored.tensors.append(StoredTensor(None, kept[0] if kept else None, tuple(shape)))
    return stored


def _array(buffer: bytes, datatype: str, shape: list[int]) -> Array:
    if datatype != "BYTES":
        return np.frombuffer(buffer, V2_DATATYPES[datatype]).reshape(shape)
    texts, position = [], 0
    while position < len(buffer):
        (length,) = LENGTH.unpack_from(buffer, position)
        position += LENGTH.size + length
        texts.append(buffer[position - length : position].decode())
    return np.array(texts, object).reshape(shape)


def _context(document: dict[str, Any]) -> Context:
    tensors = {
        side: tuple((name, datatype, tuple(shape)) for name, datatype, shape in document[side])
        for side in ("inputs", "outputs")
    }
    return Context(**{**document, **tensors, "redacted": tuple(document["redacted"])})
