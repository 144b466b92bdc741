"""ds4_client, both clients: calls, streams, cancelling and collecting, against a real peer."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import pytest
from ds4.v1 import inference_pb2, types_pb2
from ds4_client import (
    Accepted,
    AsyncClient,
    CancelledError,
    Chat,
    Client,
    Collector,
    DeadlineError,
    Delta,
    Event,
    Finished,
    FinishReason,
    Ids,
    InternalError,
    InvalidRequestError,
    Phase,
    Progress,
    Text,
    ToolCall,
)

from tests.unit import client_peer
from tests.unit.client_peer import Peer


@pytest.fixture
def peer(home: Path) -> Iterator[Peer]:
    with client_peer.serving(home) as peer:
        yield peer


def in_async(home: Path, body: Callable[[AsyncClient], Any]) -> Any:
    """What `body` returns, run with an asynchronous client of `home`."""

    async def main() -> Any:
        async with AsyncClient(home, name="test") as client:
            return await asyncio.wait_for(body(client), 20)

    return asyncio.run(main())


def events_of(home: Path, *, use_async: bool, prompt: Any = "a b", **options: Any) -> list[Event]:
    """All events of one request, through either client."""
    if use_async:

        async def body(client: AsyncClient) -> list[Event]:
            async with client.generate(prompt, **options) as stream:
                return [event async for event in stream]

        events: list[Event] = in_async(home, body)
        return events
    with Client(home, name="test") as client, client.generate(prompt, **options) as stream:
        return list(stream)


both = pytest.mark.parametrize("use_async", [False, True], ids=["sync", "async"])


@both
def test_events_arrive_typed_and_in_order(peer: Peer, use_async: bool) -> None:
    """Accepted, progress, deltas, finished: with their fields, and the id that the client chose."""
    events = events_of(peer.home, use_async=use_async, request_id="mine")
    assert events[0] == Accepted("mine", 12, 0, 0, 100, 7)
    assert events[1] == Progress(Phase.PREFILL, 12, 12, 100.0, 0.0, 0)
    assert events[2] == Delta(reasoning="Let me think.")
    assert [e.content for e in events[3:-1] if isinstance(e, Delta)] == ["You said:", " a", " b"]
    last = events[-1]
    assert isinstance(last, Finished)
    assert last.reason is FinishReason.STOP
    assert (last.usage.miss_reason, last.usage.cached_live_tokens) == ("disabled", 4)


@both
def test_run_collects_the_answer(peer: Peer, use_async: bool) -> None:
    """`run` gives text, reasoning, tool calls and usage, and the turn to append."""

    def script(request: Any, context: Any) -> Iterator[inference_pb2.GenerateEvent]:
        call = inference_pb2.ToolCallDelta
        yield client_peer.accepted()
        yield client_peer.reasoning("hm ")
        yield client_peer.content("it ", 5, 6)
        yield client_peer.content("is", 7)
        for piece in (
            call(index=1, id="c1", name="late", arguments_fragment="{}"),
            call(index=0, id="c0", name="look", arguments_fragment='{"a"'),
            call(index=0, arguments_fragment=": 1}"),
        ):
            yield inference_pb2.GenerateEvent(delta=inference_pb2.Delta(tool_call=piece))
        yield client_peer.finished(inference_pb2.FINISH_REASON_TOOL_CALLS)

    peer.script = script
    if use_async:
        done = in_async(peer.home, lambda client: client.run("x"))
    else:
        with Client(peer.home) as client:
            done = client.run("x")
    assert (done.text, done.reasoning, done.token_ids) == ("it is", "hm ", (5, 6, 7))
    assert done.tool_calls == (ToolCall("c0", "look", '{"a": 1}'), ToolCall("c1", "late", "{}"))
    assert done.finish_reason is FinishReason.TOOL_CALLS
    assert done.usage.ttft_ms == 31.25
    assert (done.message.role, done.message.content) == ("assistant", "it is")
    assert done.message.tool_calls == done.tool_calls


@both
def test_options_arrive_as_they_were_given(peer: Peer, use_async: bool) -> None:
    """What is given is sent, what is not given or None stays unset for the daemon's defaults."""
    events_of(
        peer.home, use_async=use_async, prompt=Text("once"), temperature=0.0, top_k=5, top_p=None,
        stop="END", max_tokens=9, priority="background", timeout_s=1.5, bypass_cache=True,
    )  # fmt: skip
    request = peer.requests[0]
    assert request.prompt.text == "once"
    assert (request.client.name, request.client.instance) == ("test", str(os.getpid()))
    sampling = request.sampling
    assert sampling.HasField("temperature")
    assert sampling.temperature == 0.0
    assert not sampling.HasField("top_p")
    assert not sampling.HasField("seed")
    assert (sampling.top_k, sampling.max_tokens, list(sampling.stop)) == (5, 9, ["END"])
    assert request.priority == types_pb2.PRIORITY_BACKGROUND
    assert request.deadline_ms == 1500
    assert request.cache.bypass
    assert len(request.request_id) == 32


