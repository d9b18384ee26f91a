"""Rules on a model's inputs and outputs: a small expression language, evaluated for all rows of a batch at once.

An expression says what must hold for a row, for instance ``0 <= age <= 120``, ``country in ("DE", "FR")``,
``not is_missing(income)``, ``loan <= 10 * income`` or ``output.probabilities[1] < 0.99``. A tensor goes by its name,
by ``input.name`` or ``output.name`` where both sides have it, or by ``input["any name"]``; ``X[3]`` is an element of a
row.
What is left with several elements per row must hold for all of them. NaN compares as false, so it violates every
comparison but ``!=``.

The syntax is a part of Python's, read with its own parser; nothing is ever executed as Python.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Final, Literal

import numpy as np

from inference.contracts import GuardrailRule, Signature, TensorSpec
from inference.datatypes import V2_DATATYPES, Array
from inference.errors import InferenceError

MAX_LENGTH: Final = 500
MAX_NODES: Final = 200
MAX_RULES: Final = 50
MAX_NAME: Final = 80

Kind = Literal["number", "text", "truth"]
Tensors = Sequence[Array]
"""The inputs, then the outputs, in the signature's order; the first dimension counts the rows."""
Evaluate = Callable[[Tensors], Any]


class RuleRejected(InferenceError):
    """The rule cannot be used with this model. The message says what to change."""


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of an expression: what it is, the shape of a row where that is known, and how to work it out."""

    kind: Kind
    evaluate: Evaluate
    shape: tuple[int, ...] | None = ()
    is_constant: bool = False


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule that does not hold, and for which rows (a mask with one entry per row of the batch)."""

    rule: GuardrailRule
    rows: Array


