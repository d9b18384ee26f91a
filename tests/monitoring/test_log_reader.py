"""Reading the inference log: what is found, in which order, and what happens to a damaged file."""

from __future__ import annotations

from datetime import timedelta

import duckdb
import pyarrow as pa
import pytest
from django.conf import settings
from django.db import connection
from django.test.utils import CaptureQueriesContext

from apps.core.errors import DomainError
from apps.deployments.models import Endpoint
from apps.monitoring import log_reader
from apps.monitoring.log_reader import LogFilter, LogKey, is_intact, read_log
from tests.conftest import Cast
from tests.monitoring.conftest import NOON, Log, rows

EVERYTHING = LogFilter()


def seconds(page: log_reader.LogPage) -> list[int]:
    return [round((row.received_at - NOON).total_seconds()) for row in page.rows]


def test_a_request_is_found_by_its_exact_id_with_everything_that_was_logged(endpoint: Endpoint, log: Log) -> None:
    log.segment(endpoint, rows(1, 2, 3))
    segment = log.segment(
        endpoint,
        [
            {"at": 9, "request_id": "abc", "outcome": "failed", "error": "no", "token_id": 7},
            {"at": 8, "request_id": "abcd"},
        ],
        **{"input.age": pa.array([41.5, 1.0], pa.float32()), "output.score": pa.array([[1.0, 2.0], None])},
    )

    (found,) = read_log(endpoint, LogFilter(request_id="abc")).rows

    assert found.segment == segment
    assert found.received_at == NOON + timedelta(seconds=9)
    assert found.columns["outcome"] == "failed"
    assert found.columns["error"] == "no"
    assert found.columns["token_id"] == 7
    assert found.columns["artifact_digest"] == "01" * 32
    assert found.total_ms == 1.5
    assert [(tensor.name, tensor.values) for tensor in found.inputs] == [("age", 41.5)]
    assert [(tensor.name, tensor.json) for tensor in found.outputs] == [("score", [1.0, 2.0])]


def test_the_newest_come_first_across_segments_that_overlap(endpoint: Endpoint, log: Log) -> None:
    log.segment(endpoint, rows(1, 5, 9))
    log.segment(endpoint, rows(2, 4, 20))
    log.segment(endpoint, rows(0, 30))

    assert seconds(read_log(endpoint, EVERYTHING)) == [30, 20, 9, 5, 4, 2, 1, 0]


def test_rows_are_found_by_the_guardrail_that_they_violated(endpoint: Endpoint, log: Log) -> None:
    log.segment(endpoint, rows(1, 2), is_old=True)
    assert read_log(endpoint, LogFilter(guardrail="bounded")).rows == []
    log.segment(
        endpoint,
        [*rows(3), *rows(4, guardrails=["bounded", "known"]), *rows(5, guardrails=["known"], outcome="guardrail")],
    )

    assert seconds(read_log(endpoint, LogFilter(guardrail="bounded"))) == [4]
    assert seconds(read_log(endpoint, LogFilter(guardrail="known"))) == [5, 4]
    assert seconds(read_log(endpoint, LogFilter(outcome="guardrail"))) == [5]
    newest, *_, oldest = read_log(endpoint, EVERYTHING).rows
    assert (newest.columns["guardrails"], oldest.columns["guardrails"]) == (["known"], None)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
def test_pages_follow_one_another_without_gap_or_repetition(
    endpoint: Endpoint, log: Log, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_reader, "_FIRST_SLICE", 2)  # so that a page needs several slices
    for start in range(6):
        log.segment(endpoint, rows(start, start + 3, start + 6, request_id=f"segment {start}~"))
    twins = [{"at": 5, "request_id": "twin", "row": row} for row in range(5)]
    log.segment(endpoint, twins)
    log.segment(endpoint, twins, version=2)  # a shadow's
    log.segment(endpoint, twins, model="other")  # another one's

    found, before = [], None
    while True:
        page = read_log(endpoint, EVERYTHING, before=before, size=size)
        assert len(page.rows) <= size
        found += [
            (row.received_at, *map(row.columns.get, ("request_id", "row", "model_version", "model")))
            for row in page.rows
        ]
        if page.next_key is None:
            break
        before = LogKey.parse(str(page.next_key))

    assert len(found) == len(set(found)) == 6 * 3 + 5 * 3
    assert found == sorted(found, reverse=True)