@both
def test_leaving_the_block_cancels_the_request(peer: Peer, use_async: bool) -> None:
    """A stream that is left early is cancelled at once, so the daemon sees the client go."""
    peer.script = client_peer.forever
    if use_async:

        async def body(client: AsyncClient) -> None:
            async with client.generate("x") as stream:
                async for event in stream:
                    if isinstance(event, Delta):
                        break
            assert await asyncio.to_thread(peer.left.wait, 5)

        in_async(peer.home, body)
    else:
        with Client(peer.home) as client:
            with client.generate("x") as stream:
                for event in stream:
                    if isinstance(event, Delta):
                        break
            assert peer.left.wait(5)


@both
def test_a_cancelled_stream_says_so(peer: Peer, use_async: bool) -> None:
    """Who reads on after `cancel` gets a CancelledError of this library, not one of asyncio."""
    peer.script = client_peer.forever
    if use_async:

        async def body(client: AsyncClient) -> None:
            async with client.generate("x") as stream:
                async for _ in stream:
                    stream.cancel()

        with pytest.raises(CancelledError):
            in_async(peer.home, body)
    else:
        with Client(peer.home) as client, client.generate("x") as stream:
            next(stream)
            stream.cancel()
            with pytest.raises(CancelledError):
                list(stream)


def test_cancelling_the_task_cancels_the_request(peer: Peer) -> None:
    """A task that is cancelled while it waits ends as tasks do, and takes its request with it."""
    peer.script = client_peer.forever

    async def body(client: AsyncClient) -> None:
        task = asyncio.create_task(client.run("x"))
        assert await asyncio.to_thread(peer.arrived.wait, 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(peer.left.wait, 5)

    in_async(peer.home, body)


@both
def test_the_other_calls(peer: Peer, use_async: bool) -> None:
    """Cancel, tokenize, detokenize, render, status and health give what the daemon said."""
    if use_async:

        async def gather(client: AsyncClient) -> list[Any]:
            return [
                await client.cancel("r7"), await client.cancel("other"),
                await client.tokenize(Text("hi"), pieces=True), await client.detokenize([104, 105]),
                await client.render([{"role": "system", "content": "be"}]),
                await client.status(), await client.health(),
            ]  # fmt: skip

        answers = in_async(peer.home, gather)
    else:
        with Client(peer.home) as client:
            answers = [
                client.cancel("r7"), client.cancel("other"),
                client.tokenize(Text("hi"), pieces=True), client.detokenize([104, 105]),
                client.render([{"role": "system", "content": "be"}]),
                client.status(), client.health(),
            ]  # fmt: skip
    yes, no, tokens, text, rendered, status, serving = answers
    assert (yes, no, text, serving) == (True, False, "hi", True)
    assert list(tokens.tokens.ids) == [104, 105]
    assert [piece.piece for piece in tokens.pieces] == [b"h", b"i"]
    assert rendered.text == "<ROLE_SYSTEM>be"
    assert status.model.name == "nano"


@both
def test_wait_returns_when_the_daemon_serves(peer: Peer, use_async: bool) -> None:
    """`wait` is False while the daemon loads longer than allowed, True as soon as it serves."""
    peer.set_serving(False)
    if use_async:
        assert in_async(peer.home, lambda client: client.wait(0.05)) is False
        peer.set_serving(True)
        assert in_async(peer.home, lambda client: client.wait(5)) is True
    else:
        with Client(peer.home) as client:
            assert client.wait(0.05) is False
            peer.set_serving(True)
            assert client.wait(5) is True


def test_a_client_finds_a_daemon_that_came_back(home: Path) -> None:
    """One client object outlives the daemon: it reconnects by itself."""
    with Client(home) as client:
        for _ in range(2):
            with client_peer.serving(home):
                assert client.wait(10)
                assert client.run("x").text == "You said: x"


def test_large_messages_pass_both_ways(home: Path) -> None:
    """More than gRPC's 4 MB in a prompt and in an event are no matter."""

    def script(request: Any, context: Any) -> Iterator[inference_pb2.GenerateEvent]:
        yield client_peer.accepted()
        yield client_peer.content("x" * 8_000_000)
        yield client_peer.finished()

    with client_peer.serving(home, ("grpc.max_receive_message_length", 64 * 2**20)) as peer:
        peer.script = script
        with Client(home) as client:
            assert len(client.run(Ids([123_456] * 2_000_000)).text) == 8_000_000


def test_unknown_events_and_values_are_passed_over(peer: Peer) -> None:
    """What a newer daemon may send is left out or reads "unspecified", and breaks nothing."""

    def script(request: Any, context: Any) -> Iterator[inference_pb2.GenerateEvent]:
        yield client_peer.accepted()
        yield inference_pb2.GenerateEvent.FromString(bytes([0x9A, 0x06, 0x00]))  # field 99
        yield client_peer.finished(99)  # type: ignore[arg-type]

    peer.script = script
    events = events_of(peer.home, use_async=False)
    assert len(events) == 2
    assert isinstance(events[1], Finished)
    assert events[1].reason is FinishReason.UNSPECIFIED


def test_threads_share_a_client(peer: Peer) -> None:
    """Several threads may use one client at once."""
    with Client(peer.home) as client, futures.ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(lambda n: client.run(f"number {n}").text, range(12)))
    assert texts == [f"You said: number {n}" for n in range(12)]