class Guard:
    """The rules of one endpoint, compiled for one model. Pure; safe to use from several threads."""

    def __init__(self, rules: Sequence[GuardrailRule], signature: Signature, *, is_batch: bool) -> None:
        """A rule that does not fit the model refuses every request: nothing may be served unguarded by mistake.

        ``is_batch``: each row is a prediction; otherwise a request is one prediction, whatever its arrays' shapes.
        """
        self._signature = signature
        self._is_batch = is_batch
        self._has_rows = has_rows(signature)
        self._on_inputs: list[tuple[GuardrailRule, Evaluate]] = []
        self._on_outputs: list[tuple[GuardrailRule, Evaluate]] = []
        for rule in rules:
            try:
                expression = Expression(rule.requires, signature)
            except RuleRejected:
                self._on_inputs.append((GuardrailRule(rule.name, rule.requires, "reject"), _never))
            else:
                (self._on_outputs if expression.reads_outputs else self._on_inputs).append((rule, expression.evaluate))

    def check_inputs(self, inputs: Sequence[Array]) -> list[Violation]:
        """Which rules on inputs alone do not hold. ``inputs`` are in the signature's order."""
        return self._check(self._on_inputs, inputs, ()) if self._on_inputs else []

    def check_outputs(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> list[Violation]:
        """Which of the rules that name an output do not hold."""
        return self._check(self._on_outputs, inputs, outputs) if self._on_outputs else []

    def _check(
        self, rules: list[tuple[GuardrailRule, Evaluate]], inputs: Sequence[Array], outputs: Sequence[Array]
    ) -> list[Violation]:
        tensors = [*inputs, *outputs]
        if not self._has_rows:
            tensors = [array[np.newaxis] for array in tensors]
        found = []
        for rule, evaluate in rules:
            broken = self._broken(evaluate, tensors)
            if broken is not None:
                found.append(Violation(rule, broken))
        return found

    def _broken(self, evaluate: Evaluate, tensors: Tensors) -> Array | None:
        """The rows for which an expression does not hold; None if it holds for all."""
        rows = len(tensors[0]) if self._is_batch else 1
        try:
            holds = np.asarray(evaluate(tensors))
            if np.count_nonzero(holds) == holds.size:  # much faster than all()
                return None
            if not self._is_batch:
                return np.ones(1, np.bool_)
            per_row = holds if holds.ndim <= 1 else holds.reshape(len(holds), -1).all(axis=1)
            return ~np.broadcast_to(per_row, (rows,))
        except (ValueError, TypeError, IndexError, OverflowError):
            return np.ones(rows, np.bool_)  # what cannot be checked does not hold


class Expression:
    """A compiled expression. Raises ``RuleRejected`` where it does not fit the signature."""

    def __init__(self, text: str, signature: Signature) -> None:
        self._signature = signature
        self.reads: set[tuple[str, str]] = set()  # side and name of the tensors that it needs
        part = self._compile(_parse(text))
        if part.kind != "truth":
            raise RuleRejected("The expression must say what has to hold, for instance: 0 <= age <= 120.")
        if part.is_constant:
            raise RuleRejected("The expression names no input or output of the model.")
        self.evaluate = part.evaluate

    @property
    def reads_outputs(self) -> bool:
        """Whether it can be checked only after the run."""
        return any(side == "output" for side, _ in self.reads)

    def _compile(self, node: ast.expr) -> _Part:
        match node:
            case ast.Constant(value=bool() | int() | float() | str() as value):
                return _constant(value)
            case ast.Name() | ast.Attribute() | ast.Subscript():
                return self._tensor(node)
            case ast.Compare():
                return self._comparison(node)
            case ast.BoolOp():
                parts = [self._wanted(value, "truth") for value in node.values]
                return _fold(np.logical_and if isinstance(node.op, ast.And) else np.logical_or, parts, "truth")
            case ast.UnaryOp(op=ast.Not()):
                return _map(np.logical_not, self._wanted(node.operand, "truth"), "truth")
            case ast.UnaryOp(op=ast.USub()):
                return _map(_negative, self._wanted(node.operand, "number"), "number")
            case ast.BinOp() if type(node.op) in _ARITHMETIC:
                parts = [self._wanted(side, "number") for side in (node.left, node.right)]
                return _fold(_ARITHMETIC[type(node.op)], parts, "number")
            case ast.Call(func=ast.Name(id=name), keywords=[]) if name in FUNCTIONS:
                return self._call(name, node.args)
        raise RuleRejected(f"“{ast.unparse(node)[:MAX_NAME]}” is not understood here. {_HINT}")

    def _wanted(self, node: ast.expr, *kinds: Kind) -> _Part:
        part = self._compile(node)
        if part.kind not in kinds:
            text = ast.unparse(node)[:MAX_NAME]
            raise RuleRejected(
                f"“{text}” is {_KINDS[part.kind]}; {' or '.join(_KINDS[kind] for kind in kinds)} fits here."
            )
        return part

    # -- tensors -----------------------------------------------------------------------------------------------------

    def _tensor(self, node: ast.expr) -> _Part:
        indices: tuple[int, ...] = ()
        while True:
            found = self._find(node)
            if found is not None:
                break
            if not isinstance(node, ast.Subscript):
                raise RuleRejected(f"The model has no “{ast.unparse(node)[:MAX_NAME]}”; it has {self._names()}.")
            indices = _indices(node.slice) + indices
            node = node.value
        side, spec = found
        self.reads.add((side, spec.name))
        shape = spec.shape[1:] if has_rows(self._signature) else spec.shape
        if len(indices) > len(shape) and shape != ():
            raise RuleRejected(f"A row of “{spec.name}” has {len(shape)} dimensions, not {len(indices)}.")
        for dimension, (index, size) in enumerate(zip(indices, shape, strict=False)):
            if size >= 0 and not -size <= index < size:
                raise RuleRejected(f"“{spec.name}” has {size} elements in dimension {dimension}; {index} is outside.")
        position = self._specs(side).index(spec) + (len(self._signature.inputs) if side == "output" else 0)
        place: Any = (slice(None), *indices)
        return _Part(
            _kind(spec),
            (lambda tensors: tensors[position][place]) if indices else (lambda tensors: tensors[position]),
            shape[len(indices) :],
        )

    def _find(self, node: ast.expr) -> tuple[str, TensorSpec] | None:
        """The tensor that a name means, also as ``input.name`` or ``input["name"]``; None for anything else."""
        match node:
            case ast.Name(id=name):
                sides: tuple[str, ...] = ("input", "output")
            case ast.Attribute(value=ast.Name(id="input" | "output" as side), attr=name):
                sides = (side,)
            case ast.Subscript(value=ast.Name(id="input" | "output" as side), slice=ast.Constant(value=str() as name)):
                sides = (side,)
            case _:
                return None
        found = [(side, spec) for side in sides for spec in self._specs(side) if spec.name == name]
        if len(found) > 1:
            raise RuleRejected(f"“{name}” is an input and an output; write input.{name} or output.{name}.")
        return found[0] if found else None

    def _specs(self, side: str) -> tuple[TensorSpec, ...]:
        return self._signature.inputs if side == "input" else self._signature.outputs

    def _names(self) -> str:
        names = [f"{side}.{spec.name}" for side in ("input", "output") for spec in self._specs(side)]
        return ", ".join(names[:12]) + (" …" if len(names) > 12 else "")

    # -- operators ---------------------------------------------------------------------------------------------------

    def _comparison(self, node: ast.Compare) -> _Part:
        results = []
        left = node.left
        for operator, right in zip(node.ops, node.comparators, strict=True):
            if isinstance(operator, ast.In | ast.NotIn):
                results.append(self._membership(left, right, is_negated=isinstance(operator, ast.NotIn)))
            elif type(operator) in _COMPARISONS:
                one, other = self._compile(left), self._compile(right)
                if one.kind != other.kind:
                    raise RuleRejected(
                        f"“{ast.unparse(left)[:MAX_NAME]}” is {_KINDS[one.kind]},"
                        f" “{ast.unparse(right)[:MAX_NAME]}” is {_KINDS[other.kind]}: they cannot be compared."
                    )
                results.append(_fold(_COMPARISONS[type(operator)], [one, other], "truth"))
            else:
                raise RuleRejected(f"Comparisons are {', '.join(('<', '<=', '>', '>=', '==', '!=', 'in', 'not in'))}.")
            left = right
        return _fold(np.logical_and, results, "truth")

    def _membership(self, left: ast.expr, right: ast.expr, *, is_negated: bool) -> _Part:
        part = self._wanted(left, "number", "text")
        elements = right.elts if isinstance(right, (ast.Tuple, ast.List, ast.Set)) else []
        allowed = [self._compile(element) for element in elements]
        if not allowed or any(not one.is_constant or one.kind != part.kind for one in allowed):
            raise RuleRejected(f"After “in” comes a list of {_PLURALS[part.kind]}, for instance {_LISTS[part.kind]}.")
        values = [one.evaluate(()) for one in allowed]
        return _map(_text_in(values) if part.kind == "text" else _number_in(values), part, "truth", is_negated)

    def _call(self, name: str, arguments: list[ast.expr]) -> _Part:
        if name in ("min", "max") and len(arguments) > 1:
            parts = [self._wanted(one, "number") for one in arguments]
            return _fold(np.minimum if name == "min" else np.maximum, parts, "number")
        takes, gives, function = FUNCTIONS[name]
        if len(arguments) != 1:
            raise RuleRejected(f"{name}() takes one argument.")
        part = self._wanted(arguments[0], *takes)
        if name == "is_missing" and part.kind == "text":
            function = _is_empty
        is_reduced = name in _REDUCING
        return _Part(gives, lambda tensors: function(part.evaluate(tensors)), () if is_reduced else part.shape)


def has_rows(signature: Signature) -> bool:
    """Whether the first dimension of every tensor counts rows; otherwise a request is one row."""
    return bool(signature.inputs) and all(spec.shape[:1] == (-1,) for spec in (*signature.inputs, *signature.outputs))


def check_rule(rule: GuardrailRule, signature: Signature) -> None:
    """Raise ``RuleRejected`` if a rule does not fit a model, its fallback included."""
    Expression(rule.requires, signature)
    if rule.action != "fallback":
        if rule.fallback is not None:
            raise RuleRejected("Only the action “fallback” has a fallback answer.")
        return
    given = rule.fallback or {}
    for spec in signature.outputs:
        if spec.name not in given:
            raise RuleRejected(f"The fallback needs a value for every output; “{spec.name}” has none.")
        fallback_row(given[spec.name], spec, is_batch=has_rows(signature))
    for name in given:
        if all(spec.name != name for spec in signature.outputs):
            raise RuleRejected(f"The fallback has “{name[:MAX_NAME]}”, which is no output of the model.")


def fallback_row(value: Any, spec: TensorSpec, *, is_batch: bool) -> Array:
    """One row of an output as a fallback gives it. Raises ``RuleRejected``."""
    shape = spec.shape[1:] if is_batch else spec.shape
    dtype = V2_DATATYPES[spec.datatype]
    expected: Any = {"O": str, "b": bool, "f": (int, float)}.get(dtype.kind, int)
    try:
        given = np.array(value, dtype=object)
        if any(not isinstance(one, expected) or (dtype.kind in "iuf" and isinstance(one, bool)) for one in given.flat):
            raise TypeError
        row = given.astype(dtype)
        if dtype.kind in "iu" and any(int(one) != known for one, known in zip(row.flat, given.flat, strict=True)):
            raise OverflowError
    except (TypeError, ValueError, OverflowError) as error:
        raise RuleRejected(f"The fallback of “{spec.name}” does not hold {spec.datatype} values.") from error
    if -1 not in shape and math.prod(shape) == row.size == 1:
        return row.reshape(shape)
    if row.ndim != len(shape) or any(want not in (-1, size) for want, size in zip(shape, row.shape, strict=True)):
        raise RuleRejected(f"The fallback of “{spec.name}” must have the shape {list(shape)}, not {list(row.shape)}.")
    return row


# -- evaluation: arrays keep the rows in the first dimension, constants are plain numbers and texts --------------------


def _never(tensors: Tensors) -> Array:
    return np.zeros(1, np.bool_)


def _align(one: Any, other: Any) -> tuple[Any, Any]:
    """Give the one with fewer dimensions more of them at the end, so that rows meet rows."""
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray) and one.ndim != other.ndim:
        missing = one.ndim - other.ndim
        if missing > 0:
            return one, other.reshape(other.shape + (1,) * missing)
        return one.reshape(one.shape + (1,) * -missing), other
    return one, other


