"""``manage.py reset_sign_in``: for a person who lost password or factors. Only whoever runs the installation can."""

from __future__ import annotations

import getpass
import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from apps.accounts import services
from apps.accounts.models import User
from apps.audit.actor import Actor
from apps.core.errors import DomainError


class Command(BaseCommand):
    """Set a person's password, take their second factors away and end their sessions."""

    help = "Set a person's password and take their second factors away; the password is asked for, or read."

    def add_arguments(self, parser: CommandParser) -> None:
        """Whose."""
        parser.add_argument("email")

    def handle(self, *args: Any, **options: Any) -> None:
        """All of it, or nothing."""
        user = User.objects.filter(email__iexact=options["email"], is_service=False).first()
        if user is None:
            raise CommandError(f"There is nobody with the address {options['email']}.")
        password = getpass.getpass() if sys.stdin.isatty() else sys.stdin.readline().rstrip("\n")
        try:
            services.reset_sign_in(Actor.system("reset_sign_in"), user=user, password=password)
        except DomainError as error:
            raise CommandError(error.message) from error
        self.stdout.write(f"{user.email} can sign in with that password, and has no second factor now.")
