"""What the journal holds at any moment of an answer is enough to go on with it as it would have."""

import asyncio
import os
import time
from collections.abc import Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from ds4.v1 import inference_pb2 as pb
from ds4.v1 import types_pb2
from ds4_daemon import standin
from ds4_daemon.engine.loop import Engine
from ds4_daemon.errors import NotFoundError, UnavailableError
from ds4_daemon.journal.folder import Journal
from ds4_daemon.journal.records import MARK, Kind, pack, read
from ds4_daemon.rpc.accept import Acceptance, digest
from ds4_daemon.rpc.kept import KeptRequests
from ds4_daemon.rpc.request import Requests
from ds4_daemon.rpc.resume import Resumption
from ds4_daemon.rpc.stream import follow
from ds4_daemon.sched.sampling import Sampling
from ds4_daemon.text.chat import APRIL
from ds4_daemon.text.tokenizer import Prompt, Tokenizer

from tests.wire.test_stream import CALL, LIMITS, SPECIAL, Recital

CHAT = types_pb2.Conversation(
    messages=[types_pb2.Message(role=types_pb2.ROLE_USER, content="Hi")],
    tools=[types_pb2.Tool(name="look")],
    thinking_mode=types_pb2.THINKING_MODE_ON,
)


def asked(**more: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        request_id="r",
        client=types_pb2.ClientInfo(name="test", instance="7"),
        prompt=more.pop("prompt", pb.Prompt(conversation=CHAT)),
        sampling=types_pb2.Sampling(temperature=0, **more),
        detach=True,
    )


