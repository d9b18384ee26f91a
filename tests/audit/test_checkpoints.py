"""Checkpoints: signed over a log that was checked, anchored outside the database, and never over another log."""

from __future__ import annotations

import json
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.utils import timezone

from apps.accounts import services as accounts
from apps.audit import anchors, checkpoints, merkle, services, tree
from apps.audit.actor import Actor
from apps.audit.checkpoints import LogBroken, checkpoint_now, keep_checkpoints
from apps.audit.keys import audit_key
from apps.audit.models import AuditEvent, Checkpoint, MerkleNode, Verification
from apps.audit.verify import open_checkpoint

SYSTEM = Actor.system("test")

pytestmark = pytest.mark.django_db(transaction=True)


def _teams(first: int, count: int) -> None:
    for index in range(first, first + count):
        accounts.create_team(SYSTEM, slug=f"team-{index}", name=f"Team {index}")


def _many(count: int) -> None:
    """Events in one transaction, as the database numbers them."""
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO audit_auditevent (body) SELECT "
            "json_build_object('action', 'test.done', 'after', json_build_object('n', n))::text "
            "FROM generate_series(1, %s) AS n",
            [count],
        )


def _verify(*arguments: str) -> str:
    out = StringIO()
    call_command("verify_audit", *arguments, stdout=out, no_color=True)
    return out.getvalue()


def _rewrite(first: int, replaced: str, by: str) -> None:
    """Change events from ``first`` on as somebody does who owns the database and knows how the chain is made."""
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE audit_auditevent DISABLE TRIGGER USER")
        cursor.execute("UPDATE audit_auditevent SET body = replace(body, %s, %s) WHERE seq = %s", [replaced, by, first])
        cursor.execute(
            """
            DO $$ DECLARE event record; link text; BEGIN
                SELECT leaf_hash INTO link FROM audit_auditevent WHERE seq = %s;
                FOR event IN SELECT * FROM audit_auditevent WHERE seq >= %s ORDER BY seq LOOP
                    UPDATE audit_auditevent SET previous_hash = coalesce(link, repeat('0', 64)),
                    leaf_hash = encode(sha256('\\x00'::bytea || convert_to(event.seq || E'\\n'
                        || to_char(event.at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') || E'\\n'
                        || coalesce(link, repeat('0', 64)) || E'\\n' || event.body, 'UTF8')), 'hex')
                    WHERE id = event.id RETURNING leaf_hash INTO link;
                END LOOP;
            END $$""".replace("%s", "{}").format(first - 1, first)
        )
        cursor.execute("ALTER TABLE audit_auditevent ENABLE TRIGGER USER")
        cursor.execute("ALTER TABLE audit_auditevent DISABLE TRIGGER audit_refuse_truncate")


def test_a_checkpoint_is_signed_anchored_and_grows(settings: Any) -> None:
    assert checkpoint_now() is None
    _teams(0, 3)
    first = checkpoint_now()
    _teams(3, 4)
    second = checkpoint_now()
    assert first is not None
    assert second is not None
    assert (first.tree_size, second.tree_size) == (3, 7)
    statement = open_checkpoint(second.note, [audit_key()])
    leaves = [bytes.fromhex(event.leaf_hash or "") for event in AuditEvent.objects.numbered()]
    assert statement.root == merkle.root(leaves)
    proof = [bytes.fromhex(node) for node in services.consistency_proof(3, 7)]
    assert merkle.verify_consistency(3, 7, bytes.fromhex(first.root_hash), statement.root, proof)
    (file,) = Path(settings.AUDIT_ANCHOR_DIR).iterdir()
    assert [json.loads(line)["note"] for line in file.read_text().splitlines()] == [first.note, second.note]
    assert checkpoint_now() == second
    assert _verify().startswith("OK: 7 events, 7 of them anchored")


def test_every_event_has_a_proof_in_a_tree_of_several_levels() -> None:
    _many(700)
    checkpoint = checkpoint_now()
    assert checkpoint is not None
    assert MerkleNode.objects.count() == 2
    node, root = tree.stored_nodes(), bytes.fromhex(checkpoint.root_hash)
    for event in AuditEvent.objects.filter(seq__in=(1, 256, 257, 512, 600, 700)):
        assert event.seq is not None
        proof = [bytes.fromhex(one) for one in services.inclusion_proof(event.seq, 700, node)]
        assert merkle.verify_inclusion(bytes.fromhex(event.leaf_hash or ""), event.seq - 1, 700, proof, root)


