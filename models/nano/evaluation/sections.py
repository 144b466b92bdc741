"""The parts of the evaluation, each from what is asked for to plain figures.

A section draws its cases from its own seed, so it gives the same whichever others run. Owns how
much is measured (`FULL`, `QUICK`). Called by `evaluate.py`; `report` words what comes out.
"""

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from ds4_daemon.text.tokenizer import Tokenizer

from models.nano.data import chat, corpus, mixture, words
from models.nano.evaluation import distance, likelihood, tasks
from models.nano.evaluation.crew import Crew
from models.nano.evaluation.subject import Opened

Figures = dict[str, Any]
_LONG = "classics"  # the source with long documents
_ROW_TOKENS = 1024
_LONG_ROW_TOKENS = 8192
TOP_K = (64, 128, 256, 512)


class Size(NamedTuple):
    """How much is measured. `bytes`: held-out text of each source; `texts`: of recall, four facts
    each; `sweep_texts`: for each top-k; `tools`: with a call, and as many without; `sums`: of each
    class; `rows`: for the experts' load; `long_rows`: for the indexer's mass."""

    bytes: int
    texts: int
    sweep_texts: int
    tools: int
    sums: int
    chats: int
    rows: int
    long_rows: int
    runs: int


FULL = Size(100_000, 50, 25, 300, 50, 200, 24, 4, 5)
QUICK = Size(1_500, 5, 1, 20, 4, 20, 4, 1, 3)


@dataclass(frozen=True)
class Task:
    """What is measured, on what, and how much of it."""

    shipped: Path | None
    parent: Path | None
    data: Path
    size: Size
    workers: int
    seed: int

    @property
    def opened(self) -> Opened:
        """What a user gets: the shipped file, or the parent where none is named."""
        model = self.shipped or self.parent
        assert model is not None
        return Opened(model)

    @cached_property
    def asked(self) -> Figures:
        """What tells this evaluation from another: the models' bytes, the seed and the size."""
        models = {"shipped": self.shipped, "parent": self.parent}
        digests = {name: path and _digest(path) for name, path in models.items()}
        return digests | {"seed": self.seed, "size": self.size._asdict()}

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's own."""
        return self.opened.tokenizer()

    @cached_property
    def documents(self) -> list[tuple[str, str]]:
        """Held-out (source, text)."""
        return list(corpus.held_out(self.data))

    @cached_property
    def tales(self) -> list[str]:
        """Held-out stories, to stand between facts."""
        return [text for source, text in self.documents if source == "tinystories"]

    @cached_property
    def source(self) -> chat.Source:
        """What chats draw on: the evaluation's names and held-out stories."""
        drawn_on = mixture.source(corpus.read(self.data), words.EVALUATION)
        return drawn_on._replace(tales=self.tales)

    def rng(self, section: str) -> random.Random:
        """Chance of a section's own."""
        return random.Random(f"{self.seed} {section}")


def _digest(model: Path) -> str:
    """SHA-256 of a file, or of a folder's weights."""
    weights = model / "model.safetensors" if model.is_dir() else model
    with weights.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def held_out(task: Task) -> Figures:
    """Bits a byte by source: of what ships, and of the parent in float32 where there are both."""
    opened = task.opened
    if task.shipped and task.parent:
        opened = replace(opened, reference=task.parent)
    pieces = likelihood.pieces(task.documents, task.tokenizer, task.size.bytes)
    with Crew(opened, task.workers) as crew:
        return likelihood.by_source(crew.map(likelihood.measure, pieces, 4))


def abilities(task: Task) -> Figures:
    """Tools, sums, chats and the twenty prompts."""
    tokenizer, size = task.tokenizer, task.size
    groups = {
        "tools": tasks.tool_cases(task.rng("tools"), task.source, tokenizer, size.tools),
        "sums": tasks.sum_cases(task.rng("sums"), tokenizer, size.sums),
        "chats": tasks.chat_cases(task.rng("chats"), task.source, tokenizer, size.chats),
        "prompts": tasks.prompt_cases(tokenizer),
    }
    cases = [case for some in groups.values() for case in some]
    with Crew(task.opened, task.workers) as crew:
        outcomes = crew.map(tasks.measure, cases)
    found: dict[str, list[tasks.Outcome]] = {}
    for name, some in groups.items():
        found[name], outcomes = outcomes[: len(some)], outcomes[len(some) :]
    return {
        "tools": tasks.tool_rates(found["tools"]),
        "sums": tasks.sum_rates(found["sums"]),
        "chats": tasks.chat_rates(found["chats"]),
        "leaks": tasks.leaks(o.answer for some in found.values() for o in some),
        "prompts": [[o.case.asked, o.answer.content] for o in found["prompts"]],
        "failed_calls": tasks.failed_calls(found["tools"]),
    }


