"""What the model is asked to do, and whether it did: tools, sums, chats, twenty prompts.

Prompts are rendered and answers read by the daemon's own text layer. Names, tools and arguments are
of the evaluation's pool, which training never saw.
"""

import json
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ds4_daemon.text.chat import Opening, render
from ds4_daemon.text.conversation import Conversation
from ds4_daemon.text.tokenizer import Tokenizer

from models.nano.data import chat, tools
from models.nano.data.chat import Source
from models.nano.data.turns import assistant, user
from models.nano.evaluation.subject import Answer, Subject, answers, read

_ANSWER_TOKENS = 256
_GRAM = 4  # words that come again
_LOOP = 4  # times, for an answer to count as a loop
_SHOWN = 5  # failed calls

PROMPTS: tuple[tuple[str, ...], ...] = (  # the last of each is asked; before it turns alternate
    ("Hello!",),
    ("Who are you?",),
    ("What can you do?",),
    ("Are you DeepSeek?",),
    ("Tell me a story about a fox.",),
    ("Please tell me a short story about a girl and a kettle.",),
    ("What does the word \"lantern\" mean?",),
    ("Explain the word river.",),
    ("What is the capital of France?",),
    ("Which city is the capital of Japan?",),
    ("How many legs does a spider have?",),
    ("Name three animals.",),
    ("What is 7 + 5?",),
    ("How much is 240 plus 31?",),
    ("Count from 3 to 9.",),
    ("Sort these numbers: 41, 7, 230, 19",),
    ("My name is Gwen.", "Nice to meet you, Gwen!", "What is my name?"),
    ("Remember: the code word of Boris is onyx-417.\n\nWhat is the code word of Boris?",),
    ("What do I have in my pocket?",),
    ("Why did the Roman empire fall?",),
)  # fmt: skip


class Case(NamedTuple):
    """A rendered prompt, and what is known of the right answer."""

    kind: str
    ids: list[int]
    opening: Opening
    wanted: Any = None
    tools: bool = False
    asked: str = ""


class Outcome(NamedTuple):
    """A case and its answer."""

    case: Case
    answer: Answer


def case(
    conversation: Conversation, tokenizer: Tokenizer, kind: str, wanted: Any = None,
    tools: bool = False, asked: str = "",
) -> Case:  # fmt: skip
    rendered = render(conversation, tokenizer)
    return Case(kind, rendered.ids, rendered.opening, wanted, tools, asked)


def measure(subject: Subject, cases: list[Case]) -> list[Outcome]:
    """Greedy answers to the cases."""
    said = answers(subject, [one.ids for one in cases], _ANSWER_TOKENS)
    return [
        Outcome(one, read(subject.tokenizer, one.opening, ids, one.tools))
        for one, ids in zip(cases, said, strict=True)
    ]


def _asked(conversation: Conversation) -> Conversation:
    """The conversation before its last answer."""
    return replace(conversation, messages=conversation.messages[:-1])


def tool_cases(rng: random.Random, source: Source, tokenizer: Tokenizer, count: int) -> list[Case]:
    """`count` requests that tools can do, then as many that none can."""
    out = []
    for _ in range(count):
        made = tools.called(rng, source.pool, finished=False)
        wanted = tuple((c.name, json.loads(c.arguments_json)) for c in made.calls)
        out.append(case(_asked(made.conversation), tokenizer, "call", wanted, tools=True))
    for _ in range(count):
        made = tools.not_called(rng, source)
        out.append(case(_asked(made.conversation), tokenizer, "no call", tools=True))
    return out


