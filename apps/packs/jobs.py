"""The job that builds a pack."""

from __future__ import annotations

import hashlib
import tempfile
from typing import Any

from django.conf import settings

from apps.jobs.runner import JobRun, job
from apps.packs.building import build_pack, check_pack
from apps.packs.models import EvidencePack
from apps.packs.services import keep_pack


@job("packs.build_pack", timeout_s=1_800, max_attempts=3)
def build(run: JobRun, *, pack_pk: int) -> dict[str, Any]:
    """Build the pack, check it as an auditor would, and keep it; a second run changes nothing."""
    pack = EvidencePack.objects.select_related("team", "requested_by").get(pk=pack_pk)
    if pack.built_at is not None:
        return {"sha256": pack.sha256}
    run.progress(0.1, "Gathering the records and the events about them")
    with tempfile.TemporaryFile(dir=settings.INSTALLATION.uploads) as file:
        event_count, checkpoint_size = build_pack(pack, file)
        run.progress(0.8, "Checking the pack as an auditor would")
        file.seek(0)
        verdict = check_pack(file)
        if not verdict.is_ok:
            raise RuntimeError(f"The pack does not pass its own verifier: {verdict.reason}")
        run.log(str(verdict))  # raises if cancelled meanwhile
        file.seek(0)
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        keep_pack(
            run.actor,
            pack=pack,
            file=file,
            sha256=sha256,
            event_count=event_count,
            checkpoint_size=checkpoint_size,
        )
    return {"sha256": sha256, "events": event_count}