def recall(task: Task) -> Figures:
    """Recall by distance and relation, live and with compressed rows zeroed."""
    texts = distance.texts(
        task.rng("recall"), words.EVALUATION, task.tales, task.tokenizer, task.size.texts
    )
    with Crew(task.opened, task.workers) as crew:
        outcomes = [o for some in crew.map(distance.measure, texts, 1) for o in some]
    return {
        "by_distance": distance.rates(outcomes),
        "by_relation": distance.by_relation(outcomes),
        "leaks": tasks.leaks(o.answer for o in outcomes if not o.zeroed),
        "wrong": distance.wrong(outcomes),
    }


def top_k(task: Task) -> Figures:
    """Recall and bits a byte of long text for each number of entries that the indexer may choose;
    the same texts for all."""
    texts = distance.texts(
        task.rng("top_k"), words.EVALUATION, task.tales, task.tokenizer, task.size.sweep_texts
    )
    long = [(source, text) for source, text in task.documents if source == _LONG]
    pieces = likelihood.pieces(long, task.tokenizer, task.size.bytes)
    out: Figures = {}
    for k in TOP_K:
        with Crew(replace(task.opened, index_topk=k), task.workers) as crew:
            outcomes = [o for some in crew.map(distance.measure_live, texts, 1) for o in some]
            tallies = crew.map(likelihood.measure, pieces, 1)
        out[str(k)] = {
            "recall": {name: row["right"] for name, row in distance.rates(outcomes).items()},
            "n": len(outcomes) // len(distance.DISTANCES),
            "bits_a_byte": likelihood.by_source(tallies)["all"]["bits_a_byte"],
        }
    return out


def inside(task: Task) -> Figures | None:
    """Experts' load and the indexer's mass; needs the parent."""
    if task.parent is None:
        return None
    from models.nano.evaluation import inside as network

    rows = _rows(task)
    return network.measure(task.parent, rows)


def _rows(task: Task) -> list[list[int]]:
    """Rows of every source in turn, then long rows: of books, and of texts with facts in them."""
    joined: dict[str, list[int]] = {}
    for source, text in task.documents:
        tokenizer = task.tokenizer
        have = joined.setdefault(source, [])
        if len(have) < _LONG_ROW_TOKENS * task.size.long_rows:
            have += [*tokenizer.encode_completion(text), tokenizer.eos_id]
    rows: list[list[int]] = []
    start = 0
    while len(rows) < task.size.rows and any(len(ids) > start for ids in joined.values()):
        found = [ids[start : start + _ROW_TOKENS] for ids in joined.values()]
        rows += [row for row in found if len(row) == _ROW_TOKENS]
        start += _ROW_TOKENS
    rows = rows[: task.size.rows]
    half = max(1, task.size.long_rows // 2)
    books = joined.get(_LONG, [])
    rows += [books[i * _LONG_ROW_TOKENS : (i + 1) * _LONG_ROW_TOKENS] for i in range(half)]
    texts = distance.texts(
        task.rng("inside"), words.EVALUATION, task.tales, task.tokenizer,
        task.size.long_rows - half, {"8k": 8000},
    )  # fmt: skip
    return [row for row in rows if row] + [text.ids[:_LONG_ROW_TOKENS] for text in texts]


def served(task: Task) -> Figures:
    """What a client of the daemon waits, for prompts of three lengths."""
    from models.nano.evaluation import served as daemon

    tokenizer, tales = task.tokenizer, task.tales
    ids = [tokenizer.bos_id, *tokenizer.encode("\n\n".join(tales))]
    prompts = {f"{n} tokens": ids[:n] for n in (16, 512, 4096)}
    return daemon.measure(task.opened.model, prompts, task.size.runs)


SECTIONS: dict[str, Callable[[Task], Figures | None]] = {
    "held_out": held_out,
    "recall": recall,
    "abilities": abilities,
    "inside": inside,
    "top_k": top_k,
    "served": served,
}


def chosen(names: Sequence[str]) -> list[str]:
    """Those sections in their order; ValueError for a name that is none."""
    unknown = [name for name in names if name not in SECTIONS]
    if unknown:
        raise ValueError(f"no section {', '.join(unknown)}: there are {', '.join(SECTIONS)}")
    return [name for name in SECTIONS if name in names] or list(SECTIONS)
