"""Every model of onnx's own backend test suite: uploaded, served and asked, or refused with the reason.

A model that the service answers wrongly, or not at all, is a failure unless onnxruntime itself, asked directly, does
not give what the suite expects either.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import orjson
import pytest
import requests
import tritonclient.grpc
import tritonclient.http
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests
from onnx.backend.test.runner import Runner

from inference.contracts import DeploymentEntry, Signature
from inference.errors import ArtifactRejected
from inference.inference_log import read_spool
from inference.runtime import V2_DATATYPES
from inference.sandbox import SandboxLimits, validate_artifact
from inference.shipper import to_table
from inference.validation import validate
from tests.inference.conftest import Workbench
from tests.inference.installation import TOKEN, Installation, Service, free_port, wait_for

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::RuntimeWarning")

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")
AUTHORIZATION = f"Bearer {TOKEN}"
REFUSED = {
    "no datatype": ("The Open Inference Protocol has no such datatype", 151),  # BF16, FP8, and fewer than 8 bits
    "sequence": ("stack a sequence into one tensor", 20),
    "optional": ("The Open Inference Protocol knows no absent tensors", 3),
}
"""What the protocol cannot express: what the uploader is told, and how many models of the suite it concerns."""
TOO_LARGE = {"light_bvlc_alexnet", "light_vgg19", "light_zfnet512"}  # 1.5 GB of memory for nothing new

Tensors = list[np.ndarray[Any, Any]]


@dataclass
class Case:
    """A model with what to ask it and what it should answer, as tensors or (where it takes them) lists of tensors."""

    name: str
    model: bytes
    data_sets: list[tuple[list[Any], list[Any]]]
    rtol: float
    atol: float
    signature: Signature | None = None  # once it has been accepted


@dataclass
class Walk:
    """What became of each case."""

    refused: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # by kind
    passed: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    beyond_onnxruntime: list[str] = field(default_factory=list)  # it cannot load them, or answers otherwise
    asked: Counter[str] = field(default_factory=Counter)  # predictions that were answered
    logged: Counter[str] = field(default_factory=Counter)


def _cases() -> Iterator[Case]:
    for kind in KINDS:
        for one in load_model_tests(kind=kind):
            if one.model_dir is None:
                model, data_sets = one.model, one.data_sets
            else:
                model, data_sets = _read(Path(one.model_dir))
            sets = [(_arrays(inputs), _arrays(outputs)) for inputs, outputs in data_sets]
            yield Case(one.name, model.SerializeToString(), sets, one.rtol, one.atol)
    yield from _light()


def _light() -> Iterator[Case]:
    """Well-known networks whose weights are made by a formula, in files without them."""
    folder = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    for path in sorted(path for path in folder.glob("*.onnx") if path.stem not in TOO_LARGE):
        model = onnx.load(path)
        weights = {tensor.name for tensor in model.graph.initializer}
        [image] = [value for value in model.graph.input if value.name not in weights]
        expected = onnx.load_tensor(f"{path.with_suffix('')}_output_0.pb")
        data_sets = [([Runner.generate_dummy_data(image)], [numpy_helper.to_array(expected)])]
        yield Case(path.stem, path.read_bytes(), data_sets, 1e-3, 1e-7)


def _read(folder: Path) -> tuple[onnx.ModelProto, list[tuple[list[Any], list[Any]]]]:
    model = onnx.load(folder / "model.onnx")

    def read(data_set: Path, side: str, values: Sequence[Any]) -> list[Any]:
        paths = sorted(data_set.glob(f"{side}_*.pb"), key=lambda path: int(path.stem.partition("_")[2]))
        return [_parse(path.read_bytes(), value.type) for path, value in zip(paths, values, strict=False)]

    return model, [
        (read(data_set, "input", model.graph.input), read(data_set, "output", model.graph.output))
        for data_set in sorted(folder.glob("test_data_set_*"))
    ]


def _parse(content: bytes, kind: onnx.TypeProto) -> Any:
    if kind.HasField("sequence_type"):
        return numpy_helper.to_list(onnx.SequenceProto.FromString(content))
    if kind.HasField("optional_type"):
        return numpy_helper.to_optional(onnx.OptionalProto.FromString(content))
    return numpy_helper.to_array(onnx.TensorProto.FromString(content))


def _arrays(values: Sequence[Any]) -> list[Any]:
    """The suite's values, some of them tensors in protobuf or plain numbers, as arrays."""
    arrays: list[Any] = []
    for value in values:
        if isinstance(value, onnx.TensorProto):
            arrays.append(numpy_helper.to_array(value))
        else:
            arrays.append(value if value is None or isinstance(value, list) else np.asarray(value))
    return arrays


