"""Which of our records answers which requirement; the tables themselves are in ``requirements.toml``."""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

_FILE: Final = Path(__file__).with_name("requirements.toml")
Coverage = Literal["Answered", "Partly", "Not answered"]


@dataclass(frozen=True, slots=True)
class Clause:
    """One requirement: what it asks for, which records answer it, and what is left to the organisation."""

    clause: str
    asks: str
    coverage: Coverage
    answered_by: str
    gap: str = ""
    where: str = ""
    """Files of a pack, and pages of the console, where the answer is found."""


@dataclass(frozen=True, slots=True)
class Framework:
    """A law, a rule or a standard."""

    key: str
    name: str
    title: str
    about: str
    clauses: tuple[Clause, ...]

    def as_document(self) -> dict[str, Any]:
        """JSON-safe."""
        return asdict(self)

    def count(self, coverage: Coverage) -> int:
        """How many clauses are covered so."""
        return sum(row.coverage == coverage for row in self.clauses)


@cache
def frameworks() -> tuple[Framework, ...]:
    """All tables, in the order of the file."""
    with _FILE.open("rb") as file:
        document = tomllib.load(file)
    return tuple(
        Framework(**row | {"clauses": tuple(Clause(**clause) for clause in row["clauses"])})
        for row in document["frameworks"]
    )
