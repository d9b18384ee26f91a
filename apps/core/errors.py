"""The few ways in which a request can be refused. Services raise them; the UI and the API each translate them once."""


class DomainError(Exception):
    """A request that cannot be carried out. The message is for the person and says what to do.

    ``field`` names the input at fault, if one is.
    """

    status = 422
    title = "This cannot be done"

    def __init__(self, message: str, *, code: str = "invalid", field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.field = field


class Conflict(DomainError):
    """Somebody or something else was faster, or the object is no longer in the state that this needs."""

    status = 409
    title = "Something changed meanwhile"


class NotAllowed(DomainError):
    """The person's roles, or their part in this matter, do not allow it."""

    status = 403
    title = "Not allowed"


class NotFound(DomainError):
    """There is no such object in the person's team."""

    status = 404
    title = "Not found"


class TooLarge(DomainError):
    """The payload is over its cap."""

    status = 413
    title = "Too large"
