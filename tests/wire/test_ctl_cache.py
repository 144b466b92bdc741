"""`ds4ctl cache` against a real ds4-kvcache: what it says, its JSON, and its exit codes."""

import hashlib
import io
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ds4.v1 import kvcache_pb2, kvstore_pb2
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
    assert "1 of 1 lookup (100%), 896 tokens and 9 s saved" in text
    assert "15 blocks of 75" in text and "4 checkpoints of 24" in text
    assert "used of 100.0 MB" in text and "in 24 hours of 100.0 GB" in text
    stat = told(capsys, "stat")
    assert stat["total"]["tokens_saved"] == 896
    assert stat["budget_bytes"] == 100_000_000
    assert [one["model_name"] for one in stat["stores"]] == ["test"]


def test_ls_lists_most_recent_first(service: Service, capsys: Captured) -> None:
    """`cache ls` lists prefixes as they were last used, with salt, hits and what they saved."""
    head, first, *others = run(capsys, "ls").splitlines()
    assert head.split() == ["KEY", "TOKENS", "SIZE", "USED", "STORED", "HITS", "SAVED"]
    fields = first.split()
    assert (fields[1], fields[-3:]) == ("896", ["1", "9", "s"])
    assert len(others) == 3
    assert others.count("    salt bob") == 1
    assert max(map(len, [head, first, *others])) <= 80
    (only,) = run(capsys, "ls", "--salt", "bob", "--json").splitlines()
    prefix = json.loads(only)
    assert (prefix["tokens"], prefix["checkpoint_tokens"], prefix["first_text"]) == (256, [256], "")
    assert prefix["first_token_ids"] == prompt(4, 300)[:64]


