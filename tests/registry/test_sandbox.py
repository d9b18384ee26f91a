"""Hostile files: each is refused with a reason that helps, in bounded time, and nothing is left behind."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import psutil
import pytest
from onnx import ModelProto

from inference.errors import ArtifactRejected
from inference.sandbox import SandboxLimits, validate_artifact
from tests.registry import hostile

LIMITS: Final = SandboxLimits(cpu_s=2, wall_s=20, memory_bytes=2**30, max_nodes=1_000, max_depth=8)

MEMORY: Final = "more than 1.0 GiB of memory"
PROCESSOR: Final = "more than 2 s of processor time"
OUTSIDE: Final = "lie outside the file"
UNREADABLE: Final = "cannot be read as ONNX"

REFUSED: Final[dict[str, tuple[Callable[[], ModelProto | bytes], str]]] = {
    "constant of 512 GiB": (hostile.constant_of_512_gib, MEMORY),
    "expand bomb": (hostile.expand_bomb, MEMORY),
    "tile bomb": (hostile.tile_bomb, MEMORY),
    "range bomb": (hostile.range_bomb, MEMORY),
    "growing scan": (hostile.growing_scan, f"{MEMORY}|{PROCESSOR}"),
    "endless loop": (hostile.endless_loop, PROCESSOR),
    "load-time burn": (hostile.load_time_burn, PROCESSOR),
    "giant matmul": (hostile.giant_matmul, PROCESSOR),
    "function bomb": (hostile.function_bomb, f"{MEMORY}|{PROCESSOR}"),
    "recursive function": (hostile.recursive_function, "ONNX Runtime"),
    "external, relative": (lambda: hostile.external("weights.bin"), OUTSIDE),
    "external, absolute": (lambda: hostile.external("/etc/passwd"), OUTSIDE),
    "external, upwards": (lambda: hostile.external("../../etc/passwd"), OUTSIDE),
    "external, memory": (lambda: hostile.external("*/_ORT_MEM_ADDR_/*"), OUTSIDE),
    "external in a subgraph": (hostile.external_in_subgraph, OUTSIDE),
    "external in a constant": (hostile.external_in_constant, OUTSIDE),
    "external in a function": (hostile.external_in_function, OUTSIDE),
    "external, sparse": (hostile.external_sparse, OUTSIDE),
    "nested": (lambda: hostile.nested(12), "more than 8 deep"),
    "nested beyond parsing": (hostile.nested_beyond_parsing, UNREADABLE),
    "many nodes": (lambda: hostile.many_nodes(1_001), "more than 1,000 nodes"),
    "custom operator": (hostile.custom_operator, "“Steal” of “evil.ops”"),
    "undeclared custom operator": (hostile.undeclared_custom_operator, "“Steal” of “evil.ops”"),
    "unknown operator": (hostile.unknown_operator, "Frobnicate"),
    "wrong type": (hostile.wrong_type, "cannot load"),
    "no graph": (hostile.without_graph, "no ONNX model"),
    "training information": (hostile.training_information, "training information"),
    "outputs of one name": (hostile.outputs_of_one_name, "Two outputs are called “y”"),
    "huge input": (hostile.huge_input, "elements"),
    "control characters": (hostile.control_characters_in_a_name, "control characters|cannot load"),
    "name that is no text": (hostile.name_that_is_no_text, f"not UTF-8|{UNREADABLE}|cannot load"),
    "map output": (hostile.map_output, "zipmap=False"),
    "pickle": (hostile.a_pickle, "never opened"),
    "zip": (hostile.a_zip, "ZIP archive"),
    "torch": (lambda: hostile.a_zip("archive/data.pkl"), "torch.onnx.export"),
    "hdf5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(64), "HDF5"),
    "gzip": (lambda: gzip.compress(hostile.harmless()), "compressed"),
    "text": (lambda: b"This is not a model at all.\n", "text file"),
    "empty": (lambda: b"", "empty"),
    "zeros": (lambda: bytes(4_096), UNREADABLE),
    "truncated": (lambda: hostile.harmless()[:-20], UNREADABLE),
}


def _write(folder: Path, content: ModelProto | bytes) -> Path:
    path = folder / "artifact"
    path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    return path


def _survivors() -> list[psutil.Process]:
    """Validators that still run; the suite may have other children, such as its database, and ones that are gone."""
    return [child for child in psutil.Process().children() if _is_validator(child)]


def _is_validator(process: psutil.Process) -> bool:
    try:
        return "inference.validation" in process.cmdline()
    except psutil.NoSuchProcess:  # or a zombie, which runs no more
        return False


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_with_a_reason(kind: str, tmp_path: Path) -> None:
    """Every kind is refused in words for the uploader, within its limits, and no process survives."""
    build, reason = REFUSED[kind]
    started = time.monotonic()
    with pytest.raises(ArtifactRejected, match=reason):
        validate_artifact(_write(tmp_path, build()), LIMITS)
    assert time.monotonic() - started < LIMITS.wall_s + 5
    assert not _survivors()
    assert not Path("/tmp/unpickled-by-countersign").exists()


def test_ort_format_is_refused(tmp_path: Path) -> None:
    """It would load from bytes and skip every check."""
    with pytest.raises(ArtifactRejected, match="own format"):
        validate_artifact(_write(tmp_path, hostile.ort_format(tmp_path)), LIMITS)


@pytest.mark.parametrize("position", range(10))
def test_a_flipped_byte_is_refused_or_harmless(position: int, tmp_path: Path) -> None:
    """Never anything but a report or a refusal."""
    try:
        report = validate_artifact(_write(tmp_path, hostile.flipped(position)), LIMITS)
    except ArtifactRejected:
        return
    assert report["signature"]["outputs"]


def test_the_wall_clock_ends_what_the_processor_limit_does_not(tmp_path: Path) -> None:
    """A child that only waits, or a machine too busy to use up processor time."""
    with pytest.raises(ArtifactRejected, match="longer than 1 s"):
        validate_artifact(_write(tmp_path, hostile.endless_loop()), replace(LIMITS, cpu_s=60, wall_s=1.4))
    assert not _survivors()


def test_a_harmless_model_is_described(tmp_path: Path) -> None:
    """Signature, facts and what held it."""
    report = validate_artifact(_write(tmp_path, hostile.harmless()), LIMITS)
    assert report["signature"] == {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 1]}],
    }
    assert (report["opset"], report["producer"], report["node_count"]) == (17, "tests 1", 2)
    assert report["is_batchable"]
    assert report["warnings"] == []
    assert "resource limits" in report["confinement"]


def test_a_model_without_inputs_is_accepted(tmp_path: Path) -> None:
    """It always answers the same, which the protocol can say."""
    report = validate_artifact(_write(tmp_path, hostile.without_inputs()), LIMITS)
    assert report["signature"]["inputs"] == []
    assert not report["is_batchable"]


def test_a_model_that_fails_on_made_up_inputs_is_accepted_with_a_warning(tmp_path: Path) -> None:
    """Nobody knows what a good input would be; the person is told."""
    report = validate_artifact(_write(tmp_path, hostile.impossible_reshape()), LIMITS)
    assert report["warmup_ms"] is None
    assert "made-up inputs" in report["warnings"][0]


@pytest.mark.skipif(sys.platform != "linux", reason="takes a death signal of the kernel")
def test_the_child_ends_with_whoever_started_it(tmp_path: Path) -> None:
    """A job that is killed in the middle of a validation leaves no process behind."""
    path = _write(tmp_path, hostile.endless_loop())
    script = f"from pathlib import Path; from inference.sandbox import *; validate_artifact(Path({str(path)!r}))"
    parent = psutil.Popen([sys.executable, "-c", script])
    deadline = time.monotonic() + 30
    while not (children := parent.children()) or children[0].cpu_times().user < 1.5:  # it is in the loop by then
        assert time.monotonic() < deadline
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive


def _confined(code: str) -> Any:
    """What ``code`` assigns to ``seen`` after confinement."""
    script = f"""
