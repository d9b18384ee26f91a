"""``manage.py demo``: a team of five, with real models on their way through the product.

Everything goes through the public API and the services *as those people*: what the demo can do, a user can do.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from dataclasses import dataclass
from typing import Any, Final

import httpx
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.db import transaction
from django.utils import timezone

from apps.accounts import services as accounts
from apps.accounts.confirmation import PASSWORD, Confirmation
from apps.accounts.models import Membership, User
from apps.accounts.roles import Role, Scope
from apps.audit.actor import Actor
from apps.promotions.models import Decision, Meaning, PromotionRequest
from apps.promotions.reviews import review_promotion
from console.demo_data import DemoModel, breast_cancer, diabetes
from console.installation import write_private

TRAFFIC_FILE: Final = "demo-traffic.json"
"""In ``var/secrets``: the token and the rows that ``demo_traffic`` sends."""
_PATIENCE_S: Final = 120.0
_PEOPLE: Final = (
    ("Mira Sato", "mira@demo.example", Role.DATA_SCIENTIST),
    ("Jonas Akin", "jonas@demo.example", Role.ANALYST),
    ("Omar Reyes", "omar@demo.example", Role.OPERATOR),
    ("Cora Blom", "cora@demo.example", Role.COMPLIANCE_OFFICER),
    ("Ada Minh", "ada@demo.example", Role.ADMIN),
)


@dataclass(frozen=True, slots=True)
class Person:
    """A member of the demo team, with the password that is printed once."""

    membership: Membership
    password: str

    @property
    def actor(self) -> Actor:
        """The person as the first argument of a service."""
        member = self.membership
        return Actor(member.user_id, member.user.name, "127.0.0.1", "demo", permissions=member.permissions)

    def api(self, *scopes: Scope) -> httpx.Client:
        """The REST API with a token of the person's own."""
        name = "demo set-up"
        _, token = accounts.create_token(
            self.actor, membership=self.membership, name=name, scopes=scopes, lifetime_days=1
        )
        url = f"http://127.0.0.1:{os.environ.get('WEB_PORT', '8000')}/api/v1/"
        headers = {"Authorization": f"Bearer {token}"}
        return httpx.Client(base_url=url, headers=headers, timeout=30, trust_env=False)