def _fold(function: Callable[[Any, Any], Any], parts: Sequence[_Part], kind: Kind) -> _Part:
    return reduce(lambda one, other: _pair(function, one, other, kind), parts)


def _pair(function: Callable[[Any, Any], Any], one: _Part, other: _Part, kind: Kind) -> _Part:
    left, right = one.evaluate, other.evaluate
    shape = one.shape if other.is_constant else other.shape if one.is_constant else None
    if other.is_constant:
        value = right(())
        return _Part(kind, lambda tensors: function(left(tensors), value), shape, one.is_constant)
    if one.shape is not None and other.shape is not None and len(one.shape) == len(other.shape):
        return _Part(kind, lambda tensors: function(left(tensors), right(tensors)), one.shape)
    return _Part(kind, lambda tensors: function(*_align(left(tensors), right(tensors))), shape)


def _map(function: Callable[[Any], Any], part: _Part, kind: Kind, is_negated: bool = False) -> _Part:
    def evaluate(tensors: Tensors) -> Any:
        value = function(part.evaluate(tensors))
        return np.logical_not(value) if is_negated else value

    return _Part(kind, evaluate, part.shape, part.is_constant)


def _constant(value: bool | int | float | str) -> _Part:
    if isinstance(value, str):
        return _Part("text", lambda _: value, (), True)
    if isinstance(value, bool):
        return _Part("truth", lambda _: value, (), True)
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise RuleRejected("Whole numbers have at most 64 bits.")
    return _Part("number", lambda _: value, (), True)


