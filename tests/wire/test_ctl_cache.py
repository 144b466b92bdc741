"""`ds4ctl cache` against a real ds4-kvcache: what it says, its JSON, and its exit codes."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ds4ctl.main import execute

from tests.unit.client_peer import Peer, serving
from tests.wire.kv_service import Service, prompt

Captured = pytest.CaptureFixture[str]
SHARED = prompt(1, 512)
PROMPTS = [prompt(2, 1000, SHARED), prompt(3, 1300, SHARED)]


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """A service that holds two prompts with a common beginning and one of another salt."""
    with tempfile.TemporaryDirectory(prefix="ds4-", dir="/tmp") as folder:
        started = Service(Path(folder), "--min-tokens", "128", "--budget-bytes", "100000000")
        try:
            started.start()
            with started.link() as link:
                link.put(PROMPTS[0], checkpoints=[512, 896])
                link.put(PROMPTS[1], checkpoints=[1280])
                link.put(prompt(4, 300), checkpoints=[256], salt="bob")
                assert link.restore(PROMPTS[0]) == 896
            monkeypatch.setenv("DS4_HOME", folder)
            yield started
        finally:
            started.kill()


def run(captured: Captured, *arguments: str) -> str:
    """Standard output of a command that succeeds."""
    code = execute(["cache", *arguments])
    out, err = captured.readouterr()
    assert code == 0, err
    return out


def told(captured: Captured, *arguments: str) -> Any:
    """What a command writes with --json."""
    return json.loads(run(captured, *arguments, "--json"))


def keys(captured: Captured) -> dict[int, str]:
    """Keys of the stored prefixes, by their tokens."""
    lines = run(captured, "ls", "--json").splitlines()
    return {one["tokens"]: one["key"] for one in map(json.loads, lines)}


def test_stat_tells_figures(service: Service, capsys: Captured) -> None:
    """`cache stat` tells hits, what was saved, classes and limits, for people and as JSON."""
    text = run(capsys, "stat")
    assert "1 of 1 lookups (100%), 896 tokens and 9 s saved" in text
    assert "15 blocks of 75" in text and "4 checkpoints of 24" in text
    assert "used of 100.0 MB" in text and "in 24 hours of 100.0 GB" in text
    stat = told(capsys, "stat")
    assert stat["total"]["tokens_saved"] == 896
    assert stat["budget_bytes"] == 100_000_000
    assert [one["model_name"] for one in stat["stores"]] == ["test"]


def test_ls_lists_most_recent_first(service: Service, capsys: Captured) -> None:
    """`cache ls` lists prefixes as they were last used, with salt, hits and what they saved."""
    first, *others = run(capsys, "ls").splitlines()
    assert "896 tokens" in first and "1 hits" in first and "9 s saved" in first
    assert len(others) == 2
    assert any("salt bob" in line for line in others)
    (only,) = run(capsys, "ls", "--salt", "bob", "--json").splitlines()
    prefix = json.loads(only)
    assert (prefix["tokens"], prefix["checkpoint_tokens"], prefix["first_text"]) == (256, [256], "")
    assert prefix["first_token_ids"] == prompt(4, 300)[:64]


def test_ls_says_when_there_is_more(service: Service, capsys: Captured) -> None:
    """A list that is cut says how much is left, on standard error."""
    assert execute(["cache", "ls", "-n", "1"]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1
    assert "2 more" in err


def test_tree_shows_where_prefixes_part(service: Service, capsys: Captured) -> None:
    """`cache tree` has a line for each stretch between two branches."""
    lines = run(capsys, "tree").splitlines()
    assert [line.split("tokens ")[1].split(",")[0] for line in lines if "bob" not in line] == [
        "0 to 512",
        "512 to 896",
        "512 to 1",
    ]
    assert "checkpoints at 512" in lines[0] and lines[1].startswith("  ")
    nodes = told(capsys, "tree")["nodes"]
    assert len(nodes) == 15 and nodes[0]["token_ids"] == []


def test_inspect_shows_a_block(service: Service, capsys: Captured) -> None:
    """`cache inspect` shows records, tokens, value and protection of the block that it is given."""
    key = keys(capsys)[896]
    text = run(capsys, "inspect", key[:12])
    assert key in text and "protected by fresh" in text and "prompt_end" in text
    (node,) = told(capsys, "inspect", key)["nodes"]
    assert node["token_ids"] == PROMPTS[0][768:896]
    assert [record["raw_bytes"] for record in node["records"]] == [5000, 6000]


def test_pins_are_set_and_taken_away(service: Service, capsys: Captured) -> None:
    """A pin is shown with its prefix until it is taken away; an unknown one is an error."""
    key = keys(capsys)[1280]
    assert told(capsys, "pin", key[:16], "--name", "mine", "--ttl", "2h")["pins"] == ["mine"]
    assert "pinned as mine" in run(capsys, "ls")
    (node,) = told(capsys, "inspect", key)["nodes"]
    assert node["protected_by"] == "pinned"
    assert "unpinned mine" in run(capsys, "unpin", "mine")
    assert execute(["cache", "unpin", "mine", "--json"]) == 1
    assert json.loads(capsys.readouterr().err)["reason"] == "NO_SUCH_PIN"


def test_evict_tells_and_does(service: Service, capsys: Captured) -> None:
    """What is fresh stays; a dry run drops nothing, and nothing is dropped without a condition."""
    answer = told(capsys, "evict", "--all", "--dry-run")
    assert (answer["records"], answer["protected_records"]) == (0, 19)
    assert execute(["cache", "evict"]) == 2
    assert "--all" in capsys.readouterr().err
    assert "0 records" in run(capsys, "evict", "--older", "1d", "--to-size", "1MB")


def test_verify_finds_nothing_and_says_so(service: Service, capsys: Captured) -> None:
    """`cache verify` reads everything and leaves with 0 when all is well."""
    assert told(capsys, "verify") == {"checked_records": 19, "bad_records": 0, "findings": []}
    assert "19 records checked, 0 bad" in run(capsys, "verify", "--structure")


def test_verify_leaves_with_one_when_something_is_bad(service: Service, capsys: Captured) -> None:
    """A file that was changed behind the service is found, and deleted on request."""
    run(capsys, "compact")
    file = service.stores[0] / "data.mdb"
    content = bytearray(file.read_bytes())
    place = content.index(bytes.fromhex("28b52ffd")) + 200  # inside some record's frame
    content[place] ^= 1
    with file.open("r+b") as opened:  # the same file, which the service has mapped
        opened.write(content)
    assert execute(["cache", "verify", "--repair", "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["bad_records"] == 1 and "is damaged" in answer["findings"][0]
    assert "0 bad" in run(capsys, "verify")


def test_purge_deletes_for_good(service: Service, capsys: Captured) -> None:
    """`cache purge` deletes a salt or a fingerprint whole, after a dry run said how much."""
    answer = told(capsys, "purge", "--salt", "bob", "--dry-run")
    assert answer["records"] == 3
    assert len(keys(capsys)) == 3
    assert told(capsys, "purge", "--salt", "bob")["records"] == 3
    assert sorted(keys(capsys)) == [896, 1280]
    digest = told(capsys, "stat")["stores"][0]["fingerprint"]
    assert "1 stores" in run(capsys, "purge", "--fingerprint", digest[:8], "--yes")
    assert run(capsys, "ls") == ""
    assert execute(["cache", "purge", "--yes"]) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", "abc"],
        ["inspect", "zz"],
        ["evict", "--to-size", "much"],
        ["evict", "--older", "7"],
        ["pin", "00"],
    ],
)
def test_wrong_usage(arguments: list[str], capsys: Captured) -> None:
    """Keys, sizes and times that are none are wrong usage, told before anything is asked."""
    assert execute(["cache", *arguments]) == 2
    assert "--help" in capsys.readouterr().err


def test_unknown_key_is_an_error(service: Service, capsys: Captured) -> None:
    """A key that nothing begins with, or several do, is told with what to do."""
    assert execute(["cache", "inspect", "00" * 32]) == 1
    assert "ds4ctl cache ls" in capsys.readouterr().err


def test_no_service_is_told(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    """Without a service every command leaves with 3 and says how to start it."""
    monkeypatch.setenv("DS4_HOME", str(home))
    assert execute(["cache", "stat"]) == 3
    assert "start it with `ds4-kvcache`" in capsys.readouterr().err


def test_texts_come_from_the_daemon(service: Service, capsys: Captured) -> None:
    """Where the daemon has the model of a prefix loaded, `cache ls` shows how it begins."""
    text = "Once upon a time there was a cache. " * 20
    with service.link() as link, serving(service.home.path) as peer:
        link.put([*text.encode()][:512], checkpoints=[512])
        _load(peer, link.digest)
        first = run(capsys, "ls", "-n", "1", "--json")
        assert json.loads(first)["first_text"] == text[:64]
        _load(peer, bytes(32))
        assert json.loads(run(capsys, "ls", "-n", "1", "--json"))["first_text"] == ""


def test_status_shows_the_cache(service: Service, capsys: Captured) -> None:
    """`ds4ctl status` shows the figures of the cache behind those of the daemon."""
    with serving(service.home.path):
        assert execute(["status"]) == 0
        assert "1 of 1 lookups (100%)" in capsys.readouterr().out
        assert execute(["status", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["kv_cache"]["total"]["hits"] == 1
        service.kill()
        assert execute(["status", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["kv_cache"] is None


def _load(peer: Peer, fingerprint: bytes) -> None:
    """Have the daemon's stand-in say that this model is loaded."""
    peer.status.model.fingerprint = fingerprint
