"""The gRPC status of each class of error; the interceptor in `ds4_runtime.server` applies it."""

from collections.abc import Mapping

from grpc import StatusCode

from ds4_kvcache import errors
from ds4_kvcache.disk import FullError

STATUS_CODES: Mapping[type[Exception], StatusCode] = {
    errors.RequestError: StatusCode.INVALID_ARGUMENT,
    errors.NotFoundError: StatusCode.NOT_FOUND,
    errors.RefusedError: StatusCode.RESOURCE_EXHAUSTED,
    errors.NotBuiltError: StatusCode.UNIMPLEMENTED,
    errors.DamagedError: StatusCode.DATA_LOSS,
    FullError: StatusCode.RESOURCE_EXHAUSTED,
    errors.KvError: StatusCode.INTERNAL,
}
