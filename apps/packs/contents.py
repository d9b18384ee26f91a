"""What goes into a pack: the records as JSON files, and the same as chapters of a report."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from django.db import models

from apps.audit.chain import canonical_json
from apps.core.errors import DomainError
from apps.deployments.models import Deployment, Endpoint
from apps.evaluation.evidence import evaluation_evidence
from apps.evaluation.models import METRIC_LABELS, EvaluationRun, LoadTest
from apps.monitoring.models import LogSegment
from apps.packs.card_files import card_html, card_markdown
from apps.packs.drawings import as_svg
from apps.packs.mapping import frameworks
from apps.packs.records import document, related
from apps.packs.report import (
    Block,
    Chart,
    Facts,
    Heading,
    IntervalChart,
    LineChart,
    Markdown,
    Report,
    Table,
    Text,
)
from apps.promotions.evidence import metric_differences
from apps.promotions.models import PromotionRequest
from apps.registry.card_services import card_document
from apps.registry.cards import SECTIONS
from apps.registry.models import CardRevision, ModelVersion, RegisteredModel

MAX_VERSIONS: Final = 200
MAX_REQUESTS: Final = 500
MAX_SEGMENTS: Final = 100_000
_DECISION_APPS: Final = ("promotions", "policies")
_POINTS: Final = 200
_TIMESTAMP: Final = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+(Z|\+00:00)")


@dataclass(slots=True)
class Contents:
    """A pack on its way: files by path, the report, and the rows whose audit events belong to it."""

    report: Report
    files: dict[str, bytes] = field(default_factory=dict)
    objects: list[models.Model] = field(default_factory=list)

    def add_json(self, path: str, content: Any) -> None:
        """A document for people and programs: sorted keys, indented."""
        text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
        self.files[path] = f"{text}\n".encode()

    def add_chart(self, path: str, chart: Chart) -> Chart:
        """The chart as a file, and for the report."""
        self.files[path] = as_svg(chart)
        return chart


def promotion_contents(request: PromotionRequest) -> Contents:
    """Everything about one promotion: request, frozen evidence, reviews with signatures, card, what came of it."""
    version = request.model_version
    report = Report(
        title=f"Evidence pack: {version} to {request.endpoint.name}",
        subtitle=f"Promotion request {request.pk} of the team {request.team.name}",
        facts=[
            ("State", request.get_state_display()),
            ("Rollout", request.get_rollout_display()),
            ("Artifact (SHA-256)", request.artifact_digest),
            ("Evidence (SHA-256)", request.evidence_digest),
        ],
    )
    contents = Contents(report, objects=[request, version, version.model])
    _add_request(contents, request, "promotion")
    _add_version(contents, version, "model")
    deployments = list(Deployment.objects.filter(promotion_request_id=request.pk).select_related("endpoint"))
    _add_deployments(contents, deployments)
    return contents


def model_contents(model: RegisteredModel) -> Contents:
    """Everything about one model: its versions with cards, signatures and results, its promotions and deployments."""
    versions = list(model.versions.select_related("artifact", "uploaded_by", "model__team")[: MAX_VERSIONS + 1])
    requests = list(
        PromotionRequest.objects.filter(model_version__model=model)
        .with_names()
        .select_related("team")[: MAX_REQUESTS + 1]
    )
    if len(versions) > MAX_VERSIONS or len(requests) > MAX_REQUESTS:
        raise DomainError(f"A pack holds at most {MAX_VERSIONS} versions and {MAX_REQUESTS} promotions of a model.")
    report = Report(
        title=f"Evidence pack: model {model.name}",
        subtitle=f"Registered model of the team {model.team.name}",
        facts=[
            ("Task", model.get_task_display()),
            ("Registered by", f"{model.created_by.name}, {printed_time(model.created_at)}"),
            ("Versions", str(len(versions))),
            ("Promotion requests", str(len(requests))),
        ],
    )
    contents = Contents(report, objects=[model])
    contents.add_json("model/model.json", document(model))
    _add_decision_records(contents, model, "model")
    _inventory(contents, versions)
    for version in versions:
        contents.objects.append(version)
        _add_version(contents, version, f"model/versions/v{version.number}")
    for request in requests:
        contents.objects.append(request)
        _add_request(contents, request, f"promotions/{request.pk}")
    found = Deployment.objects.filter(model_version__model=model).select_related("endpoint", "model_version__model")
    _add_deployments(contents, list(found[:MAX_REQUESTS]))
    return contents


def endpoint_contents(endpoint: Endpoint, since: datetime, until: datetime) -> Contents:
    """What answered on an endpoint in a period, on whose approval, with which settings, and the log's digests."""
    overlapping = models.Q(retired_at=None) | models.Q(retired_at__gt=since)
    deployments = list(
        Deployment.objects.filter(overlapping, endpoint=endpoint, activated_at__lt=until)
        .select_related("endpoint", "model_version__model", "model_version__artifact")
        .order_by("pk")[:MAX_REQUESTS]
    )
    report = Report(
        title=f"Evidence pack: endpoint {endpoint.name}",
        subtitle=f"From {printed_time(since)} to {printed_time(until)}, team {endpoint.team.name}",
        facts=[
            ("Endpoint", endpoint.name),
            ("From (UTC)", printed_time(since)),
            ("To (UTC, exclusive)", printed_time(until)),
            ("Deployments in the period", str(len(deployments))),
        ],
    )
    contents = Contents(report, objects=[endpoint, *endpoint.guardrails.all()])
    contents.add_json("endpoint/endpoint.json", document(endpoint))
    contents.add_json("endpoint/guardrails.json", [document(rule) for rule in endpoint.guardrails.all()])
    settings = [(name.replace("_", " "), _text(value)) for name, value in document(endpoint).items()]
    report.chapter("Endpoint", Facts(settings))
    _add_deployments(contents, deployments)
    _add_log(contents, endpoint, since, until)
    wanted = {row.promotion_request_id for row in deployments if row.promotion_request_id is not None}
    decided_in_period = models.Q(requested_at__gte=since, requested_at__lt=until) | models.Q(pk__in=wanted)
    requests = PromotionRequest.objects.filter(decided_in_period, endpoint=endpoint).with_names()
    for request in requests.select_related("team").order_by("pk")[:MAX_REQUESTS]:
        contents.objects.append(request)
        _add_request(contents, request, f"promotions/{request.pk}")
    return contents


