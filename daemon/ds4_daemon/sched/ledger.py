"""What each client was given, as virtual time: tokens of work over its weight.

Owns the books of the fair share and the terms of clients. Who has the least virtual time goes first
(`policy`), and a client that comes back begins level with those that stayed, so that nobody saves
up. Written by the engine's thread alone; knows no sequence and no clock.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

# A decoded token costs as much as some tokens of a prompt, which share the reading of the weights:
# on the embedded model and a CPU about 10 where one sequence decodes, 4 where eight do.
DECODED_TOKEN_WORK = 8


@dataclass(frozen=True, slots=True)
class ClientTerms:
    """What the settings allow one client. `weight`: its share against that of the others."""

    weight: float = 1.0
    max_running: int | None = None  # None: as many as the daemon runs
    max_waiting: int | None = None


@dataclass(slots=True)
class Ledger:
    """`terms` by client name; all others have `default`."""

    terms: Mapping[str, ClientTerms] = field(default_factory=dict)
    default: ClientTerms = ClientTerms()
    # Whether the last prefill turn was one of the lane for short prompts: they take turns with the
    # rest, so that neither stream of them starves the other.
    short_turn: bool = False
    # Prefill turns since one was given for having waited long: those may not crowd out the urgent.
    turns_since_aged: int = 0
    _served: dict[str, float] = field(default_factory=dict)
    _active: frozenset[str] = frozenset()

    def of(self, client: str) -> ClientTerms:
        """The terms of one client."""
        return self.terms.get(client, self.default)

    def served(self, client: str) -> float:
        """Its virtual time, in tokens of work."""
        return self._served.get(client, 0.0)

    def serve(self, client: str, work_tokens: float) -> None:
        """It was given so much work."""
        self._served[client] = self.served(client) + work_tokens / self.of(client).weight

    def turn(self, *, short: bool, aged: bool) -> None:
        """A prefill turn was given to a short prompt or not, for its patience's end or not."""
        self.short_turn = short
        self.turns_since_aged = 0 if aged else self.turns_since_aged + 1

    def activate(self, clients: Iterable[str]) -> None:
        """These have requests now. Those that are new begin level with the least of the others."""
        active = frozenset(clients)
        if active == self._active:
            return
        stayed = [self.served(name) for name in active & self._active]
        # Where nobody stayed the books are begun anew: no old debt tells who comes first now.
        level = min(stayed, default=0.0)
        kept = {name: self.served(name) for name in self._served} if stayed else {}
        # One that left keeps only what it is ahead: there is no more to know of it.
        self._served = {name: at for name, at in kept.items() if name in active or at > level}
        for name in active - self._active:
            self._served[name] = max(self.served(name), level)
        self._active = active