def test_filters_of_time_outcome_and_version(endpoint: Endpoint, log: Log) -> None:
    log.segment(endpoint, [*rows(1, 2), *rows(3, outcome="failed")], version=1)
    log.segment(endpoint, rows(11, 12, outcome="rejected"), version=2)
    noon = {second: NOON + timedelta(seconds=second) for second in (2, 3, 11)}

    assert seconds(read_log(endpoint, LogFilter(since=noon[2], until=noon[11]))) == [11, 3, 2]
    assert seconds(read_log(endpoint, LogFilter(outcome="failed"))) == [3]
    assert seconds(read_log(endpoint, LogFilter(model_version=1))) == [3, 2, 1]
    assert seconds(read_log(endpoint, LogFilter(model_version=2, since=noon[3], outcome="rejected"))) == [12, 11]
    assert seconds(read_log(endpoint, LogFilter(model_version=3))) == []


def test_another_endpoints_segments_are_not_read(cast: Cast, endpoint: Endpoint, log: Log) -> None:
    other = Endpoint.objects.create(team=cast.other_team, name="other", created_by=cast.outsider.user)
    log.segment(other, rows(1))

    assert read_log(endpoint, EVERYTHING).rows == []
    assert read_log(endpoint, LogFilter(request_id="r1")).rows == []


@pytest.mark.parametrize(
    "text",
    ["' OR 1=1 --", "r1' UNION SELECT * FROM read_text('/etc/passwd') --", "%", "r_", "'; DROP TABLE x; --", '"', "\\"],
)
def test_a_request_id_is_data_and_never_sql(endpoint: Endpoint, log: Log, text: str) -> None:
    log.segment(endpoint, [*rows(1, 2), *rows(3, request_id=text)])

    assert seconds(read_log(endpoint, LogFilter(request_id=text))) == [3]
    assert seconds(read_log(endpoint, LogFilter(outcome=text))) == []
    assert seconds(read_log(endpoint, EVERYTHING, before=LogKey(2**51, text, 0, 0, ""))) == [3, 2, 1]


def test_a_tensors_name_is_data_and_never_sql(endpoint: Endpoint, log: Log) -> None:
    name = "x\"), (SELECT 1)' -- ü"
    log.segment(endpoint, rows(1), **{f"input.{name}": pa.array([1.5])})

    (found,) = read_log(endpoint, EVERYTHING).rows
    assert [(tensor.name, tensor.values) for tensor in found.inputs] == [(name, 1.5)]


def test_duckdb_can_open_nothing_but_segments(endpoint: Endpoint, log: Log) -> None:
    log.segment(endpoint, rows(1))
    read_log(endpoint, EVERYTHING)

    for query in ("SELECT * FROM read_text('/etc/passwd')", "COPY (SELECT 1) TO '/tmp/x.csv'", "INSTALL httpfs"):
        with pytest.raises(duckdb.PermissionException):
            log_reader._run(query, [])
    with pytest.raises(duckdb.Error, match="locked"):
        log_reader._run("SET enable_external_access = true", [])
    bounds = log_reader._run("SELECT current_setting('threads'), current_setting('memory_limit')", [])
    assert bounds == [(1, "488.2 MiB")]


def test_versions_whose_columns_differ_share_a_page(endpoint: Endpoint, log: Log) -> None:
    log.segment(endpoint, rows(1), version=1, **{"input.x": pa.array([1.5])})
    log.segment(endpoint, rows(2), version=2, **{"input.x": pa.array(["text"]), "input.y": pa.array([[1, 2]])})
    log.segment(
        endpoint,
        rows(3),
        version=2,
        **{
            "input.x": pa.array([None], pa.string()),
            "input.y": pa.array([[3]]),
            "shape.input.x": pa.array([[3, 224]], pa.list_(pa.int64())),
            "digest.input.x": pa.array(["cd" * 32]),
        },
    )

    page = read_log(endpoint, EVERYTHING)

    assert [{tensor.name: tensor.json for tensor in row.inputs} for row in page.rows] == [
        {"x": {"values": None, "shape": [3, 224], "digest": "cd" * 32}, "y": [3]},
        {"x": "text", "y": [1, 2]},
        {"x": 1.5},
    ]
    assert [row.inputs[0].text for row in page.rows] == ["3×224 sha256:cdcdcdcd…", "text", "1.5"]


def test_only_the_first_tensors_are_read_when_that_is_asked(endpoint: Endpoint, log: Log) -> None:
    log.segment(endpoint, rows(1), **{f"input.x{index}": pa.array([index]) for index in range(9)})

    (found,) = read_log(endpoint, EVERYTHING, tensors=3).rows
    assert [tensor.name for tensor in found.inputs] == ["x0", "x1", "x2"]


