"""The output of the model, as it comes, taken apart into reasoning, content and tool calls.

The grammar is DeepSeek's own parser, deepseek-recipe. It gets special tokens as the marks of
`stream`, so a `</think>` or a tool call that is only quoted, in ordinary letters, stays text. This
module adds what that parser leaves out: stop strings, no lost text, no leaked special, and a flag
for a tool block that does not follow the grammar. Nothing here raises on what a model wrote.

A malformed block: calls are reported as far as they were readable (their arguments may be no valid
JSON), `malformed` holds the whole block, and what no call carries comes as content at the end.
Line breaks around the reasoning and before the content and the block are markup: not reported.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import deepseek_recipe as recipe

from ds4_daemon.text.chat import Opening
from ds4_daemon.text.stop import StopMatcher
from ds4_daemon.text.stream import MARKS
from ds4_daemon.text.tokenizer import DSML, END_THINK, THINK

_DSML, _THINK, _END_THINK = MARKS[DSML], MARKS[THINK], MARKS[END_THINK]
_NO_MARKS = dict.fromkeys(map(ord, MARKS.values()))
_SPELLED = {ord(mark): spelling for spelling, mark in MARKS.items()}
_SPECIALS = recipe.SpecialTokens(dsml=_DSML, thinking_start=_THINK, thinking_end=_END_THINK)

_TAG = f"<{_DSML}"
_OPEN = f"<{_DSML}tool_calls>\n"
_CLOSE = f"</{_DSML}tool_calls>"
_NAME = f'name="([^"\\n{_DSML}]+)"'
_PARAMETER = f'<{_DSML}parameter {_NAME} string="(true|false)">([^{_DSML}]*)</{_DSML}parameter>\n'
_INVOKE = f"<{_DSML}invoke {_NAME}>\n"
_BLOCK = re.compile(f"{_OPEN}(?:{_INVOKE}(?:{_PARAMETER})*+\n?</{_DSML}invoke>\n)++")
_INVOKE_OR_PARAMETER = re.compile(f"{_INVOKE}|{_PARAMETER}")

_STAGES = {
    Opening.REASONING: recipe.ThinkingInitialStage.ReasoningStart,
    Opening.REASONING_CONTINUED: recipe.ThinkingInitialStage.ReasoningContinuation,
    Opening.CONTENT_CONTINUED: recipe.ThinkingInitialStage.ContentContinuation,
}


class DeltaKind(Enum):
    """What a piece of output belongs to."""

    REASONING = "reasoning"
    CONTENT = "content"
    TOOL_CALL = "tool call"


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of output. `index`, `call_id` and `name` are a tool call's: the id and the name come
    in its first piece only, `text` is the next part of the JSON of its arguments."""

    kind: DeltaKind
    text: str
    index: int = 0
    call_id: str = ""
    name: str = ""


