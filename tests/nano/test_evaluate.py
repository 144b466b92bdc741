"""The evaluation's figures: against hand computation, against transformers, and its controls."""

import json
import math
import os
import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ds4_daemon.text.chat import Opening
from ds4_daemon.text.tokenizer import ASSISTANT, DSML, Tokenizer

from models.nano import checkpoint
from models.nano.checkpoint import TOKENIZER
from models.nano.data import recall, words
from models.nano.evaluation import distance, likelihood, tasks
from models.nano.evaluation.crew import Crew
from models.nano.evaluation.subject import Opened, Subject, answers, extend, greedy, read, started
from models.nano.export import trainee_of
from models.nano.geometry import GEOMETRY
from models.nano.model import Trainee

TINY = replace(GEOMETRY, num_hidden_layers=4, num_hash_layers=1, compress_ratios=(0, 4, 128, 4),
               n_routed_experts=8, num_attention_heads=2, index_topk=16)  # fmt: skip
SCRIPT = Path(__file__).parents[2] / "models" / "nano" / "evaluate.py"
TALES = [
    "Once there was a small boat. It lay by the river for a long time. Nobody came to see it.",
    "A bird sat in a tree. The wind was warm that day. It sang a song for all who came by.",
    "The old man had a garden. Red flowers grew along the wall. He gave one to every child.",
]


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of a few layers of each kind, in the released layout."""
    trainee = Trainee(TINY, torch.device("cpu"), 1, False)
    for name, parameter in trainee.net.named_parameters():
        if "norm" not in name and "_hc" not in name:
            parameter.data *= 3
    folder = tmp_path_factory.mktemp("evaluate") / "parent"
    checkpoint.write_parent(folder, TINY, trainee.net.state_dict())
    return folder


@pytest.fixture(scope="module")
def subject(parent: Path) -> Subject:
    return Opened(parent, rounding=False).open()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(TOKENIZER)


def test_bits_a_byte_are_transformers_loss_over_the_texts_bytes(parent: Path) -> None:
    """The figure is what transformers' logits of the same weights give by hand."""
    # All entries visible: of equal scores each implementation may choose others.
    subject = Opened(parent, rounding=False, index_topk=512).open()
    text = " ".join(TALES * 3) + " Ünï."
    ids = [0, *subject.tokenizer.encode(text)]
    (piece,) = likelihood.pieces([("tales", text)], subject.tokenizer, 10_000)
    assert piece.ids == ids and piece.bytes == len(text.encode())
    row = likelihood.by_source(likelihood.measure(subject, [piece]))["tales"]

    padded = ids + [0] * (-len(ids) % TINY.sliding_window)  # what comes after changes nothing
    trainee = trainee_of(parent)
    trainee.choose_sparsely(False)
    with torch.no_grad():
        logits = trainee.net.lm_head(trainee.hidden(torch.tensor([padded])))[0].double()
    logs = torch.log_softmax(logits, dim=-1)
    nats = -sum(float(logs[i, token]) for i, token in enumerate(ids[1:]))
    assert row["bits_a_byte"] == pytest.approx(nats / math.log(2) / len(text.encode()), rel=1e-4)


def test_a_model_against_itself_differs_by_nothing(subject: Subject) -> None:
    """With itself as reference the ratio is 1, the KL 0, and the same token is the likeliest."""
    compared = subject._replace(reference=subject.network)
    cases = likelihood.pieces([("tales", TALES[0])], subject.tokenizer, 1000)
    row = likelihood.by_source(likelihood.measure(compared, cases))["all"]
    assert row["ratio"] == 1 and row["top1_agreement"] == 1
    assert row["kl_nats"] == pytest.approx(0, abs=1e-9)


def test_a_source_is_cut_at_its_bytes_and_a_document_into_pieces(tokenizer: Tokenizer) -> None:
    """No piece is longer than PIECE_TOKENS, all begin anew, and no byte is lost or read twice."""
    long = " ".join(TALES) * 80
    found = likelihood.pieces([("a", long), ("a", "no more"), ("b", "one")], tokenizer, len(long))
    assert {p.source for p in found} == {"a", "b"}
    of_a = [p for p in found if p.source == "a"]
    assert len(of_a) > 1 and sum(p.bytes for p in of_a) == len(long.encode())
    assert all(p.ids[0] == 0 and len(p.ids) <= likelihood.PIECE_TOKENS for p in of_a)
    assert tokenizer.decode(i for p in of_a for i in p.ids[1:]) == long


