"""One URL for page and fragment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render as render_template
from django.utils.cache import patch_vary_headers


def render(
    request: HttpRequest, template: str, context: Mapping[str, Any], *, fragment: str | None = None, status: int = 200
) -> HttpResponse:
    """Render ``fragment`` for a request that htmx sent, the whole ``template`` otherwise.

    A boosted request and a history restoration want the whole page, whatever the header says.
    """
    htmx = request.htmx
    wants_fragment = fragment is not None and htmx and not htmx.boosted and not htmx.history_restore_request
    response = render_template(
        request, fragment if wants_fragment and fragment else template, dict(context), status=status
    )
    patch_vary_headers(response, ["HX-Request"])
    return response
