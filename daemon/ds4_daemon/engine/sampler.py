"""Chooses the next token from one row of logits: `choose(logits, sampling, position)`.

Owns the order of the filters, the random number of a position and the logprobs. Knows nothing of
sequences or batches: the result depends on its arguments alone, so the same seed gives the same
text whatever runs beside it. Called by `engine.loop`, once a token.

Order: temperature, top-k, top-p, min-p, as transformers and the public APIs have it, so that a
client's numbers mean here what they mean there. Equal logits: the lowest id comes first.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ds4_daemon.errors import EngineError
from ds4_daemon.sched.sampling import Sampling

# Rows are summed and searched in blocks: a running sum over 129,280 entries takes 1.2 ms, block
# sums 0.04. 64 also makes enough blocks (2,020) to bound a top-k by block maxima.
_BLOCK = 64


class TokenLogprob(NamedTuple):
    """A token and the natural log of its probability under the unmodified logits."""

    id: int
    logprob: float


class Choice(NamedTuple):
    """The chosen token; `logprob` and `top` (most likely first) only where they were asked for."""

    id: int
    logprob: float | None = None
    top: tuple[TokenLogprob, ...] = ()


class Candidates(NamedTuple):
    """What is left after the filters: ids ascending, weights relative to the most likely token."""

    ids: NDArray[np.intp]  # (n,)
    weights: NDArray[np.float32]  # (n,) not normalised; 1.0 for the most likely


def choose(logits: NDArray[np.float32], sampling: Sampling, position: int) -> Choice:
    """The token for `position` (absolute in its sequence) from `logits`, shape (vocab,).

    Raises EngineError when the logits are not numbers.
    """
    best = int(logits.argmax())  # numpy: the first of equals; a NaN counts as the largest
    if not np.isfinite(logits[best]):
        raise EngineError(
            "LOGITS_NOT_FINITE",
            f"the model gave {logits[best]} for token {best}",
            "check the model file; if it is sound, report this",
        )
    if sampling.temperature == 0:
        chosen = best
    else:
        ids, weights = candidates(logits, sampling)
        chosen = int(ids[_draw(weights, uniform(sampling.seed, position))])
    if sampling.top_logprobs is None:
        return Choice(chosen)
    log_total = _log_sum_exp(logits)
    top: tuple[TokenLogprob, ...] = ()
    if sampling.top_logprobs:
        likeliest = _largest(logits, sampling.top_logprobs)
        top = tuple(TokenLogprob(int(i), float(logits[i]) - log_total) for i in likeliest)
    return Choice(chosen, float(logits[chosen]) - log_total, top)


def uniform(seed: int, position: int) -> float:
    """The number in [0, 1) that belongs to (seed, position): 53 bits of counter-based Philox.

    The raw stream is used because numpy promises it never to change.
    """
    raw = np.random.Philox(key=seed, counter=position).random_raw()
    return float(int(raw) >> 11) * 2.0**-53


def candidates(logits: NDArray[np.float32], sampling: Sampling) -> Candidates:
    """Temperature, then top-k, top-p and min-p, each on what the one before it left."""
    weights = logits - logits.max()
    with np.errstate(over="ignore", under="ignore"):  # -inf and 0 are what is meant there
        weights /= np.float32(sampling.temperature)  # in place: fresh pages cost more than the sums
        np.exp(weights, out=weights)
    ids = _all_ids(logits.size)
    if 0 < sampling.top_k < logits.size:
        ids = np.sort(_largest(logits, sampling.top_k))
        weights = weights[ids]
    if sampling.top_p < 1:
        kept = _nucleus(weights, sampling.top_p)
        ids, weights = ids[kept], weights[kept]
    if sampling.min_p > 0:
        kept = np.flatnonzero(weights >= np.float32(sampling.min_p))
        ids, weights = ids[kept], weights[kept]
    return Candidates(ids, weights)


def _largest(values: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Indices of the `count` largest, largest first, lowest index first among equals."""
    count = min(count, values.size)
    whole = values.size // _BLOCK * _BLOCK
    maxima = values[:whole].reshape(-1, _BLOCK).max(axis=1)
    if count <= maxima.size:
        # At least `count` values reach the count-th largest block maximum: drop all below it.
        bound = np.partition(maxima, maxima.size - count)[maxima.size - count]
    else:
        bound = np.partition(values, values.size - count)[values.size - count]
    pool = np.flatnonzero(values >= bound)
    return pool[np.argsort(-values[pool], kind="stable")[:count]]


def _nucleus(weights: NDArray[np.float32], top_p: float) -> NDArray[np.intp]:
    """Indices, ascending, of the fewest largest weights that hold `top_p` of the sum."""
    total = float(weights.sum(dtype=np.float64))
    # All weights below this floor hold less than 1 - top_p together: none is in the nucleus.
    pool = np.flatnonzero(weights >= (1.0 - top_p) * total / weights.size)
    inside = weights[pool]
    # Weights are not negative, so the upper half of their bits orders them: they are counted into
    # buckets by it, and only the bucket where the sum passes `top_p` is sorted.
    bucket = inside.view(np.uint32) >> 16
    above = np.cumsum(np.bincount(bucket, weights=inside)[::-1])  # of a bucket and all larger ones
    place = min(int(np.searchsorted(above, top_p * total)), above.size - 1)
    edge = above.size - 1 - place
    tied = np.flatnonzero(bucket == edge)
    tied = tied[np.argsort(-inside[tied], kind="stable")]
    reached = (above[place - 1] if place else 0.0) + np.cumsum(inside[tied], dtype=np.float64)
    kept = bucket > edge
    kept[tied[: int(np.searchsorted(reached, top_p * total)) + 1]] = True
    return pool[kept]


def _draw(weights: NDArray[np.float32], u: float) -> int:
    """The index whose share of the running sum holds `u` of the whole; never one of weight 0."""
    starts = np.arange(0, weights.size, _BLOCK)
    sums = np.cumsum(np.add.reduceat(weights, starts, dtype=np.float64))
    target = u * sums[-1]
    block = min(int(np.searchsorted(sums, target, side="right")), sums.size - 1)
    before = sums[block - 1] if block else 0.0
    part = weights[block * _BLOCK : (block + 1) * _BLOCK]
    reached = before + np.cumsum(part, dtype=np.float64)
    inside = int(np.searchsorted(reached, target, side="right"))
    if inside < part.size:
        return block * _BLOCK + inside
    # The two ways of summing differ by rounding: the target lies past the last weight above 0.
    return int(np.flatnonzero(weights[: (block + 1) * _BLOCK])[-1])


def _log_sum_exp(logits: NDArray[np.float32]) -> float:
    peak = logits.max()
    with np.errstate(under="ignore"):
        total = np.exp(logits - peak).sum(dtype=np.float64)
    return float(peak) + float(np.log(total))


@cache
def _all_ids(size: int) -> NDArray[np.intp]:
    ids = np.arange(size)
    ids.flags.writeable = False
    return ids
