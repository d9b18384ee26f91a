"""What people say on a request. Nothing that was said is lost."""

from __future__ import annotations

from typing import Final

from django.db import transaction
from django.utils import timezone

from apps.audit.actor import Actor
from apps.audit.services import record
from apps.core.errors import Conflict, NotAllowed
from apps.promotions.models import Comment, CommentRevision, PromotionRequest
from apps.promotions.services import locked

MAX_COMMENTS: Final = 500
MAX_EDITS: Final = 50


@transaction.atomic
def add_comment(actor: Actor, *, request: PromotionRequest, body: str) -> Comment:
    """Say something on a request, whatever its state."""
    actor.require("promotions.comment")
    request = locked(request)
    if request.comments.count() >= MAX_COMMENTS:
        raise Conflict(f"A request has at most {MAX_COMMENTS} comments.")
    comment = Comment.objects.create(
        request=request, author_id=actor.person_id, author_name=actor.name, body=body, created_at=timezone.now()
    )
    record(actor, "promotion.commented", request, team=request.team, after={"comment": comment.pk}, reason=body)
    return comment


@transaction.atomic
def edit_comment(actor: Actor, *, comment: Comment, body: str) -> Comment:
    """Change one's own comment; the earlier text stays readable beside it."""
    actor.require("promotions.comment")
    request = locked(comment.request)
    comment = Comment.objects.select_for_update().get(pk=comment.pk)
    if comment.author_id != actor.user_id:
        raise NotAllowed("Only the author edits a comment.")
    if comment.revisions.count() >= MAX_EDITS:
        raise Conflict(f"A comment is edited at most {MAX_EDITS} times. Write another one.")
    if body == comment.body:
        return comment
    before, now = comment.body, timezone.now()
    CommentRevision.objects.create(comment=comment, body=before, replaced_at=now)
    comment.body, comment.edited_at = body, now
    comment.save(update_fields=["body", "edited_at"])
    record(
        actor,
        "promotion.comment_edited",
        request,
        team=request.team,
        before={"comment": comment.pk, "body": before},
        after={"comment": comment.pk, "body": body},
    )
    return comment
