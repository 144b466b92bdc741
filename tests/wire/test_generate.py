"""Generation through a real daemon and socket: events, company, cancelling, limits."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import grpc
import pytest
from ds4.v1 import inference_pb2 as pb
from ds4.v1 import types_pb2
from ds4_client import (
    Accepted,
    CancelledError,
    Chat,
    Client,
    DeadlineError,
    Delta,
    Finished,
    FinishReason,
    Ids,
    Message,
    Progress,
    Text,
)

from tests.wire.conftest import Daemon, refusal

LONG_IDS = [100 + i % 5_000 for i in range(8_000)]  # seconds of prefill
LONG = Ids(LONG_IDS)


def request(tokens: int = 8, ids: list[int] | None = None, **more: Any) -> pb.GenerateRequest:
    prompt = pb.Prompt(token_ids=types_pb2.TokenIds(ids=ids or [5, 6, 7]))
    sampling = types_pb2.Sampling(temperature=0, max_tokens=tokens, ignore_eos=True, **more)
    return pb.GenerateRequest(prompt=prompt, sampling=sampling)


def test_events_come_in_order(daemon: Daemon) -> None:
    """Accepted comes first, finished last, offsets go up, and usage adds up."""
    with daemon.inference() as stub:
        events = list(stub.Generate(request(8), timeout=30))
    offsets = [e.offset for e in events if e.WhichOneof("event") != "progress"]
    assert offsets[0] == 0
    assert all(before < after for before, after in pairwise(offsets))
    assert len({e.request_id for e in events}) == 1
    kinds = [e.WhichOneof("event") for e in events]
    assert kinds[0] == "accepted"
    assert kinds[-1] == "finished"
    assert set(kinds[1:-1]) <= {"progress", "delta"}
    assert sum(len(e.delta.token_ids) for e in events) == 8
    finished = events[-1].finished
    assert finished.reason == pb.FINISH_REASON_LENGTH
    assert finished.usage.prompt_tokens == 3
    assert finished.usage.completion_tokens == 8
    assert finished.usage.ttft_ms > 0
    assert finished.usage.cached_live_tokens == finished.usage.cached_restored_tokens == 0
    assert finished.usage.miss_reason == types_pb2.MISS_REASON_TOO_SHORT


def test_text_equals_the_tokens(daemon: Daemon) -> None:
    """The deltas together are the decoded tokens, and no delta holds half a character."""
    with daemon.client() as client:
        stream = client.generate(Text("once"), temperature=1.0, seed=4, max_tokens=60)
        deltas = [event for event in stream if isinstance(event, Delta)]
        ids = [i for delta in deltas for i in delta.token_ids]
        pieces = client.tokenize(Ids(ids), pieces=True).pieces
        shown = [piece.id for piece in pieces if not piece.special]
        assert "".join(d.content for d in deltas) == client.detokenize(shown)


@pytest.mark.parametrize(
    ("asked", "reasons"),
    [({}, False), ({"thinking": True}, True), ({"effort": "high"}, True)],
)
def test_chat_is_rendered_and_parsed(daemon: Daemon, asked: dict[str, Any], reasons: bool) -> None:
    """A chat is rendered as Render shows it; reasoning comes only to those who ask for it."""
    chat = Chat([Message("user", "Hello")], **asked)
    with daemon.client() as client:
        rendered = client.render(chat)
        assert client.tokenize(chat).tokens.ids == rendered.tokens.ids
        stream = client.generate(chat, temperature=0, max_tokens=5)
        events = list(stream)
    assert isinstance(events[0], Accepted)
    assert events[0].prompt_tokens == len(rendered.tokens.ids)
    deltas = [e for e in events if isinstance(e, Delta)]
    assert any(d.reasoning for d in deltas) == reasons
    assert any(d.content for d in deltas) != reasons
    assert isinstance(events[-1], Finished)
    assert events[-1].usage.reasoning_tokens == (5 if reasons else 0)


def test_eight_clients_get_what_each_gets_alone(daemon: Daemon) -> None:
    """Eight programs at once, prompts of 1 to 561 tokens: each gets its own greedy text."""
    prompts = [[(11 * i + j) % 8_000 for j in range(1 + 80 * i)] for i in range(8)]

    def ask(ids: list[int]) -> list[int]:
        with daemon.inference() as stub:
            events = stub.Generate(request(16, ids), timeout=60)
            return [i for event in events for i in event.delta.token_ids]

    alone = [ask(ids) for ids in prompts]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(ask, prompts))
    assert together == alone
    assert all(len(ids) == 16 for ids in alone)
    assert len({tuple(ids) for ids in alone}) == 8


def test_same_seed_same_text_beside_others(daemon: Daemon) -> None:
    """A seeded request gives the same text alone and while others run; another seed another one."""

    def ask(seed: int) -> str:
        with daemon.client() as client:
            answer = client.run(Text("tell me"), temperature=1.0, seed=seed, max_tokens=20)
            return answer.text

    alone = ask(1)
    with ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(ask, [2, 1, 3, 1]))
    assert texts[1] == texts[3] == alone
    assert len(set(texts)) == 3


def test_seed_of_the_daemon_repeats_the_text(daemon: Daemon) -> None:
    """The seed that the daemon chose is told in accepted, and gives the same text again."""
    with daemon.client() as client:
        events = list(client.generate(Text("x"), temperature=1.0, max_tokens=12))
        assert isinstance(events[0], Accepted)
        again = client.run(Text("x"), temperature=1.0, max_tokens=12, seed=events[0].seed)
    assert "".join(e.content for e in events if isinstance(e, Delta)) == again.text


def test_logprobs_of_greedy_are_the_largest(daemon: Daemon) -> None:
    """With temperature 0 the chosen token leads the top list, one entry a token."""
    with daemon.inference() as stub:
        events = list(stub.Generate(request(6, logprobs=True, top_logprobs=3), timeout=30))
    deltas = [e.delta for e in events if e.HasField("delta")]
    entries = [entry for delta in deltas for entry in delta.logprobs]
    assert [e.chosen.token.id for e in entries] == [i for d in deltas for i in d.token_ids]
    for entry in entries:
        assert len(entry.top) == 3
        assert entry.top[0] == entry.chosen
        assert 0 > entry.top[0].logprob >= entry.top[1].logprob >= entry.top[2].logprob


def test_stop_string_ends_the_text_before_it(daemon: Daemon) -> None:
    """Generation ends at the stop string, which is not part of the text."""
    with daemon.client() as client:
        free = client.run(Text("go"), temperature=0, max_tokens=30)
        stop = free.text[10:14]
        cut = client.run(Text("go"), temperature=0, max_tokens=30, stop=stop)
        assert cut.text == free.text[: free.text.index(stop)]
        assert cut.finish_reason == FinishReason.STOP_STRING
        assert cut.usage.completion_tokens < 30
        assert not daemon.status().engine.requests


def test_progress_at_least_once_a_second(daemon: Daemon) -> None:
    """A long prefill, and a request that waits behind it, report progress every second."""
    with daemon.client() as client:
        times = [time.monotonic()]
        with client.generate(LONG, temperature=0) as stream:
            for event in stream:
                times.append(time.monotonic())
                if isinstance(event, Progress):
                    assert 0 <= event.prefilled_tokens < event.total_tokens == 8_000
                if len(times) > 6 or isinstance(event, Delta):
                    break
    assert len(times) > 4
    daemon.wait_for_running(0)
    assert max(b - a for a, b in pairwise(times)) < 1.0 + 0.3  # a busy machine


def test_cancel_by_another_client(daemon: Daemon) -> None:
    """Cancel ends a request of another connection, and its sequence is gone within a step."""
    with daemon.client() as runs, daemon.client() as other:
        stream = runs.generate(LONG, temperature=0, request_id="victim")
        assert isinstance(next(stream), Accepted)
        before = daemon.steps
        assert other.cancel("victim")
        with pytest.raises(CancelledError):
            list(stream)
        assert not other.cancel("victim")
        assert not daemon.status().engine.requests
    # The step that ran meanwhile, and one that may have begun before the cancel arrived.
    assert daemon.steps - before <= 2


def test_killed_client_frees_its_sequences(daemon: Daemon) -> None:
    """kill -9 of a client, in prefill and in decode, frees both sequences within a step."""
    program = (
        "import sys, threading\n"
        "from ds4_client import Client, Ids, Text\n"
        "client = Client(sys.argv[1])\n"
        "a = client.generate(Ids(list(range(100, 8000)) * 2), max_tokens=9)\n"
        "b = client.generate(Text('b'), temperature=0, ignore_eos=True)\n"
        "next(a), [next(b) for _ in range(4)]\n"
        "print('running', flush=True)\n"
        "threading.Event().wait()\n"
    )
    client = subprocess.Popen(
        [sys.executable, "-c", program, str(daemon.home.path)], stdout=subprocess.PIPE
    )
    assert client.stdout is not None
    assert client.stdout.readline() == b"running\n"
    assert len(daemon.status().engine.requests) == 2
    client.send_signal(signal.SIGKILL)
    client.wait()
    before = daemon.steps
    client.stdout.close()
    daemon.wait_for_running(0)
    # Each step holds a chunk of the long prompt, so they are too long to slip by unseen.
    assert daemon.steps - before <= 2


def test_left_stream_frees_its_sequence(daemon: Daemon) -> None:
    """A client that stops reading and cancels its call frees the sequence within a step."""
    with daemon.inference() as stub:
        call = stub.Generate(request(5_000, LONG_IDS), timeout=30)
        next(call)
        before = daemon.steps
        call.cancel()
        daemon.wait_for_running(0)
        assert daemon.steps - before <= 2


def test_slow_client_delays_nobody(daemon: Daemon) -> None:
    """A client that does not read its 300 tokens leaves others their speed, and loses nothing."""
    with daemon.inference() as stub, daemon.client() as other:
        call = stub.Generate(request(300), timeout=60)
        next(call)
        began_s = time.monotonic()
        other.run(Text("quick"), temperature=0, max_tokens=10, ignore_eos=True)
        assert time.monotonic() - began_s < 5
        daemon.wait_for_running(0, 30)
        assert sum(len(event.delta.token_ids) for event in call) == 300


def test_deadline_ends_a_request(daemon: Daemon) -> None:
    """A request is told when its time is up, in the middle of its prefill."""
    with daemon.client() as client:
        began_s = time.monotonic()
        with pytest.raises(DeadlineError):
            client.run(LONG, temperature=0, timeout_s=0.5)
        assert time.monotonic() - began_s < 3
    daemon.wait_for_running(0)


def test_an_id_of_another_request_is_refused(daemon: Daemon) -> None:
    """Other content, or another client, under the id of a request that runs is refused."""
    with daemon.inference() as stub:
        first = request(2_000)
        first.request_id = "twin"
        call = stub.Generate(first, timeout=30)
        next(call)
        longer, foreign = pb.GenerateRequest(), pb.GenerateRequest()
        for other in (longer, foreign):
            other.CopyFrom(first)
        longer.sampling.max_tokens += 1
        foreign.client.name = "stranger"
        for other in (longer, foreign):
            with pytest.raises(grpc.RpcError) as caught:
                list(stub.Generate(other, timeout=30))
            assert refusal(caught.value)[0] == "REQUEST_ID_REUSED"
        assert next(call).delta.token_ids
        call.cancel()
    daemon.wait_for_running(0)


def test_status_tells_who_runs(daemon: Daemon) -> None:
    """Status shows each request with its client, phase and counts, and the engine's totals."""
    with daemon.client("reader") as client:
        stream = client.generate(LONG, temperature=0, request_id="seen")
        while not (isinstance(event := next(stream), Progress) and event.prefilled_tokens):
            pass
        status = daemon.status()
        stream.cancel()
    (seen,) = status.engine.requests
    assert seen.request_id == "seen"
    assert seen.client.name == "reader"
    assert seen.phase == pb.PHASE_PREFILL
    assert 0 < seen.prefilled_tokens < seen.prompt_tokens == 8_000
    assert seen.state_bytes > 0
    assert status.engine.running == 1
    assert status.engine.totals.steps > 0
    assert status.engine.memory.weights_bytes > 0
    assert status.model.vocabulary == 8_192
    assert status.model.device == "cpu"
    assert {q.format for q in status.model.quantization} >= {"Q8_0", "IQ2_XXS", "Q2_K"}
    daemon.wait_for_running(0)


