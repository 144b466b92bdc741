"""The embedded model's samples: right by construction, rendered as served, parsed as meant."""

import itertools
import json
import random
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest
from ds4_daemon.standin import TOKENIZER as STAND_IN
from ds4_daemon.text.chat import Opening, render
from ds4_daemon.text.conversation import Conversation, Role
from ds4_daemon.text.parse import DeltaKind, OutputParser
from ds4_daemon.text.stream import TextStream
from ds4_daemon.text.tokenizer import EOS, Tokenizer

from models.nano.data import chat, recall, sums, tools, widen, words, world
from models.nano.data.encode import ANSWER, FULL, GIVEN, Encoder
from models.nano.data.mixture import Part, Phase, conversation_of

TOKENIZER = Path(__file__).parents[2] / "models" / "nano" / "tokenizer.json"
TALES = (
    "Once there was a fox. It lived under a hill.\nOne day it rained, and the fox stayed at home.",
    "A boy had a dog and a kite. The dog ran after the kite all day. In the evening both slept.",
)
SOURCE = chat.Source(words.TRAINING, [("well", "noun", "a deep hole with water")], TALES)
CHATS = (Part.STORIES, Part.CHAT, Part.SUMS, Part.TOOLS, Part.RECALL)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(TOKENIZER)


@pytest.fixture(scope="module")
def encoder(tokenizer: Tokenizer) -> Encoder:
    return Encoder(tokenizer)


def test_tokenizer_has_the_specials(tokenizer: Tokenizer) -> None:
    """8,192 tokens, every special of the stand-in but image placeholders, at the same low ids."""
    stand_in = Tokenizer.load(STAND_IN)
    kept = {i: s for i, s in stand_in.specials.items() if "place_holder" not in s}
    assert tokenizer.vocab_size == 8192
    assert list(tokenizer.specials.values()) == list(kept.values())
    assert list(tokenizer.specials) == list(range(len(kept)))
    assert (tokenizer.bos_id, tokenizer.eos_id) == (0, 1)


@pytest.mark.parametrize(
    "text", ["A naïve café, 12345 times.", "日本語 and Ελληνικά", "\x00\t\r\n  🙂", "<｜User｜>"]
)
def test_tokenizer_round_trips(tokenizer: Tokenizer, text: str) -> None:
    """Any text comes back from its ids, and spells no special token."""
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not set(ids) & set(tokenizer.specials)


@pytest.mark.parametrize("part", CHATS)
def test_chats_are_as_served(encoder: Encoder, part: Part) -> None:
    """A sample starts with the prompt a server renders, and its answer parses to what was meant."""
    rng = random.Random(f"served/{part}")
    for _ in range(60):
        made = conversation_of(part, rng, SOURCE)
        sample = encoder.chat(made)
        assert len(sample.ids) == len(sample.weights)
        *before, answer = made.messages
        prompt = render(replace(made, messages=tuple(before)), encoder.tokenizer)
        assert sample.ids[: len(prompt.ids)] == prompt.ids
        assert sample.ids[-1] == encoder.tokenizer.eos_id
        content, reasoning, calls = _parsed(encoder, sample.ids[len(prompt.ids) : -1], made)
        assert content == answer.content
        assert reasoning == (answer.reasoning if made.thinking else "")
        assert calls == [(c.name, json.loads(c.arguments_json)) for c in answer.tool_calls]


def _parsed(
    encoder: Encoder, ids: list[int], made: Conversation
) -> tuple[str, str, list[tuple[str, object]]]:
    opening = Opening.REASONING if made.thinking else Opening.CONTENT
    parser = OutputParser(opening)
    stream = TextStream(encoder.tokenizer, marks=True)
    deltas = [delta for token in ids for delta in parser.push(stream.push(token))]
    deltas += parser.push(stream.finish())
    deltas += parser.finish()
    assert not parser.malformed
    said = dict.fromkeys(DeltaKind, "")
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    for delta in deltas:
        if delta.kind is DeltaKind.TOOL_CALL:
            names[delta.index] = names.get(delta.index, "") + delta.name
            arguments[delta.index] = arguments.get(delta.index, "") + delta.text
        else:
            said[delta.kind] += delta.text
    calls = [(names[i], json.loads(arguments[i])) for i in sorted(names)]
    return said[DeltaKind.CONTENT], said[DeltaKind.REASONING], calls


