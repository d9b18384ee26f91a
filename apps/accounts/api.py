"""Members and tokens over REST. A token can do neither: both take the browser's session (see ``roles.py``)."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any, ClassVar

from django.db.models import QuerySet
from rest_framework import mixins, serializers, status
from rest_framework.request import Request
from rest_framework.response import Response

from apps.accounts import services
from apps.accounts.forms import MAX_NETWORKS
from apps.accounts.models import ApiToken, Membership
from apps.accounts.roles import Role, Scope
from apps.core.api import TeamViewSet
from apps.core.errors import NotAllowed


class MembershipSerializer(serializers.ModelSerializer[Membership]):
    """A member of the team."""

    name = serializers.CharField(source="user.name", read_only=True)
    email = serializers.EmailField(source="user.email", read_only=True)
    roles = serializers.ListField(child=serializers.ChoiceField(choices=Role.choices), min_length=1)

    class Meta:
        model = Membership
        fields = ("id", "name", "email", "roles", "is_active", "created_at")
        read_only_fields = ("created_at",)


class MembershipViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, TeamViewSet):
    """The team's members; an admin changes roles."""

    queryset = Membership.objects.select_related("user")
    serializer_class = MembershipSerializer
    lookup_value_regex = "[0-9]{1,18}"
    permissions: ClassVar[dict[str, str]] = {
        "list": "accounts.administer",
        "retrieve": "accounts.administer",
        "partial_update": "accounts.administer",
    }

    def partial_update(self, request: Request, pk: str) -> Response:
        """Change roles or deactivate."""
        membership = self.get_object()
        serializer = self.get_serializer(membership, data=request.data, partial=True)
        serializer.is_valid(raise_exception=True)
        wanted = {"roles": membership.roles, "is_active": membership.is_active} | serializer.validated_data
        membership = services.change_member(
            request.actor, membership=membership, roles=wanted["roles"], is_active=wanted["is_active"]
        )
        return Response(self.get_serializer(membership).data)


class NetworkField(serializers.CharField):
    """A network in CIDR."""

    def to_internal_value(self, data: Any) -> str:
        """Its canonical form."""
        try:
            return str(ip_network(super().to_internal_value(data)))
        except ValueError as error:
            raise serializers.ValidationError(f"Write a network like 10.20.0.0/16: {error}.") from error


class ApiTokenSerializer(serializers.ModelSerializer[ApiToken]):
    """A token without its secret."""

    scopes = serializers.ListField(child=serializers.ChoiceField(choices=Scope.choices), min_length=1)
    lifetime_days = serializers.IntegerField(min_value=1, max_value=365, write_only=True)
    networks = serializers.ListField(
        child=NetworkField(max_length=43), max_length=MAX_NETWORKS, required=False, help_text="CIDR; none: everywhere."
    )
    owner = serializers.CharField(source="membership.user.name", read_only=True)

    class Meta:
        model = ApiToken
        fields = (
            "id",
            "name",
            "prefix",
            "owner",
            "scopes",
            "state",
            "lifetime_days",
            "networks",
            "created_at",
            "expires_at",
            "last_used_at",
        )
        read_only_fields = ("prefix", "created_at", "expires_at", "last_used_at")


class ApiTokenViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, TeamViewSet):
    """One's own tokens; an admin sees and revokes everybody's in the team."""

    queryset = ApiToken.objects.select_related("membership__user")
    serializer_class = ApiTokenSerializer
    lookup_value_regex = "[0-9]{1,18}"
    permissions: ClassVar[dict[str, str]] = {
        "list": "team.view",
        "retrieve": "team.view",
        "create": "team.view",
        "destroy": "team.view",
    }

    def get_queryset(self) -> QuerySet[Any]:
        """The whole team's for an admin, one's own for anybody else."""
        tokens = super().get_queryset()
        if getattr(self, "swagger_fake_view", False) or self.request.actor.can("accounts.administer"):
            return tokens
        return tokens.filter(membership=self.request.membership)

    def create(self, request: Request) -> Response:
        """A new token; the answer holds its secret, this once."""
        _refuse_tokens(request)
        serializer = self.get_serializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        token, secret = services.create_token(request.actor, membership=request.membership, **serializer.validated_data)
        return Response({**self.get_serializer(token).data, "token": secret}, status=status.HTTP_201_CREATED)

    def destroy(self, request: Request, pk: str) -> Response:
        """Revoke."""
        _refuse_tokens(request)
        services.revoke_token(request.actor, token=self.get_object())
        return Response(status=status.HTTP_204_NO_CONTENT)


def _refuse_tokens(request: Request) -> None:
    if request.actor.token_id is not None:
        raise NotAllowed("Tokens cannot make or revoke tokens. Sign in to the console.")
