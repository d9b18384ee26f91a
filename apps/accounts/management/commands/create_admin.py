"""``manage.py create_admin``: the first person of an installation, and their team."""

from __future__ import annotations

import getpass
import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction

from apps.accounts import services
from apps.accounts.roles import Role
from apps.audit.actor import Actor
from apps.core.errors import DomainError


class Command(BaseCommand):
    """Create a team and its admin. The password is asked for, or read from standard input."""

    help = "Create a team and its admin; the password is asked for, or read from standard input."

    def add_arguments(self, parser: CommandParser) -> None:
        """Who, and in which team."""
        parser.add_argument("email")
        parser.add_argument("name")
        parser.add_argument("--team", default="main", help="the team's short name (default: main)")

    @transaction.atomic
    def handle(self, *args: Any, **options: Any) -> None:
        """Create both, or neither."""
        password = getpass.getpass() if sys.stdin.isatty() else sys.stdin.readline().rstrip("\n")
        system = Actor.system("create_admin")
        try:
            team = services.create_team(system, slug=options["team"], name=options["team"].capitalize())
            services.create_member(
                system, team=team, email=options["email"], name=options["name"], password=password, roles=[Role.ADMIN]
            )
        except DomainError as error:
            raise CommandError(error.message) from error
        self.stdout.write(f"{options['email']} can sign in now, and invite the others under Settings.")
