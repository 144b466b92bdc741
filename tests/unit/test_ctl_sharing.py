"""ds4ctl where several share a model: ps, estimate, detached requests and sessions."""

import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ds4.v1 import inference_pb2, types_pb2
from ds4.v1 import sessions_pb2 as sessions
from ds4.v1.admin_pb2 import RequestStatus
from ds4ctl.main import execute

from tests.unit import client_peer
from tests.unit.client_peer import Peer

Captured = pytest.CaptureFixture[str]
DRAWN = "0123456789abcdef" * 2


@pytest.fixture
def peer(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Peer]:
    monkeypatch.setenv("DS4_HOME", str(home))
    with client_peer.serving(home) as peer:
        yield peer


def fill(peer: Peer) -> None:
    """Requests of every kind beside r7, with the largest figures there are."""
    client = types_pb2.ClientInfo(name="a\x1b[2J very long name of a program")
    peer.status.engine.requests.extend(
        [
            RequestStatus(
                request_id=DRAWN, client=client, phase=inference_pb2.PHASE_QUEUED,
                queue_position=12,
            ),
            RequestStatus(
                request_id=DRAWN[:10] + "f" * 22, phase=inference_pb2.PHASE_PREFILL,
                prompt_tokens=1_048_576, prefilled_tokens=999_999, max_tokens=1_048_576,
                cached_live_tokens=9, cached_restored_tokens=9, detached=True,
            ),
            RequestStatus(
                request_id="job-" + "x" * 124, phase=inference_pb2.PHASE_DECODE,
                cached_restored_tokens=5, age_s=360_000, tokens_per_s=12_345,
            ),
        ]
    )  # fmt: skip


