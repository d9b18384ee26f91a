"""Who does something: the first argument of every service."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

from apps.core.errors import NotAllowed


@dataclass(frozen=True, slots=True)
class Actor:
    """A person, a person's token, or the system itself, as it appears in the audit log."""

    user_id: int | None
    name: str
    address: str = ""
    request_id: str = ""
    token_id: int | None = None
    permissions: frozenset[str] = field(default_factory=frozenset)

    def can(self, permission: str) -> bool:
        """True if the actor holds the permission in the current team."""
        return permission in self.permissions

    def require(self, permission: str) -> None:
        """Raise ``NotAllowed`` unless the actor holds the permission."""
        if not self.can(permission):
            raise NotAllowed(f"This needs a role with the permission “{permission}”. Ask an admin of your team.")

    @property
    def person_id(self) -> int:
        """The id of the person who acts; raises ``NotAllowed`` for the system, which makes nothing of its own."""
        if self.user_id is None:
            raise NotAllowed("This takes a person.")
        return self.user_id

    @classmethod
    def system(cls, name: str) -> Self:
        """The product itself, acting without a person, e.g. ``Actor.system("validation job")``."""
        return cls(user_id=None, name=name)
