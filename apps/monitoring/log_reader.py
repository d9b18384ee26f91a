"""Reads the inference log: DuckDB over the Parquet segments that the catalog leaves to read.

Newest first. A search reads segments from the newest back, in slices, until it has a page that no older segment could
add to; a search that finds little stops when its time is up and says how far it came. Values are bound as parameters,
and DuckDB may open nothing but the segments' folder.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple
from uuid import UUID

import duckdb
from django.conf import settings

from apps.core.errors import DomainError
from apps.deployments.models import Endpoint
from apps.monitoring.models import LogSegment
from apps.monitoring.tensors import Tensor
from inference.contracts import RESERVED_LOG_COLUMNS

SEARCH_S: Final = 4.0
"""How long one search may go on to read older segments."""
QUERY_S: Final = 15.0
"""After how long a single query is broken off."""
MAX_NAMED: Final = 100
_ID_SPAN: Final = timedelta(minutes=10)
_FIRST_SLICE, _LARGEST_SLICE = 32, 512
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)

# What is put into the text of a query is one of these; everything else is bound.
_CONDITIONS: Final = {
    "request_id": "request_id = ?",
    "since": "received_at >= ?",
    "until": "received_at <= ?",
    "outcome": "outcome = ?",
    "model_version": "model_version = ?",
    "guardrail": "list_contains(guardrails, ?)",
    "before": "(received_at, request_id, row, model_version, model) < (make_timestamptz(?), ?, ?, ?, ?)",
}
_SOURCE: Final = """
FROM read_parquet(?, union_by_name = true, filename = true, file_row_number = true, hive_partitioning = false)
"""
_FIND: Final = f"""
SELECT epoch_us(received_at), request_id, row, model_version, model, filename, file_row_number, artifact_digest
{_SOURCE}
WHERE received_at IS NOT NULL AND request_id IS NOT NULL AND row IS NOT NULL AND model_version IS NOT NULL
    AND model IS NOT NULL{{conditions}}
ORDER BY received_at DESC, request_id DESC, row DESC, model_version DESC, model DESC
LIMIT ?
"""
_NAMES: Final = f"SELECT * EXCLUDE (received_at, filename, file_row_number) {_SOURCE} LIMIT 0"
_FETCH: Final = f"""
SELECT filename, file_row_number, epoch_us(received_at), COLUMNS(lambda name: list_contains(?, name))
{_SOURCE}
WHERE (filename, file_row_number) IN (SELECT unnest(?), unnest(?))
"""

_KEY: Final = re.compile(r"([0-9]{1,16})~([0-9]{1,9})~([0-9]{1,9})~([a-z0-9-]{0,63})~(.{0,256})")


class LogKey(NamedTuple):
    """A prediction's place in the log's order; ``received_us`` since the epoch.

    Model and version belong to it, because a shadow answers the same request as the champion.
    """

    received_us: int
    request_id: str
    row: int
    model_version: int
    model: str

    @classmethod
    def parse(cls, text: str) -> LogKey:
        """Read what ``str`` wrote. Raises ``DomainError``."""
        match = _KEY.fullmatch(text)
        if match is None:
            raise DomainError("“before” does not name a prediction. Go back to the first page.", field="before")
        received, row, model_version, model, request_id = match.groups()
        return cls(int(received), request_id, int(row), int(model_version), model)

    def __str__(self) -> str:
        return f"{self.received_us}~{self.row}~{self.model_version}~{self.model}~{self.request_id}"


@dataclass(frozen=True, slots=True)
class LogFilter:
    """What to look for; None and empty do not restrict. Times include both ends."""

    request_id: str = ""
    since: datetime | None = None
    until: datetime | None = None
    outcome: str = ""
    model_version: int | None = None
    guardrail: str = ""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One row of the log. ``columns`` are the reserved ones without ``received_at``; None where a segment is older."""

    segment: LogSegment
    received_at: datetime
    columns: dict[str, Any]
    inputs: list[Tensor]
    outputs: list[Tensor]

    @property
    def total_ms(self) -> float:
        """Time within the service."""
        return float(self.columns["total_us"]) / 1000


@dataclass(slots=True)
class LogPage:
    """Predictions, newest first.

    ``next_key`` leads to older ones, if there may be any. ``searched_back_to`` is set when the time was up before the
    page was full. ``unreadable`` names segments of the catalog that are missing or damaged, at most ``MAX_NAMED``.
    """

    rows: list[Prediction] = field(default_factory=list)
    next_key: LogKey | None = None
    searched_back_to: datetime | None = None
    unreadable: list[str] = field(default_factory=list)


_Place = tuple[str, int]  # a file's absolute path, and the row's index in it


class _Hit(NamedTuple):
    """A prediction found, and where it lies."""

    key: LogKey
    path: str
    file_row: int
    artifact_digest: str

    @property
    def place(self) -> _Place:
        """Where it lies."""
        return self.path, self.file_row


