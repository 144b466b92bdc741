"""The gRPC status of each class of error; the interceptor in `ds4_runtime.server` applies it."""

from collections.abc import Mapping

from grpc import StatusCode

from ds4_daemon import errors

STATUS_CODES: Mapping[type[Exception], StatusCode] = {
    errors.RequestError: StatusCode.INVALID_ARGUMENT,
    errors.NotFoundError: StatusCode.NOT_FOUND,
    errors.ConflictError: StatusCode.FAILED_PRECONDITION,
    errors.OverloadedError: StatusCode.RESOURCE_EXHAUSTED,
    errors.UnavailableError: StatusCode.UNAVAILABLE,
    errors.NotBuiltError: StatusCode.UNIMPLEMENTED,
    errors.DaemonError: StatusCode.INTERNAL,
}
