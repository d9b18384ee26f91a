"""How fast the inference service is: side by side with other servers, a minimal C++ one and ONNX Runtime itself.

All run on one core and are asked from another, in turns, on the same machine with the same rows; the answers of each
are compared with the model's. The product runs with everything on. Prints one JSON line for each comparison and a table
at the end; exits with 1 when a floor is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Final

from benchmarks.load import LOAD_CORE, CannotMeasure, Measurement, check_machine
from benchmarks.models import Model, make_model
from benchmarks.servers import PEER_DIALECTS, Contestant, Countersign, Limit, Peer, Unlogged, Yardstick
from benchmarks.service import UNLOGGED, Service

CONNECTIONS: Final = 32
ROUNDS: Final = 3
SECONDS: Final = 3.0


@dataclass(frozen=True)
class Bench:
    """One kind of request. ``floors``: the least ratio of the product's rate to an opponent's."""

    name: str
    model: str
    floors: Mapping[str, float]
    connections: int = CONNECTIONS
    is_binary: bool = False
    added_p99_ms: float | None = None  # what the product's p99 may be above an opponent's


ROW_FLOORS: Final = {"mlserver": 20.0, "yardstick": 0.6, "limit": 0.3}
BENCHES: Final = (
    Bench("lr", "lr", ROW_FLOORS),
    Bench("lr-one-connection", "lr", {"mlserver": 4.0}, connections=1),
    Bench("gb", "gb", ROW_FLOORS),
    Bench("mlp", "mlp", ROW_FLOORS),
    Bench("cnn", "cnn", {"mlserver": 4.0}),
    Bench("cnn-binary", "cnn", {"limit": 0.6}, is_binary=True),
)
LOGGING: Final = Bench("logging", "lr", {"unlogged": 0.95}, added_p99_ms=2.0)
LOGGING_ROUNDS: Final = 2  # for each round of the others: a small difference needs many runs


@dataclass
class Runs:
    """The runs of one contestant in one bench."""

    measured: list[Measurement] = field(default_factory=list)
    problem: str = ""

    @property
    def rate(self) -> float:
        """The median of the runs, requests per second."""
        return statistics.median(one.rate for one in self.measured)

    def summary(self) -> dict[str, Any]:
        """Medians, and the lowest and the highest rate."""
        rates = [one.rate for one in self.measured]
        medians = {
            name: round(statistics.median(getattr(one, name) for one in self.measured), 3)
            for name in ("p50_ms", "p99_ms", "user_us", "system_us")
        }
        return {"rate": round(self.rate), "spread": [round(min(rates)), round(max(rates))], **medians}


def main() -> int:
    """Run the chosen benches."""
    choice = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # through the clean-up
    try:
        check_machine()
    except CannotMeasure as problem:
        print(problem, file=sys.stderr)
        return 1
    others = [Limit(), Yardstick(), *(Peer(name) for name in choice.peers)]
    problems = _prepare(others)
    os.sched_setaffinity(0, {LOAD_CORE})  # leaves the server's core alone; children that serve are moved there
    benches = [bench for bench in BENCHES if bench.name in choice.only]
    results: list[dict[str, Any]] = []
    with Service() as service:
        contestants = [Countersign(service), *others]
        for model, group in groupby(benches, key=lambda bench: bench.model):
            results += _compare(make_model(model), list(group), contestants, dict(problems), choice)
        if LOGGING.name in choice.only:
            results += _measure_logging(service, choice)
    _print_table(results)
    return 0 if all(result["holds"] for result in results) else 1


def _arguments() -> argparse.Namespace:
    names = [bench.name for bench in (*BENCHES, LOGGING)]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inference", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="BENCH", help=", ".join(names))
    peers = [*PEER_DIALECTS, "none"]
    parser.add_argument("--peers", nargs="+", choices=peers, default=peers, metavar="PEER", help=", ".join(peers))
    parser.add_argument("--rounds", type=int, default=ROUNDS, choices=range(1, 101), metavar="N")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="length of one run")
    choice = parser.parse_args()
    choice.peers = [name for name in choice.peers if name != "none"]
    return choice


def _prepare(contestants: Sequence[Contestant]) -> dict[str, str]:
    """Build and install what is not there yet. The problems by name, for those who cannot take part."""

    def prepare(contestant: Contestant) -> str:
        try:
            contestant.prepare()
        except (CannotMeasure, OSError) as problem:
            return str(problem)
        return ""

    with ThreadPoolExecutor(os.cpu_count()) as installers:
        problems = installers.map(prepare, contestants)
    return {one.name: problem for one, problem in zip(contestants, problems, strict=True) if problem}


def _measure_logging(service: Service, choice: argparse.Namespace) -> list[dict[str, Any]]:
    """The service against itself without its log: same processes, an installation of its own."""
    choice = argparse.Namespace(**{**vars(choice), "rounds": choice.rounds * LOGGING_ROUNDS})
    with Service(UNLOGGED) as unlogged:
        contestants = [Countersign(service), Unlogged(unlogged)]
        return _compare(make_model(LOGGING.model), [LOGGING], contestants, {}, choice)


def _compare(
    model: Model,
    benches: Sequence[Bench],
    contestants: Sequence[Contestant],
    problems: dict[str, str],
    choice: argparse.Namespace,
) -> list[dict[str, Any]]:
    """Start everybody with the model, measure in turns, stop everybody."""
    with ExitStack() as running:
        for contestant in contestants:
            if contestant.name in problems:
                continue
            running.callback(contestant.stop)
            try:
                contestant.start(model)
            except (CannotMeasure, OSError) as problem:
                problems[contestant.name] = str(problem)
        ready = [contestant for contestant in contestants if contestant.name not in problems]
        return [result for bench in benches for result in _run(bench, ready, problems, choice)]


def _run(
    bench: Bench, contestants: Sequence[Contestant], problems: Mapping[str, str], choice: argparse.Namespace
) -> list[dict[str, Any]]:
    """Everybody runs once in each round; reported is the median of the rounds."""
    runs = {contestant.name: Runs() for contestant in contestants}
    runs |= {name: Runs(problem=problem) for name, problem in problems.items()}
    for _ in range(choice.rounds):
        for contestant in contestants:
            own = runs[contestant.name]
            if own.problem:
                continue
            try:
                measured = contestant.measure(
                    connections=bench.connections, seconds=choice.seconds, is_binary=bench.is_binary
                )
            except (CannotMeasure, OSError) as problem:
                own.problem = str(problem)
            else:
                own.measured += [measured] if measured else []
    ours = runs.pop("ours")
    results = [compare(bench, name, ours, theirs) for name, theirs in runs.items() if theirs.measured or theirs.problem]
    for result in results:
        print(json.dumps(result), flush=True)
    return results


def compare(bench: Bench, name: str, ours: Runs, theirs: Runs) -> dict[str, Any]:
    """The result against the opponent ``name``; ``holds`` says whether what is promised was shown."""
    floor = bench.floors.get(name)
    result: dict[str, Any] = {"bench": bench.name, "against": name, "floor": floor}
    if problem := ours.problem or theirs.problem:
        is_excused = floor is None and not ours.problem
        return result | {"ours": None, "peer": None, "ratio": None, "problem": problem, "holds": is_excused}
    ratio = ours.rate / theirs.rate
    details = {"ours_detail": ours.summary(), "peer_detail": theirs.summary()}
    added_p99_ms = details["ours_detail"]["p99_ms"] - details["peer_detail"]["p99_ms"]
    is_fast = floor is None or ratio >= floor
    is_smooth = bench.added_p99_ms is None or added_p99_ms <= bench.added_p99_ms
    rates = {"ours": round(ours.rate), "peer": round(theirs.rate), "ratio": round(ratio, 3)}
    return result | rates | {"holds": is_fast and is_smooth} | details


def _print_table(results: Sequence[dict[str, Any]]) -> None:
    """Rates are medians with their lowest and highest; latencies p50/p99; CPU is user+system of the process tree."""
    rows = [("bench", "against", "ratio", "floor", "", "ours/s", "ms", "CPU µs", "theirs/s", "ms", "CPU µs")]
    for result in results:
        floor = "" if result["floor"] is None else f"{result['floor']:g}"
        verdict = "" if result["holds"] else "MISSED"
        if "problem" in result:
            rows.append((result["bench"], result["against"], "-", floor, verdict, result["problem"], *[""] * 5))
        else:
            cells = (*_cells(result["ours_detail"]), *_cells(result["peer_detail"]))
            rows.append((result["bench"], result["against"], f"{result['ratio']:.2f}", floor, verdict, *cells))
    widths = [max(len(row[column]) for row in rows if row[-1]) for column in range(len(rows[0]))]
    print()
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _cells(detail: dict[str, Any]) -> tuple[str, str, str]:
    low, high = detail["spread"]
    return (
        f"{detail['rate']:,} ({low:,}–{high:,})",
        f"{detail['p50_ms']:.2f}/{detail['p99_ms']:.2f}",
        f"{detail['user_us']:.1f}+{detail['system_us']:.1f}",
    )


if __name__ == "__main__":
    sys.exit(main())