class Command(BaseCommand):
    """Set up the demo team in an empty installation that is running."""

    help = __doc__

    def handle(self, *args: Any, **options: Any) -> None:
        """Create people, push, evaluate, promote and approve; print how to sign in."""
        if User.objects.exists():
            raise CommandError("There are people already: the demo team is for an empty installation.")
        people = self._create_people()
        scientist, operator, officer = (
            people[r] for r in (Role.DATA_SCIENTIST, Role.OPERATOR, Role.COMPLIANCE_OFFICER)
        )
        science = scientist.api(Scope.READ, Scope.BUILD, Scope.PROMOTE)
        operations = operator.api(Scope.READ, Scope.OPERATE)
        models = (breast_cancer(), diabetes())
        for model in models:
            self._push(science, model)
            _post(operations, "endpoints/", json={"name": model.endpoint, "description": model.description})
            self._promote(science, model, 1, "First version: better than the rule of thumb in use today.")
            self._approve(officer, model, 1)
        # The officer's inbox has something to decide, and the data scientist something to promote.
        self._promote(
            science,
            models[0],
            2,
            "A linear model instead of the forest: a hundredth of the size, and better on held-out rows.",
        )
        self._write_traffic(people[Role.ANALYST], models)
        for model in models:
            _wait_for(
                operations, f"endpoints/{model.endpoint}/", lambda answer: answer["observed"]["state"] == "SERVING"
            )
        self._print_accounts(people)

    def _create_people(self) -> dict[str, Person]:
        system = Actor.system("demo set-up")
        people = {}
        with transaction.atomic():
            team = accounts.create_team(system, slug="demo", name="Demo clinic")
            for name, email, role in _PEOPLE:
                password = secrets.token_urlsafe(12)
                membership = accounts.create_member(
                    system, team=team, email=email, name=name, password=password, roles=[role]
                )
                people[role.value] = Person(membership, password)
            # Before the commit: whatever happens after it, these people can sign in.
            write_private(settings.INSTALLATION.demo_accounts_file, "\n".join([*_lines(people), ""]).encode())
        return people

    def _push(self, science: httpx.Client, model: DemoModel) -> None:
        """Register the model, push its versions, upload the held-out rows and evaluate every version on them."""
        self.stdout.write(f"  {model.name}: pushing and evaluating {len(model.versions)} versions")
        _post(science, "models/", json={"name": model.name, "task": model.task, "description": model.description})
        dataset = f"{model.endpoint}-holdout"
        _post(science, "datasets/", json={"name": dataset, "description": "Rows held out of training"})
        _post(science, f"datasets/{dataset}/versions/", files={"file": ("holdout.csv", model.holdout_csv, "text/csv")})
        for number, (onnx, notes) in enumerate(model.versions, start=1):
            files = {"file": (f"{model.name}-{number}.onnx", onnx, "application/octet-stream")}
            _post(science, f"models/{model.name}/versions/", data={"notes": notes}, files=files)
        _wait_for(science, f"datasets/{dataset}/versions/1/", _is_ready)
        for number in range(1, len(model.versions) + 1):
            _wait_for(science, f"models/{model.name}/versions/{number}/", _is_ready)
            run = _post(
                science,
                "evaluations/",
                json={
                    "model": model.name,
                    "model_version": number,
                    "dataset": dataset,
                    "dataset_version": 1,
                    "target": model.target,
                },
            )
            _wait_for(science, f"evaluations/{run['id']}/", lambda answer: answer["state"] == "SUCCEEDED")

    def _promote(self, science: httpx.Client, model: DemoModel, number: int, why: str) -> None:
        body = {"endpoint": model.endpoint, "model": model.name, "model_version": number, "justification": why}
        _post(science, "promotions/", json=body)

    def _approve(self, officer: Person, model: DemoModel, number: int) -> None:
        """Sign as the officer. There is no API for this: a token never approves."""
        request = PromotionRequest.objects.submitted().get(endpoint__name=model.endpoint, model_version__number=number)
        review_promotion(
            officer.actor,
            request=request,
            decision=Decision.APPROVED,
            meaning=Meaning.APPROVAL,
            comment="Evaluated on held-out rows; nothing served here before.",
            confirmation=Confirmation((PASSWORD,), timezone.now()),
            approval_digest=request.approval_digest,
        )

    def _write_traffic(self, analyst: Person, models: tuple[DemoModel, ...]) -> None:
        _, token = accounts.create_token(
            analyst.actor, membership=analyst.membership, name="demo traffic", scopes=[Scope.PREDICT], lifetime_days=365
        )
        rows = {model.endpoint: [[float(f"{x:.6g}") for x in row] for row in model.features[:200]] for model in models}
        path = settings.INSTALLATION.secrets_dir / TRAFFIC_FILE
        write_private(path, json.dumps({"token": token, "rows": rows}).encode())

    def _print_accounts(self, people: dict[str, Person]) -> None:
        path = settings.INSTALLATION.demo_accounts_file
        self.stdout.write(f"Sign in as one of these people; they are printed only now, and kept in {path}:")
        for line in _lines(people):
            self.stdout.write(f"  {line}")


def _lines(people: dict[str, Person]) -> list[str]:
    """Name, role, email and password, a line for each person."""
    return [
        f"{person.membership.user.name:<12} {person.membership.role_names[0]:<19} "
        f"{person.membership.user.email:<20} {person.password}"
        for person in people.values()
    ]


def _post(client: httpx.Client, path: str, **content: Any) -> dict[str, Any]:
    answer = client.post(path, **content)
    if not answer.is_success:
        raise CommandError(f"POST {path} answered {answer.status_code}: {answer.text[:500]}")
    body: dict[str, Any] = answer.json()
    return body


def _is_ready(answer: dict[str, Any]) -> bool:
    if answer["state"] == "REJECTED":
        raise CommandError(f"Rejected: {answer}")
    return bool(answer["state"] == "READY")


def _wait_for(client: httpx.Client, path: str, is_done: Any) -> None:
    """Ask again until it is done, for a bounded time."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        answer = client.get(path)
        if answer.is_success and is_done(answer.json()):
            return
        if time.monotonic() > deadline:
            raise CommandError(f"GET {path} did not come to its end in {_PATIENCE_S:.0f} s: {answer.text[:500]}")
        time.sleep(0.2)