def test_a_collector_needs_the_end() -> None:
    """Half an answer is not passed off as a whole one."""
    collector = Collector()
    collector.add(Delta(content="half"))
    assert collector.text == "half"
    with pytest.raises(InternalError, match="too early"):
        collector.completion()


def test_a_chat_carries_all_that_can_be_said(peer: Peer) -> None:
    """Tools, modes and formats reach the daemon."""
    chat = Chat(
        [
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            }
        ],
        tools=[
            {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
        ],
        tool_choice="required",
        thinking=False,
        effort="high",
        response_format={"type": "json_schema", "json_schema": {"schema": {"type": "object"}}},
    )
    with Client(peer.home) as client:
        assert client.run(chat).text == "You said: ab"
    sent = peer.requests[0].prompt.conversation
    assert sent.tools[0].name == "look"
    assert sent.tools[0].parameters_json == '{"type": "object"}'
    assert sent.tool_choice == types_pb2.TOOL_CHOICE_REQUIRED
    assert sent.thinking_mode == types_pb2.THINKING_MODE_OFF
    assert sent.reasoning_effort == types_pb2.REASONING_EFFORT_HIGH
    assert sent.response_format.kind == types_pb2.ResponseFormat.KIND_JSON_SCHEMA


def test_the_library_loads_no_arrays_and_no_model() -> None:
    """Neither numpy nor mlx nor a tokenizer is imported by the client library."""
    code = (
        "import sys, ds4_client; from ds4_client import AsyncClient\n"
        "heavy = {'numpy', 'mlx', 'tokenizers', 'safetensors', 'lmdb', 'click', 'structlog'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_the_deadline_of_a_request_is_kept_by_the_client_too(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon that hangs does not keep a request beyond its timeout and a short grace."""
    monkeypatch.setattr("ds4_client.request.DEADLINE_GRACE_S", 0.2)

    def script(request: Any, context: Any) -> Iterator[inference_pb2.GenerateEvent]:
        yield client_peer.accepted()
        peer.left.wait(10)

    peer.script = script
    start = time.monotonic()
    with Client(peer.home) as client, pytest.raises(DeadlineError):
        client.run("x", timeout_s=0.2)
    assert time.monotonic() - start < 5


def test_a_misspelt_option_is_no_option(peer: Peer) -> None:
    """A limit that is not spelt right is refused, or it would be no limit."""
    with Client(peer.home) as client, pytest.raises(InvalidRequestError) as refused:
        client.run("x", max_token=5)  # type: ignore[call-arg]
    assert refused.value.reason == "UNKNOWN_OPTION"
    assert "max_tokens" in refused.value.hint
    assert peer.requests == []
