"""The child of ``sandbox.py``: confine oneself, then parse, check, load and run an unknown model from standard input.

Its limits come as JSON in the first argument, the model as bytes on standard input, and its report goes to standard
output. Nothing that the model says is believed before the limits hold.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, Final

import onnx
from google.protobuf.message import DecodeError

from inference.errors import ArtifactRejected, ModelFailed, RequestRejected
from inference.formats import why_not_onnx
from inference.runtime import load_session, read_signature, warm_up

DOMAINS: Final = frozenset({"", "ai.onnx", "ai.onnx.ml", "ai.onnx.preview.training", "com.microsoft"})
"""Operator sets that ONNX Runtime's CPU build brings along."""

_CLONE_NEWUSER: Final = 0x10000000
_CLONE_NEWNET: Final = 0x40000000
_PR_SET_NO_NEW_PRIVS: Final = 38
_NOBODY: Final = 65_534
_OUT_OF_MEMORY: Final = ("bad_alloc", "bad allocation", "failed to allocate", "out of memory", "cannot allocate")


def main(order: str) -> None:
    """Read, confine, validate, report. Exits with 0 whenever there is a report, also one that rejects."""
    limits = json.loads(order)
    out = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # whatever a library prints is no part of the report
    confinement = confine(limits)
    try:
        report: dict[str, Any] = validate(sys.stdin.buffer.read(), limits) | {"confinement": confinement}
    except ArtifactRejected as error:
        text = str(error)
        report = {"rejected": text, "out_of_memory": any(sign in text.lower() for sign in _OUT_OF_MEMORY)}
    except MemoryError:
        report = {"rejected": "out of memory", "out_of_memory": True}
    os.write(out, json.dumps(report).encode())
    os._exit(0)  # no destructor of a hostile model's session gets to run


def confine(limits: dict[str, Any]) -> list[str]:
    """Give up what a validation does not need. Returns what held: resource limits always, the rest where possible."""
    held = ["resource limits"]
    # CPU seconds: SIGXCPU at the soft limit, SIGKILL two seconds later.
    resource.setrlimit(resource.RLIMIT_CPU, (limits["cpu_s"], limits["cpu_s"] + 2))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if sys.platform == "linux":
        flags = _CLONE_NEWNET if os.geteuid() == 0 else _CLONE_NEWNET | _CLONE_NEWUSER
        if libc.unshare(flags) == 0:
            held.append("no network")
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(_NOBODY)
        os.setuid(_NOBODY)
        held.append("unprivileged account")
    if sys.platform == "linux" and libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0:
        held.append("no new privileges")
    # Last, because what has been mapped so far counts too.
    mapped = _mapped_bytes()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + limits["memory_bytes"],) * 2)
    resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
    return held


def _mapped_bytes() -> int:
    try:
        with open("/proc/self/statm", encoding="ascii") as statm:
            return int(statm.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 2**30


def validate(artifact: bytes, limits: dict[str, Any]) -> dict[str, Any]:
    """Check the bytes and try the model. Raises ``ArtifactRejected``."""
    model = parse(artifact)
    node_count = check_structure(model, max_nodes=limits["max_nodes"], max_depth=limits["max_depth"])
    started = time.perf_counter()
    session = load_session(artifact)
    load_ms = (time.perf_counter() - started) * 1e3
    signature = read_signature(session)
    if not signature.outputs:
        raise ArtifactRejected("The model has no outputs. Export it with at least one.")
    report: dict[str, Any] = {
        "signature": {
            side: [{"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)} for spec in specs]
            for side, specs in (("inputs", signature.inputs), ("outputs", signature.outputs))
        },
        "opset": max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0),
        "producer": f"{model.producer_name} {model.producer_version}".strip()[:120],
        "node_count": node_count,
        "load_ms": load_ms,
        "warmup_ms": None,
        "is_batchable": False,
        "warnings": [],
    }
    try:
        warm = warm_up(session, signature)
    except (ModelFailed, RequestRejected) as error:
        detail = error.detail if isinstance(error, ModelFailed) else str(error)
        if any(sign in detail.lower() for sign in _OUT_OF_MEMORY):
            raise ArtifactRejected(detail) from error
        # Made-up inputs may be wrong for a good model, e.g. an index out of its range.
        report["warnings"].append(f"It could not be warmed up on made-up inputs: {detail}"[:500])
    else:
        report["warmup_ms"], report["is_batchable"] = warm.run_ms, warm.is_batchable
    return report


def parse(artifact: bytes) -> onnx.ModelProto:
    """The model's protobuf. Raises ``ArtifactRejected`` that names what the file is instead."""
    if reason := why_not_onnx(artifact[:16]):
        raise ArtifactRejected(reason)
    try:
        model = onnx.ModelProto.FromString(artifact)
    except DecodeError as error:
        raise ArtifactRejected("The file is not a complete ONNX model. Export and upload it again.") from error
    if not model.ir_version or not model.HasField("graph"):
        raise ArtifactRejected("The file holds no ONNX model. Upload what onnx.save or your converter wrote.")
    return model


def check_structure(model: onnx.ModelProto, *, max_nodes: int, max_depth: int) -> int:
    """Refuse what must not be loaded: external data, foreign operators, absurd size. Returns the number of nodes."""
    local = {function.domain for function in model.functions}
    for entry in model.opset_import:
        if entry.domain not in DOMAINS | local:
            raise ArtifactRejected(
                f"The model uses operators of “{entry.domain[:80]}”, which are not served. "
                "Export it with standard ONNX operators only."
            )
    count = 0
    bodies: list[tuple[Iterable[Any], int]] = [(model.graph.node, 1)]
    bodies += [(function.node, 1) for function in model.functions]
    _refuse_external(_graph_tensors(model.graph))
    if len(model.training_info):
        raise ArtifactRejected("The model carries training information. Export it for inference.")
    while bodies:
        nodes, depth = bodies.pop()
        if depth > max_depth:
            raise ArtifactRejected(f"The model nests graphs more than {max_depth} deep. Flatten its control flow.")
        for node in nodes:
            count += 1
            if count > max_nodes:
                raise ArtifactRejected(f"The model has more than {max_nodes:,} nodes. Simplify it before you upload it.")
            if node.domain not in DOMAINS | local:
                raise ArtifactRejected(
                    f"The operator “{node.op_type[:80]}” of “{node.domain[:80]}” is not served. "
                    "Export the model with standard ONNX operators only."
                )
            for attribute in node.attribute:
                _refuse_external(_attribute_tensors(attribute))
                for graph in _subgraphs(attribute):
                    _refuse_external(_graph_tensors(graph))
                    bodies.append((graph.node, depth + 1))
    return count


def _subgraphs(attribute: Any) -> Iterator[Any]:
    if attribute.HasField("g"):
        yield attribute.g
    yield from attribute.graphs


def _graph_tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)


def _attribute_tensors(attribute: Any) -> Iterator[Any]:
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors
    if attribute.HasField("sparse_tensor"):
        yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
    for sparse in attribute.sparse_tensors:
        yield from (sparse.values, sparse.indices)


def _refuse_external(tensors: Iterator[Any]) -> None:
    for tensor in tensors:
        if tensor.data_location == onnx.TensorProto.EXTERNAL or len(tensor.external_data):
            raise ArtifactRejected(
                f"The weights of “{tensor.name[:80]}” lie outside the file. Save the model as one file "
                "(onnx.save with save_as_external_data=False)."
            )


if __name__ == "__main__":
    main(sys.argv[1])