class Asker:
    """Asks a service in the three forms that the protocol has."""

    def __init__(self, service: Service) -> None:
        self._url = service.url
        self._http = tritonclient.http.InferenceServerClient(f"127.0.0.1:{service.port}", network_timeout=60)
        self._grpc = tritonclient.grpc.InferenceServerClient(service.grpc_address)
        self._session = requests.Session()
        self._session.headers["Authorization"] = AUTHORIZATION

    def binary(self, case: Case, inputs: Tensors) -> Tensors:
        """HTTP with binary tensors."""
        headers = {"Authorization": AUTHORIZATION}
        result = self._http.infer(case.name, _tritons(tritonclient.http, case, inputs), headers=headers)
        return [_text(result.as_numpy(spec.name)) for spec in _signature(case).outputs]

    def grpc(self, case: Case, inputs: Tensors) -> Tensors:
        """GRPC with raw contents."""
        headers = {"authorization": AUTHORIZATION}
        result = self._grpc.infer(case.name, _tritons(tritonclient.grpc, case, inputs), headers=headers)
        return [_text(result.as_numpy(spec.name)) for spec in _signature(case).outputs]

    def json(self, case: Case, inputs: Tensors) -> Tensors:
        """Plain JSON."""
        tensors = [
            {"name": spec.name, "datatype": spec.datatype, "shape": array.shape, "data": array.ravel().tolist()}
            for spec, array in zip(_signature(case).inputs, inputs, strict=True)
        ]
        body = orjson.dumps({"inputs": tensors})
        answer = self._session.post(f"{self._url}/v2/models/{case.name}/infer", data=body, timeout=60)
        document = orjson.loads(answer.content)
        assert answer.ok, document
        outputs = {one["name"]: one for one in document["outputs"]}
        return [_from_json(outputs[spec.name]) for spec in _signature(case).outputs]

    def close(self) -> None:
        """Close all connections."""
        self._http.close()
        self._grpc.close()
        self._session.close()


def _tritons(library: Any, case: Case, inputs: Tensors) -> list[Any]:
    tensors = []
    for spec, array in zip(_signature(case).inputs, inputs, strict=True):
        one = library.InferInput(spec.name, list(array.shape), spec.datatype)
        one.set_data_from_numpy(array.astype(object) if array.dtype.kind == "U" else array)
        tensors.append(one)
    return tensors


def _from_json(output: dict[str, Any]) -> np.ndarray[Any, Any]:
    dtype = V2_DATATYPES[output["datatype"]]
    data = output["data"]
    if dtype.kind == "f":
        data = [np.nan if value is None else value for value in data]
    return np.array(data, dtype).reshape(output["shape"])