def _negative(value: Any) -> Any:
    return -value if isinstance(value, int | float) else -_float(value)


def _float(value: Any) -> Any:
    return np.asarray(value, np.float64)


def _arithmetic(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """In float64, because integers must not wrap around. What is undefined becomes NaN, which no rule holds for."""

    def calculate(one: Any, other: Any) -> Any:
        with np.errstate(all="ignore"):
            return function(_float(one), _float(other))

    return calculate


def _is_missing(value: Any) -> Any:
    return np.isnan(_float(value))


def _is_empty(value: Any) -> Any:
    return np.equal(value, "")


def _over_row(reduce: Callable[..., Any]) -> Callable[[Any], Any]:
    def apply(value: Any) -> Any:
        array = np.asarray(value)
        return array if array.ndim <= 1 else reduce(array.reshape(len(array), -1), axis=1)

    return apply


def _length(value: Any) -> Any:
    return np.frompyfunc(len, 1, 1)(value).astype(np.int64)


def _text_in(allowed: Sequence[str]) -> Callable[[Any], Any]:
    known = frozenset(allowed)
    return lambda value: np.frompyfunc(known.__contains__, 1, 1)(value).astype(np.bool_)


def _number_in(allowed: Sequence[float]) -> Callable[[Any], Any]:
    return lambda value: np.isin(value, allowed)


_ARITHMETIC: Final[Mapping[type[ast.operator], Callable[[Any, Any], Any]]] = {
    ast.Add: _arithmetic(np.add),
    ast.Sub: _arithmetic(np.subtract),
    ast.Mult: _arithmetic(np.multiply),
    ast.Div: _arithmetic(np.divide),
    ast.Mod: _arithmetic(np.mod),
}
_COMPARISONS: Final[Mapping[type[ast.cmpop], Callable[[Any, Any], Any]]] = {
    ast.Lt: np.less,
    ast.LtE: np.less_equal,
    ast.Gt: np.greater,
    ast.GtE: np.greater_equal,
    ast.Eq: np.equal,
    ast.NotEq: np.not_equal,
}
FUNCTIONS: Final[Mapping[str, tuple[tuple[Kind, ...], Kind, Callable[[Any], Any]]]] = {
    "abs": (("number",), "number", np.abs),
    "all": (("truth",), "truth", _over_row(np.all)),
    "any": (("truth",), "truth", _over_row(np.any)),
    "is_missing": (("number", "text"), "truth", _is_missing),
    "length": (("text",), "number", _length),
    "max": (("number",), "number", _over_row(np.max)),
    "mean": (("number",), "number", _over_row(np.mean)),
    "min": (("number",), "number", _over_row(np.min)),
    "sum": (("number",), "number", _over_row(lambda array, axis: array.sum(axis=axis, dtype=np.float64))),
}
"""Name -> kinds it takes, kind it gives, function. All but abs, is_missing and length work over a row's elements."""
_REDUCING: Final = frozenset({"all", "any", "max", "mean", "min", "sum"})
_KINDS: Final[Mapping[str, str]] = {"number": "a number", "text": "a text", "truth": "a yes or no"}
_PLURALS: Final[Mapping[str, str]] = {"number": "numbers", "text": "texts in quotes"}
_LISTS: Final[Mapping[str, str]] = {"number": "(1, 2, 3)", "text": '("DE", "FR")'}
_HINT: Final = (
    f"Use names, numbers, texts in quotes, comparisons, and, or, not, in, + - * / % and {', '.join(FUNCTIONS)}."
)


def _parse(text: str) -> ast.expr:
    if not text.strip() or len(text) > MAX_LENGTH:
        raise RuleRejected(f"An expression has 1 to {MAX_LENGTH} characters.")
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else "it is nested too deeply"
        raise RuleRejected(f"The expression cannot be read: {reason}.") from error
    if sum(1 for _ in ast.walk(tree)) > MAX_NODES:
        raise RuleRejected("The expression is too long: split it into several rules.")
    return tree.body


def _indices(node: ast.expr) -> tuple[int, ...]:
    parts = node.elts if isinstance(node, ast.Tuple) else [node]
    indices = []
    for part in parts:
        try:
            index = ast.literal_eval(part)
        except ValueError:
            index = None
        if not isinstance(index, int) or isinstance(index, bool):
            raise RuleRejected(f"An index is a whole number, not “{ast.unparse(part)[:MAX_NAME]}”.")
        indices.append(index)
    return tuple(indices)


def _kind(spec: TensorSpec) -> Kind:
    return {"O": "text", "b": "truth"}.get(V2_DATATYPES[spec.datatype].kind, "number")  # type: ignore[return-value]
