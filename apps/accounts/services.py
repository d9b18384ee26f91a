"""Changes to people, teams and tokens: one function each."""

from __future__ import annotations

import contextlib
import secrets
from collections import defaultdict
from collections.abc import Sequence
from datetime import timedelta

from django.conf import settings
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils import timezone

from apps.accounts.factors import has_second_factor, remove_all_factors
from apps.accounts.models import ApiToken, GroupMapping, Invitation, Membership, Team, User
from apps.accounts.roles import Role, Scope
from apps.accounts.sessions import end_sessions
from apps.audit.actor import Actor
from apps.audit.services import record
from apps.core.controller import wake_controller
from apps.core.errors import Conflict, DomainError, NotFound
from inference.contracts import token_digest

TOKEN_PREFIX = "csn_"  # noqa: S105 - it tells what kind of secret follows
INVITATION_LIFETIME = timedelta(days=7)
MAX_TOKENS_PER_MEMBER = 50
MAX_OPEN_INVITATIONS = 200
MAX_SERVICE_ACCOUNTS = 200
MAX_GROUP_MAPPINGS = 200


def digest_of(secret: str) -> str:
    """The keyed digest under which a token or an invitation is stored."""
    return token_digest(secret, settings.INSTALLATION.secret("token_pepper").encode())


@transaction.atomic
def create_team(actor: Actor, *, slug: str, name: str) -> Team:
    """A new team without members."""
    if Team.objects.filter(slug=slug).exists():
        raise Conflict(f"There is a team “{slug}” already. Choose another short name.", field="slug")
    team = Team.objects.create(slug=slug, name=name)
    record(actor, "team.created", team, team=team, after={"slug": slug, "name": name})
    return team


@transaction.atomic
def create_member(
    actor: Actor, *, team: Team, email: str, name: str, password: str, roles: Sequence[Role]
) -> Membership:
    """A new person with an account and their roles in ``team``."""
    user = User(email=email.lower(), name=name)
    try:
        validate_password(password, user)
    except ValidationError as error:
        raise DomainError(" ".join(error.messages), field="password") from error
    if User.objects.filter(email__iexact=email).exists():
        raise Conflict(f"There is an account for {email} already.", field="email")
    user = User.objects.create_user(email, name, password)
    membership = Membership.objects.create(user=user, team=team, roles=list(roles))
    record(actor, "member.added", membership, team=team, after={"email": user.email, "roles": list(roles)})
    return membership


@transaction.atomic
def invite_member(actor: Actor, *, team: Team, email: str, roles: Sequence[Role]) -> tuple[Invitation, str]:
    """Invite a person; the second value is the secret of the link, which cannot be read again."""
    email = email.lower()
    if Membership.objects.filter(team=team, user__email__iexact=email).exists():
        raise Conflict(f"{email} is a member already. Change their roles in the list below.", field="email")
    now = timezone.now()
    if (
        Invitation.objects.filter(team=team, accepted_at=None, revoked_at=None, expires_at__gt=now).count()
        >= MAX_OPEN_INVITATIONS
    ):
        raise Conflict("There are too many open invitations. Wait until some are accepted or expire.")
    secret = secrets.token_urlsafe(32)
    invitation = Invitation.objects.create(
        team=team,
        email=email,
        roles=list(roles),
        digest=digest_of(secret),
        invited_by_id=actor.person_id,
        expires_at=now + INVITATION_LIFETIME,
    )
    record(actor, "member.invited", invitation, team=team, after={"email": email, "roles": list(roles)})
    return invitation, secret


@transaction.atomic
def revoke_invitation(actor: Actor, *, invitation: Invitation) -> Invitation:
    """Make an invitation's link useless. Revoking twice changes nothing; an accepted one stays accepted."""
    invitation = Invitation.objects.select_for_update(of=("self",)).get(pk=invitation.pk)
    if invitation.accepted_at is not None:
        raise Conflict("This invitation was accepted already. Deactivate the member instead.")
    if invitation.revoked_at is None:
        invitation.revoked_at = timezone.now()
        invitation.save(update_fields=["revoked_at"])
        record(actor, "invitation.revoked", invitation, team=invitation.team)
    return invitation


@transaction.atomic
def create_service_account(actor: Actor, *, team: Team, name: str, roles: Sequence[Role]) -> Membership:
    """A member that is a program: it has no password and no session, only the tokens that admins give it."""
    if Membership.objects.filter(team=team, user__is_service=True).count() >= MAX_SERVICE_ACCOUNTS:
        raise Conflict("There are too many service accounts. Use one that exists.")
    if Membership.objects.filter(team=team, user__is_service=True, user__name=name).exists():
        raise Conflict(f"There is a service account “{name}” already.", field="name")
    address = f"{secrets.token_hex(8)}@{team.slug}.service.invalid"  # RFC 2606: no mail ever goes there
    user = User(email=address, name=name, is_service=True)
    user.set_unusable_password()
    user.save()
    membership = Membership.objects.create(user=user, team=team, roles=list(roles))
    record(actor, "service_account.created", membership, team=team, after={"name": name, "roles": list(roles)})
    return membership


