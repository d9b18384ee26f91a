"""From an upload to typed Parquet and a description of its columns, by DuckDB in bounded memory, spilling to disk."""

# SQL has no placeholders for column names and readers: `quoted` and `_text` quote every name and path that goes in.
# ruff: noqa: S608

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable
from datetime import date, datetime
from pathlib import Path
from typing import Any, Final

import duckdb

from apps.core.errors import DomainError

MAX_COLUMNS: Final = 2_000
MAX_VALUES: Final = 2_000_000_000
MAX_NAME_CHARACTERS: Final = 200
MAX_HEADER_BYTES: Final = 1 << 20
TOP_VALUES: Final = 10
MAX_DISTINCT_TO_RANK: Final = 100_000
HISTOGRAM_BINS: Final = 30

_MEMORY: Final = "1GB"
_DELIMITERS: Final = ",;\t|"
_PARQUET_MAGIC: Final = b"PAR1"
_STORED_AS: Final = {
    "integer": "BIGINT",
    "float": "DOUBLE",
    "boolean": "BOOLEAN",
    "text": "VARCHAR",
    "date": "DATE",
    "timestamp": "TIMESTAMP",
}
"""A column's type -> the DuckDB type that it is stored as."""
_MISSING: Final = ("NA", "N/A", "n/a", "NULL", "null", "None")
"""Words that stand for a missing value in a CSV's column of numbers, dates or booleans; elsewhere they are text."""
_INTEGERS: Final = frozenset({"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER"})
_FLOATS: Final = frozenset({"FLOAT", "DOUBLE", "UBIGINT", "HUGEINT", "UHUGEINT"})
_TIMESTAMPS: Final = frozenset(
    {"TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS", "TIMESTAMP WITH TIME ZONE", "TIMESTAMPTZ_NS"}
)

Progress = Callable[[float, str], None]
Column = dict[str, str]  # {"name", "type"}


def connect(folder: Path) -> duckdb.DuckDBPyConnection:
    """A database in memory that spills into ``folder`` and loads no extension."""
    settings: dict[str, Any] = {
        "memory_limit": _MEMORY,
        "threads": "2",
        "temp_directory": str(folder / "spill"),
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
    }
    connection = duckdb.connect(":memory:", config=settings)
    connection.execute("SET TimeZone = 'UTC'")
    return connection


def convert(upload: Path, folder: Path, progress: Progress) -> tuple[Path, list[Column]]:
    """Write ``upload``, CSV or Parquet by its content, as typed Parquet into ``folder``.

    Returns the file and its columns. Raises ``DomainError`` with what is wrong and where.
    """
    with upload.open("rb") as file:
        is_parquet = file.read(4) == _PARQUET_MAGIC
    with connect(folder) as connection:
        if is_parquet:
            source, columns = _parquet_source(connection, upload)
        else:
            source, columns = _csv_source(connection, upload, folder, progress)
        progress(0.5, "Writing typed Parquet")
        stored = folder / "stored.parquet"
        casts = ", ".join(_cast(column, is_text=not is_parquet) for column in columns)
        options = "FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 122880"
        try:
            connection.execute(f"COPY (SELECT {casts} FROM {source}) TO {_text(stored)} ({options})")
        except duckdb.Error as error:
            raise DomainError(f"The file cannot be read: {_first_line(error)}", field="file") from error
        (rows,) = connection.execute(f"SELECT count(*) FROM read_parquet({_text(stored)})").fetchone() or (0,)
    if not rows:
        raise DomainError("The file has no rows of data. Upload a file with at least one row.", field="file")
    return stored, columns


def profile(stored: Path, columns: list[Column], folder: Path, progress: Progress) -> tuple[int, list[dict[str, Any]]]:
    """Count the rows, and describe each column: nulls, distinct values (estimated), range, moments, quantiles, bins."""
    described = []
    with connect(folder) as connection:
        connection.execute(f"CREATE VIEW stored AS SELECT * FROM read_parquet({_text(stored)})")
        (rows,) = connection.execute("SELECT count(*) FROM stored").fetchone() or (0,)
        for done, column in enumerate(columns):
            progress(0.6 + 0.4 * done / len(columns), f"Profiling column {done + 1} of {len(columns)}")
            described.append(_describe(connection, column))
    return rows, described


