"""What can go wrong with an artifact or a request, in the service's own words. No HTTP here."""


class InferenceError(Exception):
    """Base of every error that the service raises on purpose. The message is safe to show to a caller."""


class ConfigurationError(InferenceError):
    """The service cannot start; the message is one sentence that says what to put right."""


class ArtifactRejected(InferenceError):
    """The bytes are not a model that may be served. The message says what the uploader can do about it."""


class ManifestRejected(InferenceError):
    """The manifest's signature, shape or generation is not acceptable."""


class RequestRejected(InferenceError):
    """The request does not fit the protocol or the model's signature; ``field`` names the offending part."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.field = field


class UnsupportedCoding(RequestRejected):
    """The request's body is packed in a way that is not understood."""


class RequestTooLarge(InferenceError):
    """More rows in one request than the endpoint queues at all, or more bytes than a body may have."""


class Unauthenticated(InferenceError):
    """No token, or one that is unknown, expired or revoked."""


class NotAllowed(InferenceError):
    """The token is known, but may not call this endpoint."""


class NotFound(InferenceError):
    """No such endpoint or model version, or it belongs to another team."""


class Overloaded(InferenceError):
    """There is no room for the request now; ``retry_after`` in seconds."""

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NotReady(Overloaded):
    """The endpoint exists, but this replica has no version of it loaded yet."""


class DeadlineExceeded(InferenceError):
    """The model was still running when the request's time was up."""


class GuardrailViolated(InferenceError):
    """A guardrail of the endpoint refuses the request; ``rule`` names it."""

    def __init__(self, rule: str) -> None:
        super().__init__(f"The guardrail “{rule}” refuses this request.")
        self.rule = rule


class CallerGone(InferenceError):
    """The caller closed the connection before the model ran."""


class ModelFailed(InferenceError):
    """The model broke while it ran. ``detail`` is for the log; the message tells a caller nothing of the inside."""

    def __init__(self, detail: str) -> None:
        super().__init__("The model failed on these inputs.")
        self.detail = detail
