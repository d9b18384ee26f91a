"""Models by digest: load in the order of need, share between endpoints, keep warm, and unload when memory is short."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from inference.artifacts import ArtifactCache
from inference.contracts import DeploymentEntry, Limits, Role, Signature
from inference.errors import ArtifactRejected, InferenceError, ModelFailed, NotReady, RequestRejected
from inference.memory import heap_in_use, release_free_memory
from inference.runtime import Session, WarmUp, load_session, read_signature, warm_up
from inference.watchdog import LOAD_LANES, Board, Lane

logger = logging.getLogger("inference.model_store")

UNTRIED: Final = WarmUp(total_ms=0.0, run_ms=10.0, is_batchable=False)
"""For a model that could not be warmed up: assumed slow, so it runs on a thread, each request alone."""
NEED: Final[dict[Role, int]] = {"champion": 3, "canary": 3, "shadow": 2, "standby": 1}
"""What is loaded first, and unloaded last when memory is short. 0: retired."""
IDLE_S: Final = 1.0  # pause of a loader with nothing to do, before it looks for what may be tried again
FIRST_RETRY_S: Final = 5.0
LAST_RETRY_S: Final = 300.0
PATIENCE_S: Final = 2.0  # how long a load may keep the next one waiting, so that both are measured
TRIM_S: Final = 1.0
MIB: Final = 1024 * 1024
NO_CAP: Final = 1 << 62


@dataclass(slots=True, eq=False)
class LoadedModel:
    """An artifact that was loaded and tried. Shared by all endpoints that serve it; safe to run from several threads.

    ``session`` is None while the model is unloaded for want of memory; ``recall`` brings it back. Who takes the
    session keeps it in memory until the run is over.
    """

    digest: str
    session: Session | None
    signature: Signature
    load_ms: float
    warm_up: WarmUp
    memory_bytes: int  # what loading added to the heap, at least the artifact's size
    entry: DeploymentEntry
    store: ModelStore = field(repr=False)
    need: int = 0
    last_used: float = field(default_factory=time.perf_counter)

    @property
    def is_batchable(self) -> bool:
        """Whether requests may share a run; else each runs alone."""
        return self.warm_up.is_batchable

    @property
    def memory_in_use(self) -> int:
        """``memory_bytes``, or 0 while it is unloaded."""
        return 0 if self.session is None else self.memory_bytes

    def recall(self, done: Recalled) -> None:
        """Load the session again; ``done`` is called on a loader's thread."""
        self.store.recall(self, done)


Recalled = Callable[[Session | InferenceError], None]
"""Takes the session of a model that was loaded again, or why that failed."""


@dataclass(slots=True)
class _Failure:
    error: Exception
    retry_at: float
    pause: float


