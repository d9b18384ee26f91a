"""The model card as a document: its sections, what makes it complete, how it is prefilled and written out. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import unified_diff
from typing import Final

from apps.audit.chain import canonical_json

FORMAT: Final = "countersign/model-card/v1"
MAX_SECTION_CHARACTERS: Final = 8_000
MIN_SECTION_CHARACTERS: Final = 20
"""A required section with less than this says nothing that a reader could act on."""
_MAX_SLICE_ROWS: Final = 60
_SPECIAL = re.compile(r"([\\`*_\[\]<>|~&])")


@dataclass(frozen=True, slots=True)
class Section:
    """One part of a card; ``asks`` tells the author what belongs there."""

    key: str
    title: str
    asks: str
    is_required: bool = True
    is_factual: bool = False
    """Written anew from what is on record, rather than taken over from the version before."""


# The headings follow “Model Cards for Model Reporting” (Mitchell et al., 2019), with owners and oversight beside them.
SECTIONS: Final = (
    Section("details", "Model details", "What kind of model it is and how it was made.", is_factual=True),
    Section("intended_use", "Intended use", "Who may use it, for which decisions, and what it must not be used for."),
    Section("owners", "Owners", "Who answers for it, and whom to call."),
    Section("training_data", "Training data", "Where it came from, what it covers, what was left out, and its rights."),
    Section("evaluation_data", "Evaluation data", "What it was measured on, and how near that is to use.", True, True),
    Section("metrics", "Metrics", "What was measured, with its uncertainty, and why these metrics.", True, True),
    Section(
        "slices",
        "Performance by group",
        "How it does for the groups that matter, or why that was not measured.",
        is_factual=True,
    ),
    Section("limitations", "Limitations", "Where it is known to fail or was never tried."),
    Section("risks", "Risks and fairness", "Who could be harmed, how, and what is done about it."),
    Section("oversight", "Human oversight", "Who watches it in service, what they look at, and when they step in."),
    Section("notes", "Notes", "Anything else a reader should know.", is_required=False),
)
KEYS: Final = tuple(section.key for section in SECTIONS)
_PLACEHOLDERS: Final = frozenset({"todo", "tbd", "tba", "none", "na", "nothing", "unknown", "same", "lorem ipsum"})


@dataclass(frozen=True, slots=True)
class Completeness:
    """Which required sections say something, by title."""

    filled: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def total(self) -> int:
        """How many sections are required."""
        return len(self.filled) + len(self.missing)

    @property
    def is_complete(self) -> bool:
        """True if nothing required is missing."""
        return not self.missing

    @property
    def sentence(self) -> str:
        """What a person is told."""
        if self.is_complete:
            return f"All {len(self.filled)} required sections are written."
        return (
            f"{len(self.filled)} of {len(self.filled) + len(self.missing)}: still to write: {', '.join(self.missing)}."
        )


def completeness(sections: Mapping[str, str]) -> Completeness:
    """Judge a card by its sections (key -> Markdown); a placeholder such as “TBD” or a few words count as empty."""
    required = [section for section in SECTIONS if section.is_required]
    filled = tuple(section.title for section in required if _says_something(sections.get(section.key, "")))
    missing = tuple(section.title for section in required if section.title not in filled)
    return Completeness(filled, missing)


def _says_something(text: str) -> bool:
    words = re.sub(r"[^\w\s]", "", text).strip().casefold()
    lines = [line for line in words.splitlines() if line.strip() and line.strip() not in _PLACEHOLDERS]
    return sum(map(len, lines)) >= MIN_SECTION_CHARACTERS


def card_digest(sections: Mapping[str, str]) -> str:
    """Hex SHA-256 of the canonical JSON of format and sections."""
    return hashlib.sha256(canonical_json({"format": FORMAT, "sections": dict(sections)}).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class MetricFact:
    """A measured value with its interval."""

    label: str
    dataset: str
    value: float | None
    ci_low: float | None = None
    ci_high: float | None = None


@dataclass(frozen=True, slots=True)
class DatasetFact:
    """A dataset version that the model was measured on."""

    name: str
    sha256: str
    row_count: int | None
    target: str


@dataclass(frozen=True, slots=True)
class SliceFact:
    """A metric within one group of the rows."""

    group: str
    row_count: int
    metric: MetricFact


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What is on record about a version when a card is begun."""

    version: str
    task: str
    artifact_digest: str
    team: str
    registered_by: str
    uploaded_by: str
    producer: str = ""
    description: str = ""
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    datasets: tuple[DatasetFact, ...] = ()
    metrics: tuple[MetricFact, ...] = ()
    slices: tuple[SliceFact, ...] = ()
    trained_by: str = ""
    training_data: tuple[tuple[str, str], ...] = ()  # name, SHA-256
    endpoints: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Prefill:
    """The facts, and the sections of the version before (empty if there is none)."""

    facts: CardFacts
    previous: Mapping[str, str] = field(default_factory=dict)

    def sections(self) -> dict[str, str]:
        """A card to begin with: facts from the record, prose from the version before, nothing made up."""
        written = {
            "details": self._details(),
            "owners": self._owners(),
            "evaluation_data": self._evaluation_data(),
            "metrics": self._metrics(),
            "slices": self._slices(),
            "training_data": self._training_data(),
        }
        return {
            section.key: written.get(section.key, "")
            if section.is_factual
            else self.previous.get(section.key, "") or written.get(section.key, "")
            for section in SECTIONS
        }

    def _details(self) -> str:
        facts = self.facts
        lines = [
            f"{plain(facts.description)}\n" if facts.description else "",
            f"- Version: {plain(facts.version)}",
            f"- Task: {facts.task.lower()}",
            f"- Artifact: ONNX, SHA-256 `{facts.artifact_digest}`",
            f"- Produced by: {plain(facts.producer)}" if facts.producer else "",
            f"- Inputs: {', '.join(map(plain, facts.inputs))}" if facts.inputs else "",
            f"- Outputs: {', '.join(map(plain, facts.outputs))}" if facts.outputs else "",
            f"- Serves on: {', '.join(map(plain, facts.endpoints))}" if facts.endpoints else "",
        ]
        return "\n".join(filter(None, lines))

    def _owners(self) -> str:
        facts = self.facts
        return (
            f"- Team: {plain(facts.team)}\n- Registered by: {plain(facts.registered_by)}\n"
            f"- This version uploaded by: {plain(facts.uploaded_by)}"
            + (f"\n- Trained by: {plain(facts.trained_by)}" if facts.trained_by else "")
        )

    def _training_data(self) -> str:
        return "\n".join(f"- {plain(name)}, SHA-256 `{sha256}`" for name, sha256 in self.facts.training_data)

    def _evaluation_data(self) -> str:
        if not self.facts.datasets:
            return ""
        rows = [
            f"| {plain(row.name)} | {row.row_count or 0:,} | {plain(row.target)} | `{row.sha256}` |"
            for row in self.facts.datasets
        ]
        return "\n".join(("| Dataset | Rows | Target | SHA-256 |", "| --- | ---: | --- | --- |", *rows))

    def _metrics(self) -> str:
        if not self.facts.metrics:
            return ""
        rows = [f"| {row.label} | {plain(row.dataset)} | {_figure(row)} |" for row in self.facts.metrics]
        head = ("| Metric | Dataset | Value (95 % interval) |", "| --- | --- | ---: |")
        return "\n".join((*head, *rows))

    def _slices(self) -> str:
        if not self.facts.slices:
            return ""
        rows = [
            f"| {plain(row.group)} | {row.row_count:,} | {row.metric.label} | {_figure(row.metric)} |"
            for row in self.facts.slices[:_MAX_SLICE_ROWS]
        ]
        head = ("| Group | Rows | Metric | Value (95 % interval) |", "| --- | ---: | --- | ---: |")
        return "\n".join((*head, *rows))


