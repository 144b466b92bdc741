"""What `ds4ctl cache` refuses before it asks anybody, and how its figures read."""

from unicodedata import east_asian_width

import pytest
from ds4ctl.cache_text import cut_text, many, size, span
from ds4ctl.main import execute
from ds4ctl.output import printable

Captured = pytest.CaptureFixture[str]
KEY = "ab" * 32


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", ""],
        ["inspect", "zz"],
        ["inspect", "ab cd"],
        ["inspect", KEY + "0"],
        ["tree", ""],
        ["pin", KEY],
        ["pin", KEY, "--name", ""],
        ["pin", KEY, "--name", "n" * 256],
        ["pin", KEY, "--name", "\x1b[31m"],
        ["pin", KEY, "--name", "x", "--ttl", "0s"],
        ["pin", KEY, "--name", "x", "--ttl", "-1s"],
        ["pin", KEY, "--name", "x", "--ttl", "soon"],
        ["pin", KEY, "--name", "x", "--ttl", "9" * 400 + "w"],
        ["unpin", ""],
        ["unpin", "n" * 256],
        ["ls", "--key", ""],
        ["ls", "--fingerprint", ""],
        ["ls", "--older", "0d"],
        ["ls", "-n", "0"],
        ["ls", "-n", "9" * 30],
        ["evict"],
        ["evict", "--older", "7"],
        ["evict", "--to-size", "much"],
        ["evict", "--to-size", "9" * 400],
        ["evict", "--key", "", "--all"],
        ["purge", "--yes"],
        ["purge", "--fingerprint", "", "--salt", "bob", "--yes"],
        ["purge", "--salt", "bob", "--json"],
    ],
)
def test_wrong_usage(arguments: list[str], capsys: Captured) -> None:
    """Each is wrong usage, told in a sentence with where to read on; no service runs here."""
    assert execute(["cache", *arguments]) == 2
    err = capsys.readouterr().err
    assert "ds4ctl cache" in err and "--help" in err


@pytest.mark.parametrize(
    ("text", "code"), [("20GB", 3), ("16GiB", 3), ("0", 3), ("1.5 tb", 3), ("16Gi", 3), ("5X", 2)]
)
def test_sizes(text: str, code: int, home: object, capsys: Captured) -> None:
    """Sizes have decimal or binary units; 3 is that of a service that does not run."""
    assert execute(["--home", str(home), "cache", "evict", "--to-size", text]) == code


def test_figures_read_well() -> None:
    """Units grow so that few digits are left; a single thing is no plural."""
    assert [size(n) for n in (0, 999, 1000, 999_949, 999_950, 2.5e9, 1e15)] == [
        "0 B", "999 B", "1.0 kB", "999.9 kB", "1.0 MB", "2.5 GB", "1,000.0 TB",
    ]  # fmt: skip
    assert [span(s) for s in (0, 0.04, 0.3, 1, 119, 120, 7200, 200_000)] == [
        "0 s", "0 s", "0.3 s", "1 s", "119 s", "2 min", "2 h", "2 d",
    ]  # fmt: skip
    assert [many(n, "record") for n in (0, 1, 1000)] == ["0 records", "1 record", "1,000 records"]


def test_what_a_terminal_obeys_is_escaped() -> None:
    """Control characters, line ends and marks of direction are written as escapes, others stay."""
    assert printable("grüße 漢字 \U0001f600") == "grüße 漢字 \U0001f600"
    assert printable("a\x1b[2J\r\n\x9b\u202e\x00") == r"a\x1b[2J\r\n\x9b\u202e\x00"


@pytest.mark.parametrize("text", ["word " * 40, "天空为什么是蓝色的" * 20, "🙂a" * 60])
def test_a_text_fits_its_line(text: str) -> None:
    """A text is cut to the columns that it takes, not to its characters, and says that it was."""
    shown = cut_text(text, 75)
    columns = sum(2 if east_asian_width(one) in "WF" else 1 for one in shown)
    assert 72 <= columns <= 75
    assert shown.endswith("…") and text.startswith(shown[:-1])
    assert cut_text("short", 75) == cut_text(" short…", 75) == "short…"