def test_values_that_json_cannot_hold_become_words(endpoint: Endpoint, log: Log) -> None:
    log.segment(endpoint, rows(1), **{"input.x": pa.array([[float("nan"), float("-inf"), 1.0]])})

    (found,) = read_log(endpoint, EVERYTHING).rows
    assert found.inputs[0].json == ["nan", "-inf", 1.0]


@pytest.mark.parametrize("damage", ["truncated", "garbage of the same size", "empty", "missing", "other columns"])
def test_a_damaged_segment_is_named_and_the_rest_is_read(endpoint: Endpoint, log: Log, damage: str) -> None:
    for second in (1, 2, 4, 5):
        log.segment(endpoint, rows(second))
    bad = log.segment(endpoint, rows(3))
    file = settings.INSTALLATION.store / bad.path
    content = file.read_bytes()
    file.unlink()
    if damage == "other columns":
        duckdb.sql(f"COPY (SELECT 1 AS x) TO '{file}' (FORMAT parquet)")
    elif damage != "missing":
        file.write_bytes(
            {
                "truncated": content[: len(content) // 2],
                "garbage of the same size": b"PAR1".ljust(len(content), b"x"),
                "empty": b"",
            }[damage]
        )

    page = read_log(endpoint, EVERYTHING)

    assert seconds(page) == [5, 4, 2, 1]
    assert page.unreadable == [bad.path]
    assert not is_intact(bad)


def test_a_file_that_was_changed_is_not_intact(endpoint: Endpoint, log: Log) -> None:
    segment, other = log.segment(endpoint, rows(1)), log.segment(endpoint, rows(2))
    assert is_intact(segment)

    (settings.INSTALLATION.store / segment.path).write_bytes((settings.INSTALLATION.store / other.path).read_bytes())
    assert not is_intact(segment)


def test_a_search_that_runs_out_of_time_says_how_far_it_came_and_goes_on_from_there(
    endpoint: Endpoint, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_reader, "SEARCH_S", -1.0)
    monkeypatch.setattr(log_reader, "_FIRST_SLICE", 2)
    for second in range(10):
        log.segment(endpoint, [*rows(second), *rows(second, request_id="wanted")][second % 2 :])
    wanted = LogFilter(request_id="wanted")

    found, before, searches = [], None, 0
    while True:
        page = read_log(endpoint, wanted, before=before)
        found += seconds(page)
        searches += 1
        if page.next_key is None:
            break
        assert page.searched_back_to is not None
        before = page.next_key

    assert found == list(range(9, -1, -1))
    assert searches > 2


def test_an_old_request_is_found_by_the_time_in_its_id_when_the_search_is_out_of_time(
    endpoint: Endpoint, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_reader, "SEARCH_S", -1.0)
    monkeypatch.setattr(log_reader, "_FIRST_SLICE", 1)
    request_id = f"{int(NOON.timestamp() * 1000):012x}"
    request_id = f"{request_id[:8]}-{request_id[8:]}-7abc-8abc-0123456789ab"
    log.segment(endpoint, rows(1, request_id=request_id))
    for hours in range(1, 5):
        log.segment(endpoint, rows(hours * 3600))

    page = read_log(endpoint, LogFilter(request_id=request_id))

    assert seconds(page) == [1]
    assert page.searched_back_to == NOON + timedelta(hours=4)
    assert page.next_key is not None
    for other in ("r1", "ffffffff-ffff-7fff-8fff-ffffffffffff", request_id.replace("-7", "-4")):
        assert read_log(endpoint, LogFilter(request_id=other)).rows == []


def test_a_query_that_takes_too_long_is_broken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_reader, "QUERY_S", 0.2)
    with pytest.raises(DomainError, match="Narrow the span of time"):
        log_reader._run("SELECT sum(a.range * b.range) FROM range(1000000) a, range(1000000) b", [])


@pytest.mark.parametrize("text", ["", "x", "1~2~3~m", "1~x~1~m~r", "-1~0~1~m~r", "1" * 17 + "~0~1~m~r", "١~0~1~m~r"])
def test_a_place_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(DomainError):
        LogKey.parse(text)


def test_the_catalog_is_asked_once_for_a_page_that_a_few_segments_fill(endpoint: Endpoint, log: Log) -> None:
    for second in range(5):
        log.segment(endpoint, rows(second))
    with CaptureQueriesContext(connection) as queries:
        read_log(endpoint, EVERYTHING)
    assert len(queries) == 1
