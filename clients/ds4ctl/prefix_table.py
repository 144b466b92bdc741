"""How stored prefixes read on a terminal: a table of them, and the tree of their blocks.

A row fits 80 columns; what has no column, and the text, stand below it. Called by `ds4ctl cache`.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from ds4ctl.cache_text import KEY_DIGITS, cut_text, many, size, span

if TYPE_CHECKING:
    from ds4.v1.kvstore_pb2 import BlockNode, StoredPrefix

HEAD = "KEY                  TOKENS      SIZE     USED   STORED    HITS    SAVED"
WIDTH = 80
_INDENT = "    "
# Every prompt begins with it, so it tells nothing.
_BEGIN = "<｜begin▁of▁sentence｜>"
_MOST_ENDS = 2  # named of a stretch: a long prompt has dozens, and a line 80 columns


def prefix_rows(prefix: "StoredPrefix", text: str, width: int) -> list[str]:
    """A stored prefix: its row of the table under HEAD, and how it begins in `width` columns."""
    row = (
        f"{prefix.key.hex()[:KEY_DIGITS]}  {prefix.tokens:>9,}  {size(prefix.bytes):>8}  "
        f"{span(int(prefix.idle_s)):>7}  {span(int(prefix.age_s)):>7}  {prefix.hits:>6,}  "
        f"{span(prefix.seconds_saved):>7}"
    )
    rows = [row]
    notes = [f"pinned as {', '.join(prefix.pins)}"] if prefix.pins else []
    notes += [f"salt {prefix.salt}"] if prefix.salt else []
    if notes:
        rows.append(f"{_INDENT}{'; '.join(notes)}")
    if text:
        rows.append(_INDENT + cut_text(text.removeprefix(_BEGIN), width - len(_INDENT) - 1))
    return rows


def prefix_table(prefixes: Iterable["StoredPrefix"]) -> list[str]:
    """All of these, without their texts."""
    return [HEAD, *(row for prefix in prefixes for row in prefix_rows(prefix, "", WIDTH))]


def tree_lines(nodes: list["BlockNode"]) -> list[str]:
    """The tree of blocks, a line for each stretch in which nothing parts."""
    by_key = {node.key: node for node in nodes}
    tops = [node for node in nodes if node.parent_key not in by_key]
    return [line for node in tops for line in _stretch(by_key, node)]


def _stretch(by_key: dict[bytes, "BlockNode"], top: "BlockNode") -> Iterator[str]:
    stack = [(top, 0)]
    while stack:
        first, level = stack.pop()
        stretch = [first]
        while len(stretch[-1].child_keys) == 1 and stretch[-1].child_keys[0] in by_key:
            stretch.append(by_key[stretch[-1].child_keys[0]])
        last = stretch[-1]
        stored = sum(record.stored_bytes for node in stretch for record in node.records)
        ends = [128 * node.depth for node in stretch if len(node.records) > 1]
        pins = [pin for node in stretch for pin in node.pins]
        salt = f", salt {first.salt}" if first.salt and not level else ""
        yield (
            f"{'  ' * level}{last.key.hex()[:KEY_DIGITS]}  "
            f"tokens {128 * (first.depth - 1):,} to {128 * last.depth - 1:,}, {size(stored)}"
            + (f", {_checkpoints(ends)}" if ends else "")
            + (f", pinned as {', '.join(pins)}" if pins else "")
            + salt
        )
        children = [by_key[key] for key in last.child_keys if key in by_key]
        stack += [(child, level + 1) for child in reversed(children)]


def _checkpoints(ends: list[int]) -> str:
    if len(ends) > _MOST_ENDS:
        return f"{many(len(ends), 'checkpoint')}, the last at {ends[-1]:,}"
    return f"checkpoint{'s' if len(ends) > 1 else ''} at {', '.join(f'{end:,}' for end in ends)}"
