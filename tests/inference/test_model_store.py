"""Many models in little memory: loaded in the order of need, unloaded and recalled, capped, reported."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import requests

from inference.artifacts import ArtifactCache
from inference.contracts import DeploymentEntry, Limits
from inference.errors import ArtifactRejected, InferenceError, NotReady
from inference.memory import heap_in_use, release_free_memory, usable_memory
from inference.model_store import LoadedModel, ModelStore
from inference.runtime import Session, run
from inference.watchdog import Board
from tests.inference import onnx_models as models
from tests.inference.conftest import Workbench
from tests.inference.installation import Installation, Service, row, tensor, wait_for

MIB = 2**20


class Bench:
    """A store on an installation's artifacts."""

    def __init__(self, folder: Path, budget: int = 1 << 40, keep_warm: float = 3600) -> None:
        self.installation = Installation(folder)
        artifacts = ArtifactCache(folder / "store", folder / "cache")
        self.store = ModelStore(artifacts, Board.create(), keep_warm=keep_warm, budget=budget)

    def want(self, *entries: DeploymentEntry, limits: Limits | None = None) -> list[LoadedModel]:
        """Load these; in the order given, what was loaded."""
        limits = limits or Limits()
        self.store.want([(entry, limits) for entry in entries])
        wait_for(lambda: self.store.missing() == 0)
        found = [self.store.find(entry, limits) for entry in entries]
        return [model for model in found if model is not None]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    """Makes the test's bench."""
    benches: list[Bench] = []

    def make(**keywords: Any) -> Bench:
        benches.append(Bench(tmp_path, **keywords))
        return benches[-1]

    yield make
    for one in benches:
        one.store.close()


def recall(model: LoadedModel) -> Session | InferenceError:
    """Load a model again, and wait."""
    outcome: list[Session | InferenceError] = []
    done = threading.Event()

    def take(result: Session | InferenceError) -> None:
        outcome.append(result)
        done.set()

    model.recall(take)
    assert done.wait(10)
    return outcome[0]


def test_what_a_model_takes_is_measured(bench: Callable[..., Bench]) -> None:
    one = bench()
    (light,) = one.want(one.installation.deployment(models.scale(2)))
    light, heavy = one.want(light.entry, one.installation.deployment(models.heavy(20)))
    assert 0 < light.memory_bytes < MIB
    assert 20 * MIB <= heavy.memory_bytes < 22 * MIB
    folded = one.installation.deployment(models.fold(24))
    assert folded.artifact_size < 1000
    *_, folded_model = one.want(light.entry, heavy.entry, folded)
    if heap_in_use():  # where the C library can tell
        assert folded_model.memory_bytes >= 24 * MIB, "what loading makes of a small file counts"


def test_a_cap_refuses_what_needs_more_and_names_both_numbers(bench: Callable[..., Bench]) -> None:
    one = bench()
    heavy = one.installation.deployment(models.heavy(20))
    with pytest.raises(ArtifactRejected, match=r"20\.\d MiB.*allows 16\.0 MiB"):
        one.want(heavy, limits=Limits(memory_mb=16))
    (loaded,) = one.want(heavy, limits=Limits(memory_mb=32))
    assert loaded.session is not None
    with pytest.raises(ArtifactRejected, match="allows"):  # another endpoint with a lower bound, the same artifact
        one.store.find(heavy, Limits(memory_mb=16))


def test_a_model_beyond_the_whole_budget_is_refused(bench: Callable[..., Bench]) -> None:
    one = bench(budget=16 * MIB)
    with pytest.raises(ArtifactRejected, match="INFERENCE_MODEL_MEMORY_BYTES"):
        one.want(one.installation.deployment(models.heavy(20)))


def test_when_memory_is_short_the_least_needed_and_least_used_go_first(bench: Callable[..., Bench]) -> None:
    one = bench(budget=35 * MIB)
    standby = one.installation.deployment(models.heavy(8, 1), role="standby", weight=0)
    shadow = one.installation.deployment(models.heavy(8, 2), role="shadow", weight=0)
    first, second, third = (one.installation.deployment(models.heavy(8, seed)) for seed in (3, 4, 5))

    def in_memory(*entries: DeploymentEntry) -> list[bool]:
        return [model.session is not None for model in one.want(standby, shadow, *entries)]

    assert in_memory(first, second) == [True, True, True, True]
    assert in_memory(first, second, third) == [False, True, True, True, True]
    fourth = one.installation.deployment(models.heavy(8, 6))
    assert in_memory(first, second, third, fourth) == [False, False, True, True, True, True]
    loaded = one.want(standby, shadow, first, second, third, fourth)
    loaded[3].last_used = 0.0
    session = recall(loaded[0])
    assert isinstance(session, Session)
    assert [model.session is not None for model in loaded] == [True, False, True, False, True, True]
    assert run(session, {"x": np.zeros((1, 1), np.float32)})[0].tolist() == [[1.0]]


def test_a_recall_that_fails_says_so(bench: Callable[..., Bench]) -> None:
    one = bench(budget=20 * MIB)
    both = one.want(*(one.installation.deployment(models.heavy(12, seed)) for seed in (1, 2)))
    kept, lost = sorted(both, key=lambda model: model.session is None)
    assert (kept.session is None, lost.session is None) == (False, True)
    for path in one.installation.var.glob(f"**/{lost.digest}.onnx"):
        path.unlink()
    outcome = recall(lost)
    assert kept.session is not None, "nothing gives way to what cannot be read"
    assert isinstance(outcome, NotReady)
    assert "cannot be read" in str(outcome)


