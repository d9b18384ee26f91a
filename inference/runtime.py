"""ONNX Runtime sessions: load, read the signature, warm up, run. The one place that knows ONNX Runtime's types."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read once, when the library is imported

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from inference.contracts import Signature, TensorSpec
from inference.datatypes import V2_DATATYPES as V2_DATATYPES
from inference.datatypes import Array
from inference.errors import ArtifactRejected, DeadlineExceeded, ModelFailed, RequestRejected

Tensors = dict[str, Array]
Session = ort.InferenceSession
RunOptions = ort.RunOptions

ONNX_DATATYPES: Final[Mapping[str, str]] = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
"""ONNX Runtime's name of a tensor type -> Open Inference Protocol datatype."""

PROBE_ROWS: Final = 2
WARM_UP_RUNS: Final = 3
TIMED_ROWS: Final = 8
WORTH_TIMING_MS: Final = 5.0  # a slower model's rows are taken to cost as much together as alone
NODE_FAILED: Final = "Non-zero status code returned while running"


@dataclass(frozen=True, slots=True)
class WarmUp:
    """What the first runs told: how long they took together, how long one takes, whether rows may be batched."""

    total_ms: float
    run_ms: float  # the fastest single run on one row
    is_batchable: bool
    row_ms: float = 0.0  # that one more row adds to a run

    def rows_within(self, budget_ms: float) -> int:
        """How many rows are expected to run in ``budget_ms``; 0 if not even one is."""
        if self.run_ms > budget_ms:
            return 0
        return 1 + int((budget_ms - self.run_ms) / max(self.row_ms, 1e-6))


def share_arena() -> None:
    """Let all sessions of this process take their working memory from one arena. To be called before the first load.

    An arena grows to the largest run and never shrinks; one for each of a thousand models would add up.
    """
    info = ort_state.OrtMemoryInfo(
        "Cpu", ort_state.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort_state.OrtMemType.DEFAULT
    )
    ort_state.create_and_register_allocator(info, None)


def load_session(model: bytes | str | Path, *, threads: int = 1) -> ort.InferenceSession:
    """Build a CPU session from ONNX bytes or a file. Raises ``ArtifactRejected`` when ONNX Runtime refuses it.

    Loading can run code of the model's choosing for ever (constant folding), so an artifact that nobody has
    validated belongs in a process that can be killed.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4
    # Without this a file in ONNX Runtime's own format, which skips the ONNX checks, would load under any name.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.use_env_allocators", "1")  # of ``share_arena``, if it was called
    source = model if isinstance(model, bytes) else str(model)
    try:
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ArtifactRejected(f"ONNX Runtime cannot load this model: {_first_line(error)}") from error


def read_signature(session: ort.InferenceSession) -> Signature:
    """The session's inputs and outputs in V2 terms; free dimensions are -1. Raises ``ArtifactRejected``."""
    return Signature(
        tuple(_spec(one, "input") for one in session.get_inputs()),
        tuple(_spec(one, "output") for one in session.get_outputs()),
    )


def is_batch_shaped(signature: Signature) -> bool:
    """Whether there are inputs, and the first dimension is free in every input and every output."""
    return bool(signature.inputs) and all(spec.shape[:1] == (-1,) for spec in (*signature.inputs, *signature.outputs))


def example_inputs(signature: Signature, rows: int = 1, *, seed: int = 0) -> Tensors:
    """Harmless tensors that fit the signature: a free first dimension becomes ``rows``, other free ones 1.

    Floats lie in [0, 1), integers are 0 or 1 (valid as an index almost everywhere), strings are short letters.
    """
    random = np.random.default_rng(seed)
    tensors = {}
    for spec in signature.inputs:
        shape = tuple(size if size >= 0 else (rows if position == 0 else 1) for position, size in enumerate(spec.shape))
        dtype = V2_DATATYPES[spec.datatype]
        if spec.datatype == "BYTES":
            tensors[spec.name] = random.choice(np.array(["a", "b"], dtype=object), shape)
        elif dtype.kind == "f":
            tensors[spec.name] = np.asarray(random.random(shape)).astype(dtype)
        else:
            tensors[spec.name] = np.asarray(random.integers(0, 2, shape)).astype(dtype)
    return tensors