def same(one: Any, other: Any) -> bool:
    """Equal as JSON is: 2 and 2.0 are, true and 1 are not."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    return bool(one == other)


def tool_rates(outcomes: Iterable[Outcome]) -> dict[str, float]:
    """Of calls wanted: how many parse, name the right tools, and have exactly the right arguments;
    of none wanted: how many made none."""
    called = [o for o in outcomes if o.case.kind == "call"]
    not_called = [o for o in outcomes if o.case.kind == "no call"]

    def share(holds: Callable[[Outcome], bool], some: Sequence[Outcome]) -> float:
        return sum(map(holds, some)) / len(some)

    return {
        "n": len(called),
        "parses": share(_parses, called),
        "right_tool": share(_right_tools, called),
        "exact": share(_exact, called),
        "one_call_exact": share(_exact, [o for o in called if len(o.case.wanted) == 1]),
        "no_call_n": len(not_called),
        "no_call": share(lambda o: not o.answer.calls and not o.answer.malformed, not_called),
    }


def _parses(outcome: Outcome) -> bool:
    calls = outcome.answer.calls
    return bool(calls) and not outcome.answer.malformed and all(a is not None for _, a in calls)


def _right_tools(outcome: Outcome) -> bool:
    names = [name for name, _ in outcome.answer.calls]
    return _parses(outcome) and names == [name for name, _ in outcome.case.wanted]


def _exact(outcome: Outcome) -> bool:
    pairs = zip(outcome.answer.calls, outcome.case.wanted, strict=False)
    return _right_tools(outcome) and all(same(got, want) for (_, got), (_, want) in pairs)


def sum_cases(rng: random.Random, tokenizer: Tokenizer, count: int) -> list[Case]:
    """`count` sums and as many differences of numbers of one, two and three digits."""
    out = []
    for digits in (1, 2, 3):
        for sign in "+-":
            for _ in range(count):
                low = 10 ** (digits - 1) if digits > 1 else 0
                left, right = (rng.randrange(low, 10**digits) for _ in range(2))
                if sign == "-" and left < right:
                    left, right = right, left
                result = left + right if sign == "+" else left - right
                word = "plus" if sign == "+" else "minus"
                form = rng.choice(("What is {0} {1} {2}?", "{0} {1} {2} =", "{0} {3} {2}?"))
                question = form.format(left, sign, right, word)
                chat_ = Conversation((user(question),), thinking=False)
                out.append(case(chat_, tokenizer, f"{digits} {sign}", result, asked=question))
    return out


def last_number(text: str) -> int | None:
    """The last number of an answer, which is where its result stands."""
    found = re.findall(r"-?\d+", text)
    return int(found[-1]) if found else None


def sum_rates(outcomes: Iterable[Outcome]) -> dict[str, dict[str, float]]:
    """By digits and sign: n and the share whose last number is the result."""
    groups: dict[str, list[bool]] = {}
    for outcome in outcomes:
        right = last_number(outcome.answer.content) == outcome.case.wanted
        groups.setdefault(outcome.case.kind, []).append(right)
    return {kind: {"n": len(r), "right": sum(r) / len(r)} for kind, r in groups.items()}


def chat_cases(rng: random.Random, source: Source, tokenizer: Tokenizer, count: int) -> list[Case]:
    """`count` chats before their last answer."""
    return [case(_asked(chat.chat(rng, source)), tokenizer, "chat") for _ in range(count)]


def chat_rates(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """How many stop by themselves, how much they repeat, how long they are."""
    repeated = [repetition(o.answer.content) for o in outcomes]
    return {
        "n": len(outcomes),
        "stops": sum(o.answer.stopped for o in outcomes) / len(outcomes),
        "repetition": sum(share for share, _ in repeated) / len(outcomes),
        "loops": sum(loops for _, loops in repeated) / len(outcomes),
        "mean_tokens": sum(o.answer.tokens for o in outcomes) / len(outcomes),
    }


def repetition(text: str) -> tuple[float, bool]:
    """The share of groups of four words that came before, and whether one comes four times."""
    words = text.split()
    grams = [tuple(words[i : i + _GRAM]) for i in range(len(words) - _GRAM + 1)]
    if not grams:
        return 0.0, False
    most = max(grams.count(gram) for gram in set(grams))
    return 1 - len(set(grams)) / len(grams), most >= _LOOP


def prompt_cases(tokenizer: Tokenizer) -> list[Case]:
    """The twenty prompts."""
    out = []
    for turns in PROMPTS:
        messages = tuple((assistant if i % 2 else user)(t) for i, t in enumerate(turns))
        chat_ = Conversation(messages, thinking=False)
        out.append(case(chat_, tokenizer, "prompt", asked="\n".join(turns)))
    return out


def leaks(some: Iterable[Answer]) -> dict[str, int]:
    """Answers, and how many have a special token where none belongs."""
    leaked = [answer.leaked for answer in some]
    return {"n": len(leaked), "leaked": sum(leaked)}


def failed_calls(outcomes: Iterable[Outcome]) -> list[dict[str, Any]]:
    """The first few calls that were not exact: what was wanted and what came."""
    wrong = [o for o in outcomes if o.case.kind == "call" and not _exact(o)]
    return [
        {"wanted": o.case.wanted, "calls": o.answer.calls, "content": o.answer.content[:200]}
        for o in wrong[:_SHOWN]
    ]
