"""A ds4-daemon that restores every compressed row and every indexer key as zeros.

    python -m tests.wire.kv_zeroed [flags of ds4-daemon]

All else is the daemon's own: what it asks the service for, checks and unpacks, the windows' rows
and the open windows of pooling. So an answer that needs what is thousands of tokens back is lost
exactly where it would have come from those rows. Its requests must not save.
"""

import sys

from ds4_daemon import main
from ds4_daemon.engine.prefix_state import Restoring
from ds4_daemon.kvlink.pack import Record


def put_zeros(self: Restoring, block: int, record: Record) -> None:
    """In place of `Restoring.put_block`."""
    record.rows[:] = 0
    record.keys[:] = 0
    _put_block(self, block, record)


_put_block = Restoring.put_block

if __name__ == "__main__":
    Restoring.put_block = put_zeros  # type: ignore[method-assign]
    sys.exit(main.main())
