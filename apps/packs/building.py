"""Building a pack: contents, audit events with proofs, report, and the signed archive around them."""

from __future__ import annotations

import inspect
from typing import IO, Any, Final

from django.template.loader import render_to_string

from apps.audit import verify
from apps.audit.chain import timestamp
from apps.audit.keys import audit_key, audit_signer
from apps.audit.models import AuditEvent, Checkpoint
from apps.audit.notes import sign_note
from apps.core.errors import NotFound
from apps.deployments.models import Endpoint
from apps.packs.archive import manifest_body, write_archive
from apps.packs.audit_trail import events_about, proof_lines, sign_checkpoint
from apps.packs.contents import (
    Contents,
    add_mapping,
    endpoint_contents,
    model_contents,
    printed_time,
    promotion_contents,
)
from apps.packs.models import EvidencePack, PackKind
from apps.packs.pdf import render_pdf
from apps.packs.report import Facts, Table, Text
from apps.promotions.models import PromotionRequest
from apps.registry.artifact_signing import installation_public_key
from apps.registry.models import RegisteredModel

FORMAT: Final = "countersign/evidence-pack/v1"
MAX_PRINTED_EVENTS: Final = 2_000


def build_pack(pack: EvidencePack, target: IO[bytes]) -> tuple[int, int]:
    """Write the pack; returns the number of its events, and of those in the log that its checkpoint covers.

    The same records and the same checkpoint give the same bytes.
    """
    checkpoint = sign_checkpoint()
    contents = _contents(pack)
    events = events_about(contents.objects, checkpoint, pack.since, pack.until)
    if pack.kind == PackKind.ENDPOINT:
        # What led to a deployment of the period may be older: its approvals belong here with their whole history.
        requests = [row for row in contents.objects if isinstance(row, PromotionRequest)]
        events = sorted({row.pk: row for row in [*events, *events_about(requests, checkpoint)]}.values(), key=_seq)
    _add_audit(contents, events, checkpoint)
    add_mapping(contents)
    _add_head(contents, pack, checkpoint, len(events))
    contents.files["report.pdf"] = render_pdf(contents.report)
    body_of = manifest_body(str(pack.pack_id), contents.files)
    write_archive(target, contents.files, sign_note(body_of, audit_signer()))
    return len(events), checkpoint.tree_size


def _seq(event: AuditEvent) -> int:
    return event.seq or 0


def check_pack(file: IO[bytes]) -> verify.Verdict:
    """What an auditor's verifier says of a pack with this installation's key."""
    return verify.verify_pack(file, [audit_key()], verify.Anchors())


def _contents(pack: EvidencePack) -> Contents:
    """The records of the pack's subject. Raises ``NotFound`` if there is none any more."""
    if pack.kind == PackKind.PROMOTION:
        requests = PromotionRequest.objects.for_team(pack.team).with_names().select_related("team")
        return promotion_contents(_the(requests, pack))
    if pack.kind == PackKind.MODEL:
        return model_contents(
            _the(RegisteredModel.objects.for_team(pack.team).select_related("team", "created_by"), pack)
        )
    if pack.since is None or pack.until is None:
        raise ValueError("A pack of an endpoint has a period.")
    endpoint = _the(Endpoint.objects.for_team(pack.team).select_related("team", "created_by"), pack)
    return endpoint_contents(endpoint, pack.since, pack.until)


def _the(rows: Any, pack: EvidencePack) -> Any:
    found = rows.filter(pk=pack.subject_id).first()
    if found is None:
        raise NotFound(f"{pack.subject} is not there any more.")
    return found


def _add_audit(contents: Contents, events: list[AuditEvent], checkpoint: Checkpoint) -> None:
    contents.files["audit/events.jsonl"] = proof_lines(events, checkpoint)
    contents.files["audit/checkpoint.note"] = checkpoint.note.encode()
    printed = events[:MAX_PRINTED_EVENTS]
    rows = [
        [str(row.seq), printed_time(row.at), row.actor_name, row.action, row.object_label] for row in printed if row.at
    ]
    left_out = f" The first {len(printed):,} are printed." if len(events) > len(printed) else ""
    contents.report.chapter(
        "Audit events",
        Text(
            f"{len(events):,} events, each with a proof in audit/events.jsonl that it is one of the "
            f"{checkpoint.tree_size:,} events of the log whose root is signed in audit/checkpoint.note.{left_out}"
        ),
        Table(["Seq", "Time (UTC)", "Who", "What", "Object"], rows, [0.8, 2.5, 1.8, 2.2, 3.2]),
    )


def _add_head(contents: Contents, pack: EvidencePack, checkpoint: Checkpoint, event_count: int) -> None:
    """What the pack is, how it is checked, and the keys and the tool for that."""
    contents.add_json(
        "pack.json",
        {
            "format": FORMAT,
            "pack_id": str(pack.pack_id),
            "kind": pack.kind,
            "subject": pack.subject,
            "since": timestamp(pack.since) if pack.since else None,
            "until": timestamp(pack.until) if pack.until else None,
            "requested_by": pack.requested_by.name,
            "requested_at": timestamp(pack.requested_at),
            "checkpoint_size": checkpoint.tree_size,
            "event_count": event_count,
            "verifier_key": str(audit_key()),
        },
    )
    how_to_verify = render_to_string("packs/how_to_verify.txt")
    contents.files["README.txt"] = f"{contents.report.title}\n{contents.report.subtitle}\n\n{how_to_verify}".encode()
    contents.files["verify.py"] = inspect.getsource(verify).encode()
    contents.files["keys/audit.vkey"] = f"{audit_key()}\n".encode()
    contents.files["keys/installation.pem"] = installation_public_key()
    contents.report.facts += [
        ("Pack", str(pack.pack_id)),
        ("Asked for by", f"{pack.requested_by.name}, {printed_time(pack.requested_at)}"),
        ("Verifier key", str(audit_key())),
    ]
    files = [[path] for path in sorted([*contents.files, "report.pdf"])]
    contents.report.chapter(
        "How to check this pack",
        Text(how_to_verify),
        Facts([("Log", f"{checkpoint.tree_size:,} events"), ("Root (SHA-256)", checkpoint.root_hash)]),
        Table(["Files, whose SHA-256 are in manifest.note"], files),
    )
