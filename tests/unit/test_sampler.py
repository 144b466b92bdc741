"""The sampler against transformers' warpers, against chi-square, and against its own promises."""

import itertools
import math
import time

import numpy as np
import pytest
import torch
from ds4_daemon.engine.sampler import candidates, choose, uniform
from ds4_daemon.errors import EngineError, RequestError
from ds4_daemon.sched.sampling import Sampling
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

VOCAB = 129_280


def logits_row(seed: int, size: int = 5_000, spread: float = 2.5) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(size) * spread).astype(np.float32)


def reference(logits: np.ndarray, s: Sampling) -> np.ndarray:
    """Probabilities as transformers' `generate` computes them: float64, 0 where filtered out."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(s.temperature)])
    if s.top_k:
        warpers.append(TopKLogitsWarper(s.top_k))
    if s.top_p < 1:
        warpers.append(TopPLogitsWarper(s.top_p))
    if s.min_p:
        warpers.append(MinPLogitsWarper(s.min_p))
    scores = warpers(None, torch.from_numpy(logits.astype(np.float64))[None])
    odds: np.ndarray = torch.softmax(scores, dim=-1)[0].numpy()
    return odds


@pytest.mark.parametrize("size", [7, 300, 5_000])
def test_filters_equal_transformers(size: int) -> None:
    """Each combination of filters keeps the tokens, with the odds, that transformers keeps."""
    grid = itertools.product((0.3, 1.0, 1.7), (0, 1, 5, 400), (1.0, 0.9, 0.35), (0.0, 0.02, 1.0))
    for seed, (temperature, top_k, top_p, min_p) in enumerate(grid):
        logits = logits_row(seed, size)
        sampling = Sampling(temperature, top_k, top_p, min_p)
        expected = reference(logits, sampling)
        ids, weights = candidates(logits, sampling)
        assert np.array_equal(ids, np.flatnonzero(expected)), sampling
        assert np.allclose(weights / weights.sum(), expected[ids], rtol=1e-4), sampling


@pytest.mark.parametrize("sampling", [Sampling(1.0), Sampling(0.8, top_k=40, top_p=0.95)])
def test_draws_follow_the_distribution(sampling: Sampling) -> None:
    """20,000 draws over positions fit the expected distribution (chi-square, 1 in 10,000)."""
    logits = logits_row(1, 60, 1.0)
    expected = reference(logits, sampling) * 20_000
    drawn = [choose(logits, sampling, position).id for position in range(20_000)]
    counts = np.bincount(drawn, minlength=60)
    assert not counts[expected == 0].any()
    kept = expected > 0
    statistic = float(((counts - expected)[kept] ** 2 / expected[kept]).sum())
    freedom = int(kept.sum()) - 1
    # Wilson-Hilferty: the cube root of chi-square over its freedom is nearly normal; 3.72 sigma.
    spread = 2 / (9 * freedom)
    assert statistic < freedom * (1 - spread + 3.72 * math.sqrt(spread)) ** 3


def test_uniform_is_uniform_in_positions_and_seeds() -> None:
    """Neighbouring positions and neighbouring seeds give unrelated numbers."""
    grid = np.array([[uniform(seed, p) for p in range(400)] for seed in range(50)])
    assert (grid >= 0).all()
    assert (grid < 1).all()
    assert abs(grid.mean() - 0.5) < 0.01
    for moved in (grid[1:] * grid[:-1], grid[:, 1:] * grid[:, :-1]):
        assert abs(moved.mean() - 0.25) < 0.01  # independent: the product's mean is 1/4


def test_number_of_a_position_never_changes() -> None:
    """The number of (seed, position) is part of the contract: these values are pinned."""
    assert uniform(0, 0) == 0.011546754286331562
    assert uniform(2**64 - 1, 1_000_000) == 0.4614255439484173


def test_same_arguments_same_token() -> None:
    """A draw depends on logits, sampling, seed and position, and on nothing drawn before."""
    logits = logits_row(3)
    sampling = Sampling(1.0, seed=11)
    forward = [choose(logits, sampling, p).id for p in range(50)]
    backward = [choose(logits, sampling, p).id for p in reversed(range(50))]
    assert forward == backward[::-1]
    assert forward != [choose(logits, Sampling(1.0, seed=12), p).id for p in range(50)]


def test_greedy_takes_the_lowest_of_equals() -> None:
    """With temperature 0 the largest logit wins, and the lowest id among equals."""
    logits = np.zeros(300, np.float32)
    logits[[200, 77, 250]] = 4.0
    assert choose(logits, Sampling(), 0).id == 77


def test_top_k_keeps_the_lowest_of_equals() -> None:
    """A tie at the edge of top-k, or of the nucleus, is cut by id: exactly k stay."""
    flat = np.zeros(1_000, np.float32)
    assert candidates(flat, Sampling(1.0, top_k=3)).ids.tolist() == [0, 1, 2]
    assert candidates(flat, Sampling(1.0, top_p=0.0101)).ids.tolist() == list(range(11))


def test_logprobs_are_of_the_unmodified_logits() -> None:
    """Logprobs are log-softmax of the raw logits, whatever temperature and filters do."""
    logits = logits_row(5)
    expected = torch.log_softmax(torch.from_numpy(logits.astype(np.float64)), dim=-1).numpy()
    choice = choose(logits, Sampling(0.5, top_k=4, seed=1, top_logprobs=20), 9)
    assert choice.logprob == pytest.approx(expected[choice.id], abs=1e-5)
    order = np.argsort(-expected, kind="stable")[:20]
    assert [t.id for t in choice.top] == order.tolist()
    assert [t.logprob for t in choice.top] == pytest.approx(expected[order].tolist(), abs=1e-5)


def test_logprobs_only_where_asked() -> None:
    """No logprobs unless asked; with 0 asked, the chosen token's alone."""
    logits = logits_row(5)
    assert choose(logits, Sampling(), 0).logprob is None
    chosen_only = choose(logits, Sampling(top_logprobs=0), 0)
    assert chosen_only.logprob is not None
    assert chosen_only.top == ()


