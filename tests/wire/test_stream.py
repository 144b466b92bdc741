"""From an engine that says what it is told to the events a client gets."""

import asyncio
import re
import tempfile
import time
from collections.abc import Sequence as Items
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ds4.v1 import inference_pb2 as pb
from ds4.v1 import types_pb2
from ds4_daemon import standin
from ds4_daemon.engine.loop import Engine
from ds4_daemon.journal.folder import Journal
from ds4_daemon.model.network import Segment, Want
from ds4_daemon.rpc.accept import Acceptance, digest
from ds4_daemon.rpc.kept import KeptRequests
from ds4_daemon.rpc.request import Requests
from ds4_daemon.rpc.stream import follow
from ds4_daemon.sched.policy import Limits
from ds4_daemon.sched.sampling import Sampling
from ds4_daemon.text.chat import APRIL
from ds4_daemon.text.tokenizer import Prompt, Tokenizer

from tests.passes import UnitPass

LIMITS = Limits(max_running=2, chunk_tokens=512)
SPECIAL = re.compile("</?think>|｜DSML｜|<｜end▁of▁sentence｜>")


class Recital:
    """A model that recites: after the prompt come these ids, whatever they are."""

    device, dtype, rounding, weights_bytes = "cpu", "f32", True, 0

    def __init__(
        self, ids: list[int], vocabulary: int, prompt: int, chunk_s: float, token_s: float
    ) -> None:
        self.ids = ids
        self.vocabulary = vocabulary
        self.prompt = prompt
        self.chunk_s = chunk_s
        self.token_s = token_s

    def new_state(self) -> Any:
        return SimpleNamespace(length=0, nbytes=8)

    def begin(self, batch: Items[Segment]) -> UnitPass:
        return UnitPass(lambda: self.forward(batch))

    def forward(self, batch: Items[Segment]) -> list[np.ndarray | None]:
        rows: list[np.ndarray | None] = []
        for state, ids, want in batch:
            time.sleep(self.chunk_s if len(ids) > 1 else self.token_s)
            state.length += len(ids)
            row = np.zeros(self.vocabulary, np.float32)
            row[self.ids[(state.length - self.prompt) % len(self.ids)]] = 9.0
            rows.append(row if want is Want.LAST else None)
        return rows


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_json(standin.TOKENIZER)


def recite(
    tokenizer: Tokenizer,
    text: str,
    *,
    prompt: pb.Prompt | None = None,
    pause_s: float = 0.0,
    chunk_s: float = 0.0,
    token_s: float = 0.0,
    **sampling: Any,
) -> list[pb.GenerateEvent]:
    """The events of a chat (or `prompt`) that the model answers with this text and its specials."""
    user = types_pb2.Message(role=types_pb2.ROLE_USER, content="Hi")
    chat = types_pb2.Conversation(
        messages=[user],
        tools=[types_pb2.Tool(name="look")],
        thinking_mode=types_pb2.THINKING_MODE_ON,
    )
    request = pb.GenerateRequest(
        prompt=prompt or pb.Prompt(conversation=chat),
        sampling=types_pb2.Sampling(temperature=0, **sampling),
    )
    ids = tokenizer.encode_prompt(Prompt(text, [m.span() for m in SPECIAL.finditer(text)]))

    async def main() -> list[pb.GenerateEvent]:
        requests = Requests(tokenizer, tokenizer.vocab_size, 10_000, Sampling(), APRIL)
        job = requests.job(request, time.monotonic())
        spoken = job.sequence.prompt_tokens
        network = Recital(ids, tokenizer.vocab_size, spoken, chunk_s, token_s)
        engine = Engine(lambda: network, LIMITS, 4)
        await engine.start(0)
        journal = Journal(journal_dir, limit_bytes=0)
        acceptance = Acceptance(engine, tokenizer, journal, KeptRequests(0, 0))
        kept = await acceptance.take(job, digest(request), entry=None)
        events = []
        async for event in follow(engine, kept, 0):
            events.append(event)
            await asyncio.sleep(pause_s)
        await acceptance.close(5)
        await engine.close(5)
        return events

    with tempfile.TemporaryDirectory() as folder:
        journal_dir = Path(folder)
        return asyncio.run(main())


def deltas(events: list[pb.GenerateEvent]) -> list[pb.Delta]:
    return [event.delta for event in events if event.HasField("delta")]


CALL = (
    'Let me see.</think>I look.\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="look">\n'
    '<｜DSML｜parameter name="at" string="true">Rome</｜DSML｜parameter>\n'
    "</｜DSML｜invoke>\n</｜DSML｜tool_calls><｜end▁of▁sentence｜>"
)


def test_reasoning_content_and_tool_call(tokenizer: Tokenizer) -> None:
    """An answer with a tool call comes as reasoning, content and pieces of the call, in order."""
    events = recite(tokenizer, CALL)
    finished = events[-1].finished
    pieces = deltas(events)
    assert "".join(d.reasoning for d in pieces) == "Let me see."
    assert "".join(d.content for d in pieces).strip() == "I look."
    calls = [d.tool_call for d in pieces if d.HasField("tool_call")]
    assert calls[0].name == "look"
    assert calls[0].id
    assert "".join(c.arguments_fragment for c in calls) == '{"at": "Rome"}'
    assert finished.reason == pb.FINISH_REASON_TOOL_CALLS
    # The end of the reasoning is a token of it.
    assert finished.usage.reasoning_tokens == len(tokenizer.encode("Let me see.")) + 1
    assert finished.usage.completion_tokens == sum(len(d.token_ids) for d in pieces)


