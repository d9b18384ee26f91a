"""The inference log: written before the answer, readable after any death, shipped exactly once."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from inference.contracts import RESERVED_LOG_COLUMNS, Limits, LogSettings
from inference.errors import Overloaded
from inference.inference_log import Context, Record, Spool, is_whole, read_spool
from inference.shipper import remove_unfinished, to_table, write_segment
from tests.inference import onnx_models as models
from tests.inference.conftest import Workbench
from tests.inference.installation import row, tensor, wait_for


def _context(**changes: Any) -> Context:
    known: dict[str, Any] = {
        "endpoint": "fraud",
        "endpoint_id": 7,
        "deployment_id": 9,
        "model": "trees",
        "model_version": 3,
        "artifact_digest": "ab" * 32,
        "role": "champion",
        "is_batch": True,
        "inputs": (("x", "FP32", (-1, 2)), ("name", "BYTES", (-1,))),
        "outputs": (("half", "FP16", (-1, 1)),),
        "payload_cap": 100,
        "redacted": (),
    }
    return Context(**known | changes)


def _record(rows: list[int], **changes: Any) -> Record:
    count, total = len(rows), sum(rows)
    known: dict[str, Any] = {
        "outcome": "ok",
        "request_ids": [f"r{i}" for i in range(count)],
        "token_ids": list(range(count)),
        "received_us": [1_795_000_000_000_000 + i for i in range(count)],
        "rows": rows,
        "queue_us": [10] * count,
        "total_us": [50] * count,
        "run_us": 30,
        "batch_size": total,
        "inputs": [
            np.arange(2 * total, dtype=np.float32).reshape(total, 2),
            np.array([f"naïve {i}" for i in range(total)], object),
        ],
        "outputs": [np.arange(total, dtype=np.float16).reshape(total, 1)],
    }
    return Record(**known | changes)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool", "test", cap=1 << 20, seal_interval=60)


def test_what_is_appended_is_read_back(spool: Spool) -> None:
    spool.append(_context(), _record([1, 2]))
    spool.append(_context(), _record([1], outcome="rejected", error="no", inputs=[], outputs=[]))
    spool.append(_context(endpoint="other", redacted=("name",)), _record([1]))
    spool.seal()
    (path,) = spool.directory.iterdir()
    first, second, third = read_spool(path)
    assert (first.record.request_ids, first.record.rows, first.context.endpoint) == (["r0", "r1"], [1, 2], "fraud")
    assert first.tensors[0].values is not None
    assert first.tensors[0].values.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert first.tensors[1].values is not None
    assert first.tensors[1].values.tolist() == ["naïve 0", "naïve 1", "naïve 2"]
    assert (second.record.outcome, second.record.error, second.tensors) == ("rejected", "no", [])
    assert third.context.endpoint == "other"
    assert third.tensors[1].values is third.tensors[1].digests is None


def test_a_torn_tail_is_cut_wherever_it_is_torn(spool: Spool) -> None:
    for _ in range(2):
        spool.append(_context(), _record([1], outputs=[np.ones((1, 1), np.float16)]))
    spool.seal()
    (path,) = spool.directory.iterdir()
    whole = path.read_bytes()
    first_end = (len(whole) + whole.index(b"CSL1", 4)) // 2  # a context, then two records of one size
    for cut in range(first_end, len(whole), 7):
        path.write_bytes(whole[:cut])
        assert len(list(read_spool(path))) == 1
        path.write_bytes(whole[:cut] + b"\0" * (len(whole) - cut))
        assert len(list(read_spool(path))) == 1
    path.write_bytes(whole)
    assert len(list(read_spool(path))) == 2


def test_a_full_spool_refuses_and_a_shipped_one_takes_again(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", "test", cap=2000, seal_interval=60)
    while not spool.is_full:
        spool.append(_context(), _record([4]))
    with pytest.raises(Overloaded):
        spool.append(_context(), _record([4]))
    spool.seal()
    for path in spool.directory.iterdir():
        assert path.stat().st_size < 3000
        path.unlink()
    spool.measure_backlog()
    spool.append(_context(), _record([4]))


def test_a_disk_that_fills_up_leaves_no_half_block(spool: Spool) -> None:
    spool.append(_context(), _record([1]))
    (path,) = spool.directory.iterdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 40, hard))
    try:
        with pytest.raises(Overloaded):
            spool.append(_context(), _record([1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    spool.append(_context(), _record([1]))
    spool.seal()
    (path,) = spool.directory.iterdir()
    assert len(list(read_spool(path))) == 2


def test_a_damaged_file_is_told_from_a_whole_one(spool: Spool) -> None:
    for _ in range(3):
        spool.append(_context(), _record([1]))
    spool.seal()
    (path,) = spool.directory.iterdir()
    assert is_whole(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert not is_whole(path)
    assert len(list(read_spool(path))) < 3


def test_segments_have_the_promised_columns(spool: Spool, tmp_path: Path) -> None:
    spool.append(_context(), _record([1, 2, 0]))
    spool.append(_context(), _record([1], outcome="failed", error="broke", inputs=[], outputs=[]))
    spool.append(_context(), _record([1], inputs=[np.zeros((1, 2), np.float32), np.array(["x" * 200], object)]))
    spool.seal()
    (path,) = spool.directory.iterdir()
    segment = write_segment(tmp_path, "segments/a/b.parquet", list(read_spool(path)))
    table = pq.read_table(tmp_path / segment.path)
    tensors = ["input.x", "input.name", "shape.input.name", "digest.input.name", "output.half"]
    assert table.column_names == [*RESERVED_LOG_COLUMNS, *tensors]
    assert segment.row_count == table.num_rows == 5
    assert segment.sha256 == hashlib.sha256((tmp_path / segment.path).read_bytes()).hexdigest()
    rows = table.to_pylist()
    assert [one["request_id"] for one in rows] == ["r0", "r1", "r1", "r0", "r0"]
    assert [one["row"] for one in rows] == [0, 0, 1, 0, 0]
    assert rows[2]["input.x"] == [4, 5]
    assert rows[2]["input.name"] == "naïve 2"
    assert rows[2]["output.half"] == 2.0
    assert rows[2]["received_at"].isoformat() == "2026-11-18T11:06:40.000001+00:00"
    assert (rows[3]["outcome"], rows[3]["error"], rows[3]["input.x"]) == ("failed", "broke", None)
    over_cap = hashlib.sha256(b"\xc8\0\0\0" + b"x" * 200).hexdigest()
    assert (rows[4]["input.name"], rows[4]["digest.input.name"], rows[4]["shape.input.name"]) == (None, over_cap, [])


def test_a_whole_tensor_prediction_is_one_row(spool: Spool) -> None:
    context = _context(is_batch=False, inputs=(("x", "INT64", (2, 2)),), outputs=(("y", "INT64", ()),))
    spool.append(context, _record([1], inputs=[np.array([[1, 2], [3, 4]])], outputs=[np.array(10)]))
    spool.seal()
    (path,) = spool.directory.iterdir()
    (one,) = to_table(list(read_spool(path))).to_pylist()
    assert (one["input.x"], one["output.y"]) == ([1, 2, 3, 4], 10)


def test_a_tensor_of_unknown_rank_keeps_its_shape(spool: Spool) -> None:
    context = _context(is_batch=False, inputs=(("x", "FP32", ()),), outputs=(("y", "FP32", ()),))
    for shape in ((), (2, 2)):
        spool.append(context, _record([1], inputs=[np.float32([7])], outputs=[np.ones(shape, np.float32)]))
    spool.seal()
    [path] = spool.directory.glob("*.spool")
    table = to_table(list(read_spool(path)))
    assert (table["output.y"].to_pylist(), table["shape.output.y"].to_pylist()) == ([[1], [1] * 4], [[], [2, 2]])
    assert (table["input.x"].to_pylist(), table["shape.input.x"].to_pylist()) == ([[7], [7]], [[1], [1]])


def test_what_a_killed_shipper_had_begun_is_removed(
    spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool.append(_context(), _record([1]))
    spool.seal()
    [path] = spool.directory.glob("*.spool")
    name, records = "segments/double/2026-01-01/test-1-00000001.0-v1.parquet", list(read_spool(path))
    with monkeypatch.context() as killed:
        killed.setattr(Path, "unlink", lambda *_, **__: None)  # the dead do not clean up
        killed.setattr(os, "replace", lambda *_: sys.exit())
        with pytest.raises(SystemExit):
            write_segment(tmp_path, name, records)
    folder = (tmp_path / name).parent
    (folder / ".merged-0.parquet.0").touch()  # another process is at it
    segment = write_segment(tmp_path, name, records)
    assert len(list(folder.iterdir())) == 3
    remove_unfinished(tmp_path)
    assert {one.name for one in folder.iterdir()} == {".merged-0.parquet.0", Path(segment.path).name}


@pytest.mark.parametrize("strict", [False, True])
def test_everything_answered_is_in_the_log_after_kill_9(workbench: Workbench, strict: bool) -> None:
    installation = workbench.installation()
    installation.endpoint("double", models.scale(2), log=LogSettings(strict=strict))
    installation.publish()
    service = workbench.serve(installation)
    answered: list[str] = []
    stopping = threading.Event()

    def ask() -> None:
        while not stopping.is_set():
            try:
                answer = service.infer("double", row(1, 2, 3))
                if answer.ok:
                    answered.append(answer.json()["id"])
            except OSError:
                time.sleep(0.01)  # the replica that held this connection was killed

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        seen = len(answered)
        wait_for(lambda seen=seen: len(answered) > seen + 20, 20)
        victim = service.child("replica")
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda victim=victim: victim not in service.children(), 10)
    stopping.set()
    for thread in threads:
        thread.join()
    logged = [request_id for stored in installation.records() for request_id in stored.record.request_ids]
    assert len(logged) == len(set(logged))
    assert set(answered) <= set(logged)


def test_rejected_and_failed_requests_are_logged_and_strangers_are_not(workbench: Workbench) -> None:
    installation = workbench.installation()
    installation.endpoint("pick", models.pick(), limits=Limits(queue_rows=4), log=LogSettings(redact=("x",)))
    installation.publish()
    service = workbench.serve(installation)
    asked = [([1], 200), ([99], 500), ([1.5], 400), ([0] * 5, 413)]
    for data, status in asked:
        assert service.infer("pick", {"inputs": [tensor("x", "INT64", [len(data)], data)]}).status_code == status
    assert service.infer("pick", {}, headers={"Authorization": "Bearer nobody"}).status_code == 401
    records = [stored.record for stored in installation.records()]
    assert [record.outcome for record in records] == ["ok", "failed", "rejected", "rejected"]
    assert "indices element out of data bounds" in (records[1].error or "")
    assert all(stored.tensors[0].values is None for stored in installation.records() if stored.tensors)


def test_a_full_log_stops_serving_but_not_health(workbench: Workbench) -> None:
    installation = workbench.installation()
    installation.endpoint("double", models.scale(2))
    installation.publish()
    service = workbench.serve(installation, INFERENCE_SPOOL_CAP_BYTES=str(64 * 1024))
    asked = {"inputs": [tensor("x", "FP32", [64, 3], [0.0] * 192)]}
    answers = [service.infer("double", asked) for _ in range(60)]
    assert [answer.status_code for answer in answers[:10]] == [200] * 10
    assert answers[-1].status_code == 503
    assert int(answers[-1].headers["retry-after"]) > 0
    assert json.loads(answers[-1].text)["error"].startswith("The inference log is full")
    logged = [request_id for stored in installation.records() for request_id in stored.record.request_ids]
    assert {answer.json()["id"] for answer in answers if answer.ok} <= set(logged)
