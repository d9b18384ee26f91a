"""What the benchmarks conclude from what they measured."""

from __future__ import annotations

import pytest

from benchmarks.callers import Call
from benchmarks.inference import Bench, Runs, compare
from benchmarks.load import Measurement
from benchmarks.promotions import Switch, find_stale

BENCH = Bench("rows", "lr", {"peer": 2.0}, added_p99_ms=1.0)
SWITCHES = [Switch("first", 0, 1, 1), Switch("promotion", 5, 6, 2), Switch("rollback", 9, 10, 1)]


def runs(*rates: float, p99_ms: float = 0.0) -> Runs:
    return Runs([Measurement(rate, p99_ms=p99_ms) for rate in rates])


def test_a_ratio_is_that_of_the_medians() -> None:
    result = compare(BENCH, "peer", runs(100, 900, 200), runs(50, 100, 900))
    assert (result["ours"], result["peer"], result["ratio"], result["floor"]) == (200, 100, 2.0, 2.0)
    assert result["holds"]
    assert result["ours_detail"]["spread"] == [100, 900]


def test_a_ratio_below_its_floor_is_a_miss() -> None:
    assert not compare(BENCH, "peer", runs(199), runs(100))["holds"]


def test_a_p99_too_far_above_is_a_miss() -> None:
    assert compare(BENCH, "peer", runs(200, p99_ms=2.0), runs(100, p99_ms=1.0))["holds"]
    assert not compare(BENCH, "peer", runs(200, p99_ms=2.1), runs(100, p99_ms=1.0))["holds"]


def test_without_a_floor_a_ratio_is_only_told() -> None:
    assert compare(BENCH, "somebody", runs(1), runs(100))["holds"]


def test_what_could_not_be_measured_has_not_been_shown() -> None:
    broken = Runs(problem="it does not start")
    result = compare(BENCH, "peer", runs(200), broken)
    assert result["problem"] == "it does not start"
    assert not result["holds"]
    assert compare(BENCH, "somebody", runs(200), broken)["holds"]
    assert not compare(BENCH, "somebody", broken, runs(200))["holds"]


@pytest.mark.parametrize(
    ("sent_at", "answered_at", "model_version", "is_stale"),
    [
        (2, 3, 1, False),
        (2, 3, 2, True),  # nobody has asked for it yet
        (4, 5.5, 1, False),  # the switch is under way: either
        (4, 5.5, 2, False),
        (5.9, 6.5, 1, False),  # sent before the switch was reported done
        (6.1, 6.2, 1, True),
        (6.1, 6.2, 2, False),
        (8, 9.5, 1, False),
        (10.1, 10.2, 2, True),
    ],
)
def test_an_answer_is_stale_once_another_version_was_reported(
    sent_at: float, answered_at: float, model_version: int, is_stale: bool
) -> None:
    call = Call(sent_at, answered_at, model_version, is_right=True)
    assert bool(find_stale([call], SWITCHES)) is is_stale