class OutputParser:
    """Parses one answer. Fed by `TextStream(marks=True)`, in pieces cut anywhere.

    `called_tools`: a tool call was reported. `stop_string`: the stop string that ended the content,
    after which nothing is reported. `reasoning`: the model is still in its reasoning.
    `malformed`: after `finish`, a tool block that does not follow the grammar, else "".
    """

    def __init__(self, opening: Opening, stops: Sequence[str] = ()) -> None:
        """`opening` is that of the rendered prompt; `stops` end the content. RequestError as for
        `StopMatcher`."""
        self.called_tools = False
        self.malformed = ""
        self.reasoning = opening in (Opening.REASONING, Opening.REASONING_CONTINUED)
        self._opening = opening
        self._stop = StopMatcher(stops)
        self._grammar: _Grammar | None = None
        self._tail = ""  # "<" when the text so far ends in one: a tag may have begun
        self._block: list[str] = []  # everything from the first tag of a tool block on

    @property
    def stop_string(self) -> str:
        return self._stop.found

    def push(self, text: str) -> list[Delta]:
        """The deltas that this text completes."""
        if self._stop.found or not text:
            return []
        if self._opening is Opening.PLAIN:
            return self._reported([Delta(DeltaKind.CONTENT, text)])
        if self._grammar is None:
            self._grammar = self._begin(text)
        self._watch(text)
        return self._reported(self._grammar.push(text))

    def finish(self) -> list[Delta]:
        """The rest, once the model has ended; call it also when the answer was cut off."""
        deltas: list[Delta] = []
        if self._grammar and not self._stop.found:
            deltas += self._reported(self._grammar.finish())
        if self._block and not self._stop.found:
            deltas += self._reported(self._left_over("".join(self._block)))
        if held := self._stop.flush():
            deltas.append(Delta(DeltaKind.CONTENT, held))
        return deltas

    def _begin(self, text: str) -> "_Grammar":
        opening = self._opening
        if opening is Opening.CONTENT and text.startswith(_THINK):
            # Asked to answer at once, the model reasons all the same.
            opening, self.reasoning = Opening.REASONING, True
        elif opening is Opening.TOOL_CALLS:
            self._block.append(_OPEN)
        return _Grammar(opening)

    def _watch(self, text: str) -> None:
        """Keeps the tool block, and notes where reasoning ends."""
        if self._block:
            self._block.append(text)
            return
        if not text.isascii() or self._tail:
            at = (self._tail + text).find(_TAG)
            if at >= 0:
                self._block.append((self._tail + text)[at:])
            if at >= 0 or _END_THINK in text:
                self.reasoning = False
        self._tail = "<" if text.endswith("<") else ""

    def _left_over(self, block: str) -> list[Delta]:
        """Judges the tool block; content for text of it that went into no call."""
        body, closed, tail = block.partition(_CLOSE)
        if not closed or _DSML in tail or not _well_formed(body):
            self.malformed = block.translate(_SPELLED)
        lost = tail if self.called_tools else block
        if self._opening is Opening.TOOL_CALLS:
            lost = lost.removeprefix(_OPEN)  # the prompt wrote that, not the model
        lost = lost.translate(_NO_MARKS)
        return [Delta(DeltaKind.CONTENT, lost)] if lost.strip() else []

    def _reported(self, deltas: list[Delta]) -> list[Delta]:
        """Passes content through the stop strings, and takes out marks of misplaced specials."""
        reported: list[Delta] = []
        for delta in deltas:
            text = delta.text if delta.text.isascii() else delta.text.translate(_NO_MARKS)
            if delta.kind is DeltaKind.CONTENT:
                text = self._stop.push(text)
            elif held := self._stop.flush():
                reported.append(Delta(DeltaKind.CONTENT, held))
            if delta.kind is DeltaKind.TOOL_CALL:
                self.called_tools = True
            if text or delta.name:
                reported.append(Delta(delta.kind, text, delta.index, delta.call_id, delta.name))
            if self._stop.found:
                break
        return reported


class _Grammar:
    """DeepSeek's parser behind our deltas. It reports in the words of the Chat Completions API."""

    def __init__(self, opening: Opening) -> None:
        request = recipe.ConversationRequest(
            recipe.Conversation(), recipe.ModelVersion.DeepseekV4Pro
        )
        self._processor = recipe.StreamProcessor(
            recipe.ChatCompletionRequest.chunk_generator(request, "", ""),
            recipe.ParsingOptions(
                thinking_initial_stage=_STAGES.get(opening),
                starts_in_tool_calls=opening is Opening.TOOL_CALLS,
                special_tokens=_SPECIALS,
            ),
        )
        self._processor.push(recipe.InferenceChunk.ready())

    def push(self, text: str) -> list[Delta]:
        return self._deltas(self._processor.push(recipe.InferenceChunk.text(text, 1)))

    def finish(self) -> list[Delta]:
        end = recipe.InferenceChunk.finish(recipe.InferenceFinishReason.Stop)
        return self._deltas([*self._processor.push(end), *self._processor.finish()])

    @staticmethod
    def _deltas(chunks: Sequence[object]) -> list[Delta]:
        deltas: list[Delta] = []
        for chunk in chunks:
            assert isinstance(chunk, recipe.ChatCompletionChunk)  # the generator we chose
            for choice in json.loads(chunk.to_json())["choices"]:
                delta = choice["delta"]
                if reasoning := delta.get("reasoning_content"):
                    deltas.append(Delta(DeltaKind.REASONING, reasoning))
                if content := delta.get("content"):
                    deltas.append(Delta(DeltaKind.CONTENT, content))
                for call in delta.get("tool_calls") or ():
                    function = call["function"]
                    deltas.append(
                        Delta(
                            DeltaKind.TOOL_CALL,
                            function.get("arguments") or "",
                            call["index"],
                            call.get("id") or "",
                            function.get("name") or "",
                        )
                    )
        return deltas


def _well_formed(body: str) -> bool:
    """Whether a tool block, up to its closing tag, is one that the template could have written."""
    if not _BLOCK.fullmatch(body):
        return False
    names = set[str]()
    for tag in _INVOKE_OR_PARAMETER.finditer(body):
        invoked, parameter, is_string, value = tag.groups()
        if invoked:
            names.clear()
        elif parameter in names or (is_string == "false" and not _is_json(value)):
            return False
        else:
            names.add(parameter)
    return True


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
