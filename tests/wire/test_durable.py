"""Requests that outlive their call, their client and the daemon, through real processes.

What a reader got before and after an interruption is compared with a run that nothing disturbed.
"""

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ds4.v1 import inference_pb2 as pb
from ds4.v1 import types_pb2
from ds4_client import (
    Accepted,
    AsyncClient,
    CancelledError,
    Delta,
    Event,
    Finished,
    FinishReason,
    InvalidRequestError,
    NotFoundError,
    Text,
)
from ds4_daemon import standin

from tests.wire.conftest import Daemon

# Sampled, so that an answer goes on as it would have only at the right position of its seed.
ASKED: dict[str, Any] = {"temperature": 1.0, "seed": 11, "ignore_eos": True, "detach": True}
TOKENS = 60


def text(events: Iterable[Event]) -> str:
    return "".join(event.content for event in events if isinstance(event, Delta))


def ids(events: Iterable[Event]) -> list[int]:
    return [i for event in events if isinstance(event, Delta) for i in event.token_ids]


def read(stream: Iterator[Event], tokens: int) -> list[Event]:
    """Events until at least so many tokens came."""
    events: list[Event] = []
    while len(ids(events)) < tokens:
        events.append(next(stream))
    return events


def wait_until(true: Callable[[], bool], limit_s: float = 20.0) -> None:
    began_s = time.monotonic()
    while not true():
        assert time.monotonic() - began_s < limit_s
        time.sleep(0.01)


@pytest.fixture(scope="module")
def undisturbed(daemon: Daemon) -> list[int]:
    """The ids of the answer that the tests interrupt."""
    with daemon.client() as client:
        return list(client.run(Text("go on"), max_tokens=TOKENS, **ASKED).token_ids)


def test_a_dropped_stream_detaches(daemon: Daemon, undisturbed: list[int]) -> None:
    """The request goes on, status says that nobody reads, and attaching gives exactly the rest."""
    with daemon.client() as client:
        with client.generate(Text("go on"), max_tokens=TOKENS, **ASKED) as stream:
            before = read(stream, 5)
        wait_until(lambda: [r.detached for r in daemon.status().engine.requests] == [True])
        with client.attach(stream.request_id, stream.offset) as again:
            after = list(again)
        assert ids(before + after) == undisturbed
        # It is kept: whoever sent it may read it again, as a whole and in fewer events.
        whole = list(client.attach(stream.request_id))
        assert ids(whole) == undisturbed
        assert text(whole) == text(before + after)
        assert len(whole) < 20  # few enough for a page, many tokens each
        assert isinstance(whole[0], Accepted)
        assert whole[-1] == after[-1]
        with pytest.raises(InvalidRequestError) as beyond:
            list(client.attach(stream.request_id, 10_000))
        assert beyond.value.reason == "OFFSET_OUT_OF_RANGE"
    with daemon.client("stranger") as other, pytest.raises(NotFoundError) as foreign:
        list(other.attach(stream.request_id))
    assert foreign.value.reason == "REQUEST_NOT_FOUND"


def test_a_retry_is_the_same_request(daemon: Daemon, undisturbed: list[int]) -> None:
    """The same id and content joins what runs and reads what is kept; nothing runs twice."""
    before = daemon.status().engine.totals.requests
    asked = ASKED | {"request_id": "retried", "max_tokens": TOKENS}
    with daemon.client() as client, daemon.client() as twin:
        first = client.generate(Text("go on"), **asked)
        begun = read(first, 3)
        joined = list(twin.generate(Text("go on"), **asked))
        assert ids(begun + list(first)) == ids(joined) == undisturbed
        replayed = client.run(Text("go on"), **asked)
        assert list(replayed.token_ids) == undisturbed
        with pytest.raises(InvalidRequestError) as other:
            client.run(Text("something else"), **asked)
        assert other.value.reason == "REQUEST_ID_REUSED"
    assert daemon.status().engine.totals.requests == before + 1


def test_a_request_that_was_cancelled_runs_anew(daemon: Daemon, undisturbed: list[int]) -> None:
    """Cancel stops a detached request, attaching tells so, and the same request may run again."""
    asked = ASKED | {"request_id": "stopped", "max_tokens": TOKENS}
    with daemon.client() as client:
        with client.generate(Text("go on"), **asked) as stream:
            read(stream, 3)
        assert client.cancel("stopped")
        with pytest.raises(CancelledError):
            list(client.attach("stopped"))
        assert list(client.run(Text("go on"), **asked).token_ids) == undisturbed


def test_without_detach_the_last_reader_takes_the_request_along(daemon: Daemon) -> None:
    """A request that did not ask to go on ends when nobody reads it, and is not kept."""
    with daemon.client() as client, daemon.client() as other:
        options: dict[str, Any] = {"max_tokens": 5_000, "ignore_eos": True, "temperature": 0}
        with client.generate(Text("x"), **options) as stream:
            read(stream, 2)
            with other.attach(stream.request_id) as second:
                read(second, 2)
                stream.cancel()
                read(second, 20)  # one reader is enough
        daemon.wait_for_running(0)
        with pytest.raises(NotFoundError):
            list(client.attach(stream.request_id))


