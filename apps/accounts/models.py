"""Users, teams, memberships, group mappings, invitations and API tokens."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any, ClassVar, Self

from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.contrib.postgres.fields import ArrayField
from django.core.validators import RegexValidator
from django.db import models
from django.db.models.functions import Lower
from django.utils import timezone

from apps.accounts.roles import Role, Scope, permissions_of_roles, permissions_of_scopes
from apps.core.querysets import TeamScopedQuerySet

slug_validator = RegexValidator(
    r"\A[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z",
    "Use lower-case letters, digits and hyphens, at most 63, not beginning or ending with a hyphen.",
)


class UserManager(BaseUserManager["User"]):
    """Creates users; there are no superusers."""

    def create_user(self, email: str, name: str, password: str | None = None) -> User:
        """A new user; without a password the account cannot sign in until one is set."""
        user = self.model(email=self.normalize_email(email).lower(), name=name)
        user.set_password(password)
        user.save(using=self._db)
        return user

    def get_by_natural_key(self, username: str | None) -> User:
        """Sign-in is by email, in any case."""
        return self.get(email__iexact=username)


class User(AbstractBaseUser):
    """A person, or a service account: a program that acts in one team by its tokens and can never sign in."""

    email = models.EmailField(unique=True, max_length=254)
    name = models.CharField(max_length=120)
    is_active = models.BooleanField(default=True)
    is_service = models.BooleanField(default=False)
    created_at = models.DateTimeField(auto_now_add=True)

    objects = UserManager()

    USERNAME_FIELD = "email"
    REQUIRED_FIELDS: ClassVar[list[str]] = ["name"]

    class Meta:
        constraints = (models.UniqueConstraint(Lower("email"), name="user_email_case_insensitive"),)

    def __str__(self) -> str:
        return self.name


class Team(models.Model):
    """What owns models, datasets, endpoints and their history."""

    slug = models.CharField(max_length=63, unique=True, validators=[slug_validator])
    name = models.CharField(max_length=120)
    requires_second_factor = models.BooleanField(default=False)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("name",)

    def __str__(self) -> str:
        return self.name


class MembershipQuerySet(TeamScopedQuerySet):
    """Reads of memberships."""

    def people(self) -> Self:
        """Without service accounts."""
        return self.filter(user__is_service=False)

    def active(self) -> Self:
        """Memberships that count: not disabled, of an active user."""
        return self.filter(is_active=True, user__is_active=True)


class Membership(models.Model):
    """A person's roles in a team.

    ``groups`` are what the organisation's sign-in said last; with ``is_from_groups`` it also decides on the roles.
    """

    user = models.ForeignKey(User, on_delete=models.PROTECT, related_name="memberships")
    team = models.ForeignKey(Team, on_delete=models.PROTECT, related_name="memberships")
    roles = ArrayField(models.CharField(max_length=32, choices=Role.choices))
    is_active = models.BooleanField(default=True)
    groups = ArrayField(models.CharField(max_length=200), default=list)
    is_from_groups = models.BooleanField(default=False)
    created_at = models.DateTimeField(auto_now_add=True)

    objects = MembershipQuerySet.as_manager()

    class Meta:
        ordering = ("user__name",)
        constraints = (
            models.UniqueConstraint(fields=("user", "team"), name="membership_once"),
            models.CheckConstraint(condition=models.Q(roles__len__gt=0), name="membership_has_a_role"),
        )

    def __str__(self) -> str:
        return f"{self.user.name} in {self.team.name}"

    @property
    def permissions(self) -> frozenset[str]:
        """What the member may do in the team."""
        return permissions_of_roles(self.roles)

    @property
    def role_names(self) -> list[str]:
        """The roles as a person reads them."""
        return [str(Role(role).label) for role in self.roles]


class GroupMapping(models.Model):
    """Members of ``group`` at the organisation's sign-in hold ``role`` in the team."""

    team = models.ForeignKey(Team, on_delete=models.CASCADE, related_name="group_mappings")
    group = models.CharField(max_length=200)
    role = models.CharField(max_length=32, choices=Role.choices)

    objects = TeamScopedQuerySet.as_manager()

    class Meta:
        ordering = ("group", "role")
        constraints = (models.UniqueConstraint(fields=("team", "group", "role"), name="group_mapping_once"),)

    def __str__(self) -> str:
        return f"{self.group} → {self.get_role_display()}"