def _add_request(contents: Contents, request: PromotionRequest, folder: str) -> None:
    contents.add_json(f"{folder}/request.json", document(request, without=["evidence"]))
    # The very bytes whose digest was signed: anyone can hash this file and compare.
    contents.files[f"{folder}/evidence.json"] = canonical_json(request.evidence).encode()
    records = _add_decision_records(contents, request, folder)
    chapter = contents.report.chapter(
        f"Promotion request {request.pk}: {request.model_version} to {request.endpoint.name}",
        Facts(
            [
                ("State", f"{request.get_state_display()} ({request.get_rollout_display()})"),
                ("Requested by", f"{request.requested_by.name}, {printed_time(request.requested_at)}"),
                ("Why", request.justification),
                ("Starts with", f"{request.initial_weight} % of the traffic"),
                ("Artifact (SHA-256)", request.artifact_digest),
                ("Evidence (SHA-256)", request.evidence_digest),
                ("Decided", _text(request.decided_at)),
                ("In service", _text(request.applied_at)),
            ]
        ),
    )
    chapter.blocks += _signatures(request)
    chapter.blocks += _records(records)
    chapter.blocks += _evidence(contents, request.evidence, folder)


def _add_decision_records(contents: Contents, row: models.Model, folder: str) -> dict[str, list[dict[str, Any]]]:
    """All rows of decisions and policies that hang on this one, and what hangs on those, as files."""
    records = {}
    for name, rows in related(row, _DECISION_APPS).items():
        if row._meta.model_name == "registeredmodel" and name == "promotionrequest":
            continue
        contents.objects.extend(rows)
        records[name] = [
            document(one)
            | {kind: [document(part) for part in parts] for kind, parts in related(one, _DECISION_APPS).items()}
            for one in rows
        ]
        if records[name]:
            contents.add_json(f"{folder}/{name}s.json", records[name])
    return records