def test_a_large_step_is_cut_into_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "MAX_EVENTS", 300)
    _many(700)
    assert checkpoint_now(max_steps=10).tree_size == 700  # type: ignore[union-attr]
    assert list(Checkpoint.objects.values_list("tree_size", flat=True)) == [700, 600, 300]
    assert _verify().startswith("OK: 700 events, 700 of them anchored")


def test_the_controller_keeps_the_minute_and_hurries_for_promotions() -> None:
    _teams(0, 2)
    first = keep_checkpoints()
    assert first is not None
    _teams(2, 1)
    assert keep_checkpoints() is None
    Checkpoint.objects.update(created_at=timezone.now() - timedelta(seconds=61))
    assert keep_checkpoints().tree_size == 3  # type: ignore[union-attr]
    with connection.cursor() as cursor:
        cursor.execute("""INSERT INTO audit_auditevent (body) VALUES ('{"action":"promotion.approved"}')""")
    assert keep_checkpoints().tree_size == 4  # type: ignore[union-attr]


def test_a_rewritten_log_is_named_to_the_event_and_not_signed_again() -> None:
    _teams(0, 10)
    checkpoint_now()
    _teams(10, 2)
    _rewrite(6, "Team 5", "Team X")
    with pytest.raises(CommandError, match="broken at seq 6: it is not the event that was anchored"):
        _verify()
    with pytest.raises(LogBroken):
        checkpoint_now()
    Checkpoint.objects.update(created_at=timezone.now() - timedelta(minutes=2))
    assert keep_checkpoints() is None
    assert keep_checkpoints() is None
    assert Verification.objects.get().bad_seq is not None


def test_an_old_copy_of_the_log_is_found_and_not_signed() -> None:
    _teams(0, 6)
    checkpoint_now()
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE audit_auditevent DISABLE TRIGGER USER")
        cursor.execute("DELETE FROM audit_auditevent WHERE seq > 4")
        cursor.execute("ALTER TABLE audit_auditevent ENABLE TRIGGER USER")
        cursor.execute("ALTER TABLE audit_auditevent DISABLE TRIGGER audit_refuse_truncate")
    Checkpoint.objects.all().delete()
    with pytest.raises(CommandError, match="broken at seq 5: event 5 is missing"):
        _verify()
    with pytest.raises(LogBroken, match="seq 5"):
        checkpoint_now()


def test_a_checkpoint_that_was_anchored_before_its_transaction_died_is_taken_in() -> None:
    _teams(0, 4)
    checkpoint = checkpoint_now()
    Checkpoint.objects.all().delete()
    MerkleNode.objects.all().delete()
    _teams(4, 2)
    assert checkpoint_now() == checkpoint
    assert checkpoint_now().tree_size == 6  # type: ignore[union-attr]
    assert _verify().startswith("OK: 6 events, 6 of them anchored")


def test_a_record_that_a_crash_cut_off_does_not_spoil_the_next(settings: Any) -> None:
    _teams(0, 2)
    checkpoint_now()
    (file,) = Path(settings.AUDIT_ANCHOR_DIR).iterdir()
    with open(file, "ab") as torn:
        torn.write(b'{"note":"countersi')
    _teams(2, 2)
    assert checkpoint_now().tree_size == 4  # type: ignore[union-attr]
    newest = anchors.newest_in_folder()
    assert newest is not None
    assert newest["from"] == 2


def test_an_auditors_old_checkpoint_finds_a_log_that_was_made_anew(tmp_path: Path, settings: Any) -> None:
    _teams(0, 5)
    checkpoint = checkpoint_now()
    assert checkpoint is not None
    kept = tmp_path / "old.note"
    kept.write_text(checkpoint.note)
    assert _verify(f"--anchor={kept}").startswith("OK")
    _rewrite(2, "Team 1", "Team X")
    settings.AUDIT_ANCHOR_DIR = tmp_path / "emptied"
    Checkpoint.objects.all().delete()
    MerkleNode.objects.all().delete()
    assert _verify().startswith("OK: 5 events")
    with pytest.raises(CommandError, match="one of the events 1 to 5 is not what the checkpoint covers"):
        _verify(f"--anchor={kept}")
