"""What the clients of bench/serving ask, and when each of their tokens came.

Prompts are random words that are one token each in the vocabularies used here, so that one text
has the same length for every server, and no two prompts begin alike unless they are meant to. A
`Server` is whatever answers: ds4-daemon over its socket here, an HTTP peer in `serving_peer`.
"""

import itertools
import random
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Protocol, Self

import psutil
from ds4_client import AsyncClient, Delta, Finished, Text

_TEXT = (
    "the of and to in is you that it he was for on are as with his they at be this have from or "
    "one had by word but not what all were we when your can said there use an each which she do "
    "how their if will up other about out many then them these so some her would make like him "
    "into time has look two more write go see number no way could people my than first water been "
    "call who oil its now find long down day did get come made may part"
)
_WORDS = _TEXT.split()

_numbers = itertools.count(1)


class Texts:
    """Prompts of a known length; the same seed draws the same ones."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def draw(self, tokens: int, beginning: str = "") -> str:
        """A text of `tokens` tokens, the one before all text included."""
        have = 1 + beginning.count(" ")
        drawn = self.random.choices(_WORDS, k=max(tokens - have, 1))
        return beginning + "".join(f" {word}" for word in drawn)


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. Its answer is `max_tokens` long, whatever the model would say."""

    client: str
    text: str
    max_tokens: int
    salt: str = ""
    reuse: bool = False  # False: nothing cached is used or kept

    @property
    def prompt_tokens(self) -> int:
        return 1 + self.text.count(" ")


@dataclass(slots=True)
class Answer:
    """What came back for a request: when each event came, and how many tokens it had."""

    ask: Ask
    sent_s: float
    events: list[tuple[float, int]] = field(default_factory=list)
    cached_tokens: int = 0
    error: str = ""

    @property
    def ttft_s(self) -> float:
        return self.events[0][0] - self.sent_s

    @property
    def end_s(self) -> float:
        return self.events[-1][0]

    @property
    def tokens(self) -> int:
        return sum(count for _, count in self.events)

    def gaps(self) -> list[tuple[float, float]]:
        """(begin, end) between an event with tokens and the next one: what a reader waits for."""
        times = [at for at, _ in self.events]
        return list(itertools.pairwise(times))


class Server(Protocol):
    """One that answers. `answer` grows in the eyes of the caller while the request runs."""

    @property
    def pid(self) -> int: ...

    async def ask(self, ask: Ask, answer: Answer) -> None: ...


async def answered(server: Server, ask: Ask, into: Answer | None = None) -> Answer:
    """The whole answer. Raises RuntimeError for one that is not as long as was asked."""
    answer = into if into is not None else begun(ask)
    answer.sent_s = time.perf_counter()
    await server.ask(ask, answer)
    if answer.tokens != ask.max_tokens:
        raise RuntimeError(f"{answer.tokens} tokens came where {ask.max_tokens} were asked for")
    return answer


def begun(ask: Ask) -> Answer:
    return Answer(ask, time.perf_counter())


async def one_by_one(server: Server, asks: Iterable[Ask]) -> list[Answer]:
    """A closed loop: each request is sent when the one before is answered."""
    return [await answered(server, ask) for ask in asks]


class Daemon:
    """ds4-daemon: a connection for each client name, as programs of their own would have."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._clients: dict[str, AsyncClient] = {}
        self.pid = 0

    def client(self, name: str) -> AsyncClient:
        """The connection of this client."""
        if name not in self._clients:
            self._clients[name] = AsyncClient(self._home, name=name)
        return self._clients[name]

    async def ask(self, ask: Ask, answer: Answer) -> None:
        async with aclosing(self._events(ask)) as events:
            async for event in events:
                if isinstance(event, Delta) and event.token_ids:
                    answer.events.append((time.perf_counter(), len(event.token_ids)))
                elif isinstance(event, Finished):
                    used = event.usage
                    answer.cached_tokens = used.cached_live_tokens + used.cached_restored_tokens

    async def _events(self, ask: Ask) -> AsyncGenerator[object, None]:
        async with self.client(ask.client).generate(
            Text(ask.text),
            max_tokens=ask.max_tokens,
            ignore_eos=True,
            temperature=0.0,
            request_id=f"bench-{next(_numbers)}-{ask.client}",
            salt=ask.salt,
            bypass_cache=not ask.reuse,
            no_save=not ask.reuse,
        ) as stream:
            async for event in stream:
                yield event

    async def close(self) -> None:
        for client in self._clients.values():
            await client.close()

    async def __aenter__(self) -> Self:
        self.pid = (await self.client("warm").status()).process.pid
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class Busy:
    """Shares of all processors between two moments: the server's, this process's, and others'."""

    def __init__(self, pid: int) -> None:
        self._server, self._self = psutil.Process(pid), psutil.Process()
        self._began = self._now()

    def _now(self) -> tuple[float, float, float, float]:
        cpu = psutil.cpu_times()
        idle = cpu.idle + getattr(cpu, "iowait", 0.0)
        return sum(cpu), idle, _seconds(self._server), _seconds(self._self)

    def shares(self) -> dict[str, float]:
        """Since this was made. A figure beside much of `others` is one of a disturbed machine."""
        total, idle, server, mine = (
            now - was for now, was in zip(self._now(), self._began, strict=True)
        )
        total = max(total, 1e-9)
        others = max(total - idle - server - mine, 0.0)
        return {
            "server": round(server / total, 3),
            "clients": round(mine / total, 3),
            "others": round(others / total, 3),
        }


def _seconds(process: psutil.Process) -> float:
    used = process.cpu_times()
    return float(used.user + used.system)


def processor_s(server: Server) -> float:
    """Processor time that the server has used; it drifts less than time does where others work."""
    return _seconds(psutil.Process(server.pid))


def percentiles(values: list[float]) -> dict[str, float]:
    """p50, p95 and p99 in ms; of fewer than two values, what there is."""
    if len(values) < 2:
        values = [*values, *values] or [0.0, 0.0]
    cuts = quantiles(values, n=100, method="inclusive")
    return {
        name: round(1000 * cuts[n - 1], 1) for name, n in (("p50", 50), ("p95", 95), ("p99", 99))
    }


def jain(shares: list[float]) -> float:
    """Jain's index: 1 where all have the same, 1/n where one has everything."""
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 0.0
