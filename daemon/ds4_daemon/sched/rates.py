"""How fast this process computes, measured: seconds of a prefill, and of a decode step.

Two straight lines, fitted to what was measured lately: seconds a prompt token over its position
(attention grows with the prefix), and seconds a decode step over the sequences in it. Knows no
model. Fed by `engine`; read by `policy` for its slices and by estimates of waiting.
"""

from dataclasses import dataclass, field

# Each measurement weighs this much of the one after it: a hundred chunks, or steps, count.
_MEMORY = 0.99
# Positions that lie closer together tell nothing about a slope: from a few lines each, 10,000
# tokens were foretold to take seven minutes instead of some ten seconds.
_LEAST_SPREAD_TOKENS = 256.0


@dataclass(slots=True)
class Line:
    """`y = a + b·x` with `a, b ≥ 0`, by least squares over weighted points that fade.

    `b` is 0 while the points' standard deviation in `x` is not above `least_spread`.
    """

    least_spread: float = 0.0
    _n: float = 0.0
    _x: float = 0.0
    _y: float = 0.0
    _xx: float = 0.0
    _xy: float = 0.0

    def add(self, x: float, y: float, weight: float = 1.0) -> None:
        """Count a point."""
        keep = _MEMORY
        self._n = keep * self._n + weight
        self._x = keep * self._x + weight * x
        self._y = keep * self._y + weight * y
        self._xx = keep * self._xx + weight * x * x
        self._xy = keep * self._xy + weight * x * y

    def at(self, x: float) -> float | None:
        """The value there; None while there is no point."""
        if not self._n:
            return None
        mean_x, mean_y = self._x / self._n, self._y / self._n
        spread = self._xx / self._n - mean_x * mean_x
        slope = 0.0
        # Beside the difference of two large squares: what rounding leaves of it.
        if spread > max(self.least_spread**2, 1e-3 * max(mean_x * mean_x, 1.0)):
            slope = max(0.0, (self._xy / self._n - mean_x * mean_y) / spread)
        if slope * mean_x > mean_y:  # through the origin: nothing takes less than no time
            slope = mean_y / mean_x
        return mean_y + slope * (x - mean_x)


@dataclass(slots=True)
class Rates:
    """None while nothing was measured."""

    _prefill: Line = field(default_factory=lambda: Line(_LEAST_SPREAD_TOKENS))
    _decode: Line = field(default_factory=Line)

    def prefilled(self, begin: int, end: int, seconds: float) -> None:
        """The chunk of these positions was computed in so many seconds of work."""
        tokens = end - begin
        # Weighted by tokens: the few of a prompt's last chunk carry its fixed costs.
        self._prefill.add((begin + end) / 2, seconds / tokens, tokens)

    def decoded(self, batch: int, seconds: float) -> None:
        """A step gave so many sequences a token."""
        self._decode.add(batch, seconds)

    def prefill_s(self, begin: int, end: int) -> float | None:
        """Seconds of work that the tokens from `begin` to `end` take."""
        if end <= begin:
            return 0.0
        a_token_s = self._prefill.at((begin + end) / 2)
        return None if a_token_s is None else a_token_s * (end - begin)

    def decode_s(self, batch: int) -> float | None:
        """Seconds of a decode step of so many sequences."""
        return 0.0 if batch <= 0 else self._decode.at(batch)