@transaction.atomic
def require_second_factor(actor: Actor, *, team: Team, is_required: bool) -> Team:
    """Whether members need a second factor before they can act for the team. Whoever sets it needs one first."""
    if is_required and not has_second_factor(User.objects.get(pk=actor.person_id)):
        raise Conflict("Set up a second factor for yourself first, or this would lock you out.")
    team = Team.objects.select_for_update().get(pk=team.pk)
    if team.requires_second_factor != is_required:
        before = {"requires_second_factor": team.requires_second_factor}
        team.requires_second_factor = is_required
        team.save(update_fields=["requires_second_factor"])
        after = {"requires_second_factor": is_required}
        record(actor, "team.changed", team, team=team, before=before, after=after)
    return team


@transaction.atomic
def map_group(actor: Actor, *, team: Team, group: str, role: Role) -> GroupMapping:
    """From their next sign-in on, members of the organisation's ``group`` hold ``role`` in the team."""
    if GroupMapping.objects.filter(team=team).count() >= MAX_GROUP_MAPPINGS:
        raise Conflict("There are too many mappings. Remove one that is not needed any more.")
    mapping, is_new = GroupMapping.objects.get_or_create(team=team, group=group, role=role)
    if not is_new:
        raise Conflict("There is such a mapping already.", field="group")
    record(actor, "group_mapping.added", mapping, team=team, after={"group": group, "role": role})
    return mapping


@transaction.atomic
def unmap_group(actor: Actor, *, mapping: GroupMapping) -> None:
    """Take a mapping away; roles that came by it end with the member's next sign-in."""
    record(
        actor,
        "group_mapping.removed",
        mapping,
        team=mapping.team,
        before={"group": mapping.group, "role": mapping.role},
    )
    mapping.delete()


@transaction.atomic
def accept_invitation(*, secret: str, name: str, password: str, address: str, request_id: str) -> Membership:
    """Turn an invitation into a membership: with a new account, or the existing one if its password is given."""
    invitation = (
        Invitation.objects.select_for_update(of=("self",))
        .select_related("team")
        .filter(digest=digest_of(secret))
        .first()
    )
    if invitation is None or not invitation.is_open or not _is_admin(invitation.invited_by_id, invitation.team):
        raise NotFound("This invitation is not valid any more. Ask an admin of the team for a new one.")
    user = User.objects.filter(email__iexact=invitation.email).first()
    if user is None:
        candidate = User(email=invitation.email, name=name)
        try:
            validate_password(password, candidate)
        except ValidationError as error:
            raise DomainError(" ".join(error.messages), field="password") from error
        user = User.objects.create_user(invitation.email, name, password)
    elif not user.check_password(password):
        raise DomainError("You have an account already: enter its password to join with it.", field="password")
    if Membership.objects.filter(user=user, team=invitation.team).exists():
        raise Conflict("You were a member of this team before. Ask an admin to activate you again.")
    membership = Membership.objects.create(user=user, team=invitation.team, roles=invitation.roles)
    invitation.accepted_at = timezone.now()
    invitation.save(update_fields=["accepted_at"])
    actor = Actor(user.pk, user.name, address=address, request_id=request_id)
    record(actor, "member.joined", membership, team=invitation.team, after={"roles": membership.roles})
    return membership


def _is_admin(user_id: int, team: Team) -> bool:
    """An invitation is worth what its sender is worth: it falls with the admin who sent it."""
    admins = Membership.objects.active().people().filter(team=team, roles__contains=[Role.ADMIN])
    return bool(admins.filter(user_id=user_id).exists())


@transaction.atomic
def change_member(actor: Actor, *, membership: Membership, roles: Sequence[Role], is_active: bool) -> Membership:
    """Set a member's roles, and whether they are a member at all. Their tokens follow at once, their sessions end.

    The last active admin stays one, so that the team can still be administered.
    """
    if not roles:
        raise DomainError("Choose at least one role, or deactivate the member.", field="roles")
    # Always in the same order, so that two admins who demote each other do not wait for each other.
    admins = Membership.objects.active().people().filter(team=membership.team, roles__contains=[Role.ADMIN])
    admin_ids = {admin.pk for admin in admins.order_by("pk").select_for_update(of=("self",))}
    membership = Membership.objects.select_for_update(of=("self",)).select_related("user", "team").get(pk=membership.pk)
    if admin_ids == {membership.pk} and not (is_active and Role.ADMIN in roles):
        raise Conflict("This is the team's only admin. Make somebody else an admin first.", field="roles")
    before = {"roles": membership.roles, "is_active": membership.is_active}
    membership.roles, membership.is_active = list(roles), is_active
    membership.save(update_fields=["roles", "is_active"])
    after = {"roles": membership.roles, "is_active": is_active}
    action = "member.deactivated" if before["is_active"] and not is_active else "member.changed"
    record(actor, action, membership, team=membership.team, before=before, after=after)
    if not is_active:
        end_sessions(actor, user=membership.user)
    wake_controller()
    return membership


