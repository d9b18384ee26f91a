"""How a model's risk tier follows from the answers to a short form. Questions and rules are plain data. No I/O.

The questions are those by which the EU AI Act (Art. 5 and 6, Annex III, Art. 50) and SR 26-2 tell how much harm a
model can do; the tier is what this installation's policies go by, and no legal classification.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from apps.core.errors import DomainError
from apps.policies.documents import Tier

RULES_VERSION: Final = 1
"""Grows with every change of questions or rules; an assessment keeps the version it was made by."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its possible answers, ``(value, words)``, the most harmless first."""

    key: str
    text: str
    answers: tuple[tuple[str, str], ...]


_NO_YES: Final = (("no", "No"), ("yes", "Yes"))
QUESTIONS: Final = (
    Question(
        "area",
        "Is it used for one of these: credit, insurance, employment, education, essential services, health, law "
        "enforcement, migration, justice, biometrics, critical infrastructure?",
        _NO_YES,
    ),
    Question("safety", "Can a wrong answer endanger anybody’s life, health or physical safety?", _NO_YES),
    Question(
        "people",
        "Whom do its answers concern?",
        (
            ("nobody", "No individual person: processes, machines, aggregates"),
            ("some", "Individual people, without legal or similarly significant effects on them"),
            ("significant", "Individual people, with legal or similarly significant effects on them"),
        ),
    ),
    Question(
        "oversight",
        "Who acts on an answer?",
        (
            ("person", "A person who sees it first and can decide otherwise"),
            ("reversible", "A program; the effect can be undone"),
            ("final", "A program; the effect cannot be undone"),
        ),
    ),
    Question("data", "Does it take personal data of special categories (health, origin, belief, biometrics)?", _NO_YES),
    Question(
        "loss",
        "How much could a month of wrong answers cost the organisation?",
        (
            ("small", "Hardly anything"),
            ("material", "An amount that a business line would report"),
            ("severe", "An amount that the organisation as a whole would report"),
        ),
    ),
)

Answers = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Rule:
    """If ``holds`` for the answers, the tier is at least ``tier``."""

    tier: Tier
    text: str
    holds: Callable[[Answers], bool]


RULES: Final = (
    Rule(Tier.HIGH, "Used in an area where mistakes change lives", lambda a: a["area"] == "yes"),
    Rule(Tier.HIGH, "A wrong answer can endanger somebody", lambda a: a["safety"] == "yes"),
    Rule(
        Tier.HIGH,
        "Decides about people with significant effects, and nobody looks first",
        lambda a: a["people"] == "significant" and a["oversight"] != "person",
    ),
    Rule(
        Tier.HIGH,
        "Acts by itself, cannot be undone, and can cost the whole organisation dearly",
        lambda a: a["oversight"] == "final" and a["loss"] == "severe",
    ),
    Rule(Tier.LIMITED, "Concerns individual people", lambda a: a["people"] != "nobody"),
    Rule(Tier.LIMITED, "Takes personal data of special categories", lambda a: a["data"] == "yes"),
    Rule(Tier.LIMITED, "Acts by itself, and cannot be undone", lambda a: a["oversight"] == "final"),
    Rule(Tier.LIMITED, "Wrong answers would be costly", lambda a: a["loss"] != "small"),
)


@dataclass(frozen=True, slots=True)
class Computed:
    """The tier that the answers give, and the rules that gave it, the strictest first."""

    tier: Tier
    reasons: tuple[str, ...]


def compute_tier(answers: Answers) -> Computed:
    """The highest tier of all rules that hold; low if none does. The answers are complete: see ``parse_answers``."""
    holding = [rule for rule in RULES if rule.holds(answers)]
    tier = max((rule.tier for rule in holding), key=lambda tier: tier.rank, default=Tier.LOW)
    return Computed(tier, tuple(rule.text for rule in holding))


def parse_answers(value: Any) -> dict[str, str]:
    """One known answer to every question and nothing else; raises ``DomainError`` naming the question."""
    given = value if isinstance(value, dict) else {}
    unknown = given.keys() - {question.key for question in QUESTIONS}
    if unknown:
        raise DomainError(f"There is no question “{min(map(str, unknown))[:60]}”.", field="answers")
    for question in QUESTIONS:
        allowed = [key for key, _ in question.answers]
        if given.get(question.key) not in allowed:
            raise DomainError(f"Answer “{question.key}” with one of {', '.join(allowed)}.", field=question.key)
    return {question.key: str(given[question.key]) for question in QUESTIONS}
