"""What becomes of a file: types, profiles, and clear refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from apps.core.errors import DomainError
from apps.evaluation import intake


def quiet(_fraction: float, _message: str) -> None:
    """Nobody watches."""


def convert(folder: Path, content: bytes) -> tuple[Path, list[dict[str, str]]]:
    """The stored file and its columns."""
    upload = folder / "upload"
    upload.write_bytes(content)
    return intake.convert(upload, folder, quiet)


def refusal(folder: Path, content: bytes) -> str:
    """Why the file is refused."""
    with pytest.raises(DomainError) as refused:
        convert(folder, content)
    assert refused.value.field == "file"
    return refused.value.message


def types(folder: Path, content: bytes) -> dict[str, str]:
    """Column types by name."""
    return {column["name"]: column["type"] for column in convert(folder, content)[1]}


def test_each_column_gets_the_narrowest_type_that_all_its_values_have(tmp_path: Path) -> None:
    content = (
        b"whole,real,point,flag,day,moment,zip,word,nothing,zoned,big\n"
        b"1,1.5,1.0,true,2026-01-02,2026-01-02T03:04:05,00123,x,,2026-01-02T03:04:05+02:00,1e3\n"
        b"-2,,2.0,False,2026-01-03,2026-01-02 03:04:05.5,01234,,,2026-01-02T03:04:05+02:00,2\n"
    )
    assert types(tmp_path, content) == {
        "whole": "integer",
        "real": "float",
        "point": "float",
        "flag": "boolean",
        "day": "date",
        "moment": "timestamp",
        "zip": "text",
        "word": "text",
        "nothing": "text",
        "zoned": "text",
        "big": "integer",
    }


def test_a_late_row_decides_the_type_too(tmp_path: Path) -> None:
    rows = b"".join(b"%d\n" % n for n in range(50_000))
    assert types(tmp_path, b"n\n" + rows + b"many\n") == {"n": "text"}
    assert types(tmp_path, b"n\n" + rows + b"0.5\n") == {"n": "float"}


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"a;b\n1;2\n", ["a", "b"]),
        (b"a\tb\n1\t2\n", ["a", "b"]),
        (b"\xef\xbb\xbfa,b\r\n1,2\r\n", ["a", "b"]),
        (b'"a ""x""","b,c"\n1,"2\n3"\n', ['a "x"', "b,c"]),
        ("größe,名前\n1,太郎\n".encode(), ["größe", "名前"]),
    ],
)
def test_delimiters_quotes_line_ends_and_unicode(tmp_path: Path, content: bytes, names: list[str]) -> None:
    stored, columns = convert(tmp_path, content)
    assert [column["name"] for column in columns] == names
    assert pq.read_metadata(stored).num_rows == 1


def test_nan_is_a_missing_value(tmp_path: Path) -> None:
    stored, _ = convert(tmp_path, b"x\n1.5\nnan\n\n2.5\n")
    assert pq.read_table(stored)["x"].to_pylist() == [1.5, None, None, 2.5]


def test_words_for_a_missing_value_count_only_where_the_others_are_no_text(tmp_path: Path) -> None:
    stored, columns = convert(tmp_path, b"n, flag,word\n1,true,NA\nNA,N/A,x\n3,null,\n")
    assert [(column["name"], column["type"]) for column in columns] == [
        ("n", "integer"),
        ("flag", "boolean"),
        ("word", "text"),
    ]
    table = pq.read_table(stored)
    assert table["n"].to_pylist() == [1, None, 3]
    assert table["flag"].to_pylist() == [True, None, None]
    assert table["word"].to_pylist() == ["NA", "x", None]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"\xef\xbb\xbf", "empty"),
        (b"a\x01,b\n1,2\n", "control characters"),
        (b" \n", "empty"),
        (b"a,b\n", "no rows"),
        (b"a,b\n1,2\n3\n", "Line 3 does not fit the header: 2 fields expected, 1 found"),
        (b"a,b\n1,2\n3,4,5\n", "Line 3 does not fit the header: 2 fields expected, 3 found"),
        (b"a,b\n1,caf\xe9\n", "Line 2 is not UTF-8"),
        (b"a,caf\xe9\n1,2\n", "The header is not UTF-8"),
        ("a,b\n1,2\n".encode("utf-16"), "looks like UTF-16"),
        (b'a,b\n1,"2\n', "quote that is not closed"),
        (b'a,"b\n1,2\n', "quote is not closed"),
        (b"a,b,A\n1,2,3\n", "occurs more than once"),
        (b"a,,c\n1,2,3\n", "Column 2 has no name"),
        (b"a,b\r\n1,2\n3,4\r\n", "line endings"),
        (b"x" * 201 + b",b\n1,2\n", "longer than 200"),
        (b"x" * (1 << 20) + b"\n", "longer than"),
        (b"PAR1 and nothing more", "Parquet file cannot be read"),
        (b"PK\x03\x04\x00\x00", "neither a UTF-8 CSV nor Parquet"),
    ],
)
def test_refusals_say_what_is_wrong_and_where(tmp_path: Path, content: bytes, said: str) -> None:
    assert said in refusal(tmp_path, content)


