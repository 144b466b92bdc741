"""Samples as token ids, each with a loss weight: documents, and chats as the daemon renders them.

A chat's prompt comes from `ds4_daemon.text.chat.render` and its answer is what a server that saw
the answer would render, so that training and serving are equal to the byte. A weight says how much
a token's loss counts: the fixed words about tools and the results of tools are given, not to be
learned, and count a tenth; answers that must be looked up or worked out are few and count thrice.
"""

from dataclasses import replace
from typing import NamedTuple

from ds4_daemon.text.chat import render
from ds4_daemon.text.conversation import Conversation, Message, Role
from ds4_daemon.text.tokenizer import ASSISTANT, END_THINK, USER, Tokenizer

FULL = 85
ANSWER = 3 * FULL
GIVEN = 9  # a tenth
FILLER = 17  # a fifth: long text that only keeps a fact apart from its question
_LONG_TURN_TOKENS = 80


class Sample(NamedTuple):
    """`ids` begin with begin-of-text and end with end-of-text; a weight for each, up to 255."""

    ids: list[int]
    weights: list[int]


class Encoder:
    """Encodes samples with one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._user = tokenizer.special_id(USER)
        self._assistant = tokenizer.special_id(ASSISTANT)
        self._end_think = tokenizer.special_id(END_THINK)

    def document(self, text: str) -> Sample:
        """A plain text."""
        ids = [*self.tokenizer.encode_completion(text), self.tokenizer.eos_id]
        return Sample(ids, [FULL] * len(ids))

    def chat(
        self, conversation: Conversation, *, long_turns: int = FULL, answers: int = FULL
    ) -> Sample:
        """A whole chat, its last message the assistant's; with the weights of long user turns and
        of what the assistant says."""
        *before, answer = conversation.messages
        asked = replace(conversation, messages=tuple(before))
        prompt = render(asked, self.tokenizer).ids
        if answer.tool_calls:
            results = [Message(Role.TOOL, "", tool_call_id=c.id) for c in answer.tool_calls]
            whole = replace(conversation, messages=(*conversation.messages, *results))
            ids = render(whole, self.tokenizer).ids
            if ids[: len(prompt)] != prompt:
                raise ValueError("the template changed the turns before an answer")
            ids = ids[: ids.index(self.tokenizer.eos_id, len(prompt)) + 1]
        else:
            ids = prompt
            if conversation.thinking:
                ids = [*ids, *self.tokenizer.encode(answer.reasoning), self._end_think]
            ids = [*ids, *self.tokenizer.encode(answer.content), self.tokenizer.eos_id]
        return Sample(ids, self._weights(conversation, ids, long_turns, answers))

    def _weights(
        self, conversation: Conversation, ids: list[int], long_turns: int, answers: int
    ) -> list[int]:
        weights = [FULL] * len(ids)
        starts = [at for at, token in enumerate(ids) if token == self._user]
        for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
            said = ids.index(self._assistant, start) + 1
            weights[said:end] = [answers] * (end - said)
        if conversation.tools:
            weights[: starts[0]] = [GIVEN] * starts[0]
        turns = _user_turns(conversation)
        for start, from_tool in zip(starts, turns, strict=True):
            end = ids.index(self._assistant, start)
            if from_tool:
                weights[start:end] = [GIVEN] * (end - start)
            elif end - start > _LONG_TURN_TOKENS:
                weights[start:end] = [long_turns] * (end - start)
        return weights


def _user_turns(conversation: Conversation) -> list[bool]:
    """For each user turn as the template writes it: whether tools' results make it up."""
    turns: list[bool] = []
    before = Role.SYSTEM
    for message in conversation.messages:
        if message.role is Role.USER or (message.role is Role.TOOL and before is not Role.TOOL):
            turns.append(message.role is Role.TOOL)
        before = message.role
    return turns