def test_tokens_that_pile_up_leave_together(tokenizer: Tokenizer) -> None:
    """A reader that is slow gets the same text and the same ids in fewer events."""
    quick = recite(tokenizer, CALL, token_s=0.005)
    slow = recite(tokenizer, CALL, token_s=0.005, pause_s=0.1)
    assert len(slow) < len(quick) / 2
    for read in (
        lambda d: d.reasoning,
        lambda d: d.content,
        lambda d: d.tool_call.arguments_fragment,
    ):
        assert "".join(map(read, deltas(slow))) == "".join(map(read, deltas(quick)))
    ids = [[i for d in deltas(events) for i in d.token_ids] for events in (quick, slow)]
    assert ids[0] == ids[1]
    assert slow[-1].finished.reason == pb.FINISH_REASON_TOOL_CALLS


@pytest.mark.parametrize("pause_s", [0.0, 0.05])
def test_stop_string_drops_what_follows_it(tokenizer: Tokenizer, pause_s: float) -> None:
    """Text ends before the stop string even when more tokens had come already."""
    prompt = pb.Prompt(text="count")
    events = recite(
        tokenizer, "one two three four five six", prompt=prompt, pause_s=pause_s, stop=["three"]
    )
    assert "".join(d.content for d in deltas(events)) == "one two "
    finished = events[-1].finished
    assert finished.reason == pb.FINISH_REASON_STOP_STRING
    assert finished.stop_string == "three"
    assert finished.usage.completion_tokens <= len(tokenizer.encode("one two three")) + 1


def test_characters_are_never_cut(tokenizer: Tokenizer) -> None:
    """Characters of many tokens come whole; one that the end cut off is shown as U+FFFD."""
    text = "naïve 🦕🦖 日本 ¿qué?"
    ids = tokenizer.encode(text)
    prompt = pb.Prompt(text="say")
    whole = deltas(recite(tokenizer, text, prompt=prompt, max_tokens=len(ids)))
    assert "".join(d.content for d in whole) == text
    assert not any("\ufffd" in d.content for d in whole)
    dinosaur = tokenizer.encode("🦕")
    cut = deltas(recite(tokenizer, "🦕", prompt=prompt, max_tokens=len(dinosaur) - 1))
    assert "".join(d.content for d in cut) == "\ufffd"


def test_slow_step_reports_progress(tokenizer: Tokenizer) -> None:
    """While one step takes two seconds, progress comes all the same."""
    prompt = pb.Prompt(token_ids=types_pb2.TokenIds(ids=[9] * 600))
    events = recite(tokenizer, "x", prompt=prompt, chunk_s=1.2, max_tokens=1)
    progress = [event.progress for event in events if event.HasField("progress")]
    assert [p.phase for p in progress] == [pb.PHASE_PREFILL] * len(progress)
    assert [p.prefilled_tokens for p in progress] == sorted(p.prefilled_tokens for p in progress)
    assert progress[0].prefilled_tokens < 512 <= progress[-1].prefilled_tokens < 600
    assert len(progress) >= 4
    assert progress[-1].eta_s > 0


def test_a_request_that_waits_tells_its_place(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """While others run it reports at least once a second where it is in the queue."""
    ids = types_pb2.TokenIds(ids=[9] * 3)

    async def main() -> list[pb.GenerateEvent]:
        requests = Requests(tokenizer, tokenizer.vocab_size, 10_000, Sampling(), APRIL)
        network = Recital(tokenizer.encode("la"), tokenizer.vocab_size, 3, 0.0, token_s=0.05)
        engine = Engine(lambda: network, Limits(max_running=1, chunk_tokens=512), 4)
        await engine.start(0)
        acceptance = Acceptance(engine, tokenizer, Journal(tmp_path, 0), KeptRequests(0, 0))

        async def events_of(tokens: int) -> list[pb.GenerateEvent]:
            request = pb.GenerateRequest(
                prompt=pb.Prompt(token_ids=ids),
                sampling=types_pb2.Sampling(temperature=0, max_tokens=tokens, ignore_eos=True),
            )
            job = requests.job(request, time.monotonic())
            kept = await acceptance.take(job, digest(request), entry=None)
            return [event async for event in follow(engine, kept, 0)]

        asked = [asyncio.create_task(events_of(tokens)) for tokens in (20, 4, 1)]
        last = (await asyncio.gather(*asked))[-1]
        await acceptance.close(5)
        await engine.close(5)
        return last

    events = asyncio.run(main())
    progress = [event.progress for event in events if event.HasField("progress")]
    assert {p.phase for p in progress} == {pb.PHASE_QUEUED}
    places = [events[0].accepted.queue_position, *(p.queue_position for p in progress)]
    assert len(places) >= 3
    assert places == sorted(places, reverse=True)
    assert 1 <= places[0] <= 2
    assert {event.offset for event in events if event.HasField("progress")} == {0}