def read_log(
    endpoint: Endpoint, wanted: LogFilter, *, before: LogKey | None = None, size: int = 50, tensors: int | None = None
) -> LogPage:
    """The newest ``size`` predictions that fit, older than ``before``, with the first ``tensors`` in- and outputs each.

    Raises ``DomainError`` when a single query takes too long.
    """
    page = LogPage()
    hits: list[_Hit] = []
    searched_to: datetime | None = None
    stop_at = time.monotonic() + SEARCH_S
    segments: dict[str, LogSegment] = {}
    for batch in _slices(endpoint, wanted, before):
        if searched_to is not None and time.monotonic() > stop_at:
            page.searched_back_to = searched_to
            break
        present = {_absolute(segment): segment for segment in batch if _is_whole(segment)}
        page.unreadable += [segment.path for segment in batch if _absolute(segment) not in present]
        segments |= present
        found = _find(list(present), wanted, before, size + 1, page.unreadable, segments)
        hits = sorted([*hits, *found], reverse=True)[: size + 1]
        searched_to = batch[-1].ended_at
        if len(hits) > size and hits[size - 1].key.received_us > _micros(searched_to):
            break
    if page.searched_back_to:
        # What has not been read yet holds nothing newer than this, but may hold rows between older ones found.
        hits = [hit for hit in hits if hit.key.received_us > _micros(page.searched_back_to)]
        page.next_key = LogKey(_micros(page.searched_back_to) + 1, "", 0, 0, "")
    elif len(hits) > size:
        page.next_key = hits[size - 1].key
    page.rows = _fetch(hits[:size], segments, tensors, page.unreadable)
    del page.unreadable[MAX_NAMED:]
    if page.searched_back_to and not page.rows and before is None and (span := _span_of_id(wanted)):
        # The id tells when the request came. That is no reason to look there only: a client may send an id again.
        page.rows = read_log(endpoint, span, size=size, tensors=tensors).rows
    return page


