"""How the OpenAPI description names the signature of an external check; imported by the app's configuration."""

from __future__ import annotations

from typing import Any

from drf_spectacular.extensions import OpenApiAuthenticationExtension


class CheckSignatureScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    """The signature of a registered check key."""

    target_class = "apps.policies.signed_requests.CheckSignatureAuthentication"
    name = "checkSignature"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        """The scheme in OpenAPI's words."""
        return {
            "type": "apiKey",
            "in": "header",
            "name": "Countersign-Signature",
            "description": "With Countersign-Key and Countersign-Timestamp; the page of checks says what is signed.",
        }
