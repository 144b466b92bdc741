"""How the KV cache reads on a terminal: figures, prefixes, blocks and the tree of them."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ds4ctl.output import enum_word

if TYPE_CHECKING:
    from ds4.v1.kvstore_pb2 import BlockNode, StatResponse, StoredPrefix, StoreStats

_KEY_DIGITS = 16


def size(count: float) -> str:
    """Bytes in the unit that leaves few digits; units are powers of 1000, as those of disks."""
    if count < 1000:
        return f"{count:,.0f} B"
    unit = "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if count < 1000:
            break
        count, unit = count / 1000, larger
    return f"{count:,.1f} {unit}"


def span(seconds: float) -> str:
    """A time in its largest unit."""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.0f} {unit}"
    return f"{seconds:,.0f} s"


def stat_lines(answer: "StatResponse") -> list[str]:
    """The whole cache, then each fingerprint where there are several."""
    lines = _figures(answer.total)
    used = sum(one.stored_bytes for one in answer.total.classes)
    lines.append(
        f"  disk    {size(used)} used of {size(answer.budget_bytes)}, "
        f"files {size(answer.total.file_bytes)}; {size(answer.disk_free_bytes)} free, "
        f"{size(answer.free_floor_bytes)} must stay"
    )
    limit = answer.daily_write_budget_bytes
    lines.append(
        f"  writes  {size(answer.written_today_bytes)} in 24 hours of "
        + (size(limit) if limit else "any number")
        + f", {size(answer.total.queue_bytes)} waiting"
    )
    for one in answer.stores:
        lines.append(f"{one.fingerprint.hex()[:_KEY_DIGITS]} {one.model_name}")
        if len(answer.stores) > 1:
            lines += _figures(one)
    return lines


def _figures(stats: "StoreStats") -> list[str]:
    lookups = stats.hits + stats.misses
    share = f" ({stats.hits / lookups:.0%})" if lookups else ""
    raw = sum(one.raw_bytes for one in stats.classes if one.name != "index")
    stored = sum(one.stored_bytes for one in stats.classes if one.name != "index")
    classes = ", ".join(
        f"{one.records:,} {one.name}s of {size(one.stored_bytes)}"
        for one in stats.classes
        if one.name != "index"
    )
    saved = f"{stats.tokens_saved:,} tokens and {span(stats.seconds_saved)} saved"
    lines = [f"  hits    {stats.hits:,} of {lookups:,} lookups{share}, {saved}"]
    if stats.misses_by_reason:
        enum = stats.misses_by_reason[0].DESCRIPTOR.fields_by_name["reason"].enum_type
        reasons = ", ".join(
            f"{enum_word(enum, one.reason)} {one.count:,}" for one in stats.misses_by_reason
        )
        lines.append(f"  misses  {reasons}")
    lines.append(
        f"  holds   {classes or 'nothing'}"
        + (f", packed {raw / stored:.2f} to 1" if stored else "")
    )
    lines.append(
        f"  records {stats.puts:,} stored, {stats.drops:,} dropped, {stats.evictions:,} evicted, "
        f"{stats.corruptions:,} damaged, {stats.quarantines:,} set aside"
    )
    if stats.HasField("problem"):
        lines.append(f"  problem {stats.problem.message} ({stats.problem.hint})")
    return lines


def prefix_lines(prefix: "StoredPrefix", text: str) -> list[str]:
    """A stored prefix in one line, and its text in another."""
    pins = f", pinned as {', '.join(prefix.pins)}" if prefix.pins else ""
    salt = f", salt {prefix.salt}" if prefix.salt else ""
    line = (
        f"{prefix.key.hex()[:_KEY_DIGITS]}  {prefix.tokens:>9,} tokens  {size(prefix.bytes):>9}  "
        f"used {span(prefix.idle_s)} ago, {span(prefix.age_s)} old, {prefix.hits:,} hits, "
        f"{span(prefix.seconds_saved)} saved{pins}{salt}"
    )
    return [line, f"    {text}"] if text else [line]


def block_lines(node: "BlockNode") -> list[str]:
    """Everything about one block."""
    lines = [
        f"block {node.key.hex()}",
        f"  after    {node.parent_key.hex()}",
        f"  holds    tokens {128 * (node.depth - 1):,} to {128 * node.depth - 1:,}",
    ]
    for record in node.records:
        fields = record.DESCRIPTOR.fields_by_name
        kind = enum_word(fields["kind"].enum_type, record.kind)
        codec = enum_word(fields["codec"].enum_type, record.codec)
        why = enum_word(fields["checkpoint_kind"].enum_type, record.checkpoint_kind)
        lines.append(
            f"  {kind:<10} {size(record.raw_bytes)} as {codec}, "
            f"{size(record.stored_bytes)} stored, crc {record.crc32:08x}"
            + (f", {why}" if record.checkpoint_kind else "")
        )
    protected = node.protected_by or "nothing"
    lines += [
        f"  used     {span(node.idle_s)} ago, {node.hits:,} times; stored {span(node.age_s)} ago",
        f"  value    {node.value:.3g} s a byte, protected by {protected}",
    ]
    if node.quarantined:
        lines.append("  set aside: no lookup finds it")
    lines += [f"  child    {key.hex()}" for key in node.child_keys]
    if node.token_ids:
        lines.append(f"  tokens   {' '.join(map(str, node.token_ids))}")
    return lines


def tree_lines(nodes: list["BlockNode"]) -> list[str]:
    """The tree of blocks, a line for each stretch in which nothing parts."""
    by_key = {node.key: node for node in nodes}
    tops = [node for node in nodes if node.parent_key not in by_key]
    return [line for node in tops for line in _stretch(by_key, node, 0)]


def _stretch(by_key: dict[bytes, "BlockNode"], top: "BlockNode", level: int) -> Iterator[str]:
    stack = [(top, level)]
    while stack:
        first, level = stack.pop()
        stretch = [first]
        while len(stretch[-1].child_keys) == 1 and stretch[-1].child_keys[0] in by_key:
            stretch.append(by_key[stretch[-1].child_keys[0]])
        last = stretch[-1]
        stored = sum(record.stored_bytes for node in stretch for record in node.records)
        ends = [128 * node.depth for node in stretch if len(node.records) > 1]
        salt = f", salt {first.salt}" if first.salt and not level else ""
        yield (
            f"{'  ' * level}{last.key.hex()[:_KEY_DIGITS]}  "
            f"tokens {128 * (first.depth - 1):,} to {128 * last.depth:,}, {size(stored)}"
            + (f", checkpoints at {', '.join(f'{end:,}' for end in ends)}" if ends else "")
            + salt
        )
        children = [by_key[key] for key in last.child_keys if key in by_key]
        stack += [(child, level + 1) for child in reversed(children)]