def _cast(column: Column, *, is_text: bool) -> str:
    """The SQL of a stored column. NaN becomes null: both say that a value is missing."""
    c, stored_as = quoted(column["name"]), _STORED_AS[column["type"]]
    given = _present(c) if is_text and column["type"] != "text" else c
    if column["type"] == "float":
        value = f"nullif({given}::DOUBLE, 'nan'::DOUBLE)"
    elif column["type"] == "timestamp" and not is_text:
        value = f"{given}::TIMESTAMPTZ::TIMESTAMP"  # nanoseconds with a zone have no direct way; the session is in UTC
    else:
        value = f"{given}::{stored_as}"
    return f"{value} AS {c}"


def _present(c: str) -> str:
    """The SQL of a text value, null for the words that stand for a missing number, date or boolean."""
    return f"CASE WHEN {c} IN ({', '.join(map(_text, _MISSING))}) THEN NULL ELSE {c} END"


def quoted(name: str) -> str:
    """A column name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def _csv_source(
    connection: duckdb.DuckDBPyConnection, upload: Path, folder: Path, progress: Progress
) -> tuple[str, list[Column]]:
    """Read the CSV as text, exactly as its header says, and find each column's type over all rows.

    DuckDB's own sniffer is not used: it passes silently over rows that do not fit the dialect it guessed.
    """
    names, delimiter = _read_header(upload)
    _check_names(names)
    progress(0.05, "Reading the CSV")
    raw = folder / "raw.parquet"
    types = ", ".join(f"{_text(name)}: 'VARCHAR'" for name in names)
    reader = (
        f"read_csv({_text(upload)}, auto_detect=false, header=true, columns={{{types}}}, delim={_text(delimiter)}, "
        "quote='\"', escape='\"', strict_mode=true, null_padding=false, ignore_errors=false)"
    )
    try:
        connection.execute(f"COPY (SELECT * FROM {reader}) TO {_text(raw)} (FORMAT parquet, COMPRESSION snappy)")
    except duckdb.Error as error:
        raise DomainError(_csv_complaint(error), field="file") from error
    source = f"read_parquet({_text(raw)})"
    columns = []
    for done, name in enumerate(names):
        progress(0.3 + 0.2 * done / len(names), f"Finding the type of column {done + 1} of {len(names)}")
        columns.append({"name": name, "type": _type_of_text(connection, source, name)})
    return source, columns


def _read_header(upload: Path) -> tuple[list[str], str]:
    """The column names, and the delimiter: the candidate that occurs most often in the header, outside of quotes."""
    with upload.open("rb") as file:
        head = file.readline(MAX_HEADER_BYTES + 1)
        sample = head + file.read(4_096)
    if not sample.removeprefix(b"\xef\xbb\xbf").strip():
        raise DomainError("The file is empty. Upload a CSV with a header line, or a Parquet file.", field="file")
    if b"\x00" in sample:
        hint = "It looks like UTF-16: save" if sample[:2] in (b"\xff\xfe", b"\xfe\xff") else "Save"
        raise DomainError(f"The file is neither a UTF-8 CSV nor Parquet. {hint} it as CSV in UTF-8.", field="file")
    if len(head) > MAX_HEADER_BYTES:
        raise DomainError("The first line is longer than 1 MiB. It has to be the header of a CSV.", field="file")
    try:
        line = head.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DomainError(
            f"The header is not UTF-8 (byte {error.start + 1}). Save the file as UTF-8.", field="file"
        ) from error
    delimiter = max(_DELIMITERS, key=re.sub(r'"[^"]*"', "", line).count)
    try:
        return [name.strip() for name in next(csv.reader([line], delimiter=delimiter, strict=True))], delimiter
    except (csv.Error, StopIteration) as error:
        raise DomainError(
            "The header cannot be read: a quote is not closed, or the line is empty.", field="file"
        ) from error


def _check_names(names: list[str]) -> None:
    if len(names) > MAX_COLUMNS:
        raise DomainError(f"The file has {len(names):,} columns; at most {MAX_COLUMNS:,} are accepted.", field="file")
    seen: set[str] = set()
    for position, name in enumerate(names, start=1):
        if not name.strip():
            raise DomainError(f"Column {position} has no name. Give every column a name in the header.", field="file")
        if len(name) > MAX_NAME_CHARACTERS:
            raise DomainError(
                f"The name of column {position} is longer than {MAX_NAME_CHARACTERS} characters.", field="file"
            )
        if not name.isprintable():
            raise DomainError(f"The name of column {position} has control characters. Rename it.", field="file")
        if name.casefold() in seen:
            raise DomainError(
                f"The column name “{name}” occurs more than once (case is ignored). Rename one of them.", field="file"
            )
        seen.add(name.casefold())


def _type_of_text(connection: duckdb.DuckDBPyConnection, source: str, name: str) -> str:
    """The narrowest type that every value of a text column has. Numbers with leading zeros are codes, so text."""
    c = quoted(name)
    row = connection.execute(
        f"""
        SELECT count({c}), count(TRY_CAST({c} AS DOUBLE)),
            count(*) FILTER (TRY_CAST({c} AS BIGINT) = TRY_CAST({c} AS DOUBLE) AND NOT contains({c}, '.')),
            count(*) FILTER (starts_with({c}, '0') AND length({c}) > 1 AND {c}[2] BETWEEN '0' AND '9'),
            count(*) FILTER (length({c}) < 6 AND lower({c}) IN ('true', 'false'))
        FROM (SELECT {_present(c)} AS {c} FROM {source})
        """
    ).fetchone()
    filled, numbers, integers, padded, booleans = row or (0,) * 5
    if filled == 0 or (padded and numbers == filled):
        return "text"
    if integers == filled:
        return "integer"
    if numbers == filled:
        return "float"
    if booleans == filled:
        return "boolean"
    return _type_of_time(connection, source, c, filled)


def _type_of_time(connection: duckdb.DuckDBPyConnection, source: str, c: str, filled: int) -> str:
    dates, timestamps = connection.execute(
        f"""
        SELECT count(*) FILTER (length({c}) <= 10 AND TRY_CAST({c} AS DATE) IS NOT NULL),
            -- The cast would drop a zone's offset without a word.
            count(*) FILTER (TRY_CAST({c} AS TIMESTAMP) IS NOT NULL AND NOT regexp_matches({c}, '[+-]\\d\\d:?\\d\\d$'))
        FROM (SELECT {_present(c)} AS {c} FROM {source})
        """
    ).fetchone() or (0, 0)
    if dates == filled:
        return "date"
    return "timestamp" if timestamps == filled else "text"


def _parquet_source(connection: duckdb.DuckDBPyConnection, upload: Path) -> tuple[str, list[Column]]:
    source = f"read_parquet({_text(upload)})"
    try:
        described = connection.execute(f"DESCRIBE SELECT * FROM {source}").fetchall()
        in_file = connection.execute(
            f"SELECT name FROM parquet_schema({_text(upload)}) WHERE num_children IS NULL"
        ).fetchall()
        (rows,) = connection.execute(f"SELECT num_rows FROM parquet_file_metadata({_text(upload)})").fetchone() or (0,)
    except duckdb.Error as error:
        raise DomainError(f"The Parquet file cannot be read: {_first_line(error)}", field="file") from error
    if rows * len(described) > MAX_VALUES:  # a few kilobytes of Parquet can stand for billions of equal values
        raise DomainError(
            f"The file has {rows:,} rows of {len(described):,} columns; at most {MAX_VALUES:,} values are accepted.",
            field="file",
        )
    columns = [{"name": str(row[0]), "type": _type_of_parquet(str(row[0]), str(row[1]))} for row in described]
    _check_names([str(row[0]) for row in in_file])
    return source, columns


def _type_of_parquet(name: str, stored: str) -> str:
    for known, column_type in ((_INTEGERS, "integer"), (_FLOATS, "float"), (_TIMESTAMPS, "timestamp")):
        if stored in known:
            return column_type
    if stored.startswith("DECIMAL"):
        return "float"
    if stored.startswith("ENUM"):
        return "text"
    simple = {"BOOLEAN": "boolean", "VARCHAR": "text", "DATE": "date"}.get(stored)
    if simple is None:
        raise DomainError(
            f"Column “{name}” is a {stored[:60]}. Only numbers, booleans, text, dates and timestamps are accepted.",
            field="file",
        )
    return simple


def _describe(connection: duckdb.DuckDBPyConnection, column: Column) -> dict[str, Any]:
    c, kind = quoted(column["name"]), column["type"]
    filled, nulls, distinct = connection.execute(
        f"SELECT count({c}), count(*) - count({c}), approx_count_distinct({c}) FROM stored"
    ).fetchone() or (0, 0, 0)
    described = column | {"count": filled, "nulls": nulls, "distinct": min(distinct, filled)}
    if kind in ("integer", "float"):
        described |= _moments(connection, c)
    if kind in ("date", "timestamp"):
        low, high = connection.execute(f"SELECT min({c}), max({c}) FROM stored").fetchone() or (None, None)
        described |= {"min": _json_value(low), "max": _json_value(high)}
    if kind != "float" and distinct <= MAX_DISTINCT_TO_RANK:
        described["top"] = _top_values(connection, c)
    return described


def _moments(connection: duckdb.DuckDBPyConnection, c: str) -> dict[str, Any]:
    """Range, moments, quantiles and a histogram with equal bins of the finite values of a numeric column."""
    finite = f"(SELECT {c}::DOUBLE AS x FROM stored WHERE isfinite({c}::DOUBLE))"
    quantiles = "approx_quantile(x, [0.05, 0.25, 0.5, 0.75, 0.95])"
    row = connection.execute(f"SELECT min(x), max(x), avg(x), stddev_samp(x), {quantiles} FROM {finite}").fetchone()
    low, high, mean, std, levels = row or (None,) * 5
    found: dict[str, Any] = {"min": low, "max": high, "mean": mean, "std": std}
    found = {key: value if value is not None and math.isfinite(value) else None for key, value in found.items()}
    if low is None:
        return found
    width = (high - low) / HISTOGRAM_BINS
    found["quantiles"] = levels
    if not 0 < width < math.inf:
        return found
    binned = connection.execute(
        f"SELECT least(floor((x - ?) / ?), {HISTOGRAM_BINS - 1})::INTEGER AS bin, count(*) FROM {finite} GROUP BY bin",
        [low, width],
    ).fetchall()
    counts = [0] * HISTOGRAM_BINS
    for position, count in binned:
        counts[position] = count
    edges = [low + width * step for step in range(HISTOGRAM_BINS + 1)]
    return found | {"histogram": {"edges": edges, "counts": counts}}


def _top_values(connection: duckdb.DuckDBPyConnection, c: str) -> list[dict[str, Any]]:
    rows = connection.execute(
        f"SELECT {c}, count({c}) AS n FROM stored GROUP BY ALL HAVING n > 0 ORDER BY n DESC, 1 LIMIT {TOP_VALUES}"
    ).fetchall()
    return [{"value": _json_value(value), "count": count} for value, count in rows]


def _json_value(value: Any) -> Any:
    if isinstance(value, date | datetime):
        return value.isoformat()
    return value[:200].replace("\x00", "\ufffd") if isinstance(value, str) else value


def _csv_complaint(error: duckdb.Error) -> str:
    """DuckDB's error as one sentence with the line, without its advice, which is about its own options."""
    lines = [line.strip() for line in str(error).splitlines()]
    where = next((line.partition("Line: ")[2] for line in lines if "CSV Error on Line" in line), "")
    place = f"Line {where}" if where else "The CSV"
    for line in lines:
        if line.startswith("Expected Number of Columns"):
            expected, found = (part.split()[0] for part in line.replace("Found:", ":").split(":")[1:3])
            return f"{place} does not fit the header: {expected} fields expected, {found} found."
        if "Invalid unicode" in line:
            return f"{place} is not UTF-8. Save the file as CSV in UTF-8."
        if "unterminated quote" in line:
            return f"{place} has a quote that is not closed."
        if "Maximum line size" in line or "maximum_line_size" in line:
            return f"{place} is longer than 2 MB. Is a quote missing?"
    if any("invalid state" in line for line in lines):
        return "The CSV mixes line endings or quotes a value only in part. Save it again with one kind of line ending."
    return f"The CSV cannot be read: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].partition("Error: ")[2][:300] or type(error).__name__


def _text(value: Path | str) -> str:
    """An SQL string literal."""
    return "'" + str(value).replace("'", "''") + "'"