class Invitation(models.Model):
    """An invitation to a team. Whoever holds its link, shown once, can accept it until it expires."""

    team = models.ForeignKey(Team, on_delete=models.CASCADE, related_name="invitations")
    email = models.EmailField(max_length=254)
    roles = ArrayField(models.CharField(max_length=32, choices=Role.choices))
    digest = models.CharField(max_length=64, unique=True)
    invited_by = models.ForeignKey(User, on_delete=models.PROTECT, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField()
    accepted_at = models.DateTimeField(null=True)
    revoked_at = models.DateTimeField(null=True)

    objects = TeamScopedQuerySet.as_manager()

    class Meta:
        ordering = ("-created_at",)

    def __str__(self) -> str:
        return f"Invitation of {self.email}"

    @property
    def is_open(self) -> bool:
        """True while it can be accepted."""
        return self.accepted_at is None and self.revoked_at is None and self.expires_at > timezone.now()

    @property
    def state(self) -> str:
        """PENDING, or why it cannot be accepted: ACCEPTED, REVOKED, EXPIRED."""
        if self.accepted_at:
            return "ACCEPTED"
        if self.revoked_at:
            return "REVOKED"
        return "PENDING" if self.is_open else "EXPIRED"

    @property
    def role_names(self) -> list[str]:
        """The roles as a person reads them."""
        return [str(Role(role).label) for role in self.roles]


class ApiTokenQuerySet(TeamScopedQuerySet):
    """Reads of tokens."""

    def usable(self) -> Self:
        """Neither revoked nor expired, of a member who is still one."""
        now = timezone.now()
        return self.filter(
            models.Q(expires_at__isnull=True) | models.Q(expires_at__gt=now),
            revoked_at__isnull=True,
            membership__is_active=True,
            membership__user__is_active=True,
        )


class ApiToken(models.Model):
    """A bearer token of a member, for one team. Only its keyed digest is stored; ``prefix`` is for recognising it.

    With ``networks`` (CIDR) it is good only for callers from there.
    """

    team = models.ForeignKey(Team, on_delete=models.PROTECT, related_name="tokens")
    membership = models.ForeignKey(Membership, on_delete=models.PROTECT, related_name="tokens")
    name = models.CharField(max_length=80)
    prefix = models.CharField(max_length=12)
    digest = models.CharField(max_length=64, unique=True)
    scopes = ArrayField(models.CharField(max_length=32, choices=Scope.choices))
    networks = ArrayField(models.CharField(max_length=43), default=list)
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField(null=True)
    revoked_at = models.DateTimeField(null=True)
    last_used_at = models.DateTimeField(null=True)

    objects = ApiTokenQuerySet.as_manager()

    class Meta:
        ordering = ("-created_at",)
        constraints = (models.CheckConstraint(condition=models.Q(scopes__len__gt=0), name="token_has_a_scope"),)

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix}…)"

    @property
    def permissions(self) -> frozenset[str]:
        """What the token may do: its scopes, and no more than its owner's roles."""
        return permissions_of_scopes(self.scopes) & self.membership.permissions

    def is_good_from(self, address: str) -> bool:
        """True if a caller at ``address`` may use the token."""
        if not self.networks:
            return True
        try:
            caller = ip_address(address)
        except ValueError:
            return False
        mapped = getattr(caller, "ipv4_mapped", None)
        return any((mapped or caller) in ip_network(network) for network in self.networks)

    @property
    def state(self) -> str:
        """ACTIVE, EXPIRED or REVOKED."""
        if self.revoked_at:
            return "REVOKED"
        return "EXPIRED" if self.expires_at and self.expires_at <= timezone.now() else "ACTIVE"


def current_membership(user: Any, slug: str | None) -> Membership | None:
    """The active membership of ``user`` in the team ``slug``, or in the first of the user's teams."""
    memberships = Membership.objects.active().filter(user=user).select_related("team", "user").order_by("team__name")
    chosen = memberships.filter(team__slug=slug).first() if slug else None
    return chosen or memberships.first()