def test_every_question_is_a_chat_whose_fact_lies_so_far_back(tokenizer: Tokenizer) -> None:
    """Prompts are what a user would send, and between fact and end are as many tokens as said."""
    distances = {"128": 128, "300": 300}
    (text,) = distance.texts(random.Random(1), words.EVALUATION, TALES, tokenizer, 1, distances)
    assert len(text.asks) == distance.FACTS * 2
    for ask in text.asks:
        prompt = tokenizer.decode(ask.ids)
        turn = prompt.split("<｜User｜>")[1].split("<｜Assistant｜>")[0]
        assert turn.endswith("\n\n" + ask.fact.question)
        assert turn.count(ask.fact.statement) == 1
        assert ask.ids[: ask.shared] == text.ids[: ask.shared]
        end = ask.ids.index(tokenizer.special_id(ASSISTANT))
        tail = tokenizer.decode(ask.ids[end - ask.exact_tokens : end])
        # A full stop shares its token with the line breaks after it.
        assert tail.removeprefix(".") == turn.split(ask.fact.statement)[1]
        called = distances[ask.distance]
        assert called - distance.CLOSE_TOKENS <= ask.exact_tokens <= called


def test_a_value_is_found_as_words_of_its_own() -> None:
    """1:05 is not in 11:05, nor 417 in onyx-417."""
    assert distance.has("It leaves at 1:05.", "1:05")
    assert not distance.has("It leaves at 11:05.", "1:05")
    assert not distance.has("It is onyx-417.", "417")


def test_every_question_asks_for_one_relation() -> None:
    """All questions that the data has are told apart, and each relation's chance is known."""
    rng = random.Random(1)
    found = {
        distance.relation_of(fact.question)
        for _ in range(300)
        for fact in recall.facts(rng, words.EVALUATION, 4)
    }
    assert len(found) == 9
    assert all(0 < distance.chance(r, words.EVALUATION) <= 1 / 8 for r in found)
    with pytest.raises(ValueError, match="no relation"):
        distance.relation_of("Is it so?")


def test_questions_on_copies_are_answered_as_whole_prompts_are(subject: Subject) -> None:
    """What is asked on a copy of the text's state is what the whole prompt alone would get, and
    zeroing is another answer."""
    distances = {"128": 128, "512": 512}
    texts = distance.texts(
        random.Random(2), words.EVALUATION, TALES, subject.tokenizer, 1, distances
    )
    (outcomes,) = distance.measure(subject, texts)
    live = [o.answer.content for o in outcomes if not o.zeroed]
    zeroed = [o.answer.content for o in outcomes if o.zeroed]
    whole = answers(subject, [ask.ids for ask in texts[0].asks], 32)
    opening = Opening.CONTENT
    assert live == [read(subject.tokenizer, opening, ids).content for ids in whole]
    assert live != zeroed


def test_zeroing_leaves_the_window_and_nothing_else(subject: Subject) -> None:
    """After `forget` all entries are zeros, as many as before, and the next logits are others."""
    ids = list(np.random.default_rng(1).integers(3, 8000, 300))
    kept, zeroed = (started(subject.network, ids).state for _ in range(2))
    windows = [layer.window.view().copy() for layer in zeroed.layers]
    distance.forget(zeroed)
    for one, other, window in zip(kept.layers, zeroed.layers, windows, strict=True):
        assert np.array_equal(other.window.view(), window)
        for before, after in ((one.compressor, other.compressor), (one.indexer, other.indexer)):
            if before is not None and after is not None:
                assert len(after.entries) == len(before.entries) > 0
                assert before.entries.view().any() and not after.entries.view().any()
    logits = [extend(subject.network, state, [5]) for state in (kept, zeroed)]
    assert np.abs(logits[0] - logits[1]).max() > 1e-3