def test_ps_fits_80_columns(peer: Peer, capsys: Captured) -> None:
    """A line a request in 80 columns, with ids that tell requests apart, whatever is in them."""
    fill(peer)
    assert execute(["ps"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 and line.isprintable() for line in (head, *rows))
    assert re.fullmatch(r"r7 +ds4ctl +decode +12/12 +34/100 +64/s +2 s +-", rows[0])
    assert re.match(r"0123456789a +a\\x1b\S* +queued 12 +0/0", rows[1])
    assert re.search(r"^0123456789f .* prefill\* +999k/1.0M +0/1.0M +- .* both$", rows[2])
    assert re.search(r"^job-x+…  .* 12k/s +4 d  disk$", rows[3])


def test_ps_json_and_nothing(peer: Peer, capsys: Captured) -> None:
    """Its JSON has the contract's fields; without requests a person is told so."""
    assert execute(["ps", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["requests"][0]["request_id"] == "r7"
    assert said["requests"][0]["detached"] is False
    assert (said["running"], said["waiting"]) == (1, 0)
    peer.status.engine.ClearField("requests")
    assert execute(["ps"]) == 0
    assert capsys.readouterr() == ("", "no request runs or waits\n")


def test_ps_watch_shows_it_again_until_interrupted(peer: Peer) -> None:
    """Each look is a line of JSON, written at once; Ctrl-C leaves with 130."""
    command = [sys.executable, "-m", "ds4ctl", "ps", "--watch", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        for _ in range(2):
            assert json.loads(watching.stdout.readline())["running"] == 1
        watching.send_signal(2)
        assert watching.wait(30) == 130


def test_a_drawn_id_may_be_cut_and_a_chosen_one_not(peer: Peer, capsys: Captured) -> None:
    """The first digits of an id that nobody chose name it if they name no other one."""
    fill(peer)
    assert execute(["cancel", DRAWN[:11]]) == 1  # the peer knows r7 alone
    assert execute(["cancel", "job-"]) == 1
    assert peer.cancelled == [DRAWN, "job-"]
    capsys.readouterr()
    assert execute(["cancel", DRAWN[:8], "--json"]) == 1
    assert json.loads(capsys.readouterr().err)["reason"] == "AMBIGUOUS_REQUEST"
    assert peer.cancelled == [DRAWN, "job-"]


def test_run_detach_leaves_an_id_that_attach_follows(peer: Peer, capsys: Captured) -> None:
    """`run --detach` writes the id alone; `attach` shows answer and figures, as run does."""
    assert execute(["run", "--detach", "--session", "s", "--priority", "background", "hi"]) == 0
    out, err = capsys.readouterr()
    sent = peer.requests[0]
    assert sent.detach and sent.session == "s"
    assert sent.priority == types_pb2.PRIORITY_BACKGROUND
    assert out == f"{sent.request_id}\n"
    assert f"ds4ctl attach {sent.request_id}" in err
    assert execute(["attach", sent.request_id]) == 0
    out, err = capsys.readouterr()
    assert out == "You said: hi\n"
    assert "12 prompt tokens" in err
    assert execute(["attach", sent.request_id, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == "You said: hi"
    assert execute(["attach", sent.request_id, "--offset", "4"]) == 0
    assert capsys.readouterr().out == " hi\n"
    assert execute(["attach", "x", "--offset", "4", "--json"]) == 2
    assert [one.offset for one in peer.attached] == [0, 0, 4]
    assert {one.client.name for one in peer.attached} == {sent.client.name}
    assert execute(["run", "--detach", "--json", "hi"]) == 0
    assert json.loads(capsys.readouterr().out) == {"request_id": peer.requests[-1].request_id}


def test_estimate_says_what_run_would_cost(
    peer: Peer, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sends the request that run would send, and tells tokens, time and memory in words."""
    peer.estimate = inference_pb2.EstimateResponse(
        prompt_tokens=9000, cached_live_tokens=4096, cached_restored_tokens=128,
        prefill_tokens=4776, first_token_s=12.4, queue_position=2, need_bytes=3_500_000,
        headroom_bytes=8_000_000_000,
    )  # fmt: skip
    given = io.TextIOWrapper(io.BytesIO("größe\n".encode()), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", given)
    assert execute(["estimate", "--max-tokens", "7"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "prompt   9,000 tokens: 4,096 in memory, 128 on disk, 4,776 to compute",
        "first    in about 12 s, 2 requests before it",
        "memory   3.5 MB of 8.0 GB free",
    ]
    assert peer.requests[0].prompt.conversation.messages[0].content == "größe"
    assert peer.requests[0].sampling.max_tokens == 7
    assert execute(["estimate", "x", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["prefill_tokens"] == 4776 and said["refusal"] is None


def test_estimate_tells_a_refusal(peer: Peer, capsys: Captured) -> None:
    """What could never run is told with the reason, and no time is made up."""
    peer.estimate.prompt_tokens = 1
    assert execute(["estimate", "x"]) == 0
    assert "no speed was measured yet" in capsys.readouterr().out
    peer.estimate.refusal.message, peer.estimate.refusal.hint = "too long", "cut it"
    assert execute(["estimate", "x"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["refused  too long", "         cut it"]


def test_sessions_are_listed_in_80_columns(peer: Peer, capsys: Captured) -> None:
    """A row each, its notes and last words below; nothing in them moves the cursor."""
    assert execute(["sessions", "ls", "--client", "editor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 and line.isprintable() for line in lines)
    assert re.fullmatch(r"review +idle +12,345 +3.5 MB +1.2 GB +75 s  editor", lines[1])
    assert lines[2] == "    id s1; pinned; salt bob"
    assert lines[3].startswith("    …") and lines[3].endswith("a long story")
    assert re.match(r"s2 +saved +64", lines[4])
    assert peer.sessions.asked[0].client_name == "editor"
    assert execute(["sessions", "ls", "--json"]) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(one["id"], one["state"]) for one in said] == [("s1", "idle"), ("s2", "saved")]


@pytest.mark.parametrize(
    ("arguments", "asked", "said"),
    [
        (["fork", "s1", "--name", "b", "--at", "0"],
         sessions.ForkSessionRequest(session="s1", name="b", at_token=0), "forked b"),
        (["fork", "s1"], sessions.ForkSessionRequest(session="s1"), "forked s3"),
        (["rewind", "s1", "9"], sessions.RewindSessionRequest(session="s1", keep_tokens=9),
         "rewound s1"),
        (["name", "s1", "new"], sessions.NameSessionRequest(session="s1", name="new"),
         "named new"),
        (["pin", "s1"], sessions.PinSessionRequest(session="s1", pinned=True), "pinned s1"),
        (["unpin", "s1"], sessions.PinSessionRequest(session="s1"), "unpinned s1"),
        (["delete", "s1"], sessions.DeleteSessionRequest(session="s1"),
         "deleted s1, 2.5 MB freed"),
    ],
)  # fmt: skip
def test_sessions_are_changed(
    peer: Peer, capsys: Captured, arguments: list[str], asked: object, said: str
) -> None:
    """Each command sends what was said, tells what was done, and writes one object with --json."""
    assert execute(["sessions", *arguments]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == said
    assert peer.sessions.asked == [asked]
    assert ("7 tokens" in err) == (arguments[0] == "rewind")
    assert execute(["sessions", *arguments, "--json"]) == 0
    assert isinstance(json.loads(capsys.readouterr().out), dict)
