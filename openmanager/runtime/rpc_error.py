"""The one table between `openmanager.errors` and gRPC's statuses, used in both directions."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from openmanager import errors

DETAILS_KEY = "grpc-status-details-bin"
DOMAIN = "openmanager"

_CLASSES: dict[int, type[errors.OpenManagerError]] = {
    cls.code: cls
    for cls in (
        errors.InvalidArgumentError,
        errors.OutOfRangeError,
        errors.NotFoundError,
        errors.AlreadyExistsError,
        errors.FailedPreconditionError,
        errors.AbortedError,
        errors.ResourceExhaustedError,
        errors.UnavailableError,
        errors.DeadlineExceededError,
        errors.CancelledCallError,
        errors.UnauthenticatedError,
        errors.PermissionDeniedError,
        errors.UnimplementedError,
        errors.DataLossError,
        errors.InternalError,
    )
}
_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def status_code(error: errors.OpenManagerError) -> grpc.StatusCode:
    """Return gRPC's code for an error."""
    return _CODES[error.code]


def to_trailers(error: errors.OpenManagerError) -> tuple[tuple[str, bytes], ...]:
    """Return the trailing metadata that carries the error's details as `google.rpc.Status`."""
    status = status_pb2.Status(code=error.code, message=error.message)
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN))
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error.message)
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.resource:
        kind, _, name = error.resource.partition("/")
        status.details.add().Pack(error_details_pb2.ResourceInfo(resource_type=kind, resource_name=name))
    if error.retry_after is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromTimedelta(error.retry_after)
        status.details.add().Pack(retry)
    return ((DETAILS_KEY, status.SerializeToString()),)


def from_rpc_error(failure: grpc.aio.AioRpcError, peer: str) -> errors.OpenManagerError:
    """Return the error that a call to `peer` ended with.

    A status without our details was made by gRPC itself (no connection, deadline, too large); its text may name
    addresses and is replaced.
    """
    details = _details(failure)
    return _from_bare_code(failure.code(), peer) if details is None else _from_status(failure, details)


def was_away(failure: grpc.aio.AioRpcError) -> bool:
    """Say whether a call did not reach its server, or one that was going down; what the server says is another matter."""
    if failure.code() is not grpc.StatusCode.UNAVAILABLE:
        return False
    details = _details(failure)
    return details is None or _from_status(failure, details).reason == errors.Reason.SHUTTING_DOWN


def _details(failure: grpc.aio.AioRpcError) -> bytes | None:
    """Return what a server of ours says of its error."""
    for key, value in failure.trailing_metadata() or ():
        if key == DETAILS_KEY:
            return value if isinstance(value, bytes) else value.encode()
    return None


def _from_bare_code(code: grpc.StatusCode, peer: str) -> errors.OpenManagerError:
    match code:
        case grpc.StatusCode.UNAVAILABLE:
            return errors.UnavailableError(f"{peer} cannot be reached")
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return errors.DeadlineExceededError(f"{peer} did not answer in time")
        case grpc.StatusCode.CANCELLED:
            return errors.CancelledCallError(f"the call to {peer} was cancelled")
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return errors.ResourceExhaustedError(
                "the message is larger than 4 MiB, or too many calls are under way",
                reason=errors.Reason.MESSAGE_TOO_LARGE,
            )
        case grpc.StatusCode.UNIMPLEMENTED:
            return errors.UnimplementedError(f"{peer} has no such method")
        case _:
            cls = _CLASSES.get(code.value[0], errors.InternalError)
            return cls(f"{peer} failed")


def _from_status(failure: grpc.aio.AioRpcError, packed: bytes) -> errors.OpenManagerError:
    status = status_pb2.Status.FromString(packed)
    details: dict[str, Any] = {}
    for item in status.details:
        info, request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        resource, retry = error_details_pb2.ResourceInfo(), error_details_pb2.RetryInfo()
        if item.Unpack(info):
            details["reason"] = info.reason
        elif item.Unpack(request) and request.field_violations:
            details["field"] = request.field_violations[0].field
        elif item.Unpack(resource):
            details["resource"] = f"{resource.resource_type}/{resource.resource_name}"
        elif item.Unpack(retry):
            details["retry_after"] = timedelta(
                seconds=retry.retry_delay.seconds, microseconds=retry.retry_delay.nanos // 1000
            )
    cls = _CLASSES.get(failure.code().value[0], errors.InternalError)
    if cls is errors.UnavailableError:
        details = {key: value for key, value in details.items() if key in {"reason", "retry_after"}}
    return cls(status.message, **details)
