"""Every error the KV cache raises on purpose, each with what a person needs to act on it.

    KvError                 reason (UPPER_SNAKE, stable), a sentence, a hint that says what to type
    ├── ConfigError         settings that cannot be used                      (exit 78)
    ├── RequestError        a request that can never succeed as it is         (INVALID_ARGUMENT)
    ├── NotFoundError       a store, key, lease or pin that is not there      (NOT_FOUND)
    ├── RefusedError        a record that is not taken now, and why           (told in PutResponse)
    ├── NotBuiltError       a part of the contract that is not served         (UNIMPLEMENTED)
    └── DamagedError        bytes on disk that are not what was written       (DATA_LOSS)

Raised where the cause is known; `rpc` translates them once, `main` prints them once. For the daemon
each of them is a miss.
"""

from ds4_runtime.errors import ReasonedError


class KvError(ReasonedError):
    """What the KV cache raises on purpose."""


class ConfigError(KvError):
    """Settings that cannot be used."""


class RequestError(KvError):
    """A request that can never succeed as it is."""


class NotFoundError(KvError):
    """Something named that is not there."""


class RefusedError(KvError):
    """A record that is not taken now."""


class NotBuiltError(KvError):
    """A part of the contract that is not served."""


class DamagedError(KvError):
    """Bytes on disk that are not what was written."""