def test_ls_says_when_there_is_more(service: Service, capsys: Captured) -> None:
    """A list that is cut says how much is left, on standard error."""
    assert execute(["cache", "ls", "-n", "1"]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2
    assert "2 more" in err


def test_tree_shows_where_prefixes_part(service: Service, capsys: Captured) -> None:
    """`cache tree` has a line for each stretch between two branches."""
    lines = run(capsys, "tree").splitlines()
    assert [line.split("tokens ")[1].split(",")[0] for line in lines if "bob" not in line] == [
        "0 to 511",
        "512 to 895",
        "512 to 1",
    ]
    assert "checkpoint at 512" in lines[0] and lines[1].startswith("  ")
    nodes = told(capsys, "tree")["nodes"]
    assert len(nodes) == 15 and nodes[0]["token_ids"] == []


def test_inspect_shows_a_block(service: Service, capsys: Captured) -> None:
    """`cache inspect` shows records, tokens, value and protection of the block that it is given."""
    key = keys(capsys)[896]
    text = run(capsys, "inspect", key[:12])
    assert key in text and "protected by being new" in text and "prompt end" in text
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
    assert execute(["cache", "evict", "--to-size", "10kB"]) == 0
    assert "kB are used still" in capsys.readouterr().err


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
    assert told(capsys, "purge", "--salt", "bob", "--yes")["records"] == 3
    assert sorted(keys(capsys)) == [896, 1280]
    digest = told(capsys, "stat")["stores"][0]["fingerprint"]
    said = run(capsys, "purge", "--fingerprint", digest[:7], "--yes")
    assert "1 store with 16 records of" in said and said.endswith("went\n")
    assert execute(["cache", "purge", "--yes"]) == 2


def failure(captured: Captured, *arguments: str) -> dict[str, str]:
    """What a command that leaves with 1 says of it with --json."""
    assert execute(["cache", *arguments, "--json"]) == 1
    said: dict[str, str] = json.loads(captured.readouterr().err)
    return said


def test_unknown_key_is_an_error(service: Service, capsys: Captured) -> None:
    """A key that nothing begins with is told with what to do, however many digits it has."""
    for digits in ("00" * 32, "0" * 63):
        said = failure(capsys, "inspect", digits)
        assert said["reason"] == "NO_SUCH_BLOCK" and "ds4ctl cache ls" in said["hint"]


def test_any_number_of_digits_names_a_key(service: Service, capsys: Captured) -> None:
    """As many digits as tell a key from all others are enough, an odd number of them too."""
    with service.link() as link:
        link.put(prompt(5, 60 * 128))
    nodes = told(capsys, "tree")["nodes"]
    key = nodes[0]["key"]
    others = [node["key"] for node in nodes[1:]]
    shortest = next(n for n in range(1, 65) if not any(o.startswith(key[:n]) for o in others))
    for count in (shortest, shortest + 1, 63):
        (node,) = told(capsys, "inspect", key[:count].upper())["nodes"]
        assert node["key"] == key
    assert told(capsys, "tree", key[:63])["nodes"][0]["key"] == key
    # 75 blocks share 16 digits: the first digit of some key begins another one too.
    by_digit = [key[0] for key in [node["key"] for node in nodes]]
    shared = next(digit for digit in by_digit if by_digit.count(digit) > 1)
    assert failure(capsys, "inspect", shared)["reason"] == "AMBIGUOUS_KEY"


def test_unknown_fingerprint_is_an_error(service: Service, capsys: Captured) -> None:
    """A fingerprint that no store has is told with those there are; so is one that two have."""
    digest = told(capsys, "stat")["stores"][0]["fingerprint"]
    unknown = ("0" if digest[0] != "0" else "1") + digest[1:]
    for command in (["ls"], ["evict"], ["verify"], ["compact"], ["purge", "--yes"]):
        said = failure(capsys, *command, "--fingerprint", unknown)
        assert said["reason"] == "NO_SUCH_FINGERPRINT" and digest[:16] in said["hint"]
    for number in range(17):  # two of so many begin alike
        with service.link(f'{{"other":{number}}}'):
            pass
    first = [one["fingerprint"][0] for one in told(capsys, "stat")["stores"]]
    shared = next(digit for digit in first if first.count(digit) > 1)
    said = failure(capsys, "purge", "--yes", "--fingerprint", shared)
    assert said["reason"] == "AMBIGUOUS_FINGERPRINT"


def test_nothing_to_show_is_said(service: Service, capsys: Captured) -> None:
    """Where nothing is stored or selected a person is told so; programs get no object."""
    assert execute(["cache", "ls", "--salt", "nobody"]) == 0
    assert capsys.readouterr() == ("", "nothing that is stored is selected\n")
    assert execute(["cache", "purge", "--salt", "nobody"]) == 0
    assert capsys.readouterr() == ("", "nothing that is stored is selected\n")
    digest = told(capsys, "stat")["stores"][0]["fingerprint"]
    run(capsys, "purge", "--fingerprint", digest, "--yes")
    for command in ("ls", "tree"):
        assert execute(["cache", command]) == 0
        assert capsys.readouterr() == ("", "the cache is empty\n")
    assert run(capsys, "ls", "--json") == ""


@pytest.mark.parametrize(("typed", "code"), [(b"y\n", 0), (b"\n", 1), (b"no\n", 1), (b"", 1)])
def test_purge_asks_first(
    service: Service, monkeypatch: pytest.MonkeyPatch, capsys: Captured, typed: bytes, code: int
) -> None:
    """`cache purge` says how much would go, and deletes it only when the answer is yes."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed)))
    assert execute(["cache", "purge", "--salt", "bob"]) == code
    err = capsys.readouterr().err
    assert "Delete 3 records of" in err
    assert ("nothing was deleted" in err) == bool(code)
    assert (256 in keys(capsys)) == bool(code)


def test_purge_with_json_wants_yes(service: Service, capsys: Captured) -> None:
    """A program cannot be asked, so it says --yes; without that nothing is deleted."""
    assert execute(["cache", "purge", "--salt", "bob", "--json"]) == 2
    assert "--yes" in json.loads(capsys.readouterr().err)["message"]
    assert len(keys(capsys)) == 3


def test_purge_of_what_is_old(service: Service, capsys: Captured) -> None:
    """What a daemon opened is not old, until the service starts anew; what was set aside is."""
    (store,) = service.stores
    aside = store.with_name(f"{store.name}.corrupt-1")
    assert execute(["cache", "purge", "--old", "--yes"]) == 0
    assert "nothing that is stored is selected" in capsys.readouterr().err
    service.stop()
    aside.mkdir()
    (aside / "data.mdb").write_bytes(bytes(2_000_000))
    service.start()
    with service.link():
        plan = told(capsys, "purge", "--old", "--dry-run")
        assert plan == {"stores": 1, "records": 0, "bytes": 2_000_000}
        assert run(capsys, "purge", "--old", "--yes") == "1 store of 2.0 MB went\n"
    assert len(keys(capsys)) == 3 and not aside.exists()
    service.stop()
    service.start()
    assert told(capsys, "purge", "--old", "--dry-run")["records"] > 0
    assert run(capsys, "purge", "--old", "--yes").startswith("1 store with ")
    assert keys(capsys) == {}


def test_no_text_of_others_controls_the_terminal(service: Service, capsys: Captured) -> None:
    """Names of pins, salts and models are shown with their control characters escaped."""
    evil = "\x1b]0;mine\x07\nnothing was damaged\u202e\x9b2J"
    with service.link() as link:
        link.put(prompt(6, 200), checkpoints=[128], salt=evil)
        key = link.keys(prompt(6, 200), evil)[0]
        link.stub.Pin(kvstore_pb2.PinRequest(key=key, name=evil), timeout=10)
        other = json.dumps({"another": 1}, separators=(",", ":"))
        digest = hashlib.sha256(other.encode()).digest()
        link.stub.Open(
            kvcache_pb2.OpenRequest(
                fingerprint=kvcache_pb2.Fingerprint(digest=digest, json=other),
                layout_version=1, block_bytes=5000, model_name=evil,
            )
        )  # fmt: skip
    commands = [
        ["stat"], ["ls"], ["tree"], ["inspect", key.hex()], ["evict", "--all", "--dry-run"],
        ["verify"], ["unpin", evil],
    ]  # fmt: skip
    for command in commands:
        out = run(capsys, *command)
        assert all(line.isprintable() for line in out.split("\n"))
        assert "nothing was damaged" not in out.splitlines()
        if command[0] in ("stat", "ls", "tree", "inspect", "unpin"):
            assert "\\x1b]0;mine\\x07\\n" in out
    assert execute(["cache", "compact", "--fingerprint", "0" * 64]) == 1  # names the models
    err = capsys.readouterr().err
    assert "mine" in err and all(line.isprintable() for line in err.split("\n"))
    assert "nothing was damaged" not in err.splitlines()[1:]
    assert len(err.splitlines()) == 2


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
        assert "1 of 1 lookup (100%)" in capsys.readouterr().out
        assert execute(["status", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["kv_cache"]["total"]["hits"] == 1
        service.kill()
        assert execute(["status", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["kv_cache"] is None


def _load(peer: Peer, fingerprint: bytes) -> None:
    """Have the daemon's stand-in say that this model is loaded."""
    peer.status.model.fingerprint = fingerprint


def test_a_store_that_went_is_told(service: Service, capsys: Captured) -> None:
    """A store whose file was deleted under the service is counted, and the cache reads as empty."""
    shutil.rmtree(service.stores[0])
    with service.link() as link:  # opening it again finds out
        assert link.lookup(PROMPTS[0]).lease == 0
    assert "lost    1 store: " in run(capsys, "stat")
    assert told(capsys, "stat")["lost_stores"] == 1
    assert execute(["cache", "ls"]) == 0
    assert capsys.readouterr().err == "the cache is empty\n"