def test_calls_of_finished_tasks_parse(encoder: Encoder) -> None:
    """A call in the middle of a sample, before its result, is as served too."""
    rng = random.Random("finished")
    for _ in range(40):
        case = tools.called(rng, words.TRAINING, finished=True)
        ids = encoder.chat(case.conversation).ids
        at = next(i for i, m in enumerate(case.conversation.messages) if m.tool_calls)
        asked = replace(case.conversation, messages=case.conversation.messages[:at])
        start = len(render(asked, encoder.tokenizer).ids)
        end = ids.index(encoder.tokenizer.eos_id, start)
        _, _, calls = _parsed(encoder, ids[start:end], case.conversation)
        assert calls == [(c.name, json.loads(c.arguments_json)) for c in case.calls]


def test_arguments_are_in_the_request() -> None:
    """Every argument's value stands in the user's words, and its name in the tool's schema."""
    rng = random.Random("arguments")
    for _ in range(300):
        case = tools.called(rng, words.EVALUATION)
        said = next(m.content for m in case.conversation.messages if m.role is Role.USER)
        schemas = {t.name: json.loads(t.parameters_json) for t in case.conversation.tools}
        for call in case.calls:
            given = json.loads(call.arguments_json)
            assert set(schemas[call.name].get("required", ())) <= set(given)
            for field, value in given.items():
                assert field in schemas[call.name]["properties"]
                assert (value if isinstance(value, str) else json.dumps(value)) in said


def test_tool_words_count_a_tenth(encoder: Encoder) -> None:
    """Tools' schemas and results have a tenth of the weight, the request and the call all of it."""
    rng = random.Random("weights")
    case = tools.called(rng, words.TRAINING, finished=True)
    ids, weights = encoder.chat(case.conversation)
    tenth = encoder.tokenizer.decode(i for i, w in zip(ids, weights, strict=True) if w == GIVEN)
    full = encoder.tokenizer.decode(i for i, w in zip(ids, weights, strict=True) if w == FULL)
    assert '"parameters"' in tenth and "<tool_result>" in tenth
    assert f'invoke name="{case.calls[0].name}"' in full and "tool_result" not in full


def test_answers_that_are_looked_up_count_thrice(encoder: Encoder) -> None:
    """All that the assistant says in a chat of recall has the weight asked for, nothing else."""
    rng = random.Random("answers")
    made = recall.listed(rng, words.TRAINING, TALES, 600)
    ids, weights = encoder.chat(made, answers=ANSWER)
    heavy = encoder.tokenizer.decode(i for i, w in zip(ids, weights, strict=True) if w == ANSWER)
    answers = [m.content for m in made.messages if m.role is Role.ASSISTANT]
    assert heavy.replace("</think>", "").split(EOS) == [*answers, ""]


def test_answers_follow_from_the_events() -> None:
    """A second reading of each story's event log, from the last to the first, agrees."""
    rng = random.Random("stories")
    for _ in range(600):
        tale = world.story(rng, words.TRAINING)
        for question in tale.questions:
            assert question.fact in question.answer
            expected = _expected(tale, question.kind)
            if expected is not None:
                assert question.fact == expected, (tale.text, question)
            if question.kind != "unsaid":
                assert _told(tale.text, question.fact), (tale.text, question)


def _told(text: str, fact: str) -> bool:
    """Whether a text says a fact; a place may stand in its phrase of motion."""
    motion = {rest: to for _, rest, to in words.PLACES}
    return fact in text or motion.get(fact, "?") in text


def _expected(tale: world.Story, kind: str) -> str | None:
    backwards = [event.split(" ", 2) for event in reversed(tale.log)]
    if kind in ("holder", "spot"):
        _, verb, value = next(e for e in backwards if e[0] == "thing")
        return tale.slots[value] if verb == "held" else tale.slots["spot"]
    if kind == "hidden":
        _, verb, value = next(e for e in backwards if e[:2] == ["thing", "at"])
        return tale.slots[value]
    if "place" in kind:
        who = kind.rsplit(maxsplit=1)[-1]
        seen = [e[2] for e in backwards if e[:2] == [who, "at"]]
        return tale.slots["in" + (seen[-1] if kind.startswith("first") else seen[0])]
    return None


def test_all_story_slots_are_filled() -> None:
    """No brace and no wrong article is left in any story or question."""
    rng = random.Random("slots")
    for _ in range(400):
        tale = world.story(rng, words.EVALUATION)
        whole = tale.text + "".join(q.text + q.answer for q in tale.questions)
        assert "{" not in whole and not re.search(r"\b[Aa] [aeio]", whole)


def test_pools_are_apart() -> None:
    """No name, code or part of a tool's name is both for training and for evaluation."""
    training = {w for f in fields(words.Pool) for w in getattr(words.TRAINING, f.name)}
    evaluation = {w for f in fields(words.Pool) for w in getattr(words.EVALUATION, f.name)}
    assert not training & evaluation
    shared = {*words.COLOURS, *words.THINGS, *words.FOODS, *words.ANIMALS}
    assert not {w.lower() for w in words.EVALUATION.people} & shared


