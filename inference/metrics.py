"""Counters of a replica: per-second rollups for the console, and the same since the start for Prometheus."""

from __future__ import annotations

import contextlib
import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from inference.contracts import LATENCY_BUCKETS_US, DeploymentEntry, EndpointEntry
from inference.datatypes import Array
from inference.inference_log import Record

BUCKETS: Final = len(LATENCY_BUCKETS_US) + 1
BOUNDS_US: Final = np.array(LATENCY_BUCKETS_US)
SHOWN_BUCKETS: Final = range(1, len(LATENCY_BUCKETS_US), 2)
"""Prometheus gets one bucket per octave: half as many series, and they still merge."""
BATCH_BOUNDS: Final = tuple(2**power for power in range(13))
STAGES: Final = ("queue", "run", "total")
SHARE_S: Final = 5
"""How often a replica leaves its counts for the others."""
MAX_ROLLUPS: Final = 50_000
"""How many rollups wait at most while the database is down; the oldest go first."""
MAX_SAMPLES: Final = 512
"""How many durations are kept before they are counted: many at once cost a tenth of one by one."""


@dataclass(frozen=True, slots=True)
class Rollup:
    """What happened on a deployment within one second. ``second`` is since the epoch."""

    endpoint_id: int
    deployment_id: int
    second: int
    requests: int
    rows: int
    errors: int
    is_shadow: bool
    cpu_us: int  # its runs, and its share of everything else that the process did
    guardrails: dict[str, int]  # rows that violated a rule
    latency_histogram: tuple[int, ...]  # by LATENCY_BUCKETS_US, of the whole time in the service


class SharedText:
    """What the other replicas of the machine counted: each leaves its text in a folder for whichever is asked."""

    def __init__(self, folder: Path, replica_id: str) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._own = folder / f"{replica_id}.prom"

    def write(self, text: bytes) -> None:
        """Leave this replica's own text. A full disk costs only the others' view of it."""
        aside = self._own.with_suffix(".new")
        with contextlib.suppress(OSError):
            aside.write_bytes(text)
            aside.replace(self._own)

    def merged(self, own: bytes) -> bytes:
        """This replica's text with those of the others that were written a moment ago, family by family."""
        texts = [own]
        for path in sorted(self._folder.glob("*.prom")):
            with contextlib.suppress(OSError):
                if path != self._own and time.time() - path.stat().st_mtime < 3 * SHARE_S:
                    texts.append(path.read_bytes())
        families: dict[bytes, list[bytes]] = {}
        for text in texts:
            lines = families.setdefault(b"", [])
            for line in text.splitlines():
                if line.startswith(b"# TYPE "):
                    lines = families.setdefault(line, [])
                else:
                    lines.append(line)
        return b"".join(
            b"%b\n" % line for head, lines in families.items() for line in ([head, *lines] if head else lines)
        )


class Histogram:
    """Counts of durations by ``LATENCY_BUCKETS_US``."""

    __slots__ = ("_samples", "counts", "sum_us")

    def __init__(self) -> None:
        self._samples: list[int] = []
        self.counts = np.zeros(BUCKETS, np.int64)
        self.sum_us = 0

    def add(self, durations_us: Sequence[int]) -> None:
        """Count some durations, soon."""
        self._samples += durations_us
        if len(self._samples) >= MAX_SAMPLES:
            self.settle()

    def settle(self) -> Array:
        """Count what is left; the counts since the start."""
        if self._samples:
            samples = np.array(self._samples)
            self.counts += np.bincount(np.searchsorted(BOUNDS_US, samples), minlength=BUCKETS)
            self.sum_us += int(samples.sum())
            self._samples = []
        return self.counts


