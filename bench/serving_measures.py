"""The measurements of bench/serving: each asks a `Server` and returns its figures.

What is compared is measured in turns within one run, because the speed of a shared machine drifts.
Prompts are drawn anew for each request, so that nothing cached can answer; only `mixed` shares
beginnings, on purpose.
"""

import asyncio
import time
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

from bench.serving_load import (
    Answer,
    Ask,
    Busy,
    Server,
    Texts,
    answered,
    begun,
    jain,
    one_by_one,
    percentiles,
    processor_s,
)

CLIENTS = 8
STREAMS = 4
SHORT_TOKENS = 12  # one line
# Where in the long prefill the one-line requests arrive.
ARRIVALS = (0.15, 0.4, 0.65)
# For all streams to run side by side; a server that answers one after another never gets there.
_TOGETHER_S = 60.0


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    repeats: int
    long_tokens: int  # the prompt that disturbs the others
    turns: int  # requests of each closed-loop client
    answer_tokens: int  # of these
    counts: tuple[int, ...]  # clients of the mixed traffic
    requests: int  # least of one row of the mixed traffic


async def speedup(server: Server, texts: Texts, size: Size) -> dict[str, Any]:
    """Tokens a second of eight closed-loop clients with equal work, beside one; and Jain's index.

    A client's share is its tokens a second over its own time, so that one who finishes late shows.
    `speedup_8_processor` is the same ratio in processor time: what a batch saves of the work.
    """

    def work(name: str) -> list[Ask]:
        return [Ask(name, texts.draw(100), size.answer_tokens) for _ in range(size.turns)]

    ratios, indexes, ones, alls, costs = [], [], [], [], []
    for _ in range(size.repeats):
        began_s, used_s = time.perf_counter(), processor_s(server)
        done = await one_by_one(server, work("one"))
        one = sum(a.tokens for a in done) / (time.perf_counter() - began_s)
        one_cost_s = processor_s(server) - used_s
        began_s, used_s = time.perf_counter(), processor_s(server)
        each = await asyncio.gather(
            *(one_by_one(server, work(f"client-{i}")) for i in range(CLIENTS))
        )
        whole = sum(a.tokens for mine in each for a in mine) / (time.perf_counter() - began_s)
        costs.append(CLIENTS * one_cost_s / (processor_s(server) - used_s))
        ones.append(one)
        alls.append(whole)
        ratios.append(whole / one)
        indexes.append(jain([_rate(mine, began_s) for mine in each]))
    return {
        "speedup_8": median(ratios),
        "speedup_8_processor": median(costs),
        "jain_equal": min(indexes),
        "one_tok_s": median(ones),
        "eight_tok_s": median(alls),
    }


async def unequal_prompts(server: Server, texts: Texts, size: Size) -> dict[str, Any]:
    """Jain's index over clients with the same work in another order: prompts of 50 to 2,000 tokens.

    In such traffic, serving requests in turn favours whoever happens to have short ones.
    """
    lengths = (50, 300, 1000, 2000) if size.long_tokens >= 8000 else (50, 100, 200, 400)

    def work(number: int) -> list[Ask]:
        turned = lengths[number % 4 :] + lengths[: number % 4]
        return [Ask(f"equal-{number}", texts.draw(n), 32) for n in turned]

    began_s = time.perf_counter()
    each = await asyncio.gather(*(one_by_one(server, work(i)) for i in range(CLIENTS)))
    return {"jain_mixed": jain([_rate(mine, began_s) for mine in each])}


async def crowd(server: Server, texts: Texts, size: Size) -> dict[str, Any]:
    """A client with one stream beside one with eight: its share of the tokens.

    A step gives a stream one token, so it is 1/9 where all fit one step, as in ds4: holding the
    eight back would cost them more than it gives the one.
    """
    single = begun(Ask("single", texts.draw(50), 8 * size.answer_tokens))
    many = [begun(Ask("crowd", texts.draw(50), 8 * size.answer_tokens)) for _ in range(CLIENTS)]
    tasks = [asyncio.create_task(answered(server, a.ask, a)) for a in (single, *many)]
    try:
        await _until_all_decode(tasks, [single, *many], 8)
        before = [a.tokens for a in (single, *many)]
        while max(a.tokens for a in (single, *many)) < 4 * size.answer_tokens:
            await asyncio.sleep(0.05)
            _raise_failed(tasks)
        after = [a.tokens for a in (single, *many)]
    finally:
        await _cancel(tasks)
    gained = [b - a for a, b in zip(before, after, strict=True)]
    return {"single_beside_crowd_share": gained[0] / sum(gained)}