def _signatures(request: PromotionRequest) -> list[Block]:
    """The printed name, the time and the meaning of each signature."""
    blocks: list[Block] = [Heading("Signatures")]
    reviews = list(request.reviews.all())
    if not reviews:
        return [*blocks, Text("Nobody has signed a decision.")]
    for review in reviews:
        said = document(review)
        rows = [
            ("Printed name", review.reviewer_name),
            ("Signed at (UTC)", printed_time(review.signed_at)),
            ("Decision", review.get_decision_display()),
            ("Meaning", review.get_meaning_display()),
            ("Comment", review.comment),
            ("Bound to artifact", review.artifact_digest),
            ("Bound to evidence", review.evidence_digest),
        ]
        extra = ("approval_digest", "factors", "reviewer_roles", "voided_at", "void_reason")
        rows += [(name.replace("_", " ").capitalize(), _text(said[name])) for name in extra if said.get(name)]
        blocks.append(Facts(rows))
    return blocks


def _records(records: Mapping[str, list[dict[str, Any]]]) -> list[Block]:
    blocks: list[Block] = []
    if findings := records.get("finding"):
        rows = [
            [row["title"], row["severity"], _text(row["owner"]), _text(row["due_at"]), row["state"]] for row in findings
        ]
        blocks.append(
            Table(
                ["Finding", "Severity", "Owner", "Due", "State"], rows, [4, 1.2, 2, 2.4, 1.4], "Conditions and findings"
            )
        )
    if comments := records.get("comment"):
        rows = [[row["author_name"], _text(row["created_at"]), row["body"]] for row in comments]
        blocks.append(Table(["Who", "When (UTC)", "What"], rows, [1.6, 2.2, 5], "Discussion"))
    return blocks


def _evidence(contents: Contents, evidence: Mapping[str, Any], folder: str) -> list[Block]:
    """The frozen facts, as they were when the request was made."""
    if not evidence.get("candidate"):
        return [Heading("Frozen evidence"), Text("No evidence has been frozen yet.")]
    blocks: list[Block] = [Heading("Frozen evidence: metrics")]
    differences = metric_differences(dict(evidence))
    rows = [
        [row["label"], row["dataset"], _interval(row["candidate"]), _interval(row["champion"]), _change(row)]
        for row in differences
    ]
    blocks.append(
        Table(["Metric", "Dataset", "Candidate (95 %)", "Champion (95 %)", "Change"], rows, [1.3, 2.2, 2.6, 2.6, 1.6])
    )
    if chart := _comparison(differences):
        blocks.append(contents.add_chart(f"{folder}/plots/metrics.svg", chart))
    blocks += _load_tests(evidence["candidate"].get("load_tests", []))
    gates = evidence.get("gates") or []
    if gates:
        gate_rows = [[_text(row.get("gate")), _text(row.get("outcome")), _text(row.get("sentence"))] for row in gates]
        blocks.append(Table(["Gate", "Outcome", "Why"], gate_rows, [2, 1.4, 5], "Gates"))
    return blocks


def _comparison(differences: Iterable[Mapping[str, Any]]) -> IntervalChart | None:
    rows = []
    for row in differences:
        if row["metric"] not in ("accuracy", "roc_auc", "r2"):  # errors have scales of their own and stay in the table
            continue
        for side in ("candidate", "champion"):
            found = row[side]
            if found and found["value"] is not None:
                label = f"{row['label']}, {side}"
                rows.append((label, found["value"], found["ci_low"], found["ci_high"], side == "candidate"))
    return IntervalChart("Scores with 95 % confidence intervals", rows, "1 is perfect") if rows else None


def _load_tests(tests: list[Mapping[str, Any]]) -> list[Block]:
    if not tests:
        return [Heading("Frozen evidence: load tests"), Text("None was finished when the request was made.")]
    rows = [
        [
            str(row["load_test"]),
            _number(row["capacity"]),
            _number((row.get("knee") or {}).get("p99_ms")),
            {True: "met", False: "missed"}.get(row["is_slo_met"], "none set"),
            _text(row["finished_at"]),
        ]
        for row in tests
    ]
    return [
        Table(
            ["Test", "Capacity, requests/s", "p99 at the knee, ms", "Objective", "Finished"],
            rows,
            [0.8, 2, 2, 1.4, 3],
            "Frozen evidence: load tests",
        )
    ]


def _inventory(contents: Contents, versions: list[ModelVersion]) -> None:
    rows = [
        [
            f"v{row.number}",
            row.get_state_display(),
            row.uploaded_by.name,
            printed_time(row.uploaded_at),
            row.artifact.sha256,
        ]
        for row in versions
    ]
    columns = ["Version", "State", "Uploaded by", "Uploaded (UTC)", "Artifact (SHA-256)"]
    contents.report.chapter("Versions", Table(columns, rows, [0.8, 1.1, 1.8, 2.4, 4]))


