"""Request ids, the upload cap, and the one place where the UI turns a domain error into a page."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable

from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render

from apps.core.errors import DomainError, TooLarge

GetResponse = Callable[[HttpRequest], HttpResponse]
_FORM_ALLOWANCE = 2**20  # what a multipart body holds beside the file
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")


class RequestIdMiddleware:
    """Give each request an id, the caller's own if it is well-formed, and send it back."""

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """Set ``request.request_id`` and the ``X-Request-ID`` response header."""
        given = request.headers.get("X-Request-ID", "")
        request.request_id = given if _REQUEST_ID.fullmatch(given) else str(uuid.uuid4())
        response = self.get_response(request)
        response["X-Request-ID"] = request.request_id
        return response


class PeerAddressMiddleware:
    """Make ``REMOTE_ADDR`` the address that the outermost of our own proxies saw.

    Each proxy appends what it saw to ``X-Forwarded-For``; whatever stands further left is anybody's claim.
    """

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """Without ``TRUSTED_PROXY_COUNT`` the header is not looked at."""
        if count := settings.TRUSTED_PROXY_COUNT:
            seen = [part.strip() for part in request.headers.get("X-Forwarded-For", "").split(",")]
            request.META["REMOTE_ADDR"] = seen[-count] if len(seen) >= count else ""
        return self.get_response(request)


class UploadCapMiddleware:
    """Refuse a request whose announced body is over its cap before a byte of it is read.

    Files stream to disk and have a high cap; everything else is read into memory, by REST parsers without a bound.
    """

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """413 with a sentence; a page for people, a problem document for programs."""
        announced = request.META.get("CONTENT_LENGTH") or "0"
        is_upload = (request.content_type or "").startswith("multipart/")
        cap = settings.UPLOAD_MAX_BYTES if is_upload else settings.DATA_UPLOAD_MAX_MEMORY_SIZE
        if not announced.isdecimal() or int(announced) <= cap + _FORM_ALLOWANCE:
            return self.get_response(request)
        remedy = " or raise UPLOAD_MAX_BYTES" if is_upload else " or send the data as a file"
        error = TooLarge(f"The request is over the cap of {cap / 1024**2:,.0f} MiB. Make it smaller{remedy}.")
        if request.path.startswith("/api/"):
            body = {"type": "about:blank", "title": error.title, "status": 413, "detail": error.message}
            return JsonResponse(body, status=413, content_type="application/problem+json")
        return render(request, "errors/refused.html", {"error": error}, status=413)


class DomainErrorMiddleware:
    """Show a domain error that a view did not handle itself as a page with its status and its sentence."""

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """Pass through."""
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        """Translate domain errors only; anything else stays an internal error."""
        if not isinstance(error, DomainError):
            return None
        return render(request, "errors/refused.html", {"error": error}, status=error.status)
