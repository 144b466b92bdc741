"""Finds stop strings in text that comes in pieces, and holds back what may be the start of one.

Work grows with the text only, whatever the pieces: each stop string is searched with its own
Knuth-Morris-Pratt automaton. Called by `parse` on what a reader of the answer would see.
"""

from collections.abc import Sequence

from ds4_daemon.errors import RequestError

# Above these a request is a mistake or an attack: each string costs work on every character.
MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 1024


class StopMatcher:
    """Passes text through up to the first stop string; `found` is that string afterwards."""

    def __init__(self, stops: Sequence[str]) -> None:
        """RequestError for an empty or oversized stop string, or too many of them."""
        if len(stops) > MAX_STOP_STRINGS or not all(
            0 < len(stop) <= MAX_STOP_CHARACTERS for stop in stops
        ):
            raise RequestError(
                "BAD_STOP_STRING",
                "There is an empty or too long stop string, or there are too many.",
                f"send at most {MAX_STOP_STRINGS} of 1 to {MAX_STOP_CHARACTERS} characters",
            )
        self.found = ""
        self._stops = [(stop, _fallbacks(stop)) for stop in stops]
        self._matched = [0] * len(stops)  # how many characters of each stop the text ends with
        self._held = ""

    def push(self, text: str) -> str:
        """What can be shown now. Once a stop string is complete, only what was before it."""
        if not self._stops:
            return text
        if self.found:
            return ""
        text = self._held + text
        for end in range(len(self._held), len(text)):
            stop = self._advance(text[end])
            if stop:
                self.found = stop
                self._held = ""
                return text[: end + 1 - len(stop)]
        shown = len(text) - max(self._matched)
        self._held = text[shown:]
        return text[:shown]

    def flush(self) -> str:
        """What was held back, as no more text follows it; the search starts anew."""
        held, self._held = self._held, ""
        self._matched = [0] * len(self._stops)
        return held

    def _advance(self, character: str) -> str:
        """Takes one character; the longest stop string that it completes, or ""."""
        complete = ""
        for index, (stop, fallbacks) in enumerate(self._stops):
            matched = self._matched[index]
            while matched and stop[matched] != character:
                matched = fallbacks[matched - 1]
            if stop[matched] == character:
                matched += 1
            if matched == len(stop):
                complete = max(complete, stop, key=len)
                matched = 0
            self._matched[index] = matched
        return complete


def _fallbacks(stop: str) -> list[int]:
    """At i: the length of the longest proper prefix of stop[: i + 1] that is also its suffix."""
    lengths = [0] * len(stop)
    for end in range(1, len(stop)):
        length = lengths[end - 1]
        while length and stop[length] != stop[end]:
            length = lengths[length - 1]
        lengths[end] = length + 1 if stop[length] == stop[end] else 0
    return lengths
