"""What can go wrong, the same for servers and clients.

::

    OpenManagerError
    ├── InvalidArgumentError       the request is wrong, whatever the state of the system; names the field
    ├── OutOfRangeError            the request is past what is kept or possible
    ├── NotFoundError              what was asked for does not exist
    ├── AlreadyExistsError         what was to be created exists
    ├── FailedPreconditionError    the system is not in the state that the call needs
    ├── AbortedError               somebody else changed it in between; read again
    ├── ResourceExhaustedError     a limit was met; try again later where `retry_after` says so
    ├── UnavailableError           nobody could answer; try again
    ├── DeadlineExceededError      the deadline passed
    ├── CancelledCallError         the caller gave up
    ├── UnauthenticatedError       who is calling is not known
    ├── PermissionDeniedError      the caller may not do this
    ├── UnimplementedError         there is no such method
    ├── DataLossError              what was stored is damaged
    ├── InternalError              a defect of ours; the id finds it in the log
    └── ConfigurationError         the configuration is wrong; exit code 78, never on the wire

Every error has a stable `reason`, one of `Reason`, and a message that is fit for the caller's eyes: no path, address,
query or text of a library.
"""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import ClassVar

# Errors travel in headers, which clients and proxies bound at 8 KiB, whatever it is that a request held.
MAX_MESSAGE, MAX_RESOURCE = 1000, 600


class Reason(StrEnum):
    """The closed list of reasons that `google.rpc.ErrorInfo.reason` may hold, in the domain `openmanager`."""

    INVALID_FIELD = "INVALID_FIELD"
    MALFORMED_MESSAGE = "MALFORMED_MESSAGE"
    INVALID_PAGE_TOKEN = "INVALID_PAGE_TOKEN"  # noqa: S105  (a reason, not a secret)
    TIME_OUT_OF_RANGE = "TIME_OUT_OF_RANGE"
    POSITION_OUT_OF_RANGE = "POSITION_OUT_OF_RANGE"
    HISTORY_COMPACTED = "HISTORY_COMPACTED"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    REQUEST_ID_REUSED = "REQUEST_ID_REUSED"
    SIMULATION_RUNNING = "SIMULATION_RUNNING"
    FAULT_ENDED = "FAULT_ENDED"
    ETAG_MISMATCH = "ETAG_MISMATCH"
    LOG_FULL = "LOG_FULL"
    LOG_UNFIT = "LOG_UNFIT"
    WRONG_SHARD = "WRONG_SHARD"
    SERIES_LIMIT = "SERIES_LIMIT"
    TOO_MANY_BUCKETS = "TOO_MANY_BUCKETS"
    TOO_MANY_SERIES = "TOO_MANY_SERIES"
    TOO_MANY_QUERIES = "TOO_MANY_QUERIES"
    TOO_MANY_RULES = "TOO_MANY_RULES"
    MESSAGE_TOO_LARGE = "MESSAGE_TOO_LARGE"
    ENGINE_CANNOT = "ENGINE_CANNOT"
    LEGAL_HOLD = "LEGAL_HOLD"
    TIER_CANNOT = "TIER_CANNOT"
    TOO_LITTLE_DATA = "TOO_LITTLE_DATA"
    WATCH_TOO_SLOW = "WATCH_TOO_SLOW"
    STREAM_IDLE = "STREAM_IDLE"
    OVERLOADED = "OVERLOADED"
    SERVICE_UNAVAILABLE = "SERVICE_UNAVAILABLE"
    STORE_UNAVAILABLE = "STORE_UNAVAILABLE"
    SHUTTING_DOWN = "SHUTTING_DOWN"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    CANCELLED = "CANCELLED"
    CREDENTIALS_REQUIRED = "CREDENTIALS_REQUIRED"
    CREDENTIALS_INVALID = "CREDENTIALS_INVALID"
    TOO_MANY_ATTEMPTS = "TOO_MANY_ATTEMPTS"
    LAST_ADMIN = "LAST_ADMIN"
    GRANTS_CHANGED = "GRANTS_CHANGED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    METHOD_UNKNOWN = "METHOD_UNKNOWN"
    DAMAGED = "DAMAGED"
    INTERNAL = "INTERNAL"
    CONFIGURATION = "CONFIGURATION"


