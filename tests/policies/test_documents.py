"""Policy documents, approvals, wait timers, freeze windows and risk tiers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any

import pytest

from apps.core.errors import DomainError
from apps.policies.approvals import Person, gate, missing, who_may_approve
from apps.policies.documents import (
    ApprovalRule,
    Attestation,
    Fallback,
    FreezeWindow,
    GateRule,
    PolicyDocument,
    Tier,
    default_document,
    difference,
)
from apps.policies.gates import Outcome
from apps.policies.risk import QUESTIONS, compute_tier, parse_answers
from apps.policies.timing import why_not_now

OFFICER = ApprovalRule("role:compliance_officer", 1)


def person(number: int, *roles: str, groups: tuple[str, ...] = (), is_active: bool = True) -> Person:
    return Person(number, f"Person {number}", frozenset(roles), frozenset(groups), is_active)


def test_a_document_survives_json() -> None:
    document = PolicyDocument(
        approvals=(OFFICER, ApprovalRule("group:model-risk", 2)),
        gates=(GateRule("latency", limit=0.0), GateRule("alerts")),
        wait_minutes=60,
        freeze_windows=(FreezeWindow("Weekend", "Europe/Berlin", "18:00", "08:00", (4, 5)),),
        fallback=Fallback.STOP,
        attestation=Attestation(90, Fallback.WARN),
    )
    assert PolicyDocument.from_json(document.as_json()) == document


@pytest.mark.parametrize(
    "change",
    [
        {"format": "countersign/policy/v2"},
        {"approvals": []},
        {"approvals": [{"source": "role:admin", "count": 1}]},
        {"approvals": [{"source": "compliance_officer", "count": 1}]},
        {"approvals": [{"source": "role:operator", "count": 0}]},
        {"approvals": [{"source": "role:operator", "count": 6}, {"source": "group:x", "count": 5}]},
        {"approvals": [{"source": "role:operator", "count": 1}] * 2},
        {"approvals": [{"source": f"group:{n}", "count": 1} for n in range(31)]},
        {"wait_minutes": -1},
        {"wait_minutes": 1.5},
        {"wait_minutes": True},
        {"request_lifetime_days": 0},
        {"fallback": "SHRUG"},
        {"attestation": {"period_days": 0, "fallback": "WARN"}},
        {"attestation": {"period_days": 90}},
        {"surprise": 1},
        {"gates": "none"},
    ],
)
def test_a_document_that_is_not_one_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(DomainError):
        PolicyDocument.from_json(PolicyDocument((OFFICER,)).as_json() | change)


@pytest.mark.parametrize(
    "window",
    [
        {"starts": "2026-12-20T00:00", "ends": "2026-12-20T00:00"},
        {"starts": "2026-12-20T00:00", "ends": "2027-12-20T00:00"},
        {"starts": "2026-12-20T00:00+01:00", "ends": "2026-12-21T00:00"},
        {"starts": "soon", "ends": "later"},
        {"starts": "2026-12-20T00:00", "ends": "2026-12-21T00:00", "time_zone": "Mars/Olympus"},
        {"starts": "08:00", "ends": "08:00", "days": [0, 1, 2, 3, 4, 5, 6]},
        {"starts": "08:00", "ends": "09:00", "days": [7]},
        {"starts": "08:00", "ends": "09:00", "days": ["Monday"]},
    ],
)
def test_a_freeze_window_that_is_wrong_or_never_ends_is_refused(window: dict[str, Any]) -> None:
    entry = {"name": "X", "time_zone": "UTC"} | window
    with pytest.raises(DomainError):
        PolicyDocument.from_json(PolicyDocument((OFFICER,)).as_json() | {"freeze_windows": [entry]})


def test_windows_that_leave_no_hour_together_are_refused() -> None:
    days, nights = ({"name": name, "time_zone": "UTC", "days": list(range(7))} for name in ("days", "nights"))
    windows = [days | {"starts": "06:00", "ends": "18:00"}, nights | {"starts": "18:00", "ends": "06:00"}]
    with pytest.raises(DomainError, match="no hour"):
        PolicyDocument.from_json(PolicyDocument((OFFICER,)).as_json() | {"freeze_windows": windows})


def test_a_freeze_follows_the_clock_of_its_zone_through_the_change_of_hour() -> None:
    # On 25 October 2026 clocks in Berlin go back at 03:00 from UTC+2 to UTC+1.
    document = PolicyDocument(
        (OFFICER,), freeze_windows=(FreezeWindow("Night", "Europe/Berlin", "22:00", "06:00", (5,)),)
    )
    long_ago = datetime(2026, 1, 1, tzinfo=UTC)

    def is_open(*moment: int) -> bool:
        return not why_not_now(document, approved_at=long_ago, now=datetime(*moment, tzinfo=UTC))  # type: ignore[misc]

    assert is_open(2026, 10, 24, 19, 59)
    assert not is_open(2026, 10, 24, 20, 0)
    assert not is_open(2026, 10, 25, 4, 59)
    assert is_open(2026, 10, 25, 5, 0)
    # A week later 22:00 in Berlin is 21:00 UTC.
    assert is_open(2026, 10, 31, 20, 59)
    assert not is_open(2026, 10, 31, 21, 0)


def test_the_wait_timer_runs_from_the_approval() -> None:
    document = PolicyDocument((OFFICER,), wait_minutes=90)
    approved = datetime(2026, 11, 23, 12, tzinfo=UTC)
    assert "13:30" in why_not_now(document, approved_at=approved, now=approved + timedelta(minutes=89))
    assert why_not_now(document, approved_at=approved, now=approved + timedelta(minutes=90)) == ""


def test_a_freeze_once_says_until_when() -> None:
    window = FreezeWindow("Year end", "Asia/Tokyo", "2026-12-28T00:00", "2027-01-04T09:00")
    document = PolicyDocument((OFFICER,), freeze_windows=(window,))
    now = datetime(2027, 1, 3, 23, 59, tzinfo=UTC)
    assert "until 2027-01-04 09:00 Asia/Tokyo" in why_not_now(document, approved_at=now, now=now)
    later = datetime(2027, 1, 4, 0, 0, tzinfo=UTC)
    assert why_not_now(document, approved_at=later, now=later) == ""


def test_the_difference_is_told_in_words() -> None:
    before, after = (
        PolicyDocument((OFFICER,)),
        PolicyDocument((ApprovalRule(OFFICER.source, 2),), (GateRule("alerts"),)),
    )
    changes = {(change.before, change.after) for change in difference(before, after)}
    assert changes == {
        ("Approvals: 1 from the role compliance officer", "Approvals: 2 from the role compliance officer"),
        ("", "Required: no alert is firing on the endpoint"),
    }
    assert difference(before, before) == ()


def test_a_high_tier_takes_two_sources() -> None:
    for tier in Tier:
        default_document(tier).check_fits_tier(tier)
    two_officers = PolicyDocument((ApprovalRule("role:compliance_officer", 2),))
    two_officers.check_fits_tier(Tier.LIMITED)
    with pytest.raises(DomainError, match="two different"):
        two_officers.check_fits_tier(Tier.HIGH)


def test_who_may_approve_and_why_the_others_may_not() -> None:
    people = [
        person(1, "compliance_officer"),
        person(2, "compliance_officer", "admin"),
        person(3, "admin"),
        person(4, "compliance_officer", is_active=False),
        person(5, groups=("model-risk",)),
    ]
    document = PolicyDocument((OFFICER, ApprovalRule("group:model-risk", 1)))
    may, why_not = who_may_approve(document, people, {2: "Person 2 uploaded this version."})
    assert [one.id for one in may] == [1, 5]
    assert why_not == {
        2: "Person 2 uploaded this version.",
        3: "Person 3 has no part in the role compliance officer or the group model-risk.",
        4: "Person 4 is not an active member of the team.",
    }


def test_one_person_fills_one_place() -> None:
    document = PolicyDocument((OFFICER, ApprovalRule("role:operator", 1)))
    both, officer, operator = (
        person(1, "compliance_officer", "operator"),
        person(2, "compliance_officer"),
        person(3, "operator"),
    )
    assert missing(document, [both, both]) == ("1 more from the role operator",)
    # Whoever has both roles makes room for the other, whichever comes first.
    for order in ([both, officer], [officer, both], [both, operator], [operator, both]):
        assert missing(document, order) == ()
    assert missing(document, [officer, officer]) != ()
    assert gate(document, [officer]).sentence == "1 of 2 approvals; still 1 more from the role operator."
    assert gate(document, [both, operator]).outcome is Outcome.PASS


def test_matching_agrees_with_trying_everything() -> None:
    document = PolicyDocument((ApprovalRule("group:a", 1), ApprovalRule("group:b", 1), ApprovalRule("group:c", 1)))
    kinds = [("a",), ("a", "b"), ("b", "c"), ("c",), ()]
    for groups in product(kinds, repeat=3):
        approvers = [person(number, groups=names) for number, names in enumerate(groups)]
        is_possible = any(
            all(wanted in groups[who] for wanted, who in zip("abc", order, strict=True))
            for order in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
        )
        assert (missing(document, approvers) == ()) == is_possible, groups


HARMLESS = {question.key: question.answers[0][0] for question in QUESTIONS}


@pytest.mark.parametrize(
    ("answers", "tier"),
    [
        ({}, Tier.LOW),
        ({"people": "some"}, Tier.LIMITED),
        ({"people": "significant"}, Tier.LIMITED),
        ({"people": "significant", "oversight": "reversible"}, Tier.HIGH),
        ({"oversight": "reversible"}, Tier.LOW),
        ({"oversight": "final"}, Tier.LIMITED),
        ({"oversight": "final", "loss": "severe"}, Tier.HIGH),
        ({"loss": "severe"}, Tier.LIMITED),
        ({"data": "yes"}, Tier.LIMITED),
        ({"area": "yes"}, Tier.HIGH),
        ({"safety": "yes"}, Tier.HIGH),
    ],
)
def test_the_tier_follows_from_the_answers(answers: dict[str, str], tier: Tier) -> None:
    computed = compute_tier(parse_answers(HARMLESS | answers))
    assert computed.tier is tier
    assert bool(computed.reasons) == (tier is not Tier.LOW)


def test_a_more_harmful_answer_never_lowers_the_tier() -> None:
    keys = [question.key for question in QUESTIONS]
    for choice in product(*(range(len(question.answers)) for question in QUESTIONS)):
        answers = {key: QUESTIONS[i].answers[choice[i]][0] for i, key in enumerate(keys)}
        for i, question in enumerate(QUESTIONS):
            if choice[i] + 1 < len(question.answers):
                worse = answers | {question.key: question.answers[choice[i] + 1][0]}
                assert compute_tier(worse).tier.rank >= compute_tier(answers).tier.rank


@pytest.mark.parametrize("answers", [None, {}, HARMLESS | {"area": "maybe"}, HARMLESS | {"mood": "good"}])
def test_answers_have_to_be_complete_and_known(answers: Any) -> None:
    with pytest.raises(DomainError):
        parse_answers(answers)
