"""What a store has done since it was made; kept with it, so that figures outlive the process."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(slots=True)
class Counters:
    """Counts of one store. `misses` is by number of ds4.v1.MissReason."""

    hits: int = 0
    misses: dict[int, int] = field(default_factory=dict)
    tokens_saved: int = 0
    seconds_saved: float = 0.0
    puts: int = 0
    duplicates: int = 0
    drops: int = 0
    evictions: int = 0
    corruptions: int = 0
    quarantines: int = 0
    prefill_tok_s: float = 0.0  # as a daemon last measured it; 0: unknown
    scrub_at: str = ""  # the key that the slow check read last, in hexadecimal; empty: no pass runs
    scrubbed_s: float = 0.0  # when a pass last ended, Unix time

    def miss(self, reason: int) -> None:
        self.misses[reason] = self.misses.get(reason, 0) + 1

    def pack(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def unpack(cls, text: bytes) -> "Counters":
        """Figures are worth no alarm: what cannot be read begins at zero."""
        counters = cls()
        try:
            found: dict[str, Any] = json.loads(text)
            misses = {int(reason): int(count) for reason, count in found.pop("misses").items()}
            for name, value in found.items():
                setattr(counters, name, type(getattr(counters, name))(value))
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
            return cls()
        counters.misses = misses
        return counters