def test_widened_names_keep_evaluation_apart() -> None:
    """Names from the dictionary and made-up ones are many, and none is the evaluation's."""
    dictionary = [("voucher", "noun"), ("lantern", "noun"), ("launch", "verb"), ("mend", "verb")]
    wide = widen.widened(words.TRAINING, dictionary)
    assert {"lantern", "mend"} <= {*wide.tool_nouns, *wide.tool_verbs}
    found = {w.lower() for f in fields(words.Pool) for w in getattr(wide, f.name)}
    kept = {w.lower() for f in fields(words.Pool) for w in getattr(words.EVALUATION, f.name)}
    assert len(wide.people) > 500 and not found & kept
    assert wide == widen.widened(words.TRAINING, dictionary)


def test_quoted_sentences_are_the_texts() -> None:
    """Every sentence that is asked for by its opening stands in the text."""
    rng = random.Random("quotes")
    for _ in range(50):
        made = recall.quoted(rng, words.TRAINING, TALES, 900)
        text = made.messages[-2].content if len(made.messages) == 2 else ""
        text = text or next(m.content for m in made.messages if m.role is Role.USER)
        for asked, answer in itertools.pairwise(made.messages):
            if answer.role is Role.ASSISTANT:
                assert answer.content in text
                assert any(answer.content.startswith(o) for o in asked.content.split('"'))


def test_several_tasks_share_their_tools() -> None:
    """Each call of a chat of many requests is of one of its tools, with the schema's names."""
    rng = random.Random("tasks")
    source = chat.Source(words.TRAINING, [("cat", "noun", "an animal")], TALES)
    for _ in range(50):
        made = tools.tasks(rng, source)
        schemas = {tool.name: json.loads(tool.parameters_json) for tool in made.tools}
        calls = [call for message in made.messages for call in message.tool_calls]
        assert len({call.id for call in calls}) == len(calls)
        for call in calls:
            assert set(json.loads(call.arguments_json)) <= set(schemas[call.name]["properties"])


def test_sums_are_right() -> None:
    """What stands right of an equals sign is the value of what stands left."""
    rng = random.Random("sums")
    for _ in range(500):
        one = sums.arithmetic(rng)
        steps = re.findall(r"(\d+) ([+x-]) (\d+) = (\d+)", f"{one.answer}. {one.thought}")
        assert steps
        for left, sign, right, result in steps:
            a, b = int(left), int(right)
            assert int(result) == {"+": a + b, "-": a - b, "x": a * b}[sign]
        assert all(number in one.question for number in steps[0][::2][:2])


def test_planted_facts_can_be_found() -> None:
    """Each asked fact stands once before its question, and "does not say" is true."""
    rng = random.Random("recall")
    for _ in range(200):
        made = recall.recall(rng, words.TRAINING, TALES, 900)
        before = ""
        for message in made.messages:
            if message.role is Role.ASSISTANT and message.content == recall.ABSENT:
                question = before.rsplit("\n", maxsplit=1)[-1]
                stranger = next(
                    w for w in words.TRAINING.people if re.search(rf"\b{w}\b", question)
                )
                assert len(re.findall(rf"\b{stranger}\b", before)) == 1
            elif message.role is Role.ASSISTANT and "." in message.content:
                value = message.content.rstrip(".").split()[-1]
                told = message.content in ("Good to know.", "I will remember it.")
                assert (
                    told
                    or value in before
                    or "Thank you" in message.content
                    or ("noted" in message.content)
                )
            before += "\n" + message.content


@pytest.mark.parametrize("distance_tokens", [128, 1024, 4096])
def test_distance_of_a_fact(tokenizer: Tokenizer, distance_tokens: int) -> None:
    """The question lies as far behind its fact as asked for, to within a few tokens."""
    rng = random.Random(distance_tokens)
    made, fact = recall.at_distance(
        rng, words.EVALUATION, TALES, distance_tokens, lambda text: len(tokenizer.encode(text))
    )
    text = made.messages[0].content
    assert text.count(fact.statement) == 1 and text.count(fact.value) == 1
    rest = text[text.index(fact.statement) + len(fact.statement) :]
    assert abs(len(tokenizer.encode(rest)) - distance_tokens) <= 24


def test_shares_are_whole() -> None:
    """Each phase's shares name every part and add up to all."""
    for phase in Phase:
        assert set(phase.value) == set(Part) and sum(phase.value.values()) == 100


def test_end_token_only_at_the_end_of_turns(encoder: Encoder) -> None:
    """A document has one begin and one end token."""
    ids = encoder.document("A text that spells " + EOS).ids
    assert ids.count(encoder.tokenizer.eos_id) == 1 and ids.count(encoder.tokenizer.bos_id) == 1
