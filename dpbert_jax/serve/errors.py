"""What a request can be refused for, in the form of text-embeddings-inference."""

from starlette.responses import JSONResponse


class Refused(Exception):
    """A request without an answer: an HTTP status, and a name for programs."""

    status, kind = 500, "Backend"


class Empty(Refused):
    """There is nothing to answer."""

    status, kind = 400, "Empty"


class Unauthorized(Refused):
    """The bearer token is missing or another."""

    status, kind = 401, "Unauthorized"


class TooLarge(Refused):
    """More texts, tokens or bytes than a request may have."""

    status, kind = 413, "Validation"


class Invalid(Refused):
    """Not what the protocol has."""

    status, kind = 422, "Validation"


class Unanswered(Refused):
    """The model failed."""

    status, kind = 424, "Backend"


class Overloaded(Refused):
    """Too much is waiting already, or it took too long."""

    status, kind = 429, "Overloaded"


class Unhealthy(Refused):
    """The server is starting or ending."""

    status, kind = 503, "Unhealthy"


def refusal(error: Refused) -> JSONResponse:
    """An error as text-embeddings-inference has it."""
    headers = {"retry-after": "1"} if error.status in (429, 503) else {}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    body = {"error": str(error), "error_type": error.kind}
    return JSONResponse(body, error.status, headers)