def is_intact(segment: LogSegment) -> bool:
    """Whether a segment's file still has the SHA-256 with which it was registered."""
    try:
        with open(_absolute(segment), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == segment.sha256
    except OSError:
        return False


def _span_of_id(wanted: LogFilter) -> LogFilter | None:
    """The same search within the minutes that a UUIDv7, as the service makes them, tells; None for any other search."""
    if wanted.since or wanted.until:
        return None
    try:
        request_id = UUID(wanted.request_id)
        made_at = _EPOCH + timedelta(milliseconds=request_id.int >> 80)
        since, until = made_at - _ID_SPAN, made_at + _ID_SPAN
    except (ValueError, OverflowError):  # no UUID, or one of a year that there is not
        return None
    return replace(wanted, since=since, until=until) if request_id.version == 7 else None


def _slices(endpoint: Endpoint, wanted: LogFilter, before: LogKey | None) -> Iterator[list[LogSegment]]:
    """The segments that may hold a match, by the end of their time from the newest back, in growing slices."""
    until = min((at for at in (wanted.until, _moment(before)) if at is not None), default=None)
    catalog = (
        LogSegment.objects.current().of_endpoint(endpoint.pk).within(wanted.since, until).order_by("-ended_at", "-pk")
    )
    if wanted.model_version is not None:
        catalog = catalog.filter(model_version=wanted.model_version)
    length, rest = _FIRST_SLICE, catalog
    while batch := list(rest[:length]):
        yield batch
        if len(batch) < length:
            return
        rest = catalog.older_than(batch[-1])
        length = min(length * 2, _LARGEST_SLICE)


def _is_whole(segment: LogSegment) -> bool:
    """Whether a segment's file has the size with which it was registered: the cheap check, made before it is opened."""
    try:
        return os.stat(_absolute(segment)).st_size == segment.size_bytes
    except OSError:
        return False


def _find(
    paths: Sequence[str],
    wanted: LogFilter,
    before: LogKey | None,
    limit: int,
    unreadable: list[str],
    segments: dict[str, LogSegment],
) -> list[_Hit]:
    """Where the newest ``limit`` matches lie in these files. A file that cannot be read is named and left out."""
    if not paths:
        return []
    conditions, values = _conditions(wanted, before)
    try:
        if wanted.guardrail and "guardrails" not in _names(paths):
            return []  # older than the column
        rows = _run(_FIND.format(conditions=conditions), [list(paths), *values, limit])
    except duckdb.Error:
        if len(paths) == 1:
            unreadable.append(segments[paths[0]].path)
            return []
        middle = len(paths) // 2
        halves = (paths[:middle], paths[middle:])
        return [hit for half in halves for hit in _find(half, wanted, before, limit, unreadable, segments)]
    return [_Hit(LogKey(*row[:5]), *row[5:]) for row in rows]


def _conditions(wanted: LogFilter, before: LogKey | None) -> tuple[str, list[Any]]:
    """What to add to the WHERE clause, and the values to bind."""
    given: list[tuple[str, list[Any]]] = [
        (name, [value])
        for name in ("request_id", "since", "until", "outcome", "model_version", "guardrail")
        if (value := getattr(wanted, name)) not in (None, "")
    ]
    if before is not None:
        given.append(("before", list(before)))
    clause = "".join(f" AND {_CONDITIONS[name]}" for name, _ in given)
    return clause, [value for _, values in given for value in values]


def _fetch(
    hits: Iterable[_Hit], segments: dict[str, LogSegment], tensors: int | None, unreadable: list[str]
) -> list[Prediction]:
    """The rows that were found, in their order. Read artifact by artifact: within one, columns have the same types."""
    ordered = list(hits)
    alike: dict[str, list[_Hit]] = {}
    for hit in ordered:
        alike.setdefault(hit.artifact_digest, []).append(hit)
    read: dict[_Place, Prediction] = {}
    for group in alike.values():
        read |= _fetch_alike(group, segments, tensors, unreadable)
    return [read[hit.place] for hit in ordered if hit.place in read]


def _fetch_alike(
    hits: list[_Hit], segments: dict[str, LogSegment], tensors: int | None, unreadable: list[str]
) -> dict[_Place, Prediction]:
    """Rows of one artifact by place. A file that cannot be read is named and left out."""
    paths = sorted({hit.path for hit in hits})
    try:
        return dict(_read(hits, paths, segments, tensors))
    except duckdb.Error:
        if len(paths) == 1:
            unreadable.append(segments[paths[0]].path)
            return {}
        first = set(paths[: len(paths) // 2])
        halves = ([hit for hit in hits if hit.path in first], [hit for hit in hits if hit.path not in first])
        return {
            place: row for half in halves for place, row in _fetch_alike(half, segments, tensors, unreadable).items()
        }


def _read(
    hits: list[_Hit], paths: list[str], segments: dict[str, LogSegment], tensors: int | None
) -> Iterator[tuple[_Place, Prediction]]:
    names = _names(paths)
    inputs = [name for name in names if name.startswith("input.")][:tensors]
    outputs = [name for name in names if name.startswith("output.")][:tensors]
    described = [f"{part}.{name}" for name in (*inputs, *outputs) for part in ("shape", "digest")]
    wanted = {*RESERVED_LOG_COLUMNS, *inputs, *outputs, *described}
    chosen = [name for name in names if name in wanted]
    rows = _run(_FETCH, [chosen, paths, [hit.path for hit in hits], [hit.file_row for hit in hits]])
    for path, file_row, received, *values in rows:
        row = dict(zip(chosen, values, strict=True))
        prediction = Prediction(
            segment=segments[path],
            received_at=_EPOCH + timedelta(microseconds=received),
            columns={name: row.get(name) for name in RESERVED_LOG_COLUMNS if name != "received_at"},
            inputs=[_tensor(name, row) for name in inputs],
            outputs=[_tensor(name, row) for name in outputs],
        )
        yield (path, file_row), prediction


def _tensor(column: str, row: dict[str, Any]) -> Tensor:
    _, _, name = column.partition(".")
    return Tensor(name, row[column], row.get(f"shape.{column}"), row.get(f"digest.{column}"))


def _names(paths: Sequence[str]) -> list[str]:
    """The columns of all files together, without ``received_at``."""
    cursor = _database().cursor()
    return [column[0] for column in cursor.execute(_NAMES, [list(paths)]).description]


def _run(query: str, values: list[Any]) -> list[tuple[Any, ...]]:
    """Run one query, broken off after ``QUERY_S``."""
    cursor = _database().cursor()
    alarm = threading.Timer(QUERY_S, cursor.interrupt)
    alarm.start()
    try:
        rows: list[tuple[Any, ...]] = cursor.execute(query, values).fetchall()
        return rows
    except duckdb.InterruptException as error:
        raise DomainError("This search takes too long. Narrow the span of time.", field="since") from error
    finally:
        alarm.cancel()
        cursor.close()


@cache
def _database() -> duckdb.DuckDBPyConnection:
    """One in-memory database for the process, so that its bounds hold for all requests together."""
    database = duckdb.connect(
        ":memory:",
        config={
            "memory_limit": "512MB",
            "threads": 1,
            "temp_directory": "",
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        },
    )
    folder = str(_root() / "segments").replace("'", "''")
    database.execute(f"SET allowed_directories = ['{folder}']")
    database.execute("SET enable_external_access = false")
    database.execute("SET lock_configuration = true")
    return database


def _root() -> Path:
    return Path(settings.INSTALLATION.store)


def _absolute(segment: LogSegment) -> str:
    return str(_root() / segment.path)


def _micros(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND


def _moment(key: LogKey | None) -> datetime | None:
    return None if key is None else _EPOCH + timedelta(microseconds=key.received_us)