PROGRAM = """
import json, sys
from ds4_client import Client, Delta, Text
with Client(sys.argv[1], name="test") as client:
    stream = client.generate(Text("go on"), **json.loads(sys.argv[2]))
    for event in stream:
        if isinstance(event, Delta):
            print(json.dumps([stream.offset, list(event.token_ids)]), flush=True)
"""


def test_a_killed_client_gets_the_missing_tokens(daemon: Daemon, undisturbed: list[int]) -> None:
    """After kill -9 another process of that client attaches, and gets no token twice."""
    asked = json.dumps(ASKED | {"request_id": "orphan", "max_tokens": TOKENS})
    command = [sys.executable, "-c", PROGRAM, str(daemon.home.path), asked]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(5)]
    process.send_signal(signal.SIGKILL)
    process.wait()
    lines += process.stdout.readlines()
    process.stdout.close()
    told = [json.loads(line) for line in lines if line.endswith("\n")]
    got = [token_id for _, tokens in told for token_id in tokens]
    assert 0 < len(got) < TOKENS
    with daemon.client() as client:
        rest = list(client.attach("orphan", told[-1][0]))
    assert got + ids(rest) == undisturbed


@contextlib.contextmanager
def killed_when_told(daemon: Daemon, number: int) -> Iterator[threading.Event]:
    """Ends the daemon with this signal once the event is set, and starts it again."""
    told = threading.Event()

    def restart() -> None:
        assert told.wait(60)
        assert daemon.process is not None
        daemon.process.send_signal(number)
        daemon.process.wait(20)
        daemon.launch()

    thread = threading.Thread(target=restart)
    thread.start()
    try:
        yield told
    finally:
        told.set()
        thread.join()


@pytest.fixture(scope="module")
def mortal(models: standin.StandIn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon to be killed."""
    with tempfile.TemporaryDirectory(prefix="ds4-", dir="/tmp") as folder:
        started = Daemon(Path(folder), models.gguf, "--drain-limit-s", "0")
        try:
            yield started.start()
        finally:
            started.kill()


@pytest.mark.parametrize("use_async", [False, True], ids=["sync", "async"])
def test_a_killed_daemon_goes_on_with_the_answer(
    mortal: Daemon, undisturbed: list[int], use_async: bool
) -> None:
    """After kill -9 and a restart the same stream goes on: every token once, as undisturbed."""
    asked = ASKED | {"request_id": f"survivor-{use_async}", "max_tokens": TOKENS}
    events: list[Event] = []
    with killed_when_told(mortal, signal.SIGKILL) as now:

        def take(event: Event) -> None:
            events.append(event)
            if len(ids(events)) > 25:
                now.set()

        async def main() -> None:
            async with AsyncClient(mortal.home.path, name="test") as client:
                async for event in client.generate(Text("go on"), **asked):
                    take(event)

        if use_async:
            asyncio.run(main())
        else:
            with mortal.client() as client:
                for event in client.generate(Text("go on"), **asked):
                    take(event)
    assert ids(events) == undisturbed
    last = events[-1]
    assert isinstance(last, Finished)
    assert last.reason is FinishReason.LENGTH
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (3, TOKENS)


def test_what_was_told_stays_as_it_was(mortal: Daemon, undisturbed: list[int]) -> None:
    """Nobody is attached at the kill: events and results until then are kept, with offsets."""
    request = pb.GenerateRequest(
        request_id="left-alone",
        client=types_pb2.ClientInfo(name="test"),
        prompt=pb.Prompt(text="go on"),
        sampling=types_pb2.Sampling(temperature=1, seed=11, ignore_eos=True, max_tokens=TOKENS),
        detach=True,
    )
    with mortal.inference() as stub:
        call = stub.Generate(request, timeout=30)
        before = [next(call) for _ in range(12)]
        call.cancel()
    with mortal.client() as client:
        done = list(client.generate(Text("x"), max_tokens=3, request_id="done", **ASKED))
        assert mortal.process is not None
        mortal.process.kill()
        mortal.process.wait()
        mortal.start()
        result = list(client.attach("done"))
        assert (ids(result), text(result), result[-1]) == (ids(done), text(done), done[-1])
    attach = pb.AttachRequest(request_id="left-alone", client=request.client)
    with mortal.inference() as stub:
        whole = [e for e in stub.Attach(attach, timeout=60) if not e.HasField("progress")]
        told = [e for e in before if not e.HasField("progress")]
        attach.offset = told[-1].offset + 1
        after = [e for e in stub.Attach(attach, timeout=60) if not e.HasField("progress")]
    got = [i for e in [*told, *after] for i in e.delta.token_ids]
    assert got == [i for e in whole for i in e.delta.token_ids] == undisturbed
    assert whole[0] == told[0]


def test_a_stopped_daemon_leaves_nothing_undone(mortal: Daemon, undisturbed: list[int]) -> None:
    """After SIGTERM, which waits for nobody here, a request goes on at the next start."""
    asked = ASKED | {"request_id": "patient", "max_tokens": TOKENS}
    with killed_when_told(mortal, signal.SIGTERM) as now, mortal.client() as client:
        stream = client.generate(Text("go on"), **asked)
        events = read(stream, 20)
        now.set()
        events += list(stream)
    assert ids(events) == undisturbed
