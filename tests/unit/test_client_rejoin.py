"""ds4_client finds its way back into a request whose call broke, and says when it cannot."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from ds4.v1.inference_pb2 import GenerateEvent
from ds4_client import (
    Accepted,
    AsyncClient,
    Client,
    Delta,
    Event,
    InternalError,
    NotRunningError,
    Text,
)

from tests.unit import client_peer
from tests.unit.client_peer import Peer

both = pytest.mark.parametrize("use_async", [False, True], ids=["sync", "async"])
WORDS = ["a ", "b ", "c ", "d "]


@pytest.fixture
def peer(home: Path) -> Iterator[Peer]:
    with client_peer.serving(home) as peer:
        peer.script = tell
        yield peer


def tell(request: Any, context: Any) -> Iterator[GenerateEvent]:
    yield client_peer.accepted()
    for token_id, word in enumerate(WORDS):
        yield client_peer.content(word, token_id)
    yield client_peer.finished()


def ask(home: Path, use_async: bool, **options: Any) -> list[Event]:
    """The events of one request, through either client."""
    if not use_async:
        with Client(home, name="test") as client, client.generate(Text("x"), **options) as stream:
            return list(stream)

    async def main() -> list[Event]:
        client = AsyncClient(home, name="test")
        async with client, client.generate(Text("x"), **options) as stream:
            return [event async for event in stream]

    return asyncio.run(main())


def text(events: list[Event]) -> str:
    return "".join(event.content for event in events if isinstance(event, Delta))


@both
def test_a_lost_call_goes_on_where_it_was(peer: Peer, use_async: bool) -> None:
    """Calls that break, or end without a word, cost a detached request no event and double none."""
    breaks = iter(["unavailable", "silence", "stopping"])

    def broken(request: Any, context: Any) -> Iterator[GenerateEvent]:
        fault, kept = next(breaks, None), 2 + len(peer.attached)
        for number, event in enumerate(tell(request, context)):
            if fault is not None and number == kept:
                if fault == "unavailable":
                    context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
                if fault == "stopping":
                    refusal = (grpc.StatusCode.UNAVAILABLE, "DRAINED", "it stops", "")
                    client_peer.refuse(context, *refusal)
                return
            yield event

    peer.script = broken
    events = ask(peer.home, use_async, detach=True)
    assert peer.requests[0].detach
    assert isinstance(events[0], Accepted)
    assert text(events) == "".join(WORDS)
    assert len(events) == len(WORDS) + 2
    assert [one.offset for one in peer.attached] == [2, 3, 4]
    assert {one.client.name for one in peer.attached} == {"test"}
    assert {one.request_id for one in peer.attached} == {peer.requests[0].request_id}


@both
def test_without_detach_a_lost_call_is_an_error(peer: Peer, use_async: bool) -> None:
    """A request that ends with its call is not looked for."""

    def cut(request: Any, context: Any) -> Iterator[GenerateEvent]:
        yield client_peer.accepted()

    peer.script = cut
    with pytest.raises(InternalError, match="without a word"):
        ask(peer.home, use_async)
    assert not peer.attached


@both
def test_patience_ends(home: Path, use_async: bool) -> None:
    """A daemon that stays away is told when the patience is over; before any event, at once."""
    with pytest.raises(NotRunningError):
        ask(home, use_async, detach=True)
    with client_peer.serving(home) as peer:

        def leave(request: Any, context: Any) -> Iterator[GenerateEvent]:
            yield client_peer.accepted()
            context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

        peer.script = leave
        with pytest.raises(NotRunningError):
            ask(home, use_async, detach=True, patience_s=0.1)
        assert {one.offset for one in peer.attached} == {1}


def test_attach_takes_the_offset_of_the_stream_before(peer: Peer) -> None:
    """A program that kept id and offset reads the rest of its request after its own restart."""
    with Client(peer.home, name="test") as client:
        with client.generate(Text("x"), detach=True, request_id="mine") as stream:
            before = [next(stream) for _ in range(3)]
        with client.attach("mine", stream.offset) as again:
            after = list(again)
        assert list(client.attach("mine", again.offset)) == []  # all was read before
    assert text(before + after) == "".join(WORDS)
    assert peer.attached[0].offset == 3