def plain(text: str) -> str:
    """Text of somebody's making on one line, with what Markdown would read as markup within a line escaped."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _figure(row: MetricFact) -> str:
    if row.value is None:
        return "could not be computed"
    if row.ci_low is None or row.ci_high is None:
        return f"{row.value:.4f}"
    return f"{row.value:.4f} ({row.ci_low:.4f} to {row.ci_high:.4f})"


def as_markdown(title: str, facts: Mapping[str, str], sections: Mapping[str, str]) -> str:
    """The whole card as one Markdown document; ``facts`` (label -> text) stand above the sections."""
    head = [f"# {plain(title)}", "", *(f"- {label}: {plain(text)}" for label, text in facts.items())]
    body = [
        f"\n## {section.title}\n\n{sections.get(section.key, '').strip() or '_Not written._'}"
        for section in SECTIONS
        if section.is_required or sections.get(section.key, "").strip()
    ]
    return "\n".join((*head, *body, ""))


@dataclass(frozen=True, slots=True)
class SectionDifference:
    """The lines that changed in one section: ``(sign, text)`` with sign ``+``, ``-`` or a space for context."""

    title: str
    lines: tuple[tuple[str, str], ...]


def differences(before: Mapping[str, str], after: Mapping[str, str]) -> list[SectionDifference]:
    """What changed between two revisions, section by section, in the card's order."""
    found = []
    for section in SECTIONS:
        old, new = before.get(section.key, "").splitlines(), after.get(section.key, "").splitlines()
        lines = [(line[0], line[1:]) for line in list(unified_diff(old, new, lineterm="", n=2))[2:] if line[0] != "@"]
        if lines:
            found.append(SectionDifference(section.title, tuple(lines)))
    return found
