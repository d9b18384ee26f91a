"""How a dataset's columns meet a model's inputs and outputs: signature and schema in, a plan out. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from apps.core.errors import DomainError
from apps.registry.models import Task
from inference.contracts import Signature, TensorSpec

_NUMBERS: Final = frozenset({"integer", "float", "boolean"})
_NAMES_SHOWN: Final = 5


@dataclass(frozen=True, slots=True)
class InputColumns:
    """The columns that feed one input, in order."""

    spec: TensorSpec
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Outputs:
    """Positions of the outputs that are read: labels and values are [n] or [n, 1]; scores [n, c], [n, 1] or [n]."""

    label: int | None = None
    scores: int | None = None
    value: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that scoring needs to know."""

    task: str
    target: str
    inputs: tuple[InputColumns, ...]
    outputs: Outputs

    @property
    def features(self) -> list[str]:
        """The feature columns, in the order of the inputs."""
        return [column for one in self.inputs for column in one.columns]


def make_plan(
    *, task: str, signature: Signature, schema: list[dict[str, str]], target: str, features: list[str] | None = None
) -> Plan:
    """Match columns to inputs and choose the outputs.

    A model with one input takes ``features``, by default every column but the target, in the dataset's order. A model
    with several takes one column per input, by name. Raises ``DomainError`` naming the field at fault.
    """
    types = {column["name"]: column["type"] for column in schema}
    _check_target(task, types, target)
    inputs = match_inputs(signature=signature, schema=schema, target=target, features=features)
    outputs = _classifier_outputs(signature) if task == Task.CLASSIFICATION else _regressor_outputs(signature)
    return Plan(task, target, inputs, outputs)


def match_inputs(
    *, signature: Signature, schema: list[dict[str, str]], target: str = "", features: list[str] | None = None
) -> tuple[InputColumns, ...]:
    """The columns of each input, as ``make_plan`` describes; without a ``target`` every column may be a feature."""
    types = {column["name"]: column["type"] for column in schema}
    if features is not None:
        _check_features(types, target, features)
    if not signature.inputs:
        raise DomainError("The model takes no inputs, so no dataset can tell how good it is.")
    if len(signature.inputs) == 1:
        inputs: tuple[InputColumns, ...] = (_one_input(signature.inputs[0], types, target, features),)
    else:
        inputs = _inputs_by_name(signature, types, target, features)
    for one in inputs:
        _check_types(one, types)
    return inputs


def _check_target(task: str, types: dict[str, str], target: str) -> None:
    if target not in types:
        raise DomainError(f"The dataset has no column “{target}”. Choose its target column.", field="target")
    if task == Task.REGRESSION and types[target] not in _NUMBERS:
        raise DomainError(f"The column “{target}” is {types[target]}; a regression needs numbers.", field="target")
    if task == Task.CLASSIFICATION and types[target] in ("date", "timestamp"):
        raise DomainError(
            f"The column “{target}” is a {types[target]}; labels are text or whole numbers.", field="target"
        )


def _check_features(types: dict[str, str], target: str, features: list[str]) -> None:
    if unknown := [name for name in features if name not in types]:
        raise DomainError(f"The dataset has no column {_listed(unknown)}.", field="features")
    if target in features:
        raise DomainError(f"The target “{target}” cannot be a feature too.", field="features")
    if len(set(features)) < len(features):
        raise DomainError("A feature is named more than once.", field="features")


def _one_input(spec: TensorSpec, types: dict[str, str], target: str, features: list[str] | None) -> InputColumns:
    columns = tuple(features if features is not None else (name for name in types if name != target))
    if len(spec.shape) not in (1, 2):
        raise DomainError(
            f"The input “{spec.name}” has shape {_shape(spec)}; a dataset fits only models that take rows of columns."
        )
    wanted = spec.shape[1] if len(spec.shape) == 2 else 1
    if not columns or (wanted >= 0 and wanted != len(columns)):
        given = "named as features" if features is not None else "besides the target" if target else "in all"
        expected = f"{wanted} columns" if wanted >= 0 else "at least one column"
        raise DomainError(
            f"The model takes {expected}; the dataset has {len(columns)} {given}. "
            "Name the features in the order in which the model takes them.",
            field="features",
        )
    return InputColumns(spec, columns)


