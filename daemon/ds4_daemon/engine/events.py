"""What the engine tells of a sequence: it advanced, a token was chosen, it ended."""

import asyncio
from typing import NamedTuple

from ds4_daemon.engine.sampler import Choice
from ds4_daemon.errors import DaemonError
from ds4_daemon.sched.sequence import Finish


class Advanced(NamedTuple):
    """A chunk of the prompt was computed; the sequence's counters say how far it is."""


class Generated(NamedTuple):
    """A token was chosen."""

    choice: Choice


class Ended(NamedTuple):
    """Nothing follows. `error` with ERROR only."""

    finish: Finish
    error: DaemonError | None = None


Event = Advanced | Generated | Ended
Events = asyncio.Queue[Event]
