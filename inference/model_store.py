"""Loaded models by digest: load, warm up, share between endpoints, keep warm for a while, unload."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import onnxruntime as ort

from inference.artifacts import ArtifactCache
from inference.contracts import DeploymentEntry, Signature
from inference.errors import ArtifactRejected, ModelFailed, RequestRejected
from inference.runtime import WarmUp, load_session, read_signature, warm_up

UNTRIED: Final = WarmUp(total_ms=0.0, run_ms=10.0, is_batchable=False)
"""For a model that could not be warmed up: assumed slow, so it runs on a thread, each request alone."""


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """An artifact in memory, ready to run. Shared by all endpoints that serve it; safe to run from several threads."""

    digest: str
    session: ort.InferenceSession
    signature: Signature
    load_ms: float
    warm_up: WarmUp
    memory_bytes: int = 0

    @property
    def is_batchable(self) -> bool:
        """Whether requests may share a run; else each runs alone."""
        return self.warm_up.is_batchable


class ModelStore:
    """What is loaded in this process. Used by the reconciler's thread only."""

    def __init__(self, artifacts: ArtifactCache, keep_warm: float) -> None:
        """``keep_warm``: seconds for which a retired model stays, so that going back to it is instant."""
        self._artifacts = artifacts
        self._keep_warm = keep_warm
        self._models: dict[str, LoadedModel] = {}
        self._retired_at: dict[str, float] = {}

    def get(self, entry: DeploymentEntry) -> LoadedModel:
        """The loaded model of a deployment; loads and warms it up if need be. Raises ``InferenceError``."""
        model = self._models.get(entry.artifact_digest)
        if model is None:
            model = self._models[entry.artifact_digest] = self._load(entry)
        if model.signature != entry.signature:
            raise ArtifactRejected("The model's signature is not the one in the manifest.")
        return model

    def retire(self, in_use: Iterable[str]) -> None:
        """Unload what has not been among ``in_use`` for the keep-warm time. Requests under way keep their model."""
        wanted, now = set(in_use), time.monotonic()
        for digest in list(self._models):
            if digest in wanted:
                self._retired_at.pop(digest, None)
            elif now - self._retired_at.setdefault(digest, now) >= self._keep_warm:
                del self._models[digest], self._retired_at[digest]
        self._artifacts.keep(self._models)

    def _load(self, entry: DeploymentEntry) -> LoadedModel:
        content = self._artifacts.read(entry)
        started = time.perf_counter()
        session = load_session(content)
        load_ms = (time.perf_counter() - started) * 1e3
        signature = read_signature(session)
        try:
            warmed = warm_up(session, signature)
        except (ModelFailed, RequestRejected):
            # Made-up inputs may be wrong for a good model; validation has shown a warning, and real ones will tell.
            warmed = UNTRIED
        return LoadedModel(entry.artifact_digest, session, signature, load_ms, warmed)
