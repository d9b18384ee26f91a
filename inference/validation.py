"""The child of ``sandbox.py``: confine oneself, then parse, check, load and run an unknown model from standard input.

Its limits come as JSON in the first argument, the model as bytes on standard input, and its report goes to standard
output. Nothing that the model says is believed before the limits hold.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, Final

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper

from inference.contracts import Signature
from inference.errors import ArtifactRejected, ModelFailed, RequestRejected
from inference.formats import HEAD_BYTES, why_not_onnx
from inference.runtime import load_session, read_signature, warm_up

DOMAINS: Final = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
"""Operator sets that ONNX Runtime's CPU build brings along."""

MAX_TENSORS: Final = 1_000
"""Inputs and outputs together."""
MAX_NAME: Final = 200
MAX_RANK: Final = 16
MAX_ELEMENTS: Final = 2**26
"""Elements of one row of one input: 256 MiB of FP32."""

_CLONE_NEWUSER: Final = 0x10000000
_CLONE_NEWNET: Final = 0x40000000
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NO_NEW_PRIVS: Final = 38
_LANDLOCK_CREATE_RULESET: Final = 444
_LANDLOCK_RESTRICT_SELF: Final = 446
_LANDLOCK_FS: Final = ((1, 0x1FFF), (2, 0x2000), (3, 0x4000), (5, 0x8000))
"""(ABI version, file access rights that it can deny)."""
_UNPRIVILEGED: Final = 65_533
"""A user id that nothing else runs as: the embedded database runs as ``nobody``."""
_OUT_OF_MEMORY: Final = (
    "bad_alloc",
    "bad allocation",
    "failed to allocate",
    "out of memory",
    "cannot allocate",
    "supported maximum",  # of a tensor's bytes
)


def main(order: str) -> None:
    """Read, confine, validate, report. Exits with 0 whenever there is a report, also one that rejects."""
    limits = json.loads(order)
    out = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # whatever a library prints is no part of the report
    _rehearse(limits)
    held = confine(limits)
    try:
        report = validate(sys.stdin.buffer.read(), limits) | {"confinement": held}
    except ArtifactRejected as error:
        text = str(error)
        report = {"rejected": _printable(text, 2_000), "out_of_memory": _is_out_of_memory(text)}
    except MemoryError:
        report = {"rejected": "out of memory", "out_of_memory": True}
    except UnicodeDecodeError:
        report = {"rejected": "A name in the model is not UTF-8 text, so the file is damaged. Export it again."}
    os.write(out, json.dumps(report).encode())
    os._exit(0)  # no destructor of a hostile model's session gets to run