@transaction.atomic
def change_password(actor: Actor, *, user: User, password: str) -> User:
    """Set one's password. The sessions that began with the old one end with it."""
    user = User.objects.select_for_update().get(pk=user.pk)
    try:
        validate_password(password, user)
    except ValidationError as error:
        raise DomainError(" ".join(error.messages), field="password") from error
    user.set_password(password)
    user.save(update_fields=["password"])
    memberships = Membership.objects.active().filter(user=user).select_related("team")
    for team in [membership.team for membership in memberships]:
        record(actor, "password.changed", user, team=team)
    return user


@transaction.atomic
def reset_sign_in(actor: Actor, *, user: User, password: str) -> None:
    """Let somebody in again who lost password or factors: a new password, no factors, no sessions.

    No page does this: an admin who could would become any approver.
    """
    change_password(actor, user=user, password=password)
    remove_all_factors(actor, user=user)
    end_sessions(actor, user=user)


@transaction.atomic
def sync_groups(actor: Actor, *, user: User, groups: Sequence[str]) -> None:
    """Bring the roles that come by ``groups`` up to date, in all teams, when the person signs in.

    Only memberships that came by a group follow it; whom an admin took in or deactivated stays as the admin said.
    """
    roles: dict[int, list[Role]] = defaultdict(list)
    for mapping in GroupMapping.objects.filter(group__in=groups).order_by("role"):
        if mapping.role not in roles[mapping.team_id]:
            roles[mapping.team_id].append(Role(mapping.role))
    for membership in (
        Membership.objects.select_for_update(of=("self",)).select_related("user", "team").filter(user=user)
    ):
        wanted = roles.pop(membership.team_id, [])
        if membership.groups != list(groups):
            membership.groups = list(groups)
            membership.save(update_fields=["groups"])
        if membership.is_from_groups and membership.is_active and set(wanted) != set(membership.roles):
            _follow_groups(actor, membership, wanted)
    for team in Team.objects.filter(pk__in=roles):
        membership = Membership.objects.create(
            user=user, team=team, roles=roles[team.pk], groups=list(groups), is_from_groups=True
        )
        record(actor, "member.added", membership, team=team, after={"roles": roles[team.pk], "groups": list(groups)})


def _follow_groups(actor: Actor, membership: Membership, wanted: list[Role]) -> None:
    with contextlib.suppress(Conflict):  # the team's only admin stays
        change_member(
            actor,
            membership=membership,
            roles=wanted or [Role(role) for role in membership.roles],
            is_active=bool(wanted),
        )


@transaction.atomic
def create_token(
    actor: Actor,
    *,
    membership: Membership,
    name: str,
    scopes: Sequence[Scope],
    lifetime_days: int | None,
    networks: Sequence[str] = (),
) -> tuple[ApiToken, str]:
    """A new token of a member; the second value is the token itself, which cannot be read again.

    ``networks`` are the CIDR ranges to which it is limited; none means that it is good from everywhere.
    """
    if not scopes:
        raise DomainError("Choose at least one scope.", field="scopes")
    now = timezone.now()
    if ApiToken.objects.usable().filter(membership=membership).count() >= MAX_TOKENS_PER_MEMBER:
        raise Conflict("You have too many tokens. Revoke one that is not used any more.")
    secret = TOKEN_PREFIX + secrets.token_urlsafe(32)
    token = ApiToken.objects.create(
        team=membership.team,
        membership=membership,
        name=name,
        prefix=secret[:12],
        digest=digest_of(secret),
        scopes=list(scopes),
        networks=list(networks),
        expires_at=now + timedelta(days=lifetime_days) if lifetime_days else None,
    )
    expiry = token.expires_at.isoformat() if token.expires_at else None
    after = {"scopes": list(scopes), "expires_at": expiry, "networks": list(networks)}
    record(actor, "token.created", token, team=membership.team, after=after)
    wake_controller()
    return token, secret


@transaction.atomic
def revoke_token(actor: Actor, *, token: ApiToken) -> ApiToken:
    """Make a token useless at once. Revoking twice changes nothing."""
    token = ApiToken.objects.select_for_update(of=("self",)).get(pk=token.pk)
    if token.revoked_at is None:
        token.revoked_at = timezone.now()
        token.save(update_fields=["revoked_at"])
        record(actor, "token.revoked", token, team=token.team)
        wake_controller()
    return token
