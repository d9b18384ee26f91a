"""Rows of the inference log as a dataset: what callers really send, to drive or to evaluate a version with."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from io import BytesIO
from typing import Any, Final

from django.core.files.uploadedfile import SimpleUploadedFile

from apps.audit.actor import Actor
from apps.core.errors import DomainError
from apps.deployments.models import Endpoint
from apps.evaluation.models import DatasetVersion
from apps.evaluation.services import upload_dataset
from apps.monitoring.log_reader import LogFilter, Prediction, read_log

MAX_ROWS: Final = 2_000
MAX_COLUMNS: Final = 2_000  # of a dataset
MAX_VALUES: Final = 500_000  # held in memory at once


def keep_rows(actor: Actor, *, endpoint: Endpoint, wanted: LogFilter, name: str) -> DatasetVersion:
    """Keep the inputs of the newest predictions that fit as the next version of the dataset ``name``.

    At most ``MAX_ROWS``, answered ones unless ``wanted`` says otherwise. An input of one value a row becomes a column
    of its name, a wider one a column for each value (``x_0``, ``x_1`` …). Rows that the log did not store whole
    (redacted, or over the payload cap), or whose columns are not the newest one's, are left out.
    """
    actor.require("registry.upload")
    wanted = replace(wanted, outcome=wanted.outcome or "ok")
    newest = _rows(endpoint, wanted, 1)
    width = len(newest[0]) if newest else 0
    if not width:
        raise DomainError(
            "There is no row to keep: no prediction fits, or its values are redacted or over the payload cap."
        )
    if width > MAX_COLUMNS:
        raise DomainError(f"A row has {width:,} values; a dataset has at most {MAX_COLUMNS:,} columns.")
    rows = _rows(endpoint, wanted, min(MAX_ROWS, MAX_VALUES // width))
    content = _as_parquet([row for row in rows if row.keys() == newest[0].keys()])
    file: Any = SimpleUploadedFile(f"{endpoint.name}-log.parquet", content)
    file.sha256 = hashlib.sha256(content).hexdigest()
    description = f"Inputs from the inference log of {endpoint.name}"
    return upload_dataset(actor, team=endpoint.team, name=name, description=description, file=file)


def _rows(endpoint: Endpoint, wanted: LogFilter, size: int) -> list[dict[str, Any]]:
    found = (_as_row(prediction) for prediction in read_log(endpoint, wanted, size=size).rows)
    return [row for row in found if row is not None]


def _as_row(prediction: Prediction) -> dict[str, Any] | None:
    """The prediction's inputs by column; None if one was not stored."""
    row: dict[str, Any] = {}
    for tensor in prediction.inputs:
        if tensor.values is None:
            return None
        if isinstance(tensor.values, list):
            row |= {f"{tensor.name}_{position}": value for position, value in enumerate(tensor.values)}
        else:
            row[tensor.name] = tensor.values
    return row


def _as_parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow as pa  # here only: the other pages of a web process do without it
    import pyarrow.parquet as pq

    file = BytesIO()
    pq.write_table(pa.table({name: [_known(row[name]) for row in rows] for name in rows[0]}), file)
    return file.getvalue()


def _known(value: Any) -> Any:
    """NaN is how a model is told that a number is missing."""
    return None if isinstance(value, float) and math.isnan(value) else value
