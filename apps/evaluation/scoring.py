"""Running a model over a stored dataset in batches. Only the job imports this: it loads ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from apps.core.errors import DomainError
from apps.evaluation.drift import psi_of_categories, psi_of_numbers
from apps.evaluation.labels import Label, LabelIndex, in_order, name_columns, recode
from apps.evaluation.mapping import InputColumns, Plan
from apps.evaluation.metrics import (
    MAX_LABEL_CHARACTERS,
    Array,
    Groups,
    Report,
    evaluate_classification,
    evaluate_regression,
)
from apps.registry.models import Task
from inference.errors import InferenceError
from inference.runtime import V2_DATATYPES, load_session, run

MAX_SLICES: Final = 20
MISSING: Final = "(missing)"
OTHERS: Final = "(others)"
MAX_SCORES: Final = 200_000_000
"""Rows times classes that are kept in memory, four bytes each."""
_BATCH_VALUES: Final = 1 << 19
_MAX_BATCH_ROWS: Final = 16_384
_THREADS: Final = 2

Progress = Callable[[int], None]  # rows read so far


def score(
    *,
    artifact: Path,
    stored: Path,
    plan: Plan,
    row_count: int,
    progress: Progress,
    is_batchable: bool = True,
    slice_by: str = "",
) -> tuple[Report, int]:
    """Score every row with a target and evaluate; returns the report and the number of rows that were scored.

    A model whose rows depend on each other (not ``is_batchable``) gets them one by one, as it does when it serves.
    ``slice_by`` is a column whose values' rows are evaluated each on their own, too. Memory is bounded by one batch of
    features plus, for each row, its target, its group and the model's answer.
    """
    try:
        scorer = Scorer(artifact, plan, is_batchable=is_batchable, slice_by=slice_by)
        if plan.task == Task.REGRESSION:
            return _score_regression(scorer, stored, row_count, progress)
        return _score_classification(scorer, stored, row_count, progress)
    except InferenceError as error:
        raise DomainError(str(error)) from error
    except ValueError as error:
        raise DomainError(str(error)) from error


class Scorer:
    """A loaded model that takes record batches."""

    def __init__(self, artifact: Path, plan: Plan, *, is_batchable: bool = True, slice_by: str = "") -> None:
        self.plan = plan
        self._slice_by = slice_by
        self._slice_values: list[pa.Array] = []
        self._session = load_session(artifact, threads=_THREADS)
        self._fixed_rows = max(plan.inputs[0].spec.shape[0], 0 if is_batchable else 1)

    def batches(self, stored: Path, progress: Progress) -> Iterator[tuple[pa.Array, list[Array]]]:
        """Targets without nulls and the model's outputs, batch after batch."""
        features = self.plan.features
        rows = max(256, min(_BATCH_VALUES // max(len(features), 1), _MAX_BATCH_ROWS))
        read = 0
        with pq.ParquetFile(stored) as file:
            columns = dict.fromkeys([*features, self.plan.target, *([self._slice_by] if self._slice_by else [])])
            for batch in file.iter_batches(batch_size=rows, columns=list(columns), use_threads=True):
                start, read = read, read + batch.num_rows
                batch = batch.filter(batch.column(self.plan.target).is_valid())
                if batch.num_rows:
                    if self._slice_by:
                        self._slice_values.append(batch.column(self._slice_by).cast(pa.string()))
                    inputs = {one.spec.name: tensor_of(batch, one, start) for one in self.plan.inputs}
                    yield batch.column(self.plan.target), self._run(inputs, batch.num_rows)
                progress(read)

    def groups(self) -> Groups | None:
        """The rows by the value that they have in the column to slice by; the rarest values share a group."""
        if not self._slice_values:
            return None
        encoded = pa.concat_arrays(self._slice_values).fill_null(MISSING).dictionary_encode()
        names = [name[:MAX_LABEL_CHARACTERS].replace("\x00", "\ufffd") for name in encoded.dictionary.to_pylist()]
        codes: Array = encoded.indices.to_numpy(zero_copy_only=False)
        order = np.argsort(-np.bincount(codes, minlength=len(names)), kind="stable")
        kept = order if len(names) <= MAX_SLICES else order[: MAX_SLICES - 1]
        place = np.full(len(names), len(kept))
        place[kept] = np.arange(len(kept))
        return Groups([*(names[one] for one in kept), *([OTHERS] if len(kept) < len(names) else [])], place[codes])

    def _run(self, inputs: dict[str, Array], rows: int) -> list[Array]:
        if not self._fixed_rows:
            return self._checked(run(self._session, inputs), rows)
        parts = []
        for start in range(0, rows, self._fixed_rows):
            piece = {name: tensor[start : start + self._fixed_rows] for name, tensor in inputs.items()}
            missing = self._fixed_rows - min(self._fixed_rows, rows - start)
            padded = {
                name: np.concatenate([part, np.repeat(part[-1:], missing, axis=0)]) for name, part in piece.items()
            }
            outputs = self._checked(run(self._session, padded), self._fixed_rows)
            parts.append([output[: self._fixed_rows - missing] for output in outputs])
        return [np.concatenate(of_one) for of_one in zip(*parts, strict=True)]

    def _checked(self, outputs: list[Array], rows: int) -> list[Array]:
        used = (self.plan.outputs.label, self.plan.outputs.scores, self.plan.outputs.value)
        if any(outputs[index].shape[:1] != (rows,) for index in used if index is not None):
            raise DomainError(f"The model does not answer row by row: {rows} rows went in and another number came out.")
        return outputs


def _score_regression(scorer: Scorer, stored: Path, row_count: int, progress: Progress) -> tuple[Report, int]:
    actual, predicted, done = np.empty(row_count), np.empty(row_count), 0
    for target, outputs in scorer.batches(stored, progress):
        values = outputs[scorer.plan.outputs.value or 0]
        if values.size != len(target):
            raise DomainError(
                f"The model answers with {values.size // len(target)} numbers a row; a regression has one."
            )
        _check_finite(values.reshape(len(target), -1), done)
        actual[done : done + len(target)] = target.cast(pa.float64()).to_numpy(zero_copy_only=False)
        predicted[done : done + len(target)] = values.ravel()
        done += len(target)
    return evaluate_regression(actual[:done], predicted[:done], groups=scorer.groups()), done


def _score_classification(scorer: Scorer, stored: Path, row_count: int, progress: Progress) -> tuple[Report, int]:
    outputs = scorer.plan.outputs
    index = LabelIndex()
    actual, predicted, done = np.empty(row_count, np.int32), np.empty(row_count, np.int32), 0
    scores: Array | None = None
    for target, answers in scorer.batches(stored, progress):
        rows = slice(done, done + len(target))
        actual[rows] = index.encode(_label_values(target))
        if outputs.label is not None:
            predicted[rows] = index.encode(answers[outputs.label].ravel())
        if outputs.scores is not None:
            batch = answers[outputs.scores].reshape(len(target), -1)
            _check_finite(batch, done)
            scores = _room(row_count, batch.shape[1]) if scores is None else scores
            scores[rows] = batch
        done += len(target)
    scored = None if scores is None else _as_columns(scores[:done])
    guesses = predicted[:done] if outputs.label is not None else None
    return _classified(index, actual[:done], guesses, scored, scorer.groups()), done


def _classified(
    index: LabelIndex, actual: Array, predicted: Array | None, scores: Array | None, groups: Groups | None
) -> Report:
    """Find out which label each score column stands for, then evaluate."""
    labels = index.labels
    if not len(actual):
        raise DomainError("No row has a value in the target column.", field="target")
    own = None
    if predicted is not None:
        own = [labels[code] for code in predicted]
        _check_same_kind({labels[code] for code in np.unique(actual)}, set(own))
    classes = None if scores is None else name_columns(labels, scores, own)
    note = ""
    if classes is None:
        if own is None and scores is not None:
            raise DomainError(
                f"The model scores {scores.shape[1]} classes and names none; the target has {len(labels)} labels.",
                field="target",
            )
        if scores is not None:
            note = f"It cannot be told which label each of the model's {scores.shape[1]} score columns stands for"
        classes, scores = in_order(labels), None
    guesses = recode(predicted, labels, classes) if predicted is not None else scores.argmax(axis=1)  # type: ignore[union-attr]
    coded = recode(actual, labels, classes)
    return evaluate_classification(coded, guesses, classes, scores, scores_note=note, groups=groups)


def measure_drift(reference: Path, current: Path, columns: list[str]) -> dict[str, float]:
    """PSI of each column of two stored datasets, one column in memory at a time; see ``apps.evaluation.drift``."""
    found = {}
    with pq.ParquetFile(reference) as before, pq.ParquetFile(current) as now:
        for name in columns:
            old, new = (file.read(columns=[name]).column(0) for file in (before, now))
            if pa.types.is_floating(old.type) or pa.types.is_integer(old.type):
                found[name] = psi_of_numbers(_as_floats(old), _as_floats(new))
            else:
                found[name] = psi_of_categories(_counted(old), _counted(new))
    return found


def _as_floats(values: pa.ChunkedArray) -> Array:
    numbers: Array = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return numbers


def _counted(values: pa.ChunkedArray) -> dict[str, int]:
    counted = values.cast(pa.string()).fill_null(MISSING).value_counts().to_pylist()
    return {one["values"]: one["counts"] for one in counted}


def _check_same_kind(actual: set[Label], predicted: set[Label]) -> None:
    """Text and numbers never match; say so instead of reporting an accuracy of nought."""
    if {type(label) for label in actual}.isdisjoint(type(label) for label in predicted):
        ours, theirs = (", ".join(f"“{label}”" for label in in_order(list(some))[:3]) for some in (actual, predicted))
        raise DomainError(
            f"The target's labels ({ours}) are of another kind than the model's ({theirs}). "
            "Upload the dataset with the labels that the model was trained on.",
            field="target",
        )


def _check_finite(answers: Array, done: int) -> None:
    bad = np.flatnonzero(~np.isfinite(answers).all(axis=1))
    if len(bad):
        raise DomainError(
            f"The model answered NaN or infinity for row {done + bad[0] + 1:,} of those with a target. "
            "Does it accept missing values? Fill them in before the upload."
        )


def _room(rows: int, classes: int) -> Array:
    if rows * classes > MAX_SCORES:
        raise DomainError(
            f"{rows:,} rows with {classes:,} classes are too many scores to rank. "
            f"Upload a sample of at most {MAX_SCORES // classes:,} rows."
        )
    return np.empty((rows, classes), np.float32)


def _as_columns(scores: Array) -> Array:
    """A single score is that of the second class: a probability, or else a logit or margin with its boundary at 0."""
    if scores.shape[1] != 1:
        return scores
    first = 1 - scores if np.all((scores >= 0) & (scores <= 1)) else -scores
    return np.concatenate([first, scores], axis=1)


def tensor_of(batch: pa.RecordBatch, one: InputColumns, start: int) -> Array:
    """The columns as one tensor of the input's type and rank. A missing number is NaN; nothing else may be missing."""
    dtype = V2_DATATYPES[one.spec.datatype]
    columns = [batch.column(name) for name in one.columns]
    if dtype.kind != "f":
        for name, column in zip(one.columns, columns, strict=True):
            if column.null_count:
                raise DomainError(
                    f"The column “{name}” lacks values after row {start:,}; this input of the model cannot take that.",
                    field="features",
                )
    tensor = np.empty((batch.num_rows, len(columns)), dtype)
    for position, column in enumerate(columns):
        tensor[:, position] = (column.cast(pa.float64()) if dtype.kind == "f" else column).to_numpy(
            zero_copy_only=False
        )
    return tensor[:, 0] if len(one.spec.shape) == 1 else tensor


def _label_values(target: pa.Array) -> Array:
    """Labels for ``LabelIndex``: text as objects, everything else as numbers."""
    values: Array = target.to_numpy(zero_copy_only=False)
    return values.astype(np.int64) if values.dtype == np.bool_ else values
