"""Changes to model cards, and what a promotion request freezes of one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from django.db import transaction
from django.utils import timezone

from apps.accounts.models import User
from apps.audit.actor import Actor
from apps.audit.services import record
from apps.core.errors import Conflict, DomainError, NotAllowed
from apps.registry.cards import FORMAT, KEYS, MAX_SECTION_CHARACTERS, SECTIONS, card_digest, completeness
from apps.registry.models import CardRevision, CardState, ModelVersion

MAX_REVISIONS: Final = 1_000


@transaction.atomic
def save_card(
    actor: Actor, *, model_version: ModelVersion, sections: Mapping[str, str], based_on: int, summary: str = ""
) -> CardRevision:
    """Write the next revision of a version's card. ``based_on`` is the revision that the person edited, 0 for none.

    Raises ``Conflict`` when somebody saved another one meanwhile, ``DomainError`` for sections that cannot be kept.
    """
    actor.require("registry.upload")
    version = _locked(model_version)
    latest = version.card_revisions.first()
    if (latest.number if latest else 0) != based_on:
        newer = f"{latest.author_name} saved revision {latest.number}" if latest else "There is no such revision"
        raise Conflict(f"{newer}, which is not what you edited. Open the card again and make your changes there.")
    kept = _checked(sections)
    digest = card_digest(kept)
    if latest is not None and latest.sha256 == digest:
        raise Conflict(f"Nothing is different from revision {latest.number}.")
    if based_on >= MAX_REVISIONS:
        raise Conflict(f"A card has at most {MAX_REVISIONS} revisions.")
    revision = CardRevision.objects.create(
        model_version=version,
        number=based_on + 1,
        sections=kept,
        sha256=digest,
        summary=summary,
        author_id=actor.person_id,
        author_name=actor.name,
        saved_at=timezone.now(),
    )
    after = {"revision": revision.number, "card_digest": digest, "missing": list(completeness(kept).missing)}
    record(actor, "card.saved", revision, team=version.model.team, after=after, reason=summary)
    return revision


def _locked(model_version: ModelVersion) -> ModelVersion:
    """The version with its row locked: revisions of a card follow each other one at a time."""
    locked: ModelVersion = (
        ModelVersion.objects.select_for_update(of=("self",)).select_related("model__team").get(pk=model_version.pk)
    )
    return locked


def _checked(sections: Mapping[str, str]) -> dict[str, str]:
    """All sections in their order, line ends and margins tidied. Raises ``DomainError`` for an unknown or long one."""
    if unknown := sorted(set(sections) - set(KEYS)):
        raise DomainError(f"A card has no section “{unknown[0]}”. It has {', '.join(KEYS)}.", field="sections")
    kept = {key: sections.get(key, "").replace("\r\n", "\n").replace("\x00", "").strip() for key in KEYS}
    for section in SECTIONS:
        if len(kept[section.key]) > MAX_SECTION_CHARACTERS:
            raise DomainError(
                f"“{section.title}” is over {MAX_SECTION_CHARACTERS:,} characters: shorten it, or link to the rest.",
                field=section.key,
            )
    return kept


@transaction.atomic
def request_card_review(actor: Actor, *, revision: CardRevision) -> CardRevision:
    """Ask for a review of the newest revision; it has to be complete."""
    actor.require("registry.upload")
    revision = _newest(revision)
    if revision.state != CardState.DRAFT:
        raise Conflict(f"Revision {revision.number} is {revision.get_state_display().lower()} already.")
    if missing := completeness(revision.sections).missing:
        raise Conflict(f"The card is not complete yet. Write: {', '.join(missing)}.")
    return _set_state(actor, revision, CardState.IN_REVIEW, "card.review_requested")


@transaction.atomic
def review_card(actor: Actor, *, revision: CardRevision, is_approved: bool, comment: str) -> CardRevision:
    """Say of a revision in review that it is right, or what has to change. Never one's own."""
    actor.require("registry.review_card")
    revision = _newest(revision)
    if reason := why_not_review(actor, revision):
        raise NotAllowed(reason) if revision.state == CardState.IN_REVIEW else Conflict(reason)
    revision.reviewer = User.objects.get(pk=actor.person_id)
    revision.reviewer_name, revision.review_comment, revision.reviewed_at = actor.name, comment, timezone.now()
    if is_approved:
        return _set_state(actor, revision, CardState.REVIEWED, "card.reviewed", comment)
    return _set_state(actor, revision, CardState.CHANGES_REQUESTED, "card.changes_requested", comment)


def why_not_review(actor: Actor, revision: CardRevision) -> str:
    """Why this person cannot review the revision; empty if they can."""
    if revision.state != CardState.IN_REVIEW:
        return f"Revision {revision.number} is {revision.get_state_display().lower()}: nobody has to review it now."
    if actor.token_id is not None:
        return "A token never reviews: sign in to the console."
    if actor.user_id == revision.author_id:
        return "You wrote this revision, so somebody else must review it."
    return "" if actor.can("registry.review_card") else "Only a compliance officer reviews model cards."


def _newest(revision: CardRevision) -> CardRevision:
    version = _locked(revision.model_version)
    newest: CardRevision = version.card_revisions.select_related("model_version__model__team")[0]
    if newest.pk != revision.pk:
        raise Conflict(f"There is a newer revision, {newest.number}. Look at that one.")
    return newest


def _set_state(actor: Actor, revision: CardRevision, state: CardState, action: str, comment: str = "") -> CardRevision:
    before, revision.state = revision.state, state
    revision.save(update_fields=["state", "reviewer", "reviewer_name", "review_comment", "reviewed_at"])
    after = {"state": state, "revision": revision.number, "card_digest": revision.sha256}
    team = revision.model_version.model.team
    record(actor, action, revision, team=team, before={"state": before}, after=after, reason=comment)
    return revision


def card_evidence(model_version: ModelVersion) -> dict[str, Any] | None:
    """The newest revision for a request's evidence, whole, so that what was read is what was frozen; None without."""
    revision: CardRevision | None = model_version.card_revisions.first()
    return None if revision is None else card_document(revision)


def card_document(revision: CardRevision) -> dict[str, Any]:
    """A revision with everything that is said of it; the same revision in the same state gives the same document."""
    found = completeness(revision.sections)
    return {
        "format": FORMAT,
        "number": revision.number,
        "sha256": revision.sha256,
        "state": revision.state,
        "is_complete": found.is_complete,
        "missing": list(found.missing),
        "author": revision.author_name,
        "saved_at": revision.saved_at.isoformat(),
        "reviewer": revision.reviewer_name or None,
        "reviewed_at": revision.reviewed_at.isoformat() if revision.reviewed_at else None,
        "review_comment": revision.review_comment,
        "sections": revision.sections,
    }
