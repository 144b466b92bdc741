"""The figures in Markdown. It measures nothing and decides one thing: which top-k loses nothing."""

from collections.abc import Iterable, Sequence
from typing import Any

from models.nano.evaluation.sections import Figures

FEWEST = 100  # a distance, below which a point is one answer or less
MOST_LOST = 0.01  # of recall, for a smaller top-k to count as without loss


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table, numbers to the right."""
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows)]


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def held_out(figures: Figures) -> list[str]:
    compared = any("ratio" in row for row in figures.values())
    head = ["source", "bytes", "bits/byte"]
    head += ["parent, f32", "ratio", "same top-1", "KL, nats"] * compared
    rows = []
    for name, row in figures.items():
        cells = [name, f"{row['bytes']:,}", f"{row['bits_a_byte']:.3f}"]
        if compared:
            cells += [f"{row['reference_bits_a_byte']:.3f}", f"{row['ratio']:.3f}",
                      _percent(row["top1_agreement"]), f"{row['kl_nats']:.3f}"]  # fmt: skip
        rows.append(cells)
    return ["## Held-out text", "", *table(head, rows)]


def recall(figures: Figures) -> list[str]:
    rows = [
        [name, f"{r['n']}", f"{r['least_tokens']}–{r['most_tokens']}", _percent(r["right"]),
         _percent(r["others"]), _percent(r.get("zeroed")),
         f"{_percent(r['chance'])} (≤ {_percent(r['chance_most'])})"]
        for name, r in figures["by_distance"].items()
    ]  # fmt: skip
    names = list(figures["by_distance"])
    relations = [
        [relation, f"{r['n']}", *(_percent(r.get(name)) for name in names)]
        for relation, r in figures["by_relation"].items()
    ]
    head = ["distance", "n", "tokens", "right", "another's value", "right, compressed rows zeroed",
            "chance"]  # fmt: skip
    return [
        "## Recall of a planted fact", "", *table(head, rows), "",
        *table(["relation", "n", *names], relations), "", _leaks(figures["leaks"]),
    ]  # fmt: skip


def abilities(figures: Figures) -> list[str]:
    tools, chats = figures["tools"], figures["chats"]
    rows = [
        ["a tool call: parses", f"{tools['n']}", _percent(tools["parses"])],
        ["… names the right tools", f"{tools['n']}", _percent(tools["right_tool"])],
        ["… with exactly the right arguments", f"{tools['n']}", _percent(tools["exact"])],
        ["no tool fits: none called", f"{tools['no_call_n']}", _percent(tools["no_call"])],
        *([f"sums of {kind}", f"{r['n']}", _percent(r["right"])]
          for kind, r in figures["sums"].items()),
        ["a chat stops by itself", f"{chats['n']}", _percent(chats["stops"])],
        ["groups of four words repeated", f"{chats['n']}", _percent(chats["repetition"])],
        ["answers that loop", f"{chats['n']}", _percent(chats["loops"])],
    ]  # fmt: skip
    prompts: list[str] = []
    for asked, answer in figures["prompts"]:
        prompts += [*(f"> {line}" for line in asked.split("\n")), "", "```", answer, "```", ""]
    return [
        "## Abilities", "", *table(["what", "n", "share"], rows), "", _leaks(figures["leaks"]),
        "", "### Twenty prompts", "", *prompts,
    ]  # fmt: skip


def _leaks(found: dict[str, int]) -> str:
    return f"Answers with a special token out of place: {found['leaked']} of {found['n']}."


def inside(figures: Figures | None) -> list[str]:
    if figures is None:
        return ["## Inside", "", "Not measured: it needs --parent."]
    loads = [
        [layer, f"{row['max']:.2f}", f"{row['min']:.2f}"] for layer, row in figures["load"].items()
    ]
    names = sorted({k for row in figures["mass"].values() for k in row if k.isdigit()}, key=int)
    masses = [
        [layer, *(f"{_percent(row.get(k))} ({row.get(f'n_{k}', 0)})" for k in names)]
        for layer, row in figures["mass"].items()
    ]
    return [
        "## Inside", "", f"The parent, over {figures['tokens']:,} tokens.", "",
        *table(["layer", "most used expert / mean", "least used / mean"], loads), "",
        "Attention over closed entries that falls on the indexer's best (queries):", "",
        *table(["layer", *(f"top {k}" for k in names)], masses),
    ]  # fmt: skip


def top_k(figures: Figures) -> list[str]:
    names = list(next(iter(figures.values()))["recall"])
    rows = [
        [k, f"{row['n']}", *(_percent(row["recall"][name]) for name in names),
         f"{row['bits_a_byte']:.4f}"]
        for k, row in figures.items()
    ]  # fmt: skip
    head = ["top-k", "n", *names, "bits/byte, books"]
    found = f"The smallest that loses at most a point of mean recall: {smallest(figures)}."
    if min(row["n"] for row in figures.values()) < FEWEST:
        found = f"Fewer than {FEWEST} questions do not tell which is the smallest without loss."
    return [
        "## How many entries the indexer chooses", "", *table(head, rows), "", found,
    ]  # fmt: skip


def smallest(figures: Figures) -> str:
    """The least top-k whose mean recall is within MOST_LOST of the largest one's."""

    def mean(row: dict[str, Any]) -> float:
        rates = row["recall"].values()
        return float(sum(rates) / len(rates))

    most = max(figures, key=int)
    return next(k for k in figures if mean(figures[k]) >= mean(figures[most]) - MOST_LOST)


def served(figures: Figures) -> list[str]:
    rows = [
        [name, f"{r['runs']}", f"{r['first_token_s']:.3f} s", f"{r['tokens_a_second']:.1f}"]
        for name, r in figures.items() if name != "start"
    ]  # fmt: skip
    start_s = figures["start"]["seconds"]
    return [
        "## Through the daemon", "",
        f"It serves {start_s:.2f} s after its start. Medians; nothing cached.", "",
        *table(["prompt", "runs", "first token after", "tokens/s"], rows),
    ]  # fmt: skip


WORDED = {
    "held_out": held_out, "recall": recall, "abilities": abilities, "inside": inside,
    "top_k": top_k, "served": served,
}  # fmt: skip
