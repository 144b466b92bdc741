"""What the engine did since it started, and how fast lately. Written by it, read by `rpc.admin`."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Rate:
    """Tokens a second over the last steps: each step weighs nine tenths of the one after it."""

    _tokens: float = 0.0
    _seconds: float = 0.0

    def add(self, tokens: int, seconds: float) -> None:
        """Count a step that ran `tokens` of this kind."""
        self._tokens = 0.9 * self._tokens + tokens
        self._seconds = 0.9 * self._seconds + seconds

    @property
    def tokens_per_s(self) -> float:
        """0 while unknown."""
        return self._tokens / self._seconds if self._seconds else 0.0


@dataclass(slots=True)
class Totals:
    """Counts since the start. Each field has one writer: the event loop or the engine's thread."""

    requests: int = 0  # the event loop's, as are the next four
    refused: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    prefilled_tokens: int = 0  # the engine's, as are the rest
    cached_live_tokens: int = 0
    cached_restored_tokens: int = 0
    generated_tokens: int = 0
    steps: int = 0
    failed_steps_in_a_row: int = 0
    busy_s: float = 0.0
    last_step_s: float | None = None  # of time.monotonic
    prefill: Rate = field(default_factory=Rate)
    decode: Rate = field(default_factory=Rate)