class Meter:
    """Counts the requests of one deployment. The event loop's thread owns it; totals are since the start."""

    def __init__(self, endpoint: EndpointEntry, entry: DeploymentEntry) -> None:
        self.endpoint_id = endpoint.endpoint_id
        self.deployment_id = entry.deployment_id
        self.is_shadow = entry.role == "shadow"
        # Bounded by the manifest, and free of what would have to be escaped.
        self.labels = (
            f'endpoint="{endpoint.name}",model="{entry.model}",model_version="{entry.model_version}"'
            f',deployment="{entry.deployment_id}"'
        )
        self.outcomes: Counter[str] = Counter()
        self.guardrails: Counter[str] = Counter()
        self.stages = {stage: Histogram() for stage in STAGES}
        self.batches: Counter[int] = Counter()  # by the upper bound of their rows
        self.rows = 0
        self.skipped = 0  # requests that were not copied to this shadow, because it was behind
        self.cpu_s = 0.0
        self.run_cpu_s = 0.0  # of the current second
        self._before = (0, 0, 0)  # requests, rows, errors at the last rollup
        self._guardrails_before: Counter[str] = Counter()
        self._latencies_before = np.zeros(BUCKETS, np.int64)

    def observe(self, record: Record) -> None:
        """Count the requests of a record."""
        self.outcomes[record.outcome] += len(record.rows)
        stages = self.stages
        stages["total"].add(record.total_us)
        stages["queue"].add(record.queue_us)
        if record.outputs:
            self.rows += sum(record.rows)
            stages["run"].add([record.run_us])
            self.batches[1 << max(record.batch_size - 1, 0).bit_length()] += 1
        for rule, rows in record.violations:
            self.guardrails[rule] += len(rows)

    def spend(self, cpu_s: float) -> None:
        """Count the CPU seconds of a run."""
        self.run_cpu_s += cpu_s

    @property
    def requests(self) -> int:
        """Since the start."""
        return self.outcomes.total()

    @property
    def new_requests(self) -> int:
        """Since the last rollup."""
        return self.requests - self._before[0]

    def take(self, second: int, shared_cpu_s: float) -> Rollup | None:
        """What was counted since the last call, as the rollup of ``second``; None if there was nothing.

        ``shared_cpu_s``: this version's share of what the process did besides running models.
        """
        errors = self.outcomes["rejected"] + self.outcomes["failed"]
        now = (self.requests, self.rows, errors)
        cpu_s = self.run_cpu_s + shared_cpu_s
        self.run_cpu_s = 0.0
        self.cpu_s += cpu_s
        if now[0] == self._before[0]:
            return None
        latencies = self.stages["total"].settle().copy()
        requests, rows, new_errors = (new - old for new, old in zip(now, self._before, strict=True))
        rollup = Rollup(
            self.endpoint_id,
            self.deployment_id,
            second,
            requests,
            rows,
            new_errors,
            self.is_shadow,
            round(cpu_s * 1e6),
            dict(self.guardrails - self._guardrails_before),
            tuple((latencies - self._latencies_before).tolist()),
        )
        self._before, self._latencies_before = now, latencies
        self._guardrails_before = self.guardrails.copy()
        return rollup


