"""Many small segments become few, old ones go: nothing is lost or doubled, and the records say what happened."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from django.conf import settings
from django.db import connection
from django.utils import timezone

from apps.audit.models import AuditEvent
from apps.deployments.models import Endpoint
from apps.monitoring import compaction, retention
from apps.monitoring.compaction import MIN_PARTS, merge_segments, remove_merged_files
from apps.monitoring.log_reader import LogFilter, is_intact, read_log
from apps.monitoring.models import LogSegment
from apps.monitoring.retention import prune_segments
from tests.monitoring.conftest import NOON, Log, rows


@pytest.fixture(autouse=True)
def _folder(endpoint: Endpoint) -> Iterator[None]:
    yield
    shutil.rmtree(settings.INSTALLATION.store / "segments" / endpoint.name, ignore_errors=True)


def settle() -> None:
    """Let everything be old enough."""
    LogSegment.objects.update(created_at=timezone.now() - timedelta(hours=1))


def path_of(segment: LogSegment) -> Path:
    return Path(settings.INSTALLATION.store / segment.path)


def logged(endpoint: Endpoint) -> list[tuple[Any, ...]]:
    """Everything that the reader finds."""
    page = read_log(endpoint, LogFilter(), size=500)
    assert page.unreadable == []
    return [
        (
            row.received_at,
            *(row.columns[name] for name in ("request_id", "row", "guardrails")),
            *((tensor.name, str(tensor.values), tensor.digest) for tensor in (*row.inputs, *row.outputs)),
        )
        for row in page.rows
    ]


def test_many_small_segments_become_one_and_read_the_same(endpoint: Endpoint, log: Log) -> None:
    parts = [log.segment(endpoint, rows(second, second + 1)) for second in range(MIN_PARTS + 4)]
    before = logged(endpoint)
    settle()

    assert merge_segments() == MIN_PARTS + 4

    merged = LogSegment.objects.current().get()
    assert merged.parts == [part.sha256 for part in parts]
    assert (merged.row_count, merged.started_at, merged.ended_at) == (
        2 * len(parts),
        NOON,
        NOON + timedelta(seconds=len(parts)),
    )
    assert is_intact(merged)
    assert merged.size_bytes == path_of(merged).stat().st_size
    assert logged(endpoint) == before
    assert merge_segments() == 0  # nothing left to do


def test_the_files_of_parts_go_when_no_search_can_want_them(endpoint: Endpoint, log: Log) -> None:
    parts = [log.segment(endpoint, rows(second)) for second in range(MIN_PARTS)]
    settle()
    merge_segments()
    assert remove_merged_files() == 0
    assert all(path_of(part).exists() for part in parts)
    LogSegment.objects.exclude(merged_into=None).update(merged_at=timezone.now() - compaction.GRACE * 2)
    assert remove_merged_files() == MIN_PARTS
    assert not any(path_of(part).exists() for part in parts)
    # The shipper looks for the path, and finds that the predictions are in the log.
    assert LogSegment.objects.filter(path=parts[0].path).exists()
    LogSegment.objects.exclude(merged_into=None).update(merged_at=timezone.now() - compaction.REMEMBERED * 2)
    remove_merged_files()
    assert LogSegment.objects.count() == 1
    assert len(logged(endpoint)) == MIN_PARTS


def test_columns_that_came_later_are_null_in_what_is_older(endpoint: Endpoint, log: Log) -> None:
    for second in range(MIN_PARTS):
        log.segment(endpoint, rows(second), is_old=True)
    later = {"input.age": pa.array([None], pa.float32()), "digest.input.age": ["ab" * 32], "shape.input.age": [[9]]}
    log.segment(endpoint, rows(90, guardrails=["bounded"]), **later)
    before = logged(endpoint)
    settle()

    assert merge_segments() == MIN_PARTS + 1

    assert logged(endpoint) == before
    assert [row.columns["request_id"] for row in read_log(endpoint, LogFilter(guardrail="bounded")).rows] == ["r90"]


def test_what_does_not_belong_together_stays_apart(endpoint: Endpoint, log: Log) -> None:
    other = {"input.age": pa.array([["a"]], pa.list_(pa.string()))}
    for second in range(MIN_PARTS):
        log.segment(endpoint, rows(second))
        log.segment(endpoint, rows(second), version=2)
        log.segment(endpoint, rows(second), **other)
    before = sorted(map(str, logged(endpoint)))
    settle()
    while merge_segments():
        pass
    assert LogSegment.objects.current().count() == 3
    assert sorted(map(str, logged(endpoint))) == before


def test_few_are_merged_only_when_their_day_is_over(endpoint: Endpoint, log: Log) -> None:
    log.segment(endpoint, rows(1))
    log.segment(endpoint, rows(2))
    LogSegment.objects.update(started_at=timezone.now(), created_at=timezone.now() - timedelta(hours=1))
    assert merge_segments() == 0
    LogSegment.objects.update(started_at=NOON)
    assert merge_segments() == 2


def test_fresh_segments_are_left_alone(endpoint: Endpoint, log: Log) -> None:
    for second in range(MIN_PARTS):
        log.segment(endpoint, rows(second))
    assert merge_segments() == 0


def test_an_altered_segment_is_never_merged(endpoint: Endpoint, log: Log) -> None:
    """Merged, it would get a digest that checks."""
    parts = [log.segment(endpoint, rows(second)) for second in range(MIN_PARTS + 1)]
    file = path_of(parts[3])
    table = pq.read_table(file)
    place = table.schema.get_field_index("input.age")
    pq.write_table(table.set_column(place, "input.age", pa.array([99.0], pa.float32())), file)
    missing = parts[5]
    path_of(missing).unlink()
    settle()

    assert merge_segments() == MIN_PARTS - 1

    left = LogSegment.objects.current().exclude(parts__len__gt=0)
    assert {segment.pk for segment in left} == {parts[3].pk, missing.pk}
    assert not is_intact(parts[3])
    assert missing.path in read_log(endpoint, LogFilter()).unreadable


@pytest.mark.parametrize("step", ["_write", "_swap"])
def test_a_merge_that_is_killed_is_done_again(
    endpoint: Endpoint, log: Log, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for second in range(MIN_PARTS):
        log.segment(endpoint, rows(second))
    before = logged(endpoint)
    settle()
    work = getattr(compaction, step)

    def die(*arguments: Any) -> None:
        if step == "_write":
            work(*arguments)  # the file is there, the catalog does not know it
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(compaction, step, die)
        with pytest.raises(KeyboardInterrupt):
            merge_segments()

    assert logged(endpoint) == before
    assert merge_segments() == MIN_PARTS
    assert logged(endpoint) == before


def test_what_killed_merges_left_is_cleared_away(endpoint: Endpoint, log: Log) -> None:
    for second in range(MIN_PARTS):
        segment = log.segment(endpoint, rows(second))
    strays = [path_of(segment).with_name(name) for name in ("merged-1.parquet", ".merged-2.parquet.ab")]
    for stray in strays:
        stray.write_bytes(b"")
        os.utime(stray, (1, 1))
    settle()
    merge_segments()
    assert not any(stray.exists() for stray in strays)


def test_a_merged_segment_is_merged_again_with_all_its_parts(endpoint: Endpoint, log: Log) -> None:
    parts = []
    for start in (0, MIN_PARTS):
        parts += [log.segment(endpoint, rows(start + second)) for second in range(MIN_PARTS)]
        settle()
        merge_segments()
    assert LogSegment.objects.current().get().parts == [part.sha256 for part in parts]
    assert len(logged(endpoint)) == 2 * MIN_PARTS


def test_the_log_is_pruned_by_whole_days_and_one_event_says_so(endpoint: Endpoint, log: Log) -> None:
    old = [log.segment(endpoint, rows(second, second + 1)) for second in (1, 2)]
    kept = log.segment(endpoint, rows(3))
    today = timezone.now().replace(hour=0, minute=0, second=0, microsecond=0)
    days = timedelta(days=30)
    LogSegment.objects.filter(pk__in=[segment.pk for segment in old]).update(
        ended_at=today - days - timedelta(seconds=1)
    )
    LogSegment.objects.filter(pk=kept.pk).update(ended_at=today - days)

    assert prune_segments() == 0  # kept for ever
    Endpoint.objects.filter(pk=endpoint.pk).update(retention_days=30)
    assert prune_segments() == 2
    assert prune_segments() == 0

    assert list(LogSegment.objects.all()) == [kept]
    assert [path_of(segment).exists() for segment in (*old, kept)] == [False, False, True]
    with connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
    (event,) = AuditEvent.objects.filter(action="inference_log.pruned")
    assert event.document["before"]["segments"] == 2
    assert event.document["before"]["rows"] == 4
    assert event.document["before"]["digests"] == [segment.sha256 for segment in old]
    assert event.document["object_id"] == str(endpoint.pk)


def test_parts_go_with_the_segment_that_they_were_merged_into(endpoint: Endpoint, log: Log) -> None:
    parts = [log.segment(endpoint, rows(second)) for second in range(MIN_PARTS)]
    settle()
    merge_segments()
    Endpoint.objects.filter(pk=endpoint.pk).update(retention_days=1)
    assert prune_segments() == 1
    assert not LogSegment.objects.exists()
    assert not any(path_of(part).exists() for part in parts)


def test_one_call_deletes_so_many_and_no_more(endpoint: Endpoint, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    for second in range(5):
        log.segment(endpoint, rows(second))
    Endpoint.objects.filter(pk=endpoint.pk).update(retention_days=1)
    monkeypatch.setattr(retention, "MAX_SEGMENTS", 3)
    assert [prune_segments(), prune_segments(), prune_segments()] == [3, 2, 0]