@pytest.mark.parametrize("extreme", [1e-6, 1e-3, 2.0])
def test_extreme_temperatures_stay_finite(extreme: float) -> None:
    """Logits of +-1e4 (and -inf) at the ends of the temperature range give a valid token."""
    logits = logits_row(8, 400, 3e3)
    logits[:100] = -np.inf
    for position in range(200):
        token = choose(logits, Sampling(extreme, top_p=0.999), position).id
        assert 100 <= token < 400
    if extreme < 1:
        assert token == int(logits.argmax())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_an_engine_error(bad: float) -> None:
    """A NaN or an infinity from the model is a named error, never a token."""
    logits = logits_row(8, 400)
    logits[17] = bad
    with pytest.raises(EngineError) as caught:
        choose(logits, Sampling(1.0), 0)
    assert caught.value.reason == "LOGITS_NOT_FINITE"


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("temperature", -0.1, "TEMPERATURE_OUT_OF_RANGE"),
        ("temperature", math.nan, "TEMPERATURE_OUT_OF_RANGE"),
        ("temperature", math.inf, "TEMPERATURE_OUT_OF_RANGE"),
        ("temperature", 2.1, "TEMPERATURE_OUT_OF_RANGE"),
        ("temperature", 1e-9, "TEMPERATURE_OUT_OF_RANGE"),
        ("top_k", -1, "TOP_K_OUT_OF_RANGE"),
        ("top_p", 0.0, "TOP_P_OUT_OF_RANGE"),
        ("top_p", 1.01, "TOP_P_OUT_OF_RANGE"),
        ("top_p", math.nan, "TOP_P_OUT_OF_RANGE"),
        ("min_p", -0.1, "MIN_P_OUT_OF_RANGE"),
        ("min_p", 1.01, "MIN_P_OUT_OF_RANGE"),
        ("min_p", math.nan, "MIN_P_OUT_OF_RANGE"),
        ("seed", -1, "SEED_OUT_OF_RANGE"),
        ("seed", 2**64, "SEED_OUT_OF_RANGE"),
        ("top_logprobs", 21, "TOP_LOGPROBS_OUT_OF_RANGE"),
    ],
)
def test_values_out_of_range_are_named(field: str, value: float, reason: str) -> None:
    """Every value outside its range is refused with its own reason and a hint."""
    with pytest.raises(RequestError) as caught:
        Sampling(**{field: value})  # type: ignore[arg-type]
    assert caught.value.reason == reason
    assert caught.value.hint


def test_quick_at_the_true_vocabulary() -> None:
    """A choice among 129,280 tokens costs well under the time of a decode step."""
    logits = logits_row(2, VOCAB, 3.0)
    logits[:50] += 12  # peaked, as a trained model's are
    for sampling in (Sampling(), Sampling(1.0), Sampling(0.7, 50, 0.95, 0.02, top_logprobs=20)):
        times_ms = []
        for position in range(30):
            began = time.perf_counter()
            choose(logits, sampling, position)
            times_ms.append((time.perf_counter() - began) * 1e3)
        assert sorted(times_ms)[10] < 3, sampling  # measured 0.01 to 0.8; slack for busy machines