def _rehearse(limits: dict[str, Any]) -> None:
    """Validate a model of one's own, so that every module, library and CPU table is loaded before files are denied."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "rehearsal",
        [value("x", TensorProto.FLOAT, ["n", 1])],
        [value("y", TensorProto.FLOAT, ["n", 1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    validate(model.SerializeToString(), limits)


def confine(limits: dict[str, Any]) -> list[str]:
    """Give up what a validation does not need. Returns what held: resource limits always, the rest where possible."""
    held = ["resource limits"]
    mapped = _mapped_bytes()  # what is mapped so far counts too, and no file can be opened later
    if sys.platform == "linux":
        held += _leave_network()
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(_UNPRIVILEGED)
        os.setuid(_UNPRIVILEGED)
        held.append("account of its own")
    if sys.platform == "linux":
        held += _deny_files()
        # After the change of account, which resets it: nobody is left to kill this process when its parent is killed.
        _libc().prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # CPU seconds: SIGXCPU at the soft limit, SIGKILL two seconds later.
    resource.setrlimit(resource.RLIMIT_CPU, (limits["cpu_s"], limits["cpu_s"] + 2))
    resource.setrlimit(resource.RLIMIT_AS, (mapped + limits["memory_bytes"],) * 2)
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    for kind in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        resource.setrlimit(kind, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
    return held


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _leave_network() -> list[str]:
    """Enter an empty network namespace; without privileges that takes a user namespace, which a kernel may refuse."""
    flags = _CLONE_NEWNET if os.geteuid() == 0 else _CLONE_NEWNET | _CLONE_NEWUSER
    return ["no network"] if _libc().unshare(flags) == 0 else []


def _deny_files() -> list[str]:
    """Landlock without a single rule: no path can be opened, no TCP port used, no other process signalled."""
    libc = _libc()
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return []
    held = ["no new privileges"]
    abi = libc.syscall(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    files = sum(rights for version, rights in _LANDLOCK_FS if version <= abi)
    wanted = [files] + [3] * (abi >= 4) + [3] * (abi >= 6)  # files; TCP bind and connect; abstract sockets and signals
    rules = (ctypes.c_uint64 * len(wanted))(*wanted)
    ruleset = libc.syscall(_LANDLOCK_CREATE_RULESET, rules, ctypes.c_size_t(8 * len(wanted)), 0) if abi >= 1 else -1
    if ruleset >= 0 and libc.syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0) == 0:
        held.append("no files")
    return held


def _mapped_bytes() -> int:
    try:
        with open("/proc/self/statm", encoding="ascii") as statm:
            return int(statm.read().split()[0]) * resource.getpagesize()
    except OSError:  # no /proc on this system
        return 2**30


def validate(artifact: bytes, limits: dict[str, Any]) -> dict[str, Any]:
    """Check the bytes and try the model. Raises ``ArtifactRejected``."""
    model = parse(artifact)
    node_count = check_structure(model, max_nodes=limits["max_nodes"], max_depth=limits["max_depth"])
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    producer = _printable(f"{model.producer_name} {model.producer_version}".strip(), 120)
    del model  # as large as the file
    started = time.perf_counter()
    session = load_session(artifact)
    load_ms = (time.perf_counter() - started) * 1e3
    signature = read_signature(session)
    check_signature(signature)
    report: dict[str, Any] = {
        "signature": {
            side: [{"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)} for spec in specs]
            for side, specs in (("inputs", signature.inputs), ("outputs", signature.outputs))
        },
        "opset": opset,
        "producer": producer,
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
        if _is_out_of_memory(detail):
            raise ArtifactRejected(detail) from error
        # Made-up inputs may be wrong for a good model, e.g. an image of one pixel.
        report["warnings"].append(f"It could not be run on made-up inputs: {_printable(detail, 400)}")
    else:
        report["warmup_ms"], report["is_batchable"] = warm.run_ms, warm.is_batchable
    return report


def parse(artifact: bytes) -> onnx.ModelProto:
    """The model's protobuf. Raises ``ArtifactRejected`` that names what the file is instead."""
    if reason := why_not_onnx(artifact[:HEAD_BYTES]):
        raise ArtifactRejected(reason)
    try:
        model: onnx.ModelProto = onnx.ModelProto.FromString(artifact)
    except DecodeError as error:
        raise ArtifactRejected(
            "The file cannot be read as ONNX: it is cut off or damaged, or nests graphs far too deep. "
            "Export the model again, and check that the whole file was uploaded."
        ) from error
    if not model.ir_version or not model.HasField("graph"):
        raise ArtifactRejected("The file holds no ONNX model. Upload what onnx.save or your converter wrote.")
    return model


