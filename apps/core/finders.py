"""A staticfiles finder for the one file the console takes from the plotly wheel."""

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from django.contrib.staticfiles.finders import BaseFinder
from django.core.files.storage import FileSystemStorage, Storage


class PlotlyFinder(BaseFinder):
    """Serves `plotly/plotly.min.js` straight from the installed wheel; nothing else of it is exposed."""

    prefix, name = "plotly", "plotly.min.js"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        spec = find_spec("plotly")
        if spec is None or not spec.origin:
            raise ModuleNotFoundError("plotly is not installed: run `make up` or install requirements.lock.")
        self.storage = FileSystemStorage(location=Path(spec.origin).parent / "package_data")
        self.storage.prefix = self.prefix

    def check(self, **kwargs: Any) -> list[Any]:
        """Nothing to configure, so nothing to check."""
        return []

    def find(self, path: str, find_all: bool = False, **kwargs: Any) -> Any:
        """The absolute path of the file, as a list when `find_all`; [] when `path` is another."""
        found = [self.storage.path(self.name)] if path == f"{self.prefix}/{self.name}" else []
        return found if find_all or not found else found[0]

    def list(self, ignore_patterns: Iterable[str] | None) -> Iterable[tuple[str, Storage]]:
        """The one file with its storage, for collectstatic."""
        yield self.name, self.storage
