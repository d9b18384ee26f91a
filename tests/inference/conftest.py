"""A service without a database, started once for the tests that only ask it questions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest
from django.db import connection as django_connection

from inference.contracts import Limits
from tests.inference import onnx_models as models
from tests.inference.console import Console
from tests.inference.installation import Installation, Service, free_port

OTHER_TOKEN = "csn_test_of_another_endpoint"
EXPIRED_TOKEN = "csn_test_expired"


@dataclass
class Workbench:
    """Makes installations and stops whatever was started on them."""

    folder: Path
    services: list[Service] = field(default_factory=list)
    count: int = 0

    def installation(self) -> Installation:
        """A fresh var folder."""
        self.count += 1
        return Installation(self.folder / f"var{self.count}")

    def serve(self, installation: Installation, **environment: str) -> Service:
        """Start a service that is stopped at the end of the test."""
        service = Service(installation, environment)
        self.services.append(service)
        service.start()
        return service

    def close(self) -> None:
        """Stop all services."""
        for service in self.services:
            if service.process is not None and service.process.poll() is None:
                service.stop()


@pytest.fixture
def workbench(tmp_path: Path) -> Iterator[Workbench]:
    """Installations of this test's own."""
    bench = Workbench(tmp_path)
    yield bench
    bench.close()


@pytest.fixture
def dsn(transactional_db: None) -> str:
    """The test database, whose tables Django's migrations made."""
    known = django_connection.get_connection_params()
    kept = {name: known[name] for name in ("dbname", "user", "password", "host", "port") if known.get(name)}
    return psycopg.conninfo.make_conninfo(**kept)


@pytest.fixture
def console(dsn: str, workbench: Workbench) -> Iterator[Console]:
    """A console whose services are gone before the tables are emptied, because the workbench was asked for later."""
    one = Console(workbench.installation(), dsn)
    yield one
    one.connection.close()


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A running service with many endpoints and short timeouts; tests must not change it."""
    bench = Workbench(tmp_path_factory.mktemp("inference"))
    installation = bench.installation()
    for datatype in models.TYPES:
        installation.endpoint(f"identity-{datatype.lower()}", models.identity(datatype, ["n", 2]))
    installation.endpoint("double", models.scale(2))
    installation.endpoint("several", models.two_in_two_out())
    installation.endpoint("coupled", models.softmax_over_rows())
    installation.endpoint("fixed", models.identity("FP32", [2, 2]))
    installation.endpoint("scalar", models.identity("FP64", []))
    installation.endpoint("free", models.identity("FP32", ["n", "m", 2]))
    installation.endpoint("pick", models.pick())
    installation.endpoint("odd-names", models.identity("FP32", ["n", 2], *models.ODD_NAMES))
    installation.endpoint("slow", models.slow())
    installation.endpoint("narrow", models.scale(1), limits=Limits(queue_rows=8))
    installation.endpoint("lr", models.logistic_regression())
    installation.endpoint("forbidden", models.scale(3), tokens=[OTHER_TOKEN])
    installation.endpoint("foreign", models.scale(3), team="marketing", tokens=[OTHER_TOKEN])
    installation.endpoint("expired", models.scale(3), tokens=[EXPIRED_TOKEN], expires_at=1.0)
    installation.publish()
    try:
        yield bench.serve(
            installation,
            INFERENCE_HEADER_TIMEOUT_S="1",
            INFERENCE_BODY_TIMEOUT_S="1",
            INFERENCE_MAX_BODY_BYTES=str(4 * 1024 * 1024),
            INFERENCE_GRPC_PORT=str(free_port()),
        )
    finally:
        bench.close()
