"""Stop strings: found across pieces, cut exactly, and nothing held back that could be shown."""

import random

import pytest
from ds4_daemon.errors import RequestError
from ds4_daemon.text.stop import MAX_STOP_CHARACTERS, MAX_STOP_STRINGS, StopMatcher


def expected(text: str, stops: list[str]) -> tuple[str, str]:
    """What is shown, and the stop: the one that ends first, of these the longest."""
    ends = [(text.find(stop) + len(stop), -len(stop), stop) for stop in stops if stop in text]
    if not ends:
        return text, ""
    end, _, stop = min(ends)
    return text[: end - len(stop)], stop


@pytest.mark.parametrize("seed", range(200))
def test_every_split_gives_the_same(seed: int) -> None:
    """However the text is cut into pieces, it stops where a search of the whole text stops."""
    rng = random.Random(seed)
    stops = ["".join(rng.choices("ab🙂", k=rng.randint(1, 6))) for _ in range(rng.randint(1, 4))]
    text = "".join(rng.choices("aab🙂c", k=60))
    for _ in range(20):
        matcher = StopMatcher(stops)
        shown, rest = "", text
        while rest:
            size = rng.randint(1, 8)
            shown += matcher.push(rest[:size])
            rest = rest[size:]
        shown += matcher.flush()
        assert (shown, matcher.found) == expected(text, stops)


def test_only_a_possible_start_is_held_back() -> None:
    """Text is shown at once but for its longest end that a stop string starts with."""
    matcher = StopMatcher(["\nUser:", "###"])
    assert matcher.push("Hello\n") == "Hello"
    assert matcher.push("Use") == ""
    assert matcher.push("ful #") == "\nUseful "
    assert matcher.push("# \nUser") == "## "
    assert matcher.push(": more") == ""
    assert matcher.found == "\nUser:"
    assert matcher.push("more") == matcher.flush() == ""


def test_without_stop_strings_text_passes() -> None:
    """Without stop strings nothing is held back."""
    matcher = StopMatcher([])
    assert matcher.push("abc") == "abc"
    assert matcher.flush() == matcher.found == ""


@pytest.mark.parametrize(
    "stops", [[""], ["a", ""], ["x" * (MAX_STOP_CHARACTERS + 1)], ["x"] * (MAX_STOP_STRINGS + 1)]
)
def test_unusable_stop_strings_are_refused(stops: list[str]) -> None:
    """An empty or oversized stop string, or too many, is refused by name."""
    with pytest.raises(RequestError) as raised:
        StopMatcher(stops)
    assert raised.value.reason == "BAD_STOP_STRING"
