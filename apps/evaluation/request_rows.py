"""The requests that a load test sends, made of a dataset's rows or made up. Only the job imports this."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from apps.core.errors import DomainError
from apps.evaluation.mapping import InputColumns, match_inputs
from apps.evaluation.scoring import tensor_of
from inference.contracts import Signature
from inference.datatypes import Array
from inference.load_test import MAX_REQUESTS, encode_request, encode_requests, rows_per_request
from inference.runtime import example_inputs

MADE_UP_REQUESTS: Final = 500
_MAX_ROWS: Final = 100_000
_BATCH_ROWS: Final = 4_096


def example_requests(signature: Signature) -> list[bytes]:
    """Requests that fit the signature, all different as far as their types allow."""
    return [encode_request(signature, example_inputs(signature, seed=seed)) for seed in range(MADE_UP_REQUESTS)]


def dataset_requests(
    stored: Path, *, signature: Signature, schema: list[dict[str, str]], features: list[str]
) -> list[bytes]:
    """Requests from the first complete rows of a stored dataset: JSON has neither missing numbers nor infinities."""
    inputs = match_inputs(signature=signature, schema=schema, features=features)
    wanted = min(MAX_REQUESTS * rows_per_request(signature), _MAX_ROWS)
    parts: list[dict[str, Array]] = []
    found = 0
    with pq.ParquetFile(stored) as file:
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=sorted(set(features))):
            tensors = _complete_rows(batch, inputs)
            parts.append(tensors)
            found += len(tensors[inputs[0].spec.name])
            if found >= wanted:
                break
    tensors = {one.spec.name: np.concatenate([part[one.spec.name] for part in parts])[:wanted] for one in inputs}
    requests = encode_requests(signature, tensors)
    if not requests:
        raise DomainError(
            f"The dataset has {found:,} rows without a missing value; a request of this model takes "
            f"{rows_per_request(signature)}. Fill the values in before the upload."
        )
    return requests


def _complete_rows(batch: pa.RecordBatch, inputs: tuple[InputColumns, ...]) -> dict[str, Array]:
    batch = batch.drop_null()
    tensors = {one.spec.name: tensor_of(batch, one, 0) for one in inputs}
    is_finite = np.ones(batch.num_rows, np.bool_)
    for tensor in tensors.values():
        if tensor.dtype.kind == "f":
            is_finite &= np.isfinite(tensor.reshape(batch.num_rows, -1)).all(axis=1)
    return {name: tensor[is_finite] for name, tensor in tensors.items()}