def _text(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Strings instead of the UTF-8 that the client returns."""
    if array.dtype.kind != "O":
        return array
    texts = np.empty(array.size, object)
    texts[:] = [one.decode() for one in array.ravel()]
    return texts.reshape(array.shape)


def _signature(case: Case) -> Signature:
    assert case.signature is not None
    return case.signature


def _difference(case: Case, got: Sequence[Any], expected: Sequence[Any], *, is_json: bool = False) -> str:
    """How answers differ from what the suite expects, by its own tolerances; empty if they do not."""
    try:
        for one, other in zip(got, expected, strict=True):
            assert one.shape == other.shape
            if other.dtype.kind in "OUS":
                assert one.tolist() == other.tolist()
                continue
            assert one.dtype == other.dtype
            if is_json and other.dtype.kind == "f":
                other = np.where(np.isfinite(other), other, np.nan)  # JSON has null instead
            np.testing.assert_allclose(one, other, rtol=case.rtol, atol=case.atol)
    except (AssertionError, ValueError) as error:
        return " ".join(str(error).split())[:300] or "another shape, type or text"
    return ""


def _ask(asker: Asker, case: Case, walk: Walk) -> str:
    """Ask in every form; what went wrong, if anything."""
    for inputs, expected in case.data_sets:
        inputs = inputs[: len(_signature(case).inputs)]
        for form in (asker.binary, asker.grpc, asker.json):
            if form == asker.json and any(one.dtype.kind == "f" and not np.isfinite(one).all() for one in inputs):
                continue  # JSON has no such numbers
            try:
                got = form(case, inputs)
            except Exception as error:
                return f"{form.__name__}: {type(error).__name__}: {str(error)[:300]}"
            walk.asked[case.name] += 1
            if difference := _difference(case, got, expected, is_json=form == asker.json):
                return f"{form.__name__}: {difference}"
    return ""


def _is_beyond_onnxruntime(case: Case) -> bool:
    """Whether onnxruntime alone does not give what the suite expects."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = ort.InferenceSession(case.model, options, providers=["CPUExecutionProvider"])
        names = [one.name for one in session.get_inputs()]
        return any(
            _difference(case, session.run(None, dict(zip(names, inputs, strict=False))), expected)
            for inputs, expected in case.data_sets
        )
    except Exception:
        return True


def _upload(case: Case, walk: Walk) -> bool:
    """Validate as an upload is; whether it was accepted."""
    try:
        report = validate(case.model, asdict(SandboxLimits()))
    except ArtifactRejected as error:
        kind = next((kind for kind, (reason, _) in REFUSED.items() if reason in str(error)), None)
        if kind is not None:
            walk.refused[kind].append(case.name)
        elif _is_beyond_onnxruntime(case):
            walk.beyond_onnxruntime.append(case.name)
        else:
            walk.failed[case.name] = f"refused: {error}"
        return False
    case.signature = Signature.from_dict(report["signature"])
    return True


def _deploy(installation: Installation, position: int, case: Case) -> None:
    """Put the artifact into the store, and an endpoint of its name into the manifest."""
    path = f"artifacts/{case.name}.onnx"
    file = installation.var / "store" / path
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(case.model)
    digest = hashlib.sha256(case.model).hexdigest()
    size, signature = len(case.model), _signature(case)
    entry = DeploymentEntry(position, "model", 1, digest, path, size, "champion", 100, signature, None)
    installation.endpoint(case.name, entry)


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Walk:
    """Walk through the whole suite, once."""
    walk, bench = Walk(), Workbench(tmp_path_factory.mktemp("backend-suite"))
    installation = bench.installation()
    accepted = [case for case in _cases() if _upload(case, walk)]
    for position, case in enumerate(accepted, start=1):
        _deploy(installation, position, case)
    installation.publish()
    service = Service(installation, {"INFERENCE_GRPC_PORT": str(free_port())})
    bench.services.append(service)
    try:
        service.start(ready=False)
        wait_for(lambda: _is_ready(service), 120, service.log)
        _ask_all(Asker(service), accepted, walk)
    finally:
        bench.close()
    walk.logged = _logged(installation)
    return walk


def _ask_all(asker: Asker, cases: Sequence[Case], walk: Walk) -> None:
    for case in cases:
        problem = _ask(asker, case, walk)
        if not problem:
            walk.passed.append(case.name)
        elif _is_beyond_onnxruntime(case):
            walk.beyond_onnxruntime.append(case.name)
        else:
            walk.failed[case.name] = problem
    asker.close()


def _logged(installation: Installation) -> Counter[str]:
    """How many predictions of each model the columns of the inference log hold."""
    records = defaultdict(list)
    for path in sorted((installation.var / "spool").glob("*/*.spool")):
        for stored in read_spool(path):
            records[stored.context.endpoint].append(stored)
    return Counter({name: len(set(to_table(stored)["request_id"].to_pylist())) for name, stored in records.items()})


def _is_ready(service: Service) -> bool:
    try:
        return requests.get(f"{service.url}/v2/health/ready", timeout=2).ok
    except requests.RequestException:
        return False


def test_every_model_that_onnxruntime_runs_is_served_as_the_suite_expects(walk: Walk) -> None:
    assert walk.failed == {}
    assert len(walk.passed) >= 1_660, f"onnxruntime does not run {walk.beyond_onnxruntime}"


def test_what_the_protocol_cannot_express_is_refused_with_the_reason(walk: Walk) -> None:
    counts = {kind: len(names) for kind, names in walk.refused.items()}
    assert counts == {kind: count for kind, (_, count) in REFUSED.items()}, dict(walk.refused)


def test_the_log_holds_every_answer(walk: Walk) -> None:
    passed = set(walk.passed)
    assert {name: count for name, count in walk.logged.items() if name in passed} == {
        name: count for name, count in walk.asked.items() if name in passed
    }


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("test_constant", ""),  # takes no inputs
        ("test_strnormalizer_nostopwords_nochangecase", ""),
        ("test_flexattention_expanded_ver26", ""),  # imports operators that it does not use
        ("test_cast_FLOAT_to_BFLOAT16", REFUSED["no datatype"][0]),
        ("test_sequence_insert_at_back", REFUSED["sequence"][0]),
        ("test_if_opt", REFUSED["optional"][0]),
    ],
)
def test_the_sandbox_says_the_same(walk: Walk, tmp_path: Path, name: str, said: str) -> None:
    """The walk validates in this process, which is faster; an upload is validated in one of its own."""
    [case] = [one for one in load_model_tests(kind="node") if one.name == name]
    path = tmp_path / "artifact"
    path.write_bytes(case.model.SerializeToString())
    if not said:
        assert Signature.from_dict(validate_artifact(path)["signature"]).outputs
        assert name in walk.passed
        return
    with pytest.raises(ArtifactRejected, match=said):
        validate_artifact(path)