async def short_in_long(server: Server, texts: Texts, size: Size) -> dict[str, Any]:
    """One-line requests that arrive during a long prefill of another client: time to first token.

    `short_ttft_ratio` is that of the slowest of them ÷ the long prefill's time alone.
    """
    ratios, alone, slowest = [], [], []
    for _ in range(size.repeats):
        alone_s = (await answered(server, Ask("long", texts.draw(size.long_tokens), 1))).ttft_s
        long = asyncio.create_task(answered(server, Ask("long", texts.draw(size.long_tokens), 1)))
        began_s, ttfts = time.perf_counter(), []
        for share in ARRIVALS:
            await asyncio.sleep(max(began_s + share * alone_s - time.perf_counter(), 0))
            if long.done():
                break
            ttfts.append((await answered(server, _line(texts))).ttft_s)
        await long
        if not ttfts:
            raise RuntimeError("the long prefill was over before a short request could arrive")
        alone.append(alone_s)
        slowest.append(max(ttfts))
        ratios.append(max(ttfts) / alone_s)
    return {
        "short_ttft_ratio": median(ratios),
        "short_ttft_s": median(slowest),
        "prefill_alone_s": median(alone),
    }


def _line(texts: Texts) -> Ask:
    return Ask("short", texts.draw(SHORT_TOKENS), 2)


async def streams_in_long(server: Server, texts: Texts, size: Size) -> dict[str, Any]:
    """Inter-token times of running streams with and without a long prefill beside them, and its
    time beside them ÷ alone. `alone` is measured before and after, and averaged."""
    p95s, ratios, stretches, worst = [], [], [], []
    for _ in range(size.repeats):
        before_s = await _prefill_s(server, texts, size)
        streams = [begun(Ask(f"stream-{i}", texts.draw(50), 20_000)) for i in range(STREAMS)]
        tasks = [asyncio.create_task(answered(server, a.ask, a)) for a in streams]
        try:
            await _until_all_decode(tasks, streams, 16)
            quiet_s = time.perf_counter()
            await asyncio.sleep(max(before_s / 2, 3.0))
            began_s = time.perf_counter()
            beside_s = await _prefill_s(server, texts, size)
            end_s = time.perf_counter()
            _raise_failed(tasks)
        finally:
            await _cancel(tasks)
        gaps = [gap for one in streams for gap in one.gaps()]
        without = [b - a for a, b in gaps if a >= quiet_s and b <= began_s]
        during = [b - a for a, b in gaps if b > began_s and a < end_s]
        # A stream that got nothing at all has one gap that is still open.
        during += [end_s - one.end_s for one in streams if one.end_s < began_s]
        after_s = await _prefill_s(server, texts, size)
        p95, p95_quiet = percentiles(during)["p95"], percentiles(without)["p95"]
        p95s.append(p95)
        ratios.append(p95 / p95_quiet)
        worst.append(1000 * max(during))
        stretches.append(beside_s / mean((before_s, after_s)))
    return {
        "itl_p95_ratio": median(ratios),
        "prefill_stretch": median(stretches),
        "itl_p95_ms": median(p95s),
        "itl_worst_ms": max(worst),
    }


async def _prefill_s(server: Server, texts: Texts, size: Size) -> float:
    return (await answered(server, Ask("long", texts.draw(size.long_tokens), 1))).ttft_s


