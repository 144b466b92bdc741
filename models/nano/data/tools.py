"""Tool tasks: tools with random names and parameters, requests, calls, results and answers.

Names mean little by chance and much by their description, so a model must copy from the schema
and from the user's words. Called by `mixture` and, with the other pool, by the evaluation.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from ds4_daemon.text.conversation import Conversation, Message, Role, Tool, ToolCall

from models.nano.data import words
from models.nano.data.chat import (
    GREETINGS,
    Exchange,
    Source,
    capital,
    known_fact,
    with_article,
)
from models.nano.data.sums import arithmetic
from models.nano.data.turns import assistant, conversation, user
from models.nano.data.words import Pool

Value = str | int | float | bool


class _Kind(NamedTuple):
    """A kind of parameter: its names, its JSON type, what it is, and how a user says a value."""

    names: tuple[str, ...]
    json_type: str
    description: str
    draw: Callable[[random.Random, Pool], Value]
    said: tuple[str, ...]  # {} is the value, {name} the parameter


def _words_of(rng: random.Random, pool: Pool) -> str:
    chosen = rng.sample((*words.FOODS, *words.ANIMALS, *words.THINGS, *pool.people), 3)
    return " ".join(chosen[: rng.randint(1, 3)])


_KINDS = (
    _Kind(("city", "town", "place", "location", "destination"), "string", "Name of the town",
          lambda rng, pool: rng.choice(pool.towns), ("in {}", "for the town of {}", "near {}")),
    _Kind(("name", "person", "user", "recipient", "owner"), "string", "Name of a person",
          lambda rng, pool: rng.choice(pool.people), ("for {}", "of {}", "with {}")),
    _Kind(("text", "message", "content", "title", "query"), "string", "Words to use",
          _words_of, ('with the words "{}"', 'that says "{}"', 'with the text "{}"')),
    _Kind(("code", "key", "reference", "id"), "string", "Code of it",
          lambda rng, pool: f"{rng.choice(pool.codes)}-{rng.randrange(10, 1000)}",
          ("with code {}", "coded {}", "under {}")),
    _Kind(("time", "start", "at", "when"), "string", "Time of day, as hours:minutes",
          lambda rng, _: f"{rng.randint(0, 23)}:{rng.randrange(0, 60, 5):02}",
          ("at {}", "by {}")),
    _Kind(("count", "number", "amount", "quantity", "times"), "integer", "How many",
          lambda rng, _: rng.randint(2, 99), ("{} times", "with a number of {}", "in a set of {}")),
    _Kind(("days", "duration", "period"), "integer", "How many days",
          lambda rng, _: rng.randint(2, 30), ("over {} days", "lasting {} days")),
    _Kind(("level", "size", "weight"), "number", "A level",
          lambda rng, _: rng.randint(2, 90) / 2 if rng.random() < 0.5 else rng.randint(1, 100),
          ("on level {}", "with level {}")),
    _Kind(("colour", "shade", "paint"), "string", "A colour",
          lambda rng, _: rng.choice(words.COLOURS), ("in {}", "painted {}", "with the colour {}")),
    _Kind(("quiet", "urgent", "public", "fast", "shared"), "boolean", "Whether it is so",
          lambda rng, _: rng.random() < 0.5, ("with {name} set to {}", "({name}: {})")),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Made:
    """A tool, the words of its task, and its parameters with whether each is required."""

    tool: Tool
    verb: str
    noun: str
    parameters: tuple[tuple[str, _Kind, bool], ...]


class Case(NamedTuple):
    """A conversation that ends in the right answer: `calls` of it, or none where no tool fits."""

    conversation: Conversation
    calls: tuple[ToolCall, ...]


def _tool(rng: random.Random, pool: Pool, verb: str, noun: str) -> _Made:
    upper = noun.title()
    name = rng.choice(
        (f"{verb}_{noun}", f"{verb}_{noun}", f"{verb}{upper}", f"{noun}.{verb}", f"{noun}-{verb}",
         f"{verb}_the_{noun}", f"{noun}_{verb}", f"{verb}_{noun}_v{rng.randint(2, 9)}",
         f"fn_{rng.randrange(10, 1000)}", f"{rng.choice(pool.codes)}_{rng.randrange(10, 100)}")
    )  # fmt: skip
    kinds = rng.sample(_KINDS, rng.choices((0, 1, 2, 3, 4), (1, 5, 6, 3, 1))[0])
    parameters = tuple((rng.choice(k.names), k, rng.random() < 0.7) for k in kinds)
    fields: dict[str, dict[str, str]] = {}
    for field, kind, _ in parameters:
        fields[field] = {"type": kind.json_type}
        if rng.random() < 0.7:
            fields[field]["description"] = kind.description
    schema: dict[str, object] = {"type": "object", "properties": fields}
    if required := [field for field, _, needed in parameters if needed]:
        schema["required"] = required
    a_noun = with_article(noun)
    described = rng.choice(
        (f"{verb.title()} the {noun}.", f"{verb.title()} {a_noun}", f"Tool to {verb} {a_noun}.",
         f"Use this to {verb} the {noun}.", f"Can {verb} the {noun}.")
    )  # fmt: skip
    return _Made(Tool(name, described, json.dumps(schema)), verb, noun, parameters)


def _toolbox(rng: random.Random, pool: Pool, count: int) -> list[_Made]:
    """Tools with different names; two may share the verb, never the noun."""
    made: list[_Made] = []
    for noun in rng.sample(pool.tool_nouns, count):
        while (verb := rng.choice(pool.tool_verbs)) == noun:
            pass
        tool = _tool(rng, pool, verb, noun)
        while any(tool.tool.name == other.tool.name for other in made):
            tool = _tool(rng, pool, verb, noun)
        made.append(tool)
    return made


def _task(rng: random.Random, pool: Pool, made: _Made) -> tuple[str, dict[str, Value]]:
    """The words of a request without its polite frame, and the arguments that they mean."""
    arguments: dict[str, Value] = {}
    phrases: list[str] = []
    for field, kind, required in made.parameters:
        if required or rng.random() < 0.6:
            value = kind.draw(rng, pool)
            arguments[field] = value
            shown = json.dumps(value) if not isinstance(value, str) else value
            form = rng.choice(kind.said)
            if rng.random() < 0.15:
                form = "{name} {}"
            phrases.append(form.format(shown, name=field))
    order = list(range(len(phrases)))
    rng.shuffle(order)
    said = " ".join([made.verb, "the", made.noun, *(phrases[place] for place in order)])
    return said, arguments


_NOT_CALLED = 0.33

_FRAMES = (
    "Please {}.", "{}.", "Can you {}?", "I want you to {}.", "Could you please {}?", "{}, please.",
    "I need you to {}.", "Would you {}?", "Hello! Please {}.", "{}",
)  # fmt: skip


def _framed(rng: random.Random, said: str) -> str:
    text = rng.choice(_FRAMES).format(said)
    return text[0].upper() + text[1:]


def _call(index: int, made: _Made, arguments: dict[str, Value]) -> ToolCall:
    return ToolCall(f"call_{index}", made.tool.name, json.dumps(arguments))


def _result(rng: random.Random, pool: Pool, noun: str) -> tuple[str, str]:
    """What a tool returned, and what one says of it."""
    state = rng.choice(
        (*words.WEATHERS, "ready", "open", "closed", "full", "empty", "busy", "free")
    )
    number = rng.randrange(1, 1000)
    name = rng.choice(pool.people)
    return rng.choice(
        (
            (json.dumps({"status": "ok", noun: state}), f"The {noun} is {state}."),
            (json.dumps({"result": number}), f"The result is {number}."),
            (json.dumps({"ok": True, "number": number}), f"Done. The number is {number}."),
            (json.dumps({"owner": name}), f"The {noun} belongs to {name}."),
            (json.dumps({"error": f"{noun} not found"}), f"That did not work: {noun} not found."),
            (json.dumps({"error": "not allowed"}), "That did not work: not allowed."),
            (f"{state}", f"The {noun} is {state}."),
            ("done", "Done."), ("ok", "Done."), ('{"ok": true}', "Done."),
            (f"{number}", f"The answer is {number}."),
        )
    )  # fmt: skip


def _intent(made: list[_Made], arguments: list[dict[str, Value]] | None = None) -> str:
    """What is to be done, then the tool for it. Said first, in the request's own words: with them
    at hand a small model finds the tool by its description, or finds that there is none."""
    lines = []
    for number, tool in enumerate(made):
        given = arguments[number] if arguments else {}
        shown = ", ".join(f"{field} = {json.dumps(value)}" for field, value in given.items())
        with_what = f" with {shown}" if shown else ""
        lines.append(f"To {tool.verb} the {tool.noun} I call {tool.tool.name}{with_what}.")
    return " ".join(lines)


def called(rng: random.Random, pool: Pool, *, finished: bool | None = None) -> Case:
    """A request that one tool, or two at once, can do; `finished` adds the result and the answer,
    by chance when None."""
    box = _toolbox(rng, pool, rng.randint(1, 4))
    thinking = rng.random() < 0.15
    if finished is None:
        finished = rng.random() < 0.55
    messages, calls = _exchange(rng, pool, box, thinking=thinking, finished=finished)
    return Case(_with(rng, messages, box, thinking), calls)


def _exchange(
    rng: random.Random, pool: Pool, box: list[_Made], *, thinking: bool, finished: bool,
    first: int = 0,
) -> tuple[list[Message], tuple[ToolCall, ...]]:  # fmt: skip
    """A request, its calls, numbered from `first`, and, if finished, results and the answer."""
    chosen = rng.sample(box, 2 if len(box) > 1 and rng.random() < 0.15 else 1)
    wanted = [_task(rng, pool, made) for made in chosen]
    calls = tuple(
        _call(first + i, m, a) for i, (m, (_, a)) in enumerate(zip(chosen, wanted, strict=True))
    )
    reasoning = _intent(chosen, [a for _, a in wanted]) if thinking else ""
    said = " and ".join(words_ for words_, _ in wanted)
    opening = "" if thinking else _intent(chosen)
    messages = [user(_framed(rng, said)), Message(Role.ASSISTANT, opening, reasoning, calls)]
    if finished:
        results = [_result(rng, pool, made.noun) for made in chosen]
        for call, (returned, _) in zip(calls, results, strict=True):
            messages.append(Message(Role.TOOL, returned, tool_call_id=call.id))
        thought = "I have the result." if thinking else ""
        messages.append(assistant(" ".join(line for _, line in results), thought))
    return messages, calls


def not_called(rng: random.Random, source: Source) -> Case:
    """Tools are there, but none fits: something else is asked, or something none of them does."""
    pool = source.pool
    box = _toolbox(rng, pool, rng.randint(1, 4))
    thinking = rng.random() < 0.15
    one = _not_done(rng, source, box)
    thought = one.thought if thinking else ""
    messages = [user(one.question), assistant(one.answer, thought)]
    return Case(_with(rng, messages, box, thinking), ())


def _not_done(rng: random.Random, source: Source, box: list[_Made]) -> Exchange:
    """Something else than what the tools are for, and what one answers."""
    pool = source.pool
    if rng.random() < 0.7:  # small talk is told apart soon; that no tool fits is not
        taken = {made.noun for made in box}
        while (noun := rng.choice(pool.tool_nouns)) in taken:
            pass
        other = _tool(rng, pool, rng.choice(pool.tool_verbs), noun)
        said, _ = _task(rng, pool, other)
        answer = f"To {other.verb} the {noun} I have no tool."
        return Exchange(_framed(rng, said), answer, answer)
    return _small_talk(rng, source)


def _small_talk(rng: random.Random, source: Source) -> Exchange:
    pick = rng.randrange(4)
    if pick == 0:
        return Exchange(*rng.choice(GREETINGS), "No tool is needed.")
    if pick == 1:
        return capital(rng, source)
    return arithmetic(rng) if pick == 2 else known_fact(rng, source)


def _with(
    rng: random.Random, messages: list[Message], box: list[_Made], thinking: bool
) -> Conversation:
    tools = tuple(made.tool for made in box)
    return conversation(rng, messages, thinking=thinking, tools=tools, system=0.3)


def task(rng: random.Random, source: Source) -> Case:
    """Any tool task: a share of them without a call."""
    return not_called(rng, source) if rng.random() < _NOT_CALLED else called(rng, source.pool)


def tasks(rng: random.Random, source: Source) -> Conversation:
    """Several requests to one set of tools: most of a single task is the tools' description."""
    pool = source.pool
    box = _toolbox(rng, pool, rng.randint(2, 4))
    messages: list[Message] = []
    for number in range(rng.randint(3, 6)):
        if rng.random() < _NOT_CALLED:
            one = _not_done(rng, source, box)
            messages += [user(one.question), assistant(one.answer)]
        else:
            asked, _ = _exchange(rng, pool, box, thinking=False, finished=True, first=3 * number)
            messages += asked
    return _with(rng, messages, box, thinking=False)
