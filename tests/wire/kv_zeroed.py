"""A ds4-daemon that restores every compressed row and every indexer key as zeros.

    python -m tests.wire.kv_zeroed [flags of ds4-daemon]

All else is the daemon's own: what it asks the service for, checks and unpacks, the windows' rows
and the open windows of pooling. So an answer that needs what is thousands of tokens back is lost
exactly where it would have come from those rows. Its requests must not save.
"""

import sys

from ds4_daemon import main
from ds4_daemon.engine.prefix_state import Bounded, Restoring
from ds4_daemon.model.state import SessionState


def into_zeroed(self: Restoring, state: SessionState) -> Bounded:
    """In place of `Restoring.into`."""
    entries = self.block_places(0, self.tokens // 128)
    for part in (*entries.rows, *entries.keys):
        part[:] = 0
    return _into(self, state)


_into = Restoring.into

if __name__ == "__main__":
    Restoring.into = into_zeroed  # type: ignore[method-assign]
    sys.exit(main.main())
