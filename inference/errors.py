"""What can go wrong with an artifact or a request, in the service's own words. No HTTP here."""


class InferenceError(Exception):
    """Base of every error that the service raises on purpose. The message is safe to show to a caller."""


class ArtifactRejected(InferenceError):
    """The bytes are not a model that may be served. The message says what the uploader can do about it."""


class ManifestRejected(InferenceError):
    """The manifest's signature, shape or generation is not acceptable."""


class RequestRejected(InferenceError):
    """The request does not fit the protocol or the model's signature; ``field`` names the offending part."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class ModelFailed(InferenceError):
    """The model broke while it ran."""
