"""What a load test's steps say: its figures, and its service level objective held against them. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

FULL_GENERATOR: Final = 0.95
"""Cores of the generator, which has one thread: beyond it a step may show its limit instead of the service's."""
BUSY_HOST: Final = 0.2
"""Share of the host's cores that others used, beyond which the figures are too low to be taken for the host's."""


@dataclass(frozen=True, slots=True)
class Objective:
    """At most ``p99_ms`` at ``rate`` requests/s, and at most ``cost`` per thousand predictions; each may be absent."""

    rate: float | None = None
    p99_ms: float | None = None
    cost: float | None = None

    @property
    def is_empty(self) -> bool:
        """Whether it demands nothing."""
        return self.p99_ms is None and self.cost is None


def representative_step(result: dict[str, Any]) -> dict[str, Any]:
    """Where costs are read: the step at the objective's rate, or else the knee."""
    at_rate = next((step for step in result["open"] if step["fraction"] is None), None)
    step: dict[str, Any] = at_rate if at_rate is not None else result["knee"]
    return step


def cost_per_thousand(cpu_s_per_thousand: float | None, cpu_hour_price: float | None) -> float | None:
    """The price of the processor time of a thousand predictions."""
    if cpu_s_per_thousand is None or cpu_hour_price is None:
        return None
    return cpu_s_per_thousand * cpu_hour_price / 3_600


def judge(result: dict[str, Any], objective: Objective, cpu_hour_price: float | None) -> list[dict[str, Any]]:
    """A line for each demand: ``demand, limit, measured, unit, is_met, note``."""
    step = representative_step(result)
    lines = []
    if objective.p99_ms is not None and objective.rate is not None:
        fault, measured = why_not_sound(step), step["p99_ms"]
        is_met = measured is not None and measured <= objective.p99_ms and not fault
        lines.append(
            {
                "demand": f"p99 latency at {objective.rate:,.6g} requests/s",
                "limit": objective.p99_ms,
                "measured": measured,
                "unit": "ms",
                "is_met": is_met,
                "note": "" if is_met else "; ".join(filter(None, (fault, why_inconclusive(step, result["host"])))),
            }
        )
    if objective.cost is not None:
        cost = cost_per_thousand(step["cpu_s_per_thousand"], cpu_hour_price)
        lines.append(
            {
                "demand": f"Cost per thousand predictions {where(step)}",
                "limit": objective.cost,
                "measured": cost,
                "unit": "",
                "is_met": cost is not None and cost <= objective.cost,
                "note": "",
            }
        )
    return lines


def where(step: dict[str, Any]) -> str:
    """At which load a step was, in words."""
    if "rate" in step:
        return f"at {step['rate']:,.6g} requests/s"
    return f"with {step['concurrency']} caller{'' if step['concurrency'] == 1 else 's'}"


def why_not_sound(step: dict[str, Any]) -> str:
    """Why an open step fails whatever its latency is; empty if every request was answered as it should be."""
    if step["errors"]:
        worst, count = max(step["errors"].items(), key=lambda one: int(one[1]))
        return f"{sum(step['errors'].values()):,} requests failed, {count:,} of them with {worst}"
    if step["is_cut_short"] or step["unanswered"]:
        return "the service could not keep up: requests were left waiting"
    return ""


def why_inconclusive(step: dict[str, Any], host: dict[str, Any]) -> str:
    """Why a step that is too slow proves little; empty if it had the host for itself."""
    if step["other_cores"] <= BUSY_HOST * host["cores"]:
        return ""
    return f"others used {step['other_cores']:.1f} of {host['cores']} cores meanwhile: repeat it when the host is quiet"


def caveats(result: dict[str, Any]) -> list[str]:
    """What a reader must know before they trust the figures."""
    steps = [*result["closed"], *result["open"]]
    cores = result["host"]["cores"]
    said = []
    failed = sum(sum(step["errors"].values()) for step in steps)
    if failed:
        said.append(f"{failed:,} requests were not answered as they should be; their latencies are not in the figures.")
    busiest = max(step["other_cores"] for step in steps)
    if busiest > BUSY_HOST * cores:
        said.append(
            f"Other processes used up to {busiest:.1f} of the host’s {cores} cores meanwhile: it can do more "
            "than this. Repeat the test when the host is quiet."
        )
    best = next(step for step in result["closed"] if step["concurrency"] == result["capacity_concurrency"])
    if best["generator_cores"] > FULL_GENERATOR:
        said.append("The load generator was at its own limit: the capacity is at least what is shown.")
    elif best["concurrency"] == result["closed"][-1]["concurrency"] > 1 and _grows(result["closed"]):
        said.append("Throughput was still growing with the last callers: allow more of them to find the capacity.")
    return said


def _grows(closed: list[dict[str, Any]]) -> bool:
    return bool(closed[-1]["throughput"] > 1.1 * closed[-2]["throughput"])