def test_rates_tell_live_from_zeroed() -> None:
    """Shares are of the right group, by distance and relation."""
    answer = read(Tokenizer.load(TOKENIZER), Opening.CONTENT, [1])
    fact = recall.Fact("", "What is it?", "", "x")
    rows = [
        distance.Outcome("128", "pet", zeroed, right, False, 0.1, 127, fact, answer)
        for zeroed, right in ((False, True), (False, True), (False, False), (True, False))
    ]
    found = distance.rates(rows)["128"]
    assert found["n"] == 3 and found["right"] == pytest.approx(2 / 3) and found["zeroed"] == 0
    assert found["chance"] == pytest.approx(0.1) and 0.1 < found["chance_most"] < 0.5
    assert distance.wrong(rows) == [["128", "What is it?", "x", ""]]
    assert distance.by_relation(rows)["pet"] == {"128": pytest.approx(2 / 3), "n": 3}


def test_batched_greedy_answers_are_those_of_one_at_a_time(subject: Subject) -> None:
    """A sequence's answer does not depend on its batch, and ends with the stop or at the limit."""
    network = subject.network
    prompts = [list(np.random.default_rng(i).integers(3, 8000, 20 + i)) for i in range(3)]
    alone = [greedy(network, [started(network, ids)], 8, -1)[0] for ids in prompts]
    stop = alone[1][2]
    together = greedy(network, [started(network, ids) for ids in prompts], 8, stop)
    for one, other in zip(together, alone, strict=True):
        end = other.index(stop) + 1 if stop in other else 8
        assert one == other[:end]
    assert len(together[1]) <= 3


def test_a_call_is_read_as_the_daemon_reads_it(tokenizer: Tokenizer) -> None:
    """A well-formed call is a call; a special token out of place is a leak, hidden as it is."""
    dsml = tokenizer.special_id(DSML)

    def ids(text: str) -> list[int]:
        first, *rest = text.split("@")
        return tokenizer.encode(first) + [i for t in rest for i in (dsml, *tokenizer.encode(t))]

    called = ids(
        '\n\n<@tool_calls>\n<@invoke name="get_it">\n<@parameter name="n" string="false">2'
        "</@parameter>\n</@invoke>\n</@tool_calls>"
    )
    answer = read(tokenizer, Opening.CONTENT, [*called, 1], tools=True)
    assert answer.calls == (("get_it", {"n": 2}),) and answer.stopped
    assert not answer.leaked and not answer.malformed
    assert read(tokenizer, Opening.CONTENT, called).leaked  # where no tools are
    user = tokenizer.special_id("<｜User｜>")
    assert read(tokenizer, Opening.CONTENT, [user, *tokenizer.encode("Hi")]).leaked
    assert not read(tokenizer, Opening.CONTENT, tokenizer.encode("Hi")).leaked


def test_only_exact_calls_are_right(tokenizer: Tokenizer) -> None:
    """Another value, another type, another tool and a missing call are told from the right one."""
    wanted: tuple[tuple[str, object], ...] = (("get", {"n": 2, "on": True}), ("put", {}))
    base = tasks.Case("call", [], Opening.CONTENT, wanted, tools=True)
    answer = read(tokenizer, Opening.CONTENT, [1])

    def rates(*calls: tuple[str, object]) -> tuple[float, float]:
        none = tasks.Outcome(base._replace(kind="no call"), answer)
        one = tasks.Outcome(base, answer._replace(calls=calls))
        single = tasks.Outcome(base._replace(wanted=wanted[:1]), answer)
        found = tasks.tool_rates([one, none, single])
        assert found["no_call"] == 1
        return found["right_tool"] * 2, found["exact"] * 2

    assert rates(("get", {"n": 2.0, "on": True}), ("put", {})) == (1, 1)
    assert rates(("get", {"n": 2, "on": 1}), ("put", {})) == (1, 0)
    assert rates(("get", {"n": 3, "on": True}), ("put", {})) == (1, 0)
    assert rates(("get", {"n": 2, "on": True})) == (0, 0)
    assert rates(("put", {}), ("get", {"n": 2, "on": True})) == (0, 0)


