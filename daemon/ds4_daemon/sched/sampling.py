"""What a request asks of the sampler: plain numbers, checked when they are made.

Owns the ranges and their reasons. Knows no logits: `engine.sampler` applies these numbers, `rpc`
makes them from a request, and the sequence carries them through the scheduler untouched.
"""

import math
from dataclasses import dataclass

from ds4_daemon.errors import RequestError

# Below this a float32 logit difference divided by the temperature stops meaning anything; above 2,
# the limit of the public APIs, nothing but noise was ever seen.
MIN_TEMPERATURE = 1e-6
MAX_TEMPERATURE = 2.0
# What the public APIs of the field allow; each one costs 12 bytes a token on the way out.
MAX_TOP_LOGPROBS = 20
MAX_SEED = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Sampling:
    """Defaults are greedy. `top_k` 0, `top_p` 1 and `min_p` 0 each switch their filter off.

    `top_logprobs` None: no logprobs; 0: of the chosen token only; n: and of the n most likely.
    Raises RequestError for a value out of its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    top_logprobs: int | None = None

    def __post_init__(self) -> None:
        t = self.temperature
        if not (t == 0 or (math.isfinite(t) and MIN_TEMPERATURE <= t <= MAX_TEMPERATURE)):
            raise RequestError(
                "TEMPERATURE_OUT_OF_RANGE",
                f"temperature is {t}",
                f"use 0 for greedy, or {MIN_TEMPERATURE} to {MAX_TEMPERATURE:g}",
            )
        if self.top_k < 0:
            raise RequestError(
                "TOP_K_OUT_OF_RANGE", f"top_k is {self.top_k}", "use 0 for no limit, or 1 and more"
            )
        if not 0 < self.top_p <= 1:  # also false for NaN
            raise RequestError(
                "TOP_P_OUT_OF_RANGE", f"top_p is {self.top_p}", "use more than 0 and at most 1"
            )
        if not 0 <= self.min_p <= 1:
            raise RequestError("MIN_P_OUT_OF_RANGE", f"min_p is {self.min_p}", "use 0 to 1")
        if not 0 <= self.seed <= MAX_SEED:
            raise RequestError(
                "SEED_OUT_OF_RANGE", f"seed is {self.seed}", "use an unsigned 64-bit number"
            )
        if self.top_logprobs is not None and not 0 <= self.top_logprobs <= MAX_TOP_LOGPROBS:
            raise RequestError(
                "TOP_LOGPROBS_OUT_OF_RANGE",
                f"top_logprobs is {self.top_logprobs}",
                f"use 0 to {MAX_TOP_LOGPROBS}",
            )
