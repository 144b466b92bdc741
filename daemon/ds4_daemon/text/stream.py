"""Text from token ids as they come, one at a time, never half a character.

Owns the bytes of a character that is not complete yet. Work per token does not grow with the
length of the answer. Special tokens bring no text, except those that the caller names a mark for:
a mark is one noncharacter, which no text of a model holds, so that a parser can tell the special
token `</think>` from the same letters written as plain text. Called by `rpc`, feeds `parse`.
"""

import codecs
from collections.abc import Mapping

from ds4_daemon.text.tokenizer import DSML, END_THINK, THINK, Tokenizer

# Unicode keeps U+FDD0..U+FDEF for use inside a program.
MARKS: Mapping[str, str] = {DSML: "\ufdd0", THINK: "\ufdd1", END_THINK: "\ufdd2"}
_NO_MARKS = dict.fromkeys((ord(mark) for mark in MARKS.values()), "\ufffd")


class TextStream:
    """The text of one answer. A character is a Unicode code point."""

    def __init__(
        self, tokenizer: Tokenizer, *, marks: bool = False, show_specials: bool = False
    ) -> None:
        """`marks`: give the specials of MARKS as their mark, for `OutputParser`.
        `show_specials`: spell out every other special token instead of leaving it out."""
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._shown = {
            token_id: spelling if show_specials else ""
            for token_id, spelling in tokenizer.specials.items()
        }
        self._marked = marks
        if marks:
            for spelling, mark in MARKS.items():
                self._shown[tokenizer.special_id(spelling)] = mark

    def push(self, token_id: int) -> str:
        """The text that this token completes; often "" for one that ends within a character."""
        shown = self._shown.get(token_id)
        if shown is not None:
            return self.finish() + shown
        return self._plain(self._utf8.decode(self._tokenizer.piece(token_id)))

    def finish(self) -> str:
        """U+FFFD for a character that was left incomplete, else ""; the stream starts anew."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest

    def _plain(self, text: str) -> str:
        if self._marked and not text.isascii():
            return text.translate(_NO_MARKS)
        return text