def test_too_many_columns(tmp_path: Path) -> None:
    names = [f"c{n}" for n in range(intake.MAX_COLUMNS + 1)]
    assert "2,001 columns" in refusal(tmp_path, ",".join(names).encode() + b"\n")


def parquet(path: Path, columns: dict[str, Any]) -> bytes:
    """A Parquet file's bytes."""
    pq.write_table(pa.table(columns), path)
    return path.read_bytes()


def test_parquet_keeps_its_types(tmp_path: Path) -> None:
    columns = {"i": pa.array([1, 2], pa.int8()), "f": pa.array([1.5, None], pa.float32()), "t": ["x", "y"]}
    content = parquet(tmp_path / "in.parquet", columns | {"b": [True, False]})
    assert types(tmp_path, content) == {"i": "integer", "f": "float", "t": "text", "b": "boolean"}


def test_a_small_parquet_file_of_very_many_values_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "MAX_VALUES", 1_000)
    bomb = parquet(tmp_path / "bomb", {"a": np.zeros(1_001, np.int8)})
    assert "1,001 rows of 1 columns" in refusal(tmp_path, bomb)


def test_a_parquet_time_with_a_zone_is_kept_in_utc(tmp_path: Path) -> None:
    content = parquet(tmp_path / "zoned", {"t": pa.array([0], pa.timestamp("ns", "Europe/Berlin"))})
    stored, columns = convert(tmp_path, content)
    assert columns == [{"name": "t", "type": "timestamp"}]
    assert str(pq.read_table(stored)["t"][0].as_py()) == "1970-01-01 00:00:00"


def test_parquet_with_nested_or_repeated_columns_is_refused(tmp_path: Path) -> None:
    assert "Column “n” is a" in refusal(tmp_path, parquet(tmp_path / "in.parquet", {"n": [[1, 2], [3]]}))
    pq.write_table(pa.table([[1], [2]], names=["a", "a"]), tmp_path / "twice.parquet")
    assert "occurs more than once" in refusal(tmp_path, (tmp_path / "twice.parquet").read_bytes())


def test_the_profile_is_that_of_numpy(tmp_path: Path) -> None:
    values = np.random.default_rng(3).normal(size=5_000)
    words = np.array(["a", "b", "c"])[np.arange(5_000) % 3]
    table = {"x": pa.array([None, *values[1:]]), "w": words, "same": np.full(5_000, 7)}
    stored, columns = convert(tmp_path, parquet(tmp_path / "in.parquet", table))
    rows, (x, w, same) = intake.profile(stored, columns, tmp_path, quiet)
    assert rows == 5_000
    assert (x["count"], x["nulls"]) == (4_999, 1)
    known = values[1:]
    for name, expected in (
        ("min", known.min()),
        ("max", known.max()),
        ("mean", known.mean()),
        ("std", known.std(ddof=1)),
    ):
        assert x[name] == pytest.approx(expected)
    assert x["quantiles"] == pytest.approx(np.quantile(known, [0.05, 0.25, 0.5, 0.75, 0.95]), abs=0.05)
    assert x["distinct"] == pytest.approx(4_999, rel=0.1)
    counts, edges = np.histogram(known, bins=intake.HISTOGRAM_BINS)
    assert x["histogram"]["counts"] == counts.tolist()
    assert x["histogram"]["edges"] == pytest.approx(edges)
    assert w["top"] == [{"value": "a", "count": 1_667}, {"value": "b", "count": 1_667}, {"value": "c", "count": 1_666}]
    assert (same["min"], same["max"], same["top"]) == (7, 7, [{"value": 7, "count": 5_000}])
    assert "histogram" not in same


def test_names_that_look_like_sql_are_only_names(tmp_path: Path) -> None:
    name = "x\"; DROP TABLE stored; --'"
    content = parquet(tmp_path / "in.parquet", {name: [1.0, 2.0]})
    stored, columns = convert(tmp_path, content)
    rows, (described,) = intake.profile(stored, columns, tmp_path, quiet)
    assert (rows, described["name"], described["mean"]) == (2, name, 1.5)
    quoted = '"' + name.replace('"', '""') + '"'
    assert types(tmp_path, f"{quoted},b\n1,2\n".encode()) == {name: "integer", "b": "integer"}
