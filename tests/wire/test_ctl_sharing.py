"""ds4ctl's commands of sharing against a real daemon: detached requests, sessions, estimates."""

import json

import pytest
from ds4ctl.main import execute

from tests.wire.conftest import Daemon

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _home(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS4_HOME", str(daemon.home.path))


def test_a_detached_request_is_listed_attached_to_and_cancelled(capsys: Captured) -> None:
    """`ps` shows that nobody reads it, the first digits of its id name it, and `cancel` ends it."""
    command = ["run", "--raw", "--detach", "--quiet", "--temperature", "0", "--max-tokens"]
    assert execute([*command, "20", "Once upon a time"]) == 0
    first = capsys.readouterr().out.strip()
    for called in (first, first[:8]):  # the first time until it ended
        assert execute(["attach", called, "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert (said["request_id"], said["completion_tokens"]) == (first, 20)
    assert execute(["attach", first[:3]]) == 1
    capsys.readouterr()
    assert execute([*command, "60000", "Once upon a time"]) == 0
    endless = capsys.readouterr().out.strip()
    assert execute(["ps"]) == 0
    row = capsys.readouterr().out.splitlines()[1]
    assert row.startswith(endless[:8]) and "*" in row and "/60k" in row
    assert execute(["cancel", endless[:8]]) == 0
    assert execute(["attach", endless]) == 1
    assert "cancelled" in capsys.readouterr().err


def test_a_session_is_extended_forked_and_deleted(capsys: Captured) -> None:
    """A named session is there after its request; its fork costs nothing and goes by itself."""
    run = [
        "run",
        "--raw",
        "--temperature",
        "0",
        "--max-tokens",
        "4",
        "--session",
        "tale",
        "Once upon a time",
    ]
    assert execute(run) == 0
    assert execute(["sessions", "fork", "tale", "--name", "other"]) == 0
    assert execute(["sessions", "delete", "tale"]) == 0
    capsys.readouterr()
    assert execute(["sessions", "ls", "--json"]) == 0
    names = [json.loads(line)["name"] for line in capsys.readouterr().out.splitlines()]
    assert "other" in names and "tale" not in names
    assert execute(["sessions", "delete", "tale", "--json"]) == 1
    assert json.loads(capsys.readouterr().err)["reason"] == "SESSION_NOT_FOUND"


def test_estimate_counts_what_run_would_compute(capsys: Captured) -> None:
    """The tokens of the same prompt, before it ran and after, when it is found in memory."""
    prompt = "Why is the sky blue? " * 10
    assert execute(["estimate", prompt, "--json"]) == 0
    before = json.loads(capsys.readouterr().out)
    assert execute(["run", prompt, "--json", "--max-tokens", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["prompt_tokens"] == before["prompt_tokens"]
    assert before["refusal"] is None
    assert before["prefill_tokens"] == before["prompt_tokens"] - before["cached_live_tokens"]
    assert 0 < before["need_bytes"] < before["headroom_bytes"]
