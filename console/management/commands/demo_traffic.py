"""``manage.py demo_traffic``: a trickle of real rows to the demo's endpoints, so that their charts are alive."""

from __future__ import annotations

import json
import random
import time
from typing import Any, Final

import httpx
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from console.management.commands.demo import TRAFFIC_FILE

_REQUESTS_PER_S: Final = 4.0


class Command(BaseCommand):
    """Send one row after another, at random times, until stopped."""

    help = __doc__

    def handle(self, *args: Any, **options: Any) -> None:
        """Predict with rows held out of training; an endpoint that does not answer is tried again later."""
        try:
            traffic = json.loads((settings.INSTALLATION.secrets_dir / TRAFFIC_FILE).read_bytes())
        except FileNotFoundError as error:
            raise CommandError("This installation has no demo team.") from error
        headers = {"Authorization": f"Bearer {traffic['token']}"}
        chance = random.Random()  # noqa: S311 - when to send which row is no secret
        with httpx.Client(base_url=settings.INFERENCE_URL, headers=headers, timeout=5, trust_env=False) as client:
            while True:
                endpoint = chance.choice(list(traffic["rows"]))
                row = chance.choice(traffic["rows"][endpoint])
                body = {"inputs": [{"name": "X", "datatype": "FP32", "shape": [1, len(row)], "data": row}]}
                try:
                    client.post(f"/v2/models/{endpoint}/infer", json=body)
                except httpx.HTTPError:
                    time.sleep(1)
                time.sleep(chance.expovariate(_REQUESTS_PER_S))