def warm_up(session: ort.InferenceSession, signature: Signature) -> WarmUp:
    """Run the model a few times on example inputs and time it. Raises ``ModelFailed`` when it cannot run at all."""
    started = time.perf_counter()
    run_ms = _fastest_ms(session, example_inputs(signature))
    is_batchable = is_batch_shaped(signature) and _rows_are_independent(session, signature)
    row_ms = run_ms
    if is_batchable and run_ms < WORTH_TIMING_MS:
        several_ms = _fastest_ms(session, example_inputs(signature, rows=TIMED_ROWS))
        row_ms = max(several_ms - run_ms, 0.0) / (TIMED_ROWS - 1)
    return WarmUp((time.perf_counter() - started) * 1e3, run_ms, is_batchable, row_ms)


def _fastest_ms(session: ort.InferenceSession, inputs: Tensors) -> float:
    durations = []
    for _ in range(WARM_UP_RUNS):
        before = time.perf_counter()
        run(session, inputs)
        durations.append(time.perf_counter() - before)
    return min(durations) * 1e3


def run(session: ort.InferenceSession, inputs: Tensors, options: Any = None) -> list[Array]:
    """Run the model: one array per output, in the signature's order.

    ``options`` (``RunOptions``) let another thread stop the run. Raises ``RequestRejected`` when the model cannot take
    these shapes, ``DeadlineExceeded`` when it was stopped, and ``ModelFailed`` when it breaks inside.
    """
    try:
        return session.run(None, inputs, options)  # type: ignore[no-any-return]
    except ort_state.InvalidArgument as error:
        message = _first_line(error)
        if NODE_FAILED in message:  # the inputs were accepted; something inside broke on them
            raise ModelFailed(message) from error
        raise RequestRejected(f"the model does not take these: {message}", "inputs") from error
    except Exception as error:
        if options is not None and options.terminate:
            raise DeadlineExceeded("The model did not come to an end on these inputs and was stopped.") from error
        raise ModelFailed(_first_line(error)) from error


def _spec(node: Any, side: str) -> TensorSpec:
    datatype = ONNX_DATATYPES.get(node.type)
    if datatype is None:
        raise ArtifactRejected(f'The {side} "{node.name}" is a {node.type}. {_why_not(node.type)}')
    return TensorSpec(node.name, datatype, tuple(size if isinstance(size, int) else -1 for size in node.shape))


def _why_not(kind: str) -> str:
    """Why a type of ONNX cannot be served, and what to do."""
    if kind.startswith("tensor("):  # bfloat16, and numbers of 8 bits and fewer that are no integers of 8 bits
        return "The Open Inference Protocol has no such datatype: cast it inside the model, for instance to float."
    if "map(" in kind:
        return "Only tensors are served: convert the classifier with zipmap=False."
    if kind.startswith("sparse_tensor("):
        return "Only dense tensors are served: make it dense inside the model."
    if kind.startswith("optional("):
        return "The Open Inference Protocol knows no absent tensors: make it a plain tensor."
    return "Only tensors are served: stack a sequence into one tensor, or make its elements tensors of their own."


def _rows_are_independent(session: ort.InferenceSession, signature: Signature) -> bool:
    """Probe whether two rows run together give what each gives alone; only such a model may share a batch.

    A free first dimension alone proves nothing: a model may sort, average or normalise over it.
    """
    rows = [example_inputs(signature, seed=seed) for seed in range(1, PROBE_ROWS + 1)]
    try:
        together = run(session, {name: np.concatenate([row[name] for row in rows]) for name in rows[0]})
        alone = [run(session, row) for row in rows]
    except (RequestRejected, ModelFailed):
        return False
    return all(
        len(both) == PROBE_ROWS and all(_is_close(both[row : row + 1], alone[row][index]) for row in range(PROBE_ROWS))
        for index, both in enumerate(together)
    )


def _is_close(together: Array, alone: Array) -> bool:
    if alone.shape != together.shape:
        return False
    if alone.dtype.kind == "f":  # kernels for one row and for several may round differently
        return bool(np.allclose(together, alone, rtol=1e-3, atol=1e-5, equal_nan=True))
    return bool(np.array_equal(together, alone))


def _first_line(error: Exception) -> str:
    text = str(error).partition("\n")[0]
    return text.rpartition("] : ")[2][:400] or type(error).__name__