class Metrics:
    """All meters of a replica, by endpoint and deployment."""

    def __init__(self) -> None:
        self._meters: dict[tuple[int, int, bool], Meter] = {}
        self._cpu_s = time.process_time()
        self.rollups: deque[Rollup] = deque(maxlen=MAX_ROLLUPS)  # filled by the loop, emptied by the reporter's thread

    def meter(self, endpoint: EndpointEntry, entry: DeploymentEntry) -> Meter:
        """The meter of a deployment; the same one after each manifest."""
        key = (endpoint.endpoint_id, entry.deployment_id, entry.role == "shadow")
        if key not in self._meters:
            self._meters[key] = Meter(endpoint, entry)
        return self._meters[key]

    def keep(self, meters: Iterable[Meter]) -> None:
        """Forget the other meters, so that labels stay bounded."""
        wanted = set(meters)
        for key in [key for key, meter in self._meters.items() if meter not in wanted]:
            self._flush(self._meters.pop(key), 0.0)

    def roll(self) -> None:
        """Close the current second of every meter; called once a second.

        What the process did besides running models (transport, decoding, the log) is shared out by requests, so that
        the sum over the versions is what the service costs.
        """
        cpu_s = time.process_time()
        known = tuple(self._meters.values())  # the next switch is prepared on another thread
        busy = [meter for meter in known if meter.new_requests or meter.run_cpu_s]
        requests = sum(meter.new_requests for meter in busy)
        used, run = cpu_s - self._cpu_s, sum(meter.run_cpu_s for meter in busy)
        shared = max(used - run, 0.0) / max(requests, 1)
        self._cpu_s = cpu_s
        for meter in busy:
            # Runs on the loop's thread are timed by the wall clock, which counts more when the machine is overloaded.
            meter.run_cpu_s *= min(used / run, 1.0) if run else 1.0
            self._flush(meter, shared * meter.new_requests)

    def _flush(self, meter: Meter, shared_cpu_s: float) -> None:
        rollup = meter.take(int(time.time()), shared_cpu_s)
        if rollup is not None:
            self.rollups.append(rollup)

    def render(self, replica_id: str, gauges: dict[str, float], versions: Iterable[tuple[Meter, int, int]]) -> bytes:
        """Prometheus text format 0.0.4, for the deployments that had a request.

        ``gauges`` are values of the whole replica by name; ``versions`` are meter, queued rows and bytes of memory of
        what is loaded.
        """
        replica = f'replica="{replica_id}"'
        lines = []
        for name, value in gauges.items():
            lines += [f"# TYPE {name} gauge", f"{name}{{{replica}}} {value:g}"]
        lines.append("# TYPE inference_queued_rows gauge")
        loaded = list(versions)
        lines += [f"inference_queued_rows{{{meter.labels},{replica}}} {rows}" for meter, rows, _ in loaded]
        lines.append("# TYPE inference_model_memory_bytes gauge")
        lines += [f"inference_model_memory_bytes{{{meter.labels},{replica}}} {size}" for meter, _, size in loaded]
        meters = [meter for meter in tuple(self._meters.values()) if meter.requests]
        for name, counts in (
            ("requests", lambda meter: [(f',outcome="{key}"', count) for key, count in meter.outcomes.items()]),
            ("guardrail_rows", lambda meter: [(f',rule="{key}"', count) for key, count in meter.guardrails.items()]),
            ("rows", lambda meter: [("", meter.rows)]),
            ("cpu_seconds", lambda meter: [("", f"{meter.cpu_s:.6f}")]),
            ("shadow_skipped", lambda meter: [("", meter.skipped)] if meter.is_shadow else []),
        ):
            lines.append(f"# TYPE inference_{name}_total counter")
            lines += [
                f"inference_{name}_total{{{meter.labels}{label},{replica}}} {count}"
                for meter in meters
                for label, count in counts(meter)
            ]
        lines.append("# TYPE inference_batch_rows histogram")
        for meter in meters:
            lines += _batches(meter, replica)
        lines.append("# TYPE inference_duration_seconds histogram")
        for meter in meters:
            for stage, histogram in meter.stages.items():
                lines += _durations(histogram, f'{meter.labels},stage="{stage}",{replica}')
        return ("\n".join(lines) + "\n").encode()


def _durations(histogram: Histogram, labels: str) -> list[str]:
    name = "inference_duration_seconds"
    cumulated = np.cumsum(histogram.settle()).tolist()
    lines = [
        f'{name}_bucket{{{labels},le="{LATENCY_BUCKETS_US[index] / 1e6:g}"}} {cumulated[index]}'
        for index in SHOWN_BUCKETS
    ]
    lines.append(f'{name}_bucket{{{labels},le="+Inf"}} {cumulated[-1]}')
    lines.append(f"{name}_sum{{{labels}}} {histogram.sum_us / 1e6:.6f}")
    return [*lines, f"{name}_count{{{labels}}} {cumulated[-1]}"]


def _batches(meter: Meter, replica: str) -> list[str]:
    name, labels, lines, cumulated = "inference_batch_rows", f"{meter.labels},{replica}", [], 0
    for bound in BATCH_BOUNDS:
        cumulated += meter.batches[bound]
        lines.append(f'{name}_bucket{{{labels},le="{bound}"}} {cumulated}')
    total = meter.batches.total()
    lines.append(f'{name}_bucket{{{labels},le="+Inf"}} {total}')
    lines.append(f"{name}_sum{{{labels}}} {meter.rows}")
    return [*lines, f"{name}_count{{{labels}}} {total}"]