def _add_version(contents: Contents, version: ModelVersion, folder: str) -> None:
    contents.add_json(f"{folder}/version.json", document(version) | {"artifact_digest": version.artifact.sha256})
    chapter = contents.report.chapter(f"Version {version}")
    chapter.blocks.append(
        Facts(
            [
                ("Artifact (SHA-256)", version.artifact.sha256),
                ("Size", f"{version.artifact.size_bytes:,} bytes"),
                ("State", version.get_state_display()),
                ("Uploaded by", f"{version.uploaded_by.name}, {printed_time(version.uploaded_at)}"),
                ("Produced by", version.producer or "not said"),
                ("Notes", version.notes or "none"),
            ]
        )
    )
    chapter.blocks += _artifact_signatures(contents, version, folder)
    chapter.blocks += _evaluations(contents, version, folder)
    chapter.blocks += _version_load_tests(contents, version, folder)
    chapter.blocks += _card(contents, version, folder)


def _artifact_signatures(contents: Contents, version: ModelVersion, folder: str) -> list[Block]:
    rows = []
    for signature in version.signatures.all():
        contents.files[f"{folder}/signatures/{signature.origin.lower()}.json"] = signature.bundle.encode()
        found = signature.reason or signature.signer_name
        rows.append([signature.get_origin_display(), signature.get_state_display(), found, signature.sha256])
    columns = ["Signature", "State", "By, or why not", "Bundle (SHA-256)"]
    return [Table(columns, rows, [2, 1.2, 2.4, 3.4], "Signatures of the artifact")]


def _evaluations(contents: Contents, version: ModelVersion, folder: str) -> list[Block]:
    blocks: list[Block] = []
    for run in (
        EvaluationRun.objects.filter(model_version=version, finished_at__isnull=False).with_facts().order_by("pk")
    ):
        contents.objects.append(run)
        contents.add_json(f"{folder}/evaluations/{run.pk}.json", evaluation_evidence(run) | {"result": run.result})
        rows = [
            [METRIC_LABELS.get(row.name, row.name), _interval(row.as_evidence()), row.note] for row in run.metrics.all()
        ]
        title = f"Evaluation {run.pk} on {run.dataset_version}, {run.row_count or 0:,} rows"
        blocks.append(Table(["Metric", "Value (95 %)", "Note"], rows, [1.5, 3, 4], title))
        if roc := run.result.get("roc"):
            points = _thinned(roc["false_positive_rate"], roc["true_positive_rate"])
            series = [(f"Class {roc['positive']}", points), ("Chance", [(0.0, 0.0), (1.0, 1.0)])]
            chart = LineChart("ROC curve", series, "False positive rate", "True positive rate")
            blocks.append(contents.add_chart(f"{folder}/plots/roc-{run.pk}.svg", chart))
    return blocks


def _version_load_tests(contents: Contents, version: ModelVersion, folder: str) -> list[Block]:
    blocks: list[Block] = []
    for test in LoadTest.objects.finished().filter(model_version=version).order_by("pk"):
        contents.objects.append(test)
        contents.add_json(f"{folder}/load-tests/{test.pk}.json", document(test))
        closed = [
            (step["throughput"], step["p99_ms"])
            for step in test.result.get("closed", [])
            if step.get("p99_ms") is not None and step.get("throughput") is not None
        ]
        if len(closed) > 1:
            series = [("p99 by callers at once", closed)]
            chart = LineChart(f"Load test {test.pk} on {test.host}", series, "Requests/s", "p99, ms")
            blocks.append(contents.add_chart(f"{folder}/plots/load-{test.pk}.svg", chart))
    return blocks