def _inputs_by_name(
    signature: Signature, types: dict[str, str], target: str, features: list[str] | None
) -> tuple[InputColumns, ...]:
    if wide := [spec.name for spec in signature.inputs if len(spec.shape) > 2 or spec.shape[1:] not in ((), (1,))]:
        raise DomainError(
            f"A model with several inputs takes one column for each; {_listed(wide)} takes more than one value a row."
        )
    names = [spec.name for spec in signature.inputs]
    offered = types.keys() if features is None else features
    if missing := [name for name in names if name not in offered or name == target]:
        raise DomainError(f"The model's inputs {_listed(missing)} have no column of that name.", field="features")
    if unused := [name for name in features or () if name not in names]:
        raise DomainError(f"The model has no input named {_listed(unused)}.", field="features")
    return tuple(InputColumns(spec, (spec.name,)) for spec in signature.inputs)


def _check_types(one: InputColumns, types: dict[str, str]) -> None:
    """Numbers of any kind become floats; whole numbers, booleans and text are never made out of something else."""
    datatype = one.spec.datatype
    if datatype.startswith("FP"):
        allowed, word = _NUMBERS, "numbers"
    elif datatype == "BYTES":
        allowed, word = frozenset({"text"}), "text"
    elif datatype == "BOOL":
        allowed, word = frozenset({"boolean"}), "booleans"
    else:
        allowed, word = frozenset({"integer", "boolean"}), "whole numbers"
    if wrong := [f"{name} ({types[name]})" for name in one.columns if types[name] not in allowed]:
        raise DomainError(
            f"The model's input “{one.spec.name}” takes {word}; {_listed(wrong)} cannot be used. "
            "Name the features without it.",
            field="features",
        )


def _classifier_outputs(signature: Signature) -> Outputs:
    """Labels are whole numbers or text, scores are floats; an output with “prob” in its name comes first."""
    label = next((i for i, spec in enumerate(signature.outputs) if _is_label(spec)), None)
    floats = [
        i for i, spec in enumerate(signature.outputs) if spec.datatype.startswith("FP") and len(spec.shape) in (1, 2)
    ]
    floats.sort(key=lambda i: "prob" not in signature.outputs[i].name.lower())
    if label is None and not floats:
        raise DomainError("The model has no output with labels or with one score per class, so it cannot be evaluated.")
    return Outputs(label=label, scores=floats[0] if floats else None)


def _regressor_outputs(signature: Signature) -> Outputs:
    for index, spec in enumerate(signature.outputs):
        is_number = spec.datatype not in ("BYTES", "BOOL")
        if is_number and (len(spec.shape) == 1 or (len(spec.shape) == 2 and spec.shape[1] in (1, -1))):
            return Outputs(value=index)
    raise DomainError("The model has no output with one number a row, so it cannot be evaluated as a regression.")


def _is_label(spec: TensorSpec) -> bool:
    one_per_row = len(spec.shape) == 1 or (len(spec.shape) == 2 and spec.shape[1] == 1)
    return one_per_row and not spec.datatype.startswith("FP")


def _shape(spec: TensorSpec) -> str:
    return "[" + ", ".join("n" if size < 0 else str(size) for size in spec.shape) + "]"


def _listed(names: list[Any]) -> str:
    shown = ", ".join(f"“{name}”" for name in names[:_NAMES_SHOWN])
    return shown if len(names) <= _NAMES_SHOWN else f"{shown} and {len(names) - _NAMES_SHOWN} more"
