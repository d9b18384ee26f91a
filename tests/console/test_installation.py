"""Secrets and keys: made once, by whoever comes first, and readable by their owner only."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from console.installation import REPOSITORY, Installation, SigningKey, StartupProblem

PRINT_SECRET = """
import sys
from pathlib import Path
from console.installation import Installation
print(Installation(Path(sys.argv[1])).secret("token_pepper"))
"""


def test_secrets_are_private_and_stay_the_same(tmp_path: Path) -> None:
    installation = Installation(tmp_path / "var")
    secret = installation.secret("django_secret_key")
    assert len(secret) == 64
    assert Installation(tmp_path / "var").secret("django_secret_key") == secret
    assert installation.secret("token_pepper") != secret
    assert installation.secrets_dir.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in installation.secrets_dir.iterdir()} == {0o600}


def test_processes_that_start_together_agree_on_a_secret(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PRINT_SECRET, str(tmp_path / "var")]
    processes = [subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE) for _ in range(6)]
    printed = {process.communicate()[0] for process in processes}
    assert len(printed) == 1
    assert len(printed.pop().strip()) == 64


@pytest.mark.parametrize("kind", ["manifest", "audit"])
def test_signing_keys_belong_together(tmp_path: Path, kind: SigningKey) -> None:
    installation = Installation(tmp_path / "var")
    private_pem = installation.ensure_signing_key(kind).read_bytes()
    public_file = installation.public_key_file(kind)
    public_key = load_pem_private_key(private_pem, password=None).public_key()
    assert load_pem_public_key(public_file.read_bytes()) == public_key
    assert installation.ensure_signing_key(kind).stat().st_mode & 0o777 == 0o600

    public_file.unlink()
    assert installation.ensure_signing_key(kind).read_bytes() == private_pem
    assert load_pem_public_key(public_file.read_bytes()) == public_key


def test_an_unusable_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "var").write_text("a file where the folder should be")
    with pytest.raises(StartupProblem, match="set COUNTERSIGN_VAR to a folder that you can write"):
        Installation(tmp_path / "var").secret("token_pepper")


def test_an_external_database_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installation = Installation(tmp_path / "var")
    monkeypatch.delenv("DATABASE_OWNER_URL", raising=False)
    monkeypatch.setenv("DATABASE_URL", "postgresql://app@db/console")
    assert installation.database_dsn("owner") == "postgresql://app@db/console"
    monkeypatch.setenv("DATABASE_OWNER_URL", "postgresql://owner@db/console")
    assert installation.database_dsn("app") == "postgresql://app@db/console"
    assert installation.database_dsn("owner") == "postgresql://owner@db/console"