class OpenManagerError(Exception):
    """The root of the tree.

    `code` is the number of `google.rpc.Code`; `field` the request field at fault, if one is; `resource` the resource
    that was asked for, as `type/name`; `retry_after` when a repetition makes sense.
    """

    code: ClassVar[int] = 2
    default_reason: ClassVar[Reason] = Reason.INTERNAL

    def __init__(
        self,
        message: str,
        *,
        reason: Reason | str | None = None,
        field: str = "",
        resource: str = "",
        retry_after: timedelta | None = None,
    ) -> None:
        self.message = message if len(message) <= MAX_MESSAGE else f"{message[: MAX_MESSAGE - 1]}…"
        super().__init__(self.message)
        self.reason = str(reason or self.default_reason)
        self.field = field
        self.resource = resource[:MAX_RESOURCE]
        self.retry_after = retry_after


class InvalidArgumentError(OpenManagerError):
    """The request is wrong, whatever the state of the system; `field` names the field."""

    code = 3
    default_reason = Reason.INVALID_FIELD


class OutOfRangeError(OpenManagerError):
    """The request is past what is kept or possible."""

    code = 11
    default_reason = Reason.TIME_OUT_OF_RANGE


class NotFoundError(OpenManagerError):
    """What was asked for does not exist."""

    code = 5
    default_reason = Reason.NOT_FOUND


class AlreadyExistsError(OpenManagerError):
    """What was to be created exists."""

    code = 6
    default_reason = Reason.ALREADY_EXISTS


class FailedPreconditionError(OpenManagerError):
    """The system is not in the state that the call needs."""

    code = 9


class AbortedError(OpenManagerError):
    """Somebody else changed it in between."""

    code = 10
    default_reason = Reason.ETAG_MISMATCH


class ResourceExhaustedError(OpenManagerError):
    """A limit was met."""

    code = 8
    default_reason = Reason.OVERLOADED


class UnavailableError(OpenManagerError):
    """Nobody could answer; a repetition may succeed."""

    code = 14
    default_reason = Reason.SERVICE_UNAVAILABLE

    def __init__(
        self, message: str, *, reason: Reason | str | None = None, retry_after: timedelta | None = None
    ) -> None:
        super().__init__(message, reason=reason, retry_after=retry_after or timedelta(seconds=1))


class DeadlineExceededError(OpenManagerError):
    """The deadline passed."""

    code = 4
    default_reason = Reason.DEADLINE_EXCEEDED


class CancelledCallError(OpenManagerError):
    """The caller gave up, or the server had to."""

    code = 1
    default_reason = Reason.CANCELLED


class UnauthenticatedError(OpenManagerError):
    """Who is calling is not known."""

    code = 16
    default_reason = Reason.CREDENTIALS_REQUIRED


class PermissionDeniedError(OpenManagerError):
    """The caller may not do this."""

    code = 7
    default_reason = Reason.PERMISSION_DENIED


class UnimplementedError(OpenManagerError):
    """There is no such method."""

    code = 12
    default_reason = Reason.METHOD_UNKNOWN


class DataLossError(OpenManagerError):
    """What was stored is damaged."""

    code = 15
    default_reason = Reason.DAMAGED


class InternalError(OpenManagerError):
    """A defect of ours."""

    code = 13


class ConfigurationError(OpenManagerError):
    """The configuration is wrong. The process ends with exit code 78."""

    default_reason = Reason.CONFIGURATION


def missing(field: str) -> InvalidArgumentError:
    """Return the error for a required field that is not set."""
    return InvalidArgumentError(f"{field} is required", field=field)


def invalid(field: str, why: str) -> InvalidArgumentError:
    """Return the error for a field with a value that cannot be; `why` continues the field's name."""
    return InvalidArgumentError(f"{field} {why}", field=field)


def credentials_invalid(message: str = "the credentials are not valid") -> UnauthenticatedError:
    """Return the error for credentials that are nobody's; as a rule it does not tell why."""
    return UnauthenticatedError(message, reason=Reason.CREDENTIALS_INVALID)


def store_unavailable(store: str) -> UnavailableError:
    """Return the error for a store that does not answer."""
    return UnavailableError(f"{store} does not answer", reason=Reason.STORE_UNAVAILABLE)