def check_structure(model: onnx.ModelProto, *, max_nodes: int, max_depth: int) -> int:
    """Refuse what must not be loaded: external data, foreign operators, absurd size. Returns the number of nodes."""
    # An operator set that is only imported does nothing; what counts is each operator.
    domains = DOMAINS | {function.domain for function in model.functions}
    if len(model.training_info):
        raise ArtifactRejected("The model carries training information. Export it for inference.")
    count = 0
    # A stack of (nodes, depth) instead of recursion: the depth is the model's choice.
    bodies: list[tuple[Iterable[Any], int]] = list(_graph_bodies(model.graph, 1))
    for function in model.functions:
        bodies.append((function.node, 1))
        for attribute in function.attribute_proto:
            bodies += _attribute_bodies(attribute, 2)
    while bodies:
        nodes, depth = bodies.pop()
        if depth > max_depth:
            raise ArtifactRejected(f"The model nests graphs more than {max_depth} deep. Flatten its control flow.")
        for node in nodes:
            count += 1
            if count > max_nodes:
                raise ArtifactRejected(
                    f"The model has more than {max_nodes:,} nodes. Simplify it before you upload it."
                )
            if node.domain not in domains:
                raise ArtifactRejected(
                    f"The operator “{_printable(node.op_type, 80)}” of “{_printable(node.domain, 80)}” is not served. "
                    "Export the model with standard ONNX operators only."
                )
            for attribute in node.attribute:
                bodies += _attribute_bodies(attribute, depth + 1)
    return count


def check_signature(signature: Signature) -> None:
    """Refuse a signature that cannot be served, shown or stored. Raises ``ArtifactRejected``."""
    if not signature.outputs:
        raise ArtifactRejected("The model has no outputs. Export it with at least one.")
    specs = (*signature.inputs, *signature.outputs)
    if len(specs) > MAX_TENSORS:
        raise ArtifactRejected(
            f"The model has {len(specs):,} inputs and outputs, more than {MAX_TENSORS:,}. Join columns into one tensor."
        )
    for side, of_side in (("inputs", signature.inputs), ("outputs", signature.outputs)):
        names = [spec.name for spec in of_side]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ArtifactRejected(
                f"Two {side} are called “{_printable(twice, 40)}”, so nobody could ask for one of them. Rename one."
            )
    for spec in specs:
        if len(spec.name) > MAX_NAME or not spec.name.isprintable() or not spec.name:
            raise ArtifactRejected(
                f"The name “{_printable(spec.name, 40)}” of an input or output is empty, longer than {MAX_NAME} "
                "characters or holds control characters. Rename it."
            )
        if len(spec.shape) > MAX_RANK:
            raise ArtifactRejected(f"“{spec.name}” has more than {MAX_RANK} dimensions. Reshape it inside the model.")
    for spec in signature.inputs:
        if math.prod(size for size in spec.shape if size >= 0) > MAX_ELEMENTS:
            raise ArtifactRejected(
                f"One row of the input “{spec.name}” would have more than {MAX_ELEMENTS:,} elements. Make it smaller."
            )


def _graph_bodies(graph: Any, depth: int) -> Iterator[tuple[Iterable[Any], int]]:
    """The graph's nodes, after a look at its weights."""
    for tensor in graph.initializer:
        _refuse_external(tensor)
    for sparse in graph.sparse_initializer:
        _refuse_external(sparse.values)
        _refuse_external(sparse.indices)
    yield graph.node, depth


def _attribute_bodies(attribute: Any, depth: int) -> Iterator[tuple[Iterable[Any], int]]:
    """The nodes of the graphs in an attribute, after a look at all its tensors."""
    for tensor in (attribute.t, *attribute.tensors):
        _refuse_external(tensor)
    for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
        _refuse_external(sparse.values)
        _refuse_external(sparse.indices)
    for graph in (attribute.g, *attribute.graphs):
        yield from _graph_bodies(graph, depth)


def _refuse_external(tensor: Any) -> None:
    if tensor.data_location == TensorProto.EXTERNAL or len(tensor.external_data):
        raise ArtifactRejected(
            f"The weights of “{_printable(tensor.name, 80)}” lie outside the file, in external data. "
            "Save the model as one file: onnx.save(model, path, save_as_external_data=False)."
        )


def _is_out_of_memory(text: str) -> bool:
    return any(sign in text.lower() for sign in _OUT_OF_MEMORY)


def _printable(text: str, cap: int) -> str:
    """The text without control characters, which a database or a terminal would choke on, and bounded."""
    return "".join(character if character.isprintable() else " " for character in text[:cap])


if __name__ == "__main__":
    main(sys.argv[1])