def test_sums_have_their_digits_and_results(tokenizer: Tokenizer) -> None:
    """Operands have as many digits as said, and the last number of an answer is its result."""
    for case in tasks.sum_cases(random.Random(1), tokenizer, 5):
        left, right = map(int, re.findall(r"\d+", case.asked))
        assert {len(str(left)), len(str(right))} == {int(case.kind[0])}
        assert case.wanted == (left + right if case.kind[-1] == "+" else left - right) >= 0
    assert tasks.last_number("12 + 7 = 19") == 19 and tasks.last_number("none") is None


def test_repetition_counts_groups_of_four_words() -> None:
    """A text that says all anew repeats nothing; one that says the same again and again loops."""
    assert tasks.repetition("a b c d e f g h") == (0, False)
    share, loops = tasks.repetition("to be or not " * 5)
    assert share > 0.5 and loops


def test_a_crew_measures_the_same_as_one(parent: Path) -> None:
    """Two processes give the outcomes of one, in the order of the cases."""
    opened = Opened(parent)
    cases = likelihood.pieces([(str(i), t) for i, t in enumerate(TALES)], opened.tokenizer(), 500)
    found = []
    for workers in (1, 2):
        with Crew(opened, workers) as crew:
            found.append(crew.map(likelihood.measure, cases, 1))
    assert found[0] == found[1] and [t.source for t in found[0]] == ["0", "1", "2"]


def _die(subject: Subject, cases: list[int]) -> list[int]:
    os._exit(9)


def test_a_dead_worker_ends_the_crew_with_a_sentence(parent: Path) -> None:
    """A worker that is killed, as for memory, is an error and no endless wait."""
    with Crew(Opened(parent), 2) as crew, pytest.raises(ChildProcessError, match="--workers"):
        crew.map(_die, [1, 2], 1)


def test_a_smaller_top_k_changes_what_is_computed(parent: Path) -> None:
    """`index_topk` reaches the network."""
    ids = list(np.random.default_rng(1).integers(3, 8000, 300))
    found = []
    for k in (4, 16, 1000):
        network = Opened(parent, rounding=False, index_topk=k).open().network
        found.append(extend(network, network.new_state(), ids))
    assert np.abs(found[0] - found[1]).max() > 1e-4
    assert np.abs(found[1] - found[2]).max() > 1e-4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name --shipped GGUF, --parent FOLDER, or both"),
        (["--shipped", "none.gguf"], "MODEL_NOT_FOUND"),
        (["--parent", "{here}"], "config.json"),
        (["--parent", "{parent}", "--workers", "0"], "at least one"),
        (["--parent", "{parent}", "--sections", "all"], "no section all"),
        (["--parent", "{parent}", "--resume"], "--json"),
    ],
)
def test_bad_arguments_say_what_to_do(
    parent: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    """A missing file, a wrong folder or a wrong value ends at once with a sentence."""
    (tmp_path / "heldout.jsonl").write_text(json.dumps({"src": "tinystories", "text": "A."}) + "\n")
    filled = [a.format(here=tmp_path, parent=parent) for a in arguments]
    command = [sys.executable, str(SCRIPT), "--data", str(tmp_path), *filled]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and said in done.stderr
    assert "Traceback" not in done.stderr


def test_the_script_prints_markdown_and_json_and_resumes(parent: Path, tmp_path: Path) -> None:
    """A section is measured once, its table is printed, the last line and the file are the same."""
    lines = [json.dumps({"src": "tinystories", "text": t}) for t in TALES]
    (tmp_path / "heldout.jsonl").write_text("\n".join(lines) + "\n")
    command = [sys.executable, str(SCRIPT), "--data", str(tmp_path), "--parent", str(parent),
               "--quick", "--workers", "1", "--sections", "held_out",
               "--json", str(tmp_path / "found.json"), "--resume"]  # fmt: skip
    first, second = (subprocess.run(command, capture_output=True, text=True) for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert "| tinystories |" in first.stdout
    found = json.loads(first.stdout.splitlines()[-1])
    assert found == json.loads((tmp_path / "found.json").read_text())
    assert json.loads(second.stdout.splitlines()[-1]) == found  # its seconds too: not run again
    other = subprocess.run([*command, "--seed", "2"], capture_output=True, text=True)
    assert other.returncode == 1 and "another model, seed or size" in other.stderr
