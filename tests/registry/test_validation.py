"""The sandbox: hostile files are refused with a reason that helps, in bounded time, and good ones pass."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from inference.errors import ArtifactRejected
from inference.sandbox import SandboxLimits, validate_artifact
from tests.registry import hostile

LIMITS = SandboxLimits(cpu_s=2, wall_s=8, memory_bytes=2**30, max_nodes=1_000)


def _validate(tmp_path: Path, artifact: bytes) -> dict[str, object]:
    path = tmp_path / "model.onnx"
    path.write_bytes(artifact)
    return validate_artifact(path, LIMITS)


def test_a_good_model_passes_with_its_signature(tmp_path: Path) -> None:
    report = _validate(tmp_path, hostile.good())
    assert report["signature"] == {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 4]}],
    }
    assert report["is_batchable"] is True
    assert report["warnings"] == []
    assert "resource limits" in report["confinement"]  # type: ignore[operator]


@pytest.mark.parametrize("name", hostile.REFUSED)
def test_hostile_files_are_refused_with_a_reason(tmp_path: Path, name: str) -> None:
    build, words = hostile.REFUSED[name]
    artifact = build()
    started = time.monotonic()
    with pytest.raises(ArtifactRejected) as refusal:
        _validate(tmp_path, artifact)
    assert time.monotonic() - started < LIMITS.wall_s + 2
    assert words in str(refusal.value)
    assert str(tmp_path) not in str(refusal.value)


@pytest.mark.parametrize("seed", range(10))
def test_a_flipped_byte_is_refused_or_harmless(tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    artifact = bytearray(hostile.good())
    artifact[random.integers(len(artifact))] ^= 1 << random.integers(8)
    try:
        report = _validate(tmp_path, bytes(artifact))
    except ArtifactRejected as refusal:
        assert str(refusal)
    else:
        assert report["signature"]


def test_a_model_that_fails_on_made_up_inputs_is_accepted_with_a_warning(tmp_path: Path) -> None:
    reshape = helper.make_node("Reshape", ["x", "s"], ["y"])
    shape = hostile.numpy_helper.from_array(np.array([7, 3], np.int64), "s")
    report = _validate(tmp_path, hostile.build([reshape], inits=[shape]))
    assert report["warmup_ms"] is None
    assert "made-up inputs" in report["warnings"][0]  # type: ignore[index]
