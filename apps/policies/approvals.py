"""Who may approve, and who is still missing. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from apps.policies.documents import ApprovalRule, Mode, PolicyDocument, source_name
from apps.policies.gates import GateResult, Outcome


@dataclass(frozen=True, slots=True)
class Person:
    """A member of the team with the roles and review groups that they have now."""

    id: int
    name: str
    roles: frozenset[str] = field(default_factory=frozenset)
    groups: frozenset[str] = field(default_factory=frozenset)
    is_active: bool = True

    def belongs_to(self, source: str) -> bool:
        """Whether the person has the role, or is in the group, that ``source`` names."""
        kind, _, name = source.partition(":")
        return name in (self.roles if kind == "role" else self.groups)


def who_may_approve(
    document: PolicyDocument, people: Iterable[Person], excluded: Mapping[int, str]
) -> tuple[tuple[Person, ...], dict[int, str]]:
    """Those whose approval counts, and by person id why the others' does not.

    ``excluded`` holds the reason, by person id, of everybody with a part in the matter: who requested, uploaded or
    trained. It outweighs every role.
    """
    may: list[Person] = []
    why_not: dict[int, str] = {}
    sources = [rule.source for rule in document.approvals]
    for person in people:
        if not person.is_active:
            why_not[person.id] = f"{person.name} is not an active member of the team."
        elif person.id in excluded:
            why_not[person.id] = excluded[person.id]
        elif not any(person.belongs_to(source) for source in sources):
            wanted = " or ".join(source_name(source) for source in sources)
            why_not[person.id] = f"{person.name} has no part in {wanted}."
        else:
            may.append(person)
    return tuple(may), why_not


def missing(document: PolicyDocument, approvers: Sequence[Person]) -> tuple[str, ...]:
    """What approvals are still to come, in words; empty when there are enough.

    Each person fills one place only, however many roles and groups they have, so two rules always mean different
    people. Asked about those who may approve instead, it says whom the team lacks.
    """
    filled = _filled(document, approvers)
    open_rules = (
        ApprovalRule(rule.source, rule.count - filled[index])
        for index, rule in enumerate(document.approvals)
        if filled[index] < rule.count
    )
    return tuple(f"{rule.count} more from {source_name(rule.source)}" for rule in open_rules)


def gate(document: PolicyDocument, approvers: Sequence[Person]) -> GateResult:
    """The approvals as a gate beside the others."""
    to_come = missing(document, approvers)
    given = sum(_filled(document, approvers))
    wanted = f"{given} of {document.approval_count} approvals"
    title = "Approvals: " + ", ".join(rule.sentence for rule in document.approvals)
    if to_come:
        sentence = f"{wanted}; still {' and '.join(to_come)}."
        return GateResult("approvals", Outcome.NOT_ENOUGH_DATA, sentence, Mode.PREVENT, title)
    return GateResult("approvals", Outcome.PASS, f"{wanted}.", Mode.PREVENT, title)


def _filled(document: PolicyDocument, approvers: Sequence[Person]) -> list[int]:
    """How many places of each rule are taken when as many people as possible have one.

    Augmenting paths (Kuhn 1955, Naval Research Logistics Quarterly 2:83): whoever fits several rules makes room.
    """
    places = [index for index, rule in enumerate(document.approvals) for _ in range(rule.count)]
    holder: dict[int, Person] = {}

    def seat(person: Person, seen: set[int]) -> bool:
        for place, rule_index in enumerate(places):
            if place in seen or not person.belongs_to(document.approvals[rule_index].source):
                continue
            seen.add(place)
            if place not in holder or seat(holder[place], seen):
                holder[place] = person
                return True
        return False

    for person in {one.id: one for one in approvers}.values():
        seat(person, set())
    taken = [0] * len(document.approvals)
    for place in holder:
        taken[places[place]] += 1
    return taken
