"""Why (part of) a prompt had to be computed although a cache exists: words that all layers share.

The values are those of the contract's MissReason, which `rpc` sends and `kvlink` receives.
"""

import enum


class Miss(enum.Enum):
    """See ds4.v1.MissReason for what each means."""

    NONE = 0
    COLD = 1
    TOO_SHORT = 2
    DIVERGED = 3
    EVICTED = 4
    NO_CHECKPOINT = 5
    FINGERPRINT = 6
    SALT = 7
    NOT_WORTH_IT = 8
    TIMEOUT = 9
    UNAVAILABLE = 10
    CORRUPT = 11
    RESTORE_FAILED = 12
    DISABLED = 13
    BYPASSED = 14
