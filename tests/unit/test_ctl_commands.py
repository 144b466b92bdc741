"""ds4ctl: what commands write where, their exit codes and their JSON, against a real peer."""

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from ds4.v1 import admin_pb2, inference_pb2, types_pb2
from ds4ctl.main import execute
from ds4ctl.output import plain

from tests.unit import client_peer
from tests.unit.client_peer import Peer

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DS4_HOME", str(home))
    return home


@pytest.fixture
def peer(home: Path) -> Iterator[Peer]:
    with client_peer.serving(home) as peer:
        yield peer


def give(monkeypatch: pytest.MonkeyPatch, text: bytes) -> None:
    """Put `text` on standard input."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text), encoding="utf-8"))


def start(*arguments: str) -> subprocess.Popen[str]:
    """ds4ctl as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "ds4ctl", *arguments],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_help_loads_click_alone() -> None:
    """`ds4ctl --help` is there at once: of what takes long to load nothing is but click."""
    code = (
        "import contextlib, runpy, sys\n"
        "sys.argv = ['ds4ctl', '--help']\n"
        "with contextlib.suppress(SystemExit):\n"
        "    runpy.run_module('ds4ctl', run_name='__main__')\n"
        "names = {name.split('.')[0] for name in sys.modules}\n"
        "print(sorted(names - sys.stdlib_module_names - {'ds4ctl'}))\n"
        "print(sorted(names & {'asyncio', 'multiprocessing', 'ssl', 'socket'}))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *help_text, loaded, slow = ran.stdout.splitlines()
    assert any(line.split()[:1] == ["run"] for line in help_text)
    assert "'click'" in loaded
    for name in ("grpc", "google", "ds4", "ds4_client", "rich", "structlog", "numpy", "mlx"):
        assert f"'{name}'" not in loaded
    assert slow == "[]"


def test_run_separates_the_answer_from_what_is_about_it(peer: Peer, capsys: Captured) -> None:
    """Standard output is the answer and a line end, standard error has speed and usage."""
    assert execute(["run", "hello you"]) == 0
    out, err = capsys.readouterr()
    assert out == "You said: hello you\n"
    assert "12 prompt tokens (4 found in memory)" in err
    assert "3 tokens (1 of reasoning) · 64.1 tok/s" in err
    assert "think" not in err


def test_run_shows_reasoning_when_asked(peer: Peer, capsys: Captured) -> None:
    """Reasoning goes to standard error, never between the words of the answer."""
    assert execute(["run", "--reasoning", "hello"]) == 0
    out, err = capsys.readouterr()
    assert out == "You said: hello\n"
    assert err.startswith("Let me think.\n")


def test_run_json_is_one_line(peer: Peer, capsys: Captured) -> None:
    """`run --json` writes one object with all that docs/json.md names, and nothing else."""
    assert execute(["run", "--json", "grüße"]) == 0
    out, err = capsys.readouterr()
    assert out.isascii()
    said = json.loads(out)
    assert said.pop("request_id") == peer.requests[0].request_id
    assert said == {
        "text": "You said: grüße", "reasoning": "Let me think.", "tool_calls": [],
        "finish_reason": "stop", "prompt_tokens": 12, "completion_tokens": 3,
        "reasoning_tokens": 1, "cached_live": 4, "cached_restored": 0, "miss_reason": "disabled",
        "queue_ms": 0.0, "ttft_ms": 31.25, "prefill_tok_s": 256.5, "decode_tok_s": 64.125,
        "seed": 7,
    }  # fmt: skip
    assert err == ""


def test_run_json_tells_logprobs_and_tool_calls(peer: Peer, capsys: Captured) -> None:
    """Tokens that are a part of a character are told by their bytes."""

    def script(request: Any, context: Any) -> Iterator[inference_pb2.GenerateEvent]:
        half = types_pb2.TokenLogprob(token=types_pb2.TokenPiece(id=9, piece=b"\xc3"), logprob=-0.1)
        yield client_peer.accepted()
        delta = inference_pb2.Delta(content="é", token_ids=[9])
        delta.logprobs.append(types_pb2.TokenLogprobs(chosen=half, top=[half]))
        yield inference_pb2.GenerateEvent(delta=delta)
        call = inference_pb2.ToolCallDelta(id="c0", name="look", arguments_fragment="{}")
        yield inference_pb2.GenerateEvent(delta=inference_pb2.Delta(tool_call=call))
        yield client_peer.finished(inference_pb2.FINISH_REASON_TOOL_CALLS)

    peer.script = script
    assert execute(["run", "--json", "--logprobs", "--top-logprobs", "1", "x"]) == 0
    assert peer.requests[0].sampling.logprobs
    assert peer.requests[0].sampling.top_logprobs == 1
    said = json.loads(capsys.readouterr().out)
    one = {"id": 9, "text": "\ufffd", "bytes": [0xC3], "logprob": -0.1}
    assert said["logprobs"] == [{**one, "top": [one]}]
    assert said["tool_calls"] == [{"id": "c0", "name": "look", "arguments": "{}"}]
    assert said["finish_reason"] == "tool_calls"


def test_run_sends_what_the_options_say(peer: Peer) -> None:
    """Every option arrives, and what is not given stays unset."""
    words = (
        "run --system be --no-think --effort low --max-tokens 5 --temperature 0.5 --top-p 0.25 "
        "--top-k 3 --min-p 0.125 --seed 11 --stop A --stop B --timeout 9 hello"
    )
    assert execute(words.split()) == 0
    assert execute(["run", "hello"]) == 0
    request, bare = peer.requests
    chat = request.prompt.conversation
    assert [(m.role, m.content) for m in chat.messages] == [
        (types_pb2.ROLE_SYSTEM, "be"),
        (types_pb2.ROLE_USER, "hello"),
    ]
    assert chat.thinking_mode == types_pb2.THINKING_MODE_OFF
    assert chat.reasoning_effort == types_pb2.REASONING_EFFORT_LOW
    assert request.sampling == types_pb2.Sampling(
        max_tokens=5, temperature=0.5, top_p=0.25, top_k=3, min_p=0.125, seed=11, stop=["A", "B"]
    )
    assert request.deadline_ms == 9000
    assert request.client.name == "ds4ctl"
    assert bare.sampling == types_pb2.Sampling()
    assert bare.prompt.conversation.thinking_mode == types_pb2.THINKING_MODE_UNSPECIFIED
    assert bare.deadline_ms == 0


@pytest.mark.parametrize("arguments", [[], ["-"]])
def test_run_reads_standard_input(
    peer: Peer, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    """Without a prompt, or with "-", it is standard input less the last line end."""
    give(monkeypatch, "zwei\nZeilen – so\n".encode())
    assert execute(["run", *arguments]) == 0
    assert peer.requests[0].prompt.conversation.messages[0].content == "zwei\nZeilen – so"


def test_run_raw_sends_plain_text(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --raw the text is continued as it is, its last line end included."""
    give(monkeypatch, b"Once upon\n")
    assert execute(["run", "--raw"]) == 0
    assert peer.requests[0].prompt.text == "Once upon\n"


@pytest.mark.parametrize(
    ("arguments", "given", "said"),
    [
        (["run"], b"\n", "the prompt is empty"),
        (["run"], b"\xff", "not UTF-8"),
        (["chat"], b"\xff\n", "not UTF-8"),
        (["tokenize", "-"], b"\xff", "not UTF-8"),
        (["run", "--raw", "--no-think", "x"], b"", "--raw"),
        (["run", "--logprobs", "x"], b"", "--json"),
        (["run", "--nonsense"], b"", "--nonsense"),
        (["run", "--max-tokens", "many", "x"], b"", "many"),
        (["run", "--seed", "-1", "x"], b"", "--seed"),
        (["run", "--top-k", "-1", "x"], b"", "--top-k"),
        (["run", "--timeout", "0", "x"], b"", "--timeout"),
        (["run", "--timeout", "nan", "x"], b"", "--timeout"),
        (["run", "--timeout", "inf", "x"], b"", "--timeout"),
        (["run", "--top-p", "1.5", "x"], b"", "--top-p"),
        (["run", "--max-tokens", "0", "x"], b"", "--max-tokens"),
        (["run", "--top-logprobs", "4", "x"], b"", "--logprobs"),
        (["nonsense"], b"", "nonsense"),
        (["cancel"], b"", "REQUEST_ID"),
    ],
)
def test_wrong_usage_leaves_with_2(
    peer: Peer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Captured,
    arguments: list[str],
    given: bytes,
    said: str,
) -> None:
    """Wrong usage is one sentence and a hint, exit code 2, and reaches no daemon."""
    give(monkeypatch, given)
    assert execute(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err.splitlines()[0]
    assert "--help" in err.splitlines()[1]
    assert peer.requests == []


@pytest.mark.parametrize("command", [["run", "x"], ["status"], ["tokenize", "x"], ["cancel", "x"]])
def test_no_daemon_leaves_with_3(home: Path, capsys: Captured, command: list[str]) -> None:
    """Every command says that the daemon is not running and how to start it; so does its JSON."""
    assert execute(command) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert "not running" in err
    assert "ds4-daemon" in err.splitlines()[1]
    assert execute([*command, "--json"]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert json.loads(err)["reason"] == "NOT_RUNNING"
    assert sorted(json.loads(err)) == ["hint", "message", "reason"]


def test_a_timeout_leaves_with_4(peer: Peer, capsys: Captured) -> None:
    """What came in time is on standard output."""
    peer.script = client_peer.forever
    assert execute(["run", "--timeout", "0.2", "x"]) == 4
    out, err = capsys.readouterr()
    assert out.startswith("on and on")
    assert "time was up" in err


def test_a_bad_home_leaves_with_78(capsys: Captured) -> None:
    """A home whose socket path is too long is bad configuration."""
    assert execute(["--home", "/" + "x" * 120, "status"]) == 78
    assert "DS4_HOME" in capsys.readouterr().err


def test_a_refusal_leaves_with_1(peer: Peer, capsys: Captured) -> None:
    """What the daemon refuses is told in its own words."""

    def script(request: Any, context: Any) -> Iterator[inference_pb2.GenerateEvent]:
        client_peer.refuse(
            context, grpc.StatusCode.INVALID_ARGUMENT, "PROMPT_TOO_LONG", "too long", "cut it"
        )
        yield client_peer.accepted()

    peer.script = script
    assert execute(["run", "x"]) == 1
    assert capsys.readouterr().err.splitlines() == ["ds4ctl: too long", "  cut it"]
    assert execute(["run", "x", "--json"]) == 1
    assert json.loads(capsys.readouterr().err)["reason"] == "PROMPT_TOO_LONG"


@pytest.mark.parametrize("place", ["before", "after"])
def test_the_home_option_wins_over_the_variable(
    peer: Peer, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """--home is understood before and after the command."""
    monkeypatch.setenv("DS4_HOME", "/nowhere")
    home = ["--home", str(peer.home)]
    assert execute([*home, "status"] if place == "before" else ["status", *home]) == 0


def test_status_for_people_and_programs(peer: Peer, capsys: Captured) -> None:
    """Status names the model and each request; its JSON has every field of the contract."""
    assert execute(["status"]) == 0
    out = capsys.readouterr().out
    for part in (
        "process 4321, serving, up 1 h 2 min",
        "model   nano\n          gguf",
        "3.0 GiB",
        "r7 of ds4ctl",
    ):
        assert part in out
    assert execute(["status", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["process"]["state"] == "serving"
    assert said["process"]["problem"] is None
    assert said["model"]["fingerprint"] == "01ff"
    assert said["engine"]["requests"][0]["phase"] == "decode"
    assert said["engine"]["totals"]["requests"] == 2**40
    assert said["engine"]["last_step_age_s"] is None
    assert said["kv_cache"] is None


def test_status_tells_memory_from_disk(peer: Peer, capsys: Captured) -> None:
    """Tokens found in live sessions and those restored from disk are told apart, with the link's
    state and what went wrong there."""
    totals = peer.status.engine.totals
    totals.prompt_tokens, totals.cached_live_tokens, totals.cached_restored_tokens = (
        9000,
        1500,
        4096,
    )
    link = peer.status.kv_link
    link.state, link.restores, link.queue_bytes = admin_pb2.KV_LINK_STATE_CONNECTED, 2, 1_500_000
    link.dropped_records, link.refused_records = 3, 1
    link.canaries, link.canary_failures = 5, 1
    assert execute(["status"]) == 0
    out = capsys.readouterr().out
    assert "9,000 tokens: 1,500 found in memory, 4,096 restored from disk" in out
    assert "connected: 2 restores from disk, 1.5 MB waiting to be sent" in out
    assert "4 records not stored" in out
    assert "5 restores computed again, 1 of them wrong" in out
    link.state = admin_pb2.KV_LINK_STATE_UNAVAILABLE
    link.problem.message, link.problem.hint = "nobody answers", "start ds4-kvcache"
    assert execute(["status"]) == 0
    assert "unavailable: nobody answers\n          start ds4-kvcache" in capsys.readouterr().out


def test_status_escapes_what_clients_call_themselves(peer: Peer, capsys: Captured) -> None:
    """No name of a client or a model moves the cursor or makes a line of its own."""
    peer.status.engine.requests[0].client.name = "evil\x1b[2J\nds4-daemon is fine"
    peer.status.model.name = "\x07\x9b"
    assert execute(["status"]) == 0
    out = capsys.readouterr().out
    assert all(line.isprintable() for line in out.split("\n"))
    assert r"evil\x1b[2J\nds4-daemon is fine" in out


def test_status_tells_a_problem(peer: Peer, capsys: Captured) -> None:
    """A daemon that cannot serve says why, and status still succeeds."""
    peer.status = admin_pb2.StatusResponse(
        process=admin_pb2.ProcessStatus(
            name="ds4-daemon", state=admin_pb2.PROCESS_STATE_FAILED,
            problem=types_pb2.Error(reason="BROKEN", message="it broke", hint="mend it"),
        )
    )  # fmt: skip
    assert execute(["status"]) == 0
    assert "it broke (mend it)" in capsys.readouterr().out


def test_status_waits_until_the_daemon_serves(peer: Peer, capsys: Captured) -> None:
    """--wait leaves with 4 when the daemon loads for longer, with 3 when there is none."""
    peer.set_serving(False)
    assert execute(["status", "--wait", "0.2"]) == 4
    peer.set_serving(True)
    assert execute(["status", "--wait", "5"]) == 0
    peer.close()
    assert execute(["status", "--wait", "0.2"]) == 3


@pytest.mark.parametrize(
    "arguments",
    [
        ["status", "--wait", "nan"],
        ["status", "--wait", "-1"],
        ["run", "hi", "--json", "--logprobs", "--top-logprobs", "-1"],
    ],
)
def test_numbers_that_mean_nothing_are_wrong_usage(arguments: list[str], capsys: Captured) -> None:
    """They are refused before a daemon is asked, with 2; nan would wait for ever."""
    assert execute(arguments) == 2
    assert arguments[-2] in capsys.readouterr().err


def test_tokenize_and_cancel(peer: Peer, capsys: Captured) -> None:
    """Ids and pieces for people and programs; a request that is not there is a failure."""
    assert execute(["tokenize", "hé"]) == 0
    assert capsys.readouterr().out == "104 195 169\n"
    assert execute(["tokenize", "hé", "--pieces"]) == 0
    assert capsys.readouterr().out == "104\t'h'\n195\tb'\\xc3'\n169\tb'\\xa9'\n"
    assert execute(["tokenize", "hi", "--json", "--pieces"]) == 0
    assert json.loads(capsys.readouterr().out) == {"ids": [104, 105], "pieces": ["h", "i"]}
    assert execute(["cancel", "r7", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"cancelled": True}
    assert execute(["cancel", "r8"]) == 1
    assert "r8" in capsys.readouterr().err


def test_plain_reads_every_kind_of_field() -> None:
    """Integers stay integers, enums are words, bytes hexadecimal, floats without false digits."""
    said = plain(
        types_pb2.TokenLogprobs(
            chosen=types_pb2.TokenLogprob(
                token=types_pb2.TokenPiece(id=2**32 - 1, piece=b"\xff"), logprob=-0.1
            )
        )
    )
    assert said == {
        "chosen": {
            "token": {"id": 2**32 - 1, "piece": "ff", "special": False},
            "logprob": -0.1,
        },
        "top": [],
    }
    assert plain(inference_pb2.Progress(phase=99))["phase"] == "unspecified"  # type: ignore[arg-type]