def _card(contents: Contents, version: ModelVersion, folder: str) -> list[Block]:
    revisions = list(version.card_revisions.with_version())
    if not revisions:
        return [Heading("Model card"), Text("None has been written.")]
    newest: CardRevision = revisions[0]
    contents.objects.extend(revisions)
    contents.add_json(f"{folder}/card.json", [card_document(row) for row in reversed(revisions)])
    contents.files[f"{folder}/card.md"] = card_markdown(newest).encode()
    contents.files[f"{folder}/card.html"] = card_html(newest).encode()
    by = f"{newest.reviewer_name}, {_text(newest.reviewed_at)}: {newest.review_comment}" if newest.reviewed_at else "–"
    state = f"{newest.number} ({newest.get_state_display().lower()})"
    written = f"{newest.author_name}, {printed_time(newest.saved_at)}"
    head = Facts([("Revision", state), ("Written by", written), ("Reviewed by", by), ("SHA-256", newest.sha256)])
    blocks: list[Block] = [Heading("Model card"), head]
    for section in SECTIONS:
        text = newest.sections.get(section.key, "")
        if text or section.is_required:
            blocks += [Heading(section.title), Markdown(text) if text else Text("Not written.")]
    return blocks


def _add_deployments(contents: Contents, deployments: list[Deployment]) -> None:
    contents.objects.extend(deployments)
    contents.add_json("deployments.json", [document(row) for row in deployments])
    rows = [
        [
            row.endpoint.name,
            str(row.model_version),
            row.get_role_display(),
            _text(row.promotion_request_id),
            printed_time(row.activated_at),
            _text(row.retired_at),
        ]
        for row in deployments
    ]
    columns = ["Endpoint", "Version", "Role", "Approved by request", "From (UTC)", "Until (UTC)"]
    contents.report.chapter("In service", Table(columns, rows, [2, 2, 1.2, 1.1, 2.3, 2.3]))


def _add_log(contents: Contents, endpoint: Endpoint, since: datetime, until: datetime) -> None:
    segments = LogSegment.objects.current().of_endpoint(endpoint.pk).within(since, until).order_by("started_at", "pk")
    rows = [document(row) for row in segments[: MAX_SEGMENTS + 1]]
    if len(rows) > MAX_SEGMENTS:
        raise DomainError(f"That is more than {MAX_SEGMENTS:,} files of the prediction log. Choose a shorter period.")
    contents.add_json("endpoint/prediction-log.json", rows)
    predictions = sum(row["row_count"] for row in rows)
    contents.report.chapter(
        "Prediction log",
        Text(
            "Every answered request is in the prediction log before its answer is sent. The log's files are listed in "
            "endpoint/prediction-log.json with their SHA-256; a file may hold predictions from outside the period."
        ),
        Facts([("Files", f"{len(rows):,}"), ("Predictions in them", f"{predictions:,}")]),
    )


def add_mapping(contents: Contents) -> None:
    """Which record answers which clause."""
    chapter = contents.report.chapter(
        "Requirements and records",
        Text(
            "Which of the records above answers which requirement, in our own words and without legal advice. "
            "“Gap” says what the organisation has to bring itself."
        ),
    )
    for framework in frameworks():
        rows = [[row.clause, row.asks, f"{row.coverage}. {row.answered_by}", row.gap] for row in framework.clauses]
        chapter.blocks.append(
            Table(["Clause", "Asks for", "Answered by", "Gap"], rows, [1.6, 2.9, 3.2, 2.5], framework.title)
        )
    contents.add_json("mapping/requirements.json", [framework.as_document() for framework in frameworks()])


def _thinned(xs: list[float], ys: list[float]) -> list[tuple[float, float]]:
    """At most ``_POINTS`` points of a curve, its ends among them."""
    points = list(zip(xs, ys, strict=True))
    step = max(1, len(points) // _POINTS)
    return [*points[:-1:step], points[-1]]


def _interval(metric: Mapping[str, Any] | None) -> str:
    if metric is None or metric["value"] is None:
        return "–"
    if metric["ci_low"] is None or metric["ci_high"] is None:
        return f"{metric['value']:.4f}"
    return f"{metric['value']:.4f} ({metric['ci_low']:.4f} to {metric['ci_high']:.4f})"


def _change(row: Mapping[str, Any]) -> str:
    return "–" if row["change"] is None else f"{row['change']:+.4f} {row['verdict']}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.1f}"


def printed_time(at: datetime) -> str:
    """A moment for people: date and second; the records have the microseconds."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _text(value: Any) -> str:
    """Anything for a cell."""
    if value is None or value == "":
        return "–"
    if isinstance(value, str) and _TIMESTAMP.fullmatch(value):
        return printed_time(datetime.fromisoformat(value))
    if isinstance(value, datetime):
        return printed_time(value)
    if isinstance(value, Mapping):
        return str(value.get("name", value))
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "–"
    return str(value)