class Place:
    """A daemon without its wire, that recites a text, on a folder of its own."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, text: str = CALL) -> None:
        self.folder = folder
        self.tokenizer = tokenizer
        self.ids = tokenizer.encode_prompt(Prompt(text, [m.span() for m in SPECIAL.finditer(text)]))
        self.token_s = 0.002

    @property
    def file(self) -> Path:
        (file,) = self.folder.glob("*.journal")
        return file

    def live(
        self,
        body: Callable[
            [Acceptance, Callable[..., Coroutine[Any, Any, Any]]], Coroutine[Any, Any, Any]
        ],
        **more: Any,
    ) -> Any:
        """What `body` returns, run between start and stop."""

        async def main() -> Any:
            async with self._alive(**more) as (acceptance, tell):
                return await asyncio.wait_for(body(acceptance, tell), 30)

        return asyncio.run(main())

    @asynccontextmanager
    async def _alive(self, model: str = "m", keep_s: float = 60.0, prompt_tokens: int = 0) -> Any:
        requests = Requests(self.tokenizer, self.tokenizer.vocab_size, 10_000, Sampling(), APRIL)
        spoken = prompt_tokens or len(requests.prompt(asked().prompt).ids)
        network = Recital(self.ids, self.tokenizer.vocab_size, spoken, 0.0, self.token_s)
        engine = Engine(lambda: network, LIMITS, 4)
        journal = Journal(self.folder, 10**6)
        acceptance = Acceptance(engine, self.tokenizer, journal, KeptRequests(keep_s, 10**6))
        resumption = Resumption(engine, requests, acceptance, journal, model)

        async def tell(request: pb.GenerateRequest | None = None) -> list[pb.GenerateEvent]:
            """All events of a new request, or of the one that is there."""
            if request is None:
                kept = acceptance.requests.of("r", "test")
            else:
                job = requests.job(request, time.monotonic())
                entry = resumption.entry(request, job, digest(request))
                kept = await acceptance.take(job, digest(request), entry)
            return [event async for event in follow(engine, kept, 0)]

        await resumption.restore()
        await engine.start(0)
        resumption.start()
        try:
            yield acceptance, tell
        finally:
            await acceptance.close(0.1)
            await engine.close(5)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_json(standin.TOKENIZER)


@pytest.fixture
def place(tmp_path: Path, tokenizer: Tokenizer) -> Place:
    return Place(tmp_path, tokenizer)


def said(events: list[pb.GenerateEvent]) -> tuple[list[int], str, str, str]:
    """Ids, reasoning, content and arguments."""
    told = [event.delta for event in events if event.HasField("delta")]
    return (
        [token_id for delta in told for token_id in delta.token_ids],
        "".join(delta.reasoning for delta in told),
        "".join(delta.content for delta in told),
        "".join(delta.tool_call.arguments_fragment for delta in told),
    )


@pytest.mark.parametrize(
    ("sampling", "reason"),
    [
        ({}, pb.FINISH_REASON_TOOL_CALLS),
        ({"max_tokens": 9}, pb.FINISH_REASON_LENGTH),
        ({"stop": ["look"]}, pb.FINISH_REASON_STOP_STRING),
    ],
    ids=["tool call", "length", "stop string"],
)
def test_an_answer_goes_on_from_where_the_journal_ends(
    place: Place, sampling: dict[str, Any], reason: pb.FinishReason.ValueType
) -> None:
    """A daemon killed after any record of the journal gives the answer of one that lived."""
    request = asked(**sampling)
    whole = place.live(lambda _, tell: tell(request))
    assert whole[-1].finished.reason == reason
    records = read(place.file.read_bytes()).records
    assert len(records) > 6
    last = len(records)
    for count in [*range(2, last - 1, 1 + last // 8), last - 1, last]:
        data = MARK + b"".join(pack(*record) for record in records[:count])
        place.file.write_bytes(data + b"\x09\x00")  # and a torn one
        again = place.live(lambda _, tell: tell())
        assert said(again) == said(whole)
        assert again[-1].finished.reason == reason
        assert again[-1].finished.stop_string == whole[-1].finished.stop_string
        names = [event.delta.tool_call.name for event in again if event.delta.tool_call.name]
        assert names == [e.delta.tool_call.name for e in whole if e.delta.tool_call.name]
        usage, expected = again[-1].finished.usage, whole[-1].finished.usage
        assert usage.reasoning_tokens == expected.reasoning_tokens
        assert usage.completion_tokens == expected.completion_tokens
        # What was on file stays as it was, byte by byte, and what came since is on file too.
        kept = read(place.file.read_bytes()).records
        assert kept[:count] == records[:count]
        assert place.live(lambda _, tell: tell())[-1] == again[-1]


def test_a_request_that_nobody_was_told_of_is_not_run(place: Place) -> None:
    """Without its first event on file a request was not accepted: it leaves nothing behind."""
    place.live(lambda _, tell: tell(asked(max_tokens=2)))
    first = read(place.file.read_bytes()).records[0]
    place.file.write_bytes(MARK + pack(*first))
    with pytest.raises(NotFoundError):
        place.live(lambda _, tell: tell())
    assert not list(place.folder.iterdir())


def cut_short(place: Place) -> None:
    """Leave the journal of a request that was killed after its first tokens."""
    place.live(lambda _, tell: tell(asked()))
    records = read(place.file.read_bytes()).records[:4]
    place.file.write_bytes(MARK + b"".join(pack(*record) for record in records))


def test_an_answer_that_cannot_go_on_says_why(place: Place) -> None:
    """Another model, and five deaths before the next token, end a request with a reason."""
    cut_short(place)
    data = place.file.read_bytes()
    changed = place.live(lambda _, tell: tell(), model="another")
    assert changed[-1].finished.reason == pb.FINISH_REASON_ERROR
    assert changed[-1].finished.error.reason == "MODEL_CHANGED"
    assert said(changed)[0] == place.ids[: len(said(changed)[0])] != []
    place.file.write_bytes(data + pack(Kind.RESUMED, b"") * 4)
    assert place.live(lambda _, tell: tell())[-1].finished.reason == pb.FINISH_REASON_TOOL_CALLS
    place.file.write_bytes(data + pack(Kind.RESUMED, b"") * 5)
    file = place.file.read_bytes()
    deadly = place.live(lambda _, tell: tell())
    assert deadly[-1].finished.error.reason == "RESUMED_TOO_OFTEN"
    # Those from before a stop that was asked for do not count.
    place.file.write_bytes(file + pack(Kind.EVENTS, b""))
    assert place.live(lambda _, tell: tell())[-1].finished.reason == pb.FINISH_REASON_TOOL_CALLS


def test_a_cancel_reaches_a_request_that_is_not_running_yet(place: Place) -> None:
    """Cancel before the engine has it again ends it, and what was told stays."""
    cut_short(place)

    async def cancel(acceptance: Acceptance, tell: Any) -> Any:
        assert acceptance.cancel("r")
        return await tell()

    events = place.live(cancel)
    assert events[-1].finished.reason == pb.FINISH_REASON_CANCELLED
    assert said(events)[0] == place.ids[: len(said(events)[0])] != []


def test_a_deadline_goes_on_while_the_daemon_is_down(place: Place) -> None:
    """A request whose time passed meanwhile is ended with that reason."""
    request = asked()
    request.deadline_ms = 400
    place.token_s = 0.1
    place.live(lambda _, tell: asyncio.wait([asyncio.create_task(tell(request))], timeout=0.3))
    time.sleep(0.2)
    events = place.live(lambda _, tell: tell())
    assert events[-1].finished.reason == pb.FINISH_REASON_DEADLINE


def test_results_expire_on_disk_too(place: Place) -> None:
    """A result that was kept long enough is gone at the next start, with its file."""
    place.live(lambda _, tell: tell(asked(max_tokens=2)))
    long_ago = time.time() - 100
    os.utime(place.file, (long_ago, long_ago))
    with pytest.raises(NotFoundError):
        place.live(lambda _, tell: tell())
    assert not list(place.folder.iterdir())


def test_what_cannot_be_journaled_is_not_promised(place: Place) -> None:
    """A request whose first record cannot be written is refused, and does not run."""
    obstacle = place.folder / Journal.name_of("r")
    obstacle.mkdir(parents=True)  # what no process can append to, root neither

    async def body(acceptance: Acceptance, tell: Any) -> None:
        with pytest.raises(UnavailableError) as refused:
            await tell(asked())
        assert refused.value.reason == "JOURNAL_NOT_WRITTEN"
        obstacle.rmdir()
        assert (await tell(asked()))[-1].finished.reason == pb.FINISH_REASON_TOOL_CALLS

    place.live(body)


def test_an_answer_survives_its_journal(place: Place) -> None:
    """A file that goes in the middle of an answer costs the answer nothing but its promise."""

    async def body(acceptance: Acceptance, tell: Any) -> list[pb.GenerateEvent]:
        task = asyncio.create_task(tell(asked()))
        kept = None
        while kept is None:
            await asyncio.sleep(0)
            kept = acceptance.requests.get("r")
        assert await kept.grown(0, 10)
        place.file.unlink()
        events: list[pb.GenerateEvent] = await task
        return events

    events = place.live(body)
    assert events[-1].finished.reason == pb.FINISH_REASON_TOOL_CALLS
    assert said(events)[0] == place.ids
    assert not list(place.folder.iterdir())