import json, os, socket
from inference.validation import _rehearse, confine
limits = {{"cpu_s": 5, "memory_bytes": 2**28, "max_nodes": 10, "max_depth": 4}}
_rehearse(limits)
held = confine(limits)
def refused(action):
    try:
        action()
    except (OSError, MemoryError) as error:
        return type(error).__name__
    return "allowed"
{code}
print(json.dumps([held, seen]), flush=True)
os._exit(0)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, timeout=30)
    return json.loads(run.stdout)


def test_the_child_can_reach_nothing() -> None:
    """Files, network, processes and memory, as far as this system can deny them."""
    held, seen = _confined(
        """
seen = {
    "memory": refused(lambda: bytearray(2**30)),
    "read": refused(lambda: open("/etc/passwd")),
    "write": refused(lambda: open("/tmp/written-by-a-model", "w").write("x")),
    "fork": refused(os.fork) if os.geteuid() else "privileged",
    "network": refused(lambda: socket.socket().connect(("127.0.0.1", 9))),
}
"""
    )
    assert seen["memory"] == "MemoryError"
    assert seen["network"] != "allowed"
    if "no files" in held:
        assert seen["read"] == seen["write"] == "PermissionError"
    if "account of its own" in held:
        assert seen["fork"] == "BlockingIOError"
    if "no network" in held:
        assert seen["network"] in {"OSError", "PermissionError"}