def test_a_slow_load_does_not_hold_up_what_is_needed_more(bench: Callable[..., Bench]) -> None:
    one = bench()
    standbys = [one.installation.deployment(models.slow(60 + n, 5), role="standby", weight=0) for n in range(60)]
    champion = one.installation.deployment(models.scale(2))
    one.store.want([(entry, Limits()) for entry in standbys])
    one.store.want([(entry, Limits()) for entry in (*standbys, champion)])
    wait_for(lambda: one.store.find(champion, Limits()) is not None)
    assert one.store.missing() > 30
    assert one.store.missing(need=3) == 0


def test_what_is_retired_stays_for_a_while(bench: Callable[..., Bench]) -> None:
    one = bench(keep_warm=0.2)
    entry = one.installation.deployment(models.scale(2))
    (model,) = one.want(entry)
    one.store.want([])
    one.store.retire([])
    assert one.store.find(entry, Limits()) is model
    time.sleep(0.3)
    one.store.retire([model.digest])  # an endpoint serves it still
    assert one.store.find(entry, Limits()) is model
    one.store.retire([])
    time.sleep(0.3)
    one.store.retire([])
    assert one.store.find(entry, Limits()) is None
    assert not list((one.installation.var / "cache").glob("artifacts/*.onnx"))


@pytest.mark.skipif(not heap_in_use(), reason="only glibc gives memory back when it is asked to")
def test_memory_of_what_is_dropped_goes_back_to_the_system(bench: Callable[..., Bench]) -> None:
    one = bench(keep_warm=0)
    entries = [one.installation.deployment(models.heavy(8, seed, parts=100)) for seed in range(10)]
    process = psutil.Process()
    last = one.installation.deployment(models.scale(2))
    one.want(last)
    release_free_memory()
    before = process.memory_info().rss
    one.want(*entries, last)
    assert process.memory_info().rss > before + 70 * MIB
    one.store.want([(last, Limits())])
    one.store.retire([])
    wait_for(lambda: process.memory_info().rss < before + 20 * MIB, 5)


def test_the_control_group_bounds_what_is_usable(tmp_path: Path) -> None:
    machine = psutil.virtual_memory().total
    assert usable_memory(tmp_path) == machine
    (tmp_path / "memory.max").write_text("max\n")
    assert usable_memory(tmp_path) == machine
    (tmp_path / "memory.max").write_text(f"{64 * MIB}\n")
    assert usable_memory(tmp_path) == 64 * MIB


COUNT, SIZE_MB, ROOM = 24, 8, 8


@pytest.fixture
def crowded(workbench: Workbench) -> Service:
    """Three times as many models as there is memory for."""
    installation = workbench.installation()
    for number in range(COUNT):
        installation.endpoint(f"m{number}", models.heavy(SIZE_MB, number, parts=100))
    installation.endpoint("small", models.scale(2))
    installation.publish()
    return workbench.serve(installation, INFERENCE_MODEL_MEMORY_BYTES=str((ROOM * SIZE_MB + 2) * MIB))


def test_three_times_the_memory_is_served_in_turn_and_memory_stays_bounded(crowded: Service) -> None:
    process = psutil.Process(crowded.child("replica"))
    before = process.memory_info().rss
    with requests.Session() as session, ThreadPoolExecutor(8) as pool:

        def ask(number: int) -> tuple[int, Any]:
            answer = session.post(
                f"{crowded.url}/v2/models/m{number}/infer",
                json={"inputs": [tensor("x", "FP32", [1, 1], [0.5])]},
                headers=crowded.headers,
                timeout=20,
            )
            body = answer.json()
            return answer.status_code, body["outputs"][0]["data"] if answer.ok else body

        for _ in range(3):
            answers = list(pool.map(ask, range(COUNT)))
            assert answers == [(200, [number + 0.5]) for number in range(COUNT)]
    peak = before + 40 * MIB
    wait_for(lambda: process.memory_info().rss < peak, 5)
    assert crowded.infer("small", row(1, 2, 3)).ok


def test_a_caller_does_not_wait_for_a_recall_beyond_its_time(workbench: Workbench) -> None:
    installation = workbench.installation()
    installation.endpoint("first", models.heavy(12, 1), limits=Limits(timeout_ms=5000))
    installation.endpoint("second", models.heavy(12, 2))
    installation.publish()
    service = workbench.serve(installation, INFERENCE_MODEL_MEMORY_BYTES=str(20 * MIB))
    question = {"inputs": [tensor("x", "FP32", [1, 1], [0.5])]}
    for name, right in (("first", 1.5), ("second", 2.5), ("first", 1.5)):
        assert service.infer(name, question).json()["outputs"][0]["data"] == [right]
    for path in installation.var.glob("**/*.onnx"):
        path.unlink()
    answer = service.infer("second", question)
    assert (answer.status_code, "cannot be loaded again" in answer.json()["error"]) == (503, True)
    assert service.infer("first", question).ok