async def mixed(
    server: Server, texts: Texts, size: Size, clients: int, service_s: float
) -> dict[str, Any]:
    """Poisson arrivals of `clients` clients: prompts from 50 tokens to the long one, log-uniform.

    Half of those that are long enough begin with one of three earlier prompts. Each client sends
    one request in six times `service_s`, what one takes alone: below four clients the server is
    idle most of the time, with sixteen more comes in than it can do, until all is sent.

    All clients ask for the same work, but not at the same times, so `jain` is no measure of the
    server alone: who sends two requests close together waits for himself, and who comes last finds
    the server idle. `speedup` and `unequal_prompts` measure fairness between equal clients.
    """
    salt = f"mixed-{texts.random.getrandbits(64):x}"
    beginnings = [texts.draw(size.long_tokens // 8) for _ in range(3)]
    # As prompts of their own first: a state can be gone on from at the end of a prompt.
    await one_by_one(server, [Ask("warm", text, 1, salt, reuse=True) for text in beginnings])
    each = max(size.requests // clients, 4)  # with fewer, none or all of the long ones would share

    def plan_of(number: int) -> list[tuple[float, Ask]]:
        # Every client has the same lengths in another order, of which the same ones are shared, so
        # that their demands are equal.
        steps = [(step + 0.5) / each for step in range(each)]
        lengths = [int(50 * (size.long_tokens / 50) ** step) for step in steps]
        sharing = [n for n in lengths if n > size.long_tokens // 8][::2]
        texts.random.shuffle(lengths)
        return [
            (texts.random.expovariate(1 / (6 * service_s)), ask(number, n, n in sharing))
            for n in lengths
        ]

    def ask(number: int, length: int, shares: bool) -> Ask:
        shared = texts.random.choice(beginnings) if shares else ""
        return Ask(f"mix-{number}", texts.draw(length, shared), 64, salt, reuse=True)

    plans = [plan_of(number) for number in range(clients)]

    async def client(plan: list[tuple[float, Ask]]) -> list[Answer]:
        tasks, due_s = [], time.perf_counter()
        for wait_s, ask in plan:
            due_s += wait_s  # an open loop: the next one does not wait for this one's answer
            await asyncio.sleep(max(due_s - time.perf_counter(), 0))
            tasks.append(asyncio.create_task(answered(server, ask)))
        return list(await asyncio.gather(*tasks))

    began_s, busy = time.perf_counter(), Busy(server.pid)
    answers = await asyncio.gather(*(client(plan) for plan in plans))
    took_s = time.perf_counter() - began_s
    flat = [a for mine in answers for a in mine]
    prompt_tokens = sum(a.ask.prompt_tokens for a in flat)
    return {
        "clients": clients,
        "requests": len(flat),
        "seconds": round(took_s, 1),
        "answer_tok_s": round(sum(a.tokens for a in flat) / took_s, 1),
        "prompt_tok_s": round(prompt_tokens / took_s, 1),
        "cached_share": round(sum(a.cached_tokens for a in flat) / prompt_tokens, 3),
        "ttft_ms": percentiles([a.ttft_s for a in flat]),
        "itl_ms": percentiles([b - a for one in flat for a, b in one.gaps()]),
        "jain": round(jain([_speed(mine) for mine in answers]), 3),
        "busy": busy.shares(),
    }


def _speed(answers: list[Answer]) -> float:
    """Tokens of work a second of waiting: from sending each request to its end."""
    work = sum(a.ask.prompt_tokens + a.tokens for a in answers)
    return work / sum(a.end_s - a.sent_s for a in answers)


def _rate(answers: list[Answer], began_s: float) -> float:
    work = sum(a.ask.prompt_tokens + a.tokens for a in answers)
    return work / (answers[-1].end_s - began_s)


async def _until_all_decode(
    tasks: list[asyncio.Task[Answer]], streams: list[Answer], tokens: int
) -> None:
    end_s = time.perf_counter() + _TOGETHER_S
    while min(a.tokens for a in streams) < tokens:
        if time.perf_counter() > end_s:
            going = sum(a.tokens >= tokens for a in streams)
            raise RuntimeError(f"after {_TOGETHER_S:.0f} s {going} of {len(streams)} streams run")
        await asyncio.sleep(0.02)
        _raise_failed(tasks)


def _raise_failed(tasks: list[asyncio.Task[Answer]]) -> None:
    for task in tasks:
        if task.done():
            task.result()


async def _cancel(tasks: list[asyncio.Task[Answer]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