def test_clients_that_come_and_go_leak_nothing(daemon: Daemon) -> None:
    """40 requests of 8 threads, half of them left early: none stays, and totals add up."""
    before = daemon.status().engine.totals

    def visit(number: int) -> None:
        with Client(daemon.home.path) as client:
            stream = client.generate(Text(f"n{number}"), max_tokens=20, ignore_eos=True)
            for place, _ in enumerate(_until_closed(stream)):
                if number % 2 and place == number % 7:
                    stream.cancel()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(visit, range(40)))
    daemon.wait_for_running(0)
    after = daemon.status().engine.totals
    assert after.requests - before.requests == 40
    ended = (after.finished + after.cancelled) - (before.finished + before.cancelled)
    assert ended == 40
    assert after.failed == before.failed


def _until_closed(stream: Any) -> Iterator[object]:
    try:
        yield from stream
    except CancelledError:
        return


def test_watch_repeats_status(daemon: Daemon) -> None:
    """Watch sends the status again and again until it is cancelled."""
    from ds4.v1 import admin_pb2, admin_pb2_grpc

    with daemon.channel() as channel:
        call = admin_pb2_grpc.AdminStub(channel).Watch(
            admin_pb2.WatchRequest(interval_ms=100), timeout=10
        )
        uptimes = [next(call).status.process.uptime_s for _ in range(3)]
        call.cancel()
    assert uptimes[0] < uptimes[1] < uptimes[2]


def test_threads_of_one_client_share_a_connection(daemon: Daemon) -> None:
    """One client serves several threads at once."""
    with daemon.client() as client:
        texts: list[str] = []
        threads = [
            threading.Thread(
                target=lambda: texts.append(
                    client.run(Text("same"), temperature=0, max_tokens=8).text
                )
            )
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(texts) == 4
    assert len(set(texts)) == 1