class ModelStore:
    """What is loaded in this process. Two threads of its own load; every method may be called from any thread."""

    def __init__(self, artifacts: ArtifactCache, board: Board, *, keep_warm: float, budget: int) -> None:
        """``keep_warm``: seconds for which a retired model stays, so that going back to it is instant.

        ``budget``: bytes that the models may take together.
        """
        self._artifacts = artifacts
        self._keep_warm = keep_warm
        self._budget = budget
        self.on_change: Callable[[], None] = lambda: None  # a model was loaded for the first time, or failed
        self._changed = threading.Condition()  # guards everything below
        self._wanted: dict[str, DeploymentEntry] = {}  # by digest, in the order of need
        self._needs: dict[str, int] = {}
        self._caps: dict[str, int] = {}  # bytes; the most that an endpoint allows
        self._queue: list[str] = []  # reversed: the most needed is at the end
        self._recalls: dict[LoadedModel, list[Recalled]] = {}
        self._loading: set[str] = set()
        self._models: dict[str, LoadedModel] = {}
        self._failures: dict[str, _Failure] = {}
        self._retired_at: dict[str, float] = {}
        self._cached: set[str] | None = None
        self._loads = threading.Lock()
        self._turn_began = 0.0
        self._trimmed_at = 0.0
        self._must_trim = False
        self._is_closed = False
        for lane in LOAD_LANES:
            threading.Thread(target=self._serve, args=(board.lane(lane),), name=f"loader-{lane}", daemon=True).start()

    def want(self, entries: Sequence[tuple[DeploymentEntry, Limits]]) -> None:
        """Load what is missing of these, the most needed first; what was wanted before and is missing is forgotten."""
        with self._changed:
            caps = self._caps
            self._wanted, self._needs, self._caps = {}, {}, {}
            for entry, limits in sorted(entries, key=lambda pair: -NEED[pair[0].role]):
                digest = entry.artifact_digest
                self._wanted.setdefault(digest, entry)
                self._needs.setdefault(digest, NEED[entry.role])
                self._caps[digest] = max(self._caps.get(digest, 0), _cap(limits))
            for digest in list(self._failures):  # nobody asks any more, or another limit may let it in
                if self._caps.get(digest) != caps.get(digest):
                    del self._failures[digest]
            missing = [one for one in self._wanted if one not in self._models and one not in self._failures]
            self._queue = [one for one in reversed(missing) if one not in self._loading]
            for digest in self._wanted.keys() & self._models.keys():
                self._models[digest].need = self._needs[digest]
            self._changed.notify_all()

    def missing(self, *, need: int = 0) -> int:
        """How many wanted models of at least this need were neither loaded nor tried in vain."""
        with self._changed:
            loading = [digest for digest in self._loading if digest in self._wanted and digest not in self._models]
            waiting = (*self._queue, *loading)
            return sum(self._needs[digest] >= need and digest not in self._failures for digest in waiting)

    def find(self, entry: DeploymentEntry, limits: Limits) -> LoadedModel | None:
        """The model of a deployment; None while it is still to be loaded. Raises why it cannot be served."""
        with self._changed:
            model = self._models.get(entry.artifact_digest)
            failure = self._failures.get(entry.artifact_digest)
        if model is None:
            if failure is not None:
                raise failure.error.with_traceback(None)  # else it grows with every time
            return None
        _check_size(model.memory_bytes, _cap(limits))
        if model.signature != entry.signature:
            raise ArtifactRejected("The model's signature is not the one in the manifest.")
        return model

    def recall(self, model: LoadedModel, done: Recalled) -> None:
        """Load an unloaded model before anything else."""
        with self._changed:
            self._recalls.setdefault(model, []).append(done)
            self._changed.notify()

    def retire(self, in_use: Iterable[str]) -> None:
        """Forget what has not been among ``in_use`` for the keep-warm time. Requests under way keep their session."""
        now = time.monotonic()
        with self._changed:
            used = {*in_use, *self._wanted}
            for digest in used & self._retired_at.keys():
                del self._retired_at[digest]
            for digest in self._models.keys() - used:
                self._models[digest].need = 0
                if now - self._retired_at.setdefault(digest, now) >= self._keep_warm:
                    del self._models[digest], self._retired_at[digest]
                    self._must_trim = True
            kept = self._models.keys() | self._wanted.keys()
        if kept != self._cached:
            self._artifacts.keep(kept)
            self._cached = kept

    def close(self) -> None:
        """Load nothing more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    # -- on the loaders' threads -------------------------------------------------------------------------------------

    def _serve(self, lane: Lane) -> None:
        while not self._is_closed:
            with self._changed:
                task = self._next()
                if task is None:
                    self._changed.wait(IDLE_S)
                    task = self._next()
                if task is not None:
                    self._loading.add(task.artifact_digest if isinstance(task, DeploymentEntry) else task.digest)
            if isinstance(task, LoadedModel):
                self._bring_back(task, lane)
            elif task is not None:
                self._bring(task, lane)
            self._trim_if_due()

    def _next(self) -> LoadedModel | DeploymentEntry | None:
        if self._is_closed:
            return None
        for model in self._recalls:
            if model.digest not in self._loading:
                return model
        while self._queue:
            digest = self._queue.pop()
            if digest not in self._models and digest not in self._loading:
                return self._wanted[digest]
        now = time.monotonic()
        for digest, failure in self._failures.items():
            if failure.retry_at <= now and digest not in self._loading:
                return self._wanted[digest]
        return None

    def _bring(self, entry: DeploymentEntry, lane: Lane) -> None:
        """Load for the first time, and note how that went."""
        digest = entry.artifact_digest
        problem: Exception | None = None
        lane.begin(entry.deployment_id)
        try:
            self._load(entry)
        except Exception as error:
            problem = error
            logger.error("%s version %s cannot be served: %s", entry.model, entry.model_version, error)
        finally:
            lane.end()
        with self._changed:
            self._loading.discard(digest)
            self._note(digest, problem)
        self.on_change()

    def _bring_back(self, model: LoadedModel, lane: Lane) -> None:
        """Load what was unloaded, and tell those who wait for it."""
        outcome: Session | InferenceError
        lane.begin(model.entry.deployment_id)
        try:
            outcome = model.session or self._reload(model)
        except Exception as error:
            logger.error(
                "%s version %s cannot be loaded again: %s", model.entry.model, model.entry.model_version, error
            )
            outcome = NotReady(f"The model was unloaded and cannot be loaded again: {reason(error)}", 2)
        finally:
            lane.end()
        with self._changed:
            self._loading.discard(model.digest)
            waiting = self._recalls.pop(model, [])
        for done in waiting:
            done(outcome)

    def _note(self, digest: str, error: Exception | None) -> None:
        if error is None:
            self._failures.pop(digest, None)
            return
        if digest not in self._wanted:
            return
        known = self._failures.get(digest)
        pause = FIRST_RETRY_S if known is None else min(2 * known.pause, LAST_RETRY_S)
        self._failures[digest] = _Failure(error, time.monotonic() + pause, pause)

    def _load(self, entry: DeploymentEntry) -> None:
        digest = entry.artifact_digest
        cap = self._caps.get(digest, 0)
        _check_size(entry.artifact_size, cap)
        with self._turn() as is_alone:
            session, load_ms, grown = self._session(entry, entry.artifact_size)
            size = max(grown if is_alone else 0, entry.artifact_size)
            _check_size(size, cap)
            signature = read_signature(session)
            try:
                warmed = warm_up(session, signature)
            except (ModelFailed, RequestRejected):
                # Made-up inputs may be wrong for a good model; validation has shown a warning, and real ones will tell.
                warmed = UNTRIED
        model = LoadedModel(digest, session, signature, load_ms, warmed, size, entry, self)
        with self._changed:
            dropped = self._make_room(size)
            model.need = self._needs.get(digest, 0)
            self._models[digest] = model
        del dropped

    def _reload(self, model: LoadedModel) -> Session:
        with self._turn():
            session, *_ = self._session(model.entry, model.memory_bytes)
        with self._changed:
            dropped = self._make_room(model.memory_bytes)
            model.session, model.last_used = session, time.perf_counter()
        del dropped
        return session

    @contextlib.contextmanager
    def _turn(self) -> Iterator[bool]:
        """Wait while another load is under way, but not for a long one; whether this one is alone then.

        The heap is the whole process's, so only one at a time can be measured.
        """
        is_alone = self._loads.acquire(timeout=max(self._turn_began + PATIENCE_S - time.monotonic(), 0))
        if is_alone:
            self._turn_began = time.monotonic()
        try:
            yield is_alone
        finally:
            if is_alone:
                self._loads.release()

    def _session(self, entry: DeploymentEntry, size: int) -> tuple[Session, float, int]:
        """A session, the milliseconds it took, and the bytes by which the heap grew. ``size``: the room to make for it.

        Working memory comes from the arena that all sessions share, and is not part of it.
        """
        with self._artifacts.open(entry) as source:
            self._make_room(size)  # not before it is known that there is something to load
            before, started = heap_in_use(), time.perf_counter()
            session = load_session(source)
            return session, (time.perf_counter() - started) * 1e3, heap_in_use() - before

    def _make_room(self, size: int) -> list[Session]:
        """Unload the least needed, then least recently used models until ``size`` bytes more fit into the budget.

        Returns their sessions, so that the caller can let go of them, which takes time, without holding the lock.
        """
        if size > self._budget:
            raise ArtifactRejected(
                f"The model needs {_mib(size)} of memory, and all models of a process may take"
                f" {_mib(self._budget)}: raise INFERENCE_MODEL_MEMORY_BYTES, or serve a smaller model."
            )
        dropped = []
        with self._changed:
            loaded = [one for one in self._models.values() if one.session is not None]
            excess = sum(one.memory_bytes for one in loaded) + size - self._budget
            for one in sorted(loaded, key=lambda one: (one.need, one.last_used)) if excess > 0 else ():
                dropped.append(one.session)
                one.session = None
                self._must_trim = True
                excess -= one.memory_bytes
                if excess <= 0:
                    break
        return dropped

    def _trim_if_due(self) -> None:
        """Sessions give their memory back to the heap; this gives it back to the system."""
        now = time.monotonic()
        if self._must_trim and now - self._trimmed_at >= TRIM_S:
            self._must_trim, self._trimmed_at = False, now
            release_free_memory()


def reason(error: Exception) -> str:
    """A failure in words that are safe to show."""
    return str(error) if isinstance(error, InferenceError) else f"It broke: {type(error).__name__}."


def _mib(size: int) -> str:
    return f"{max(size / MIB, 0.1):.1f} MiB"


def _cap(limits: Limits) -> int:
    return NO_CAP if limits.memory_mb is None else limits.memory_mb * MIB


def _check_size(size: int, cap: int) -> None:
    if size > cap:
        raise ArtifactRejected(
            f"The model needs {_mib(size)} of memory, and the endpoint allows {_mib(cap)} for a version: raise the"
            " endpoint's limit, or serve a smaller model."
        )
