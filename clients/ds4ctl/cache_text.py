"""How figures of the KV cache and single blocks read on a terminal. `prefix_table` has the rest."""

import textwrap
import unicodedata
from typing import TYPE_CHECKING, Any

from ds4ctl.output import enum_word

if TYPE_CHECKING:
    from ds4.v1.kvstore_pb2 import BlockNode, StatResponse, StoreStats

KEY_DIGITS = 16  # as many as tell a key from all others of a disk
# What BlockNode.protected_by says, in words.
_PROTECTION = {
    "": "nothing",
    "pinned": "a pin",
    "leased": "a restore that runs",
    "fresh": "being new",
    "inner": "the blocks after it",
}


def size(count: float) -> str:
    """Bytes in the unit that leaves few digits; units are powers of 1000, as those of disks."""
    if count < 1000:
        return f"{count:,.0f} B"
    unit = "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if count < 999.95:
            break
        count, unit = count / 1000, larger
    return f"{count:,.1f} {unit}"


def span(seconds: float) -> str:
    """A time in its largest unit."""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.0f} {unit}"
    return f"{seconds:,.1f} s" if 0.05 <= seconds < 0.95 else f"{seconds:,.0f} s"


def many(count: int, noun: str) -> str:
    """A count with its noun."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def cut_text(text: str, columns: int) -> str:
    """As much of a text as fits, with a mark: the first tokens of a prefix are never all of it."""
    text = f"{text.removesuffix('…').strip()}…"
    taken = 0
    for at, one in enumerate(text):
        taken += 2 if unicodedata.east_asian_width(one) in "WF" else 1
        if taken > columns:
            return f"{text[: at - 1]}…"
    return text


def stat_lines(answer: "StatResponse") -> list[str]:
    """The whole cache, then each fingerprint where there are several."""
    lines = _figures(answer.total)
    used = sum(one.stored_bytes for one in answer.total.classes)
    lines.append(
        f"  disk    {size(used)} used of {size(answer.budget_bytes)}, "
        f"files {size(answer.total.file_bytes)}"
    )
    lines.append(
        f"          {size(answer.disk_free_bytes)} free on it, "
        f"{size(answer.free_floor_bytes)} are kept free"
    )
    limit = answer.daily_write_budget_bytes
    lines.append(
        f"  writes  {size(answer.written_today_bytes)} in 24 hours"
        + (f" of {size(limit)}" if limit else ", without a limit")
        + f", {size(answer.total.queue_bytes)} waiting"
    )
    if answer.lost_stores:
        lines.append(f"  lost    {many(answer.lost_stores, 'store')}: its file went or was damaged")
    for one in answer.stores:
        name = one.model_name or "a model without a name"
        lines.append(f"  store   {one.fingerprint.hex()[:KEY_DIGITS]} {name}")
        if len(answer.stores) > 1:
            lines += [f"  {line}" for line in _figures(one)]
    return lines


def _figures(stats: "StoreStats") -> list[str]:
    lookups = stats.hits + stats.misses
    share = f" ({stats.hits / lookups:.0%})" if lookups else ""
    kinds = [one for one in stats.classes if one.name != "index" and one.records]
    raw = sum(one.raw_bytes for one in kinds)
    stored = sum(one.stored_bytes for one in kinds)
    classes = ", ".join(
        f"{many(one.records, one.name)} of {size(one.stored_bytes)}" for one in kinds
    )
    saved = f"{many(stats.tokens_saved, 'token')} and {span(stats.seconds_saved)} saved"
    lines = [f"  hits    {stats.hits:,} of {many(lookups, 'lookup')}{share}, {saved}"]
    if stats.misses_by_reason:
        enum = stats.misses_by_reason[0].DESCRIPTOR.fields_by_name["reason"].enum_type
        reasons = ", ".join(
            f"{one.count:,} {_words(enum, one.reason)}" for one in stats.misses_by_reason
        )
        lines.append(f"  misses  {reasons}")
    lines.append(
        f"  holds   {classes or 'nothing'}"
        + (f", compressed {raw / stored:.2f}:1" if stored else "")
    )
    lines.append(
        f"  records {stats.puts:,} stored, {stats.drops:,} dropped, {stats.evictions:,} evicted, "
        f"{stats.corruptions:,} damaged, {stats.quarantines:,} set aside"
    )
    if stats.HasField("problem"):
        hint = f" ({stats.problem.hint})" if stats.problem.hint else ""
        lines.append(f"  problem {stats.problem.message}{hint}")
    return lines


def _words(enum: Any, number: int) -> str:
    return enum_word(enum, number).replace("_", " ")


def block_lines(node: "BlockNode", text: str) -> list[str]:
    """Everything about one block; `text` is that of its tokens, empty where nobody can tell."""
    lines = [
        f"block {node.key.hex()}",
        f"  after      {node.parent_key.hex()}" if node.depth > 1 else "  after      nothing",
        f"  of         {node.fingerprint.hex()[:KEY_DIGITS]}"
        + (f", salt {node.salt}" if node.salt else ""),
        f"  holds      tokens {128 * (node.depth - 1):,} to {128 * node.depth - 1:,}",
    ]
    for record in node.records:
        fields = record.DESCRIPTOR.fields_by_name
        kind = _words(fields["kind"].enum_type, record.kind)
        codec = _words(fields["codec"].enum_type, record.codec)
        why = _words(fields["checkpoint_kind"].enum_type, record.checkpoint_kind)
        lines.append(
            f"  {kind:<10} {size(record.raw_bytes)} as {codec}, "
            f"{size(record.stored_bytes)} stored, crc {record.crc32:08x}"
            + (f", {why}" if record.checkpoint_kind else "")
        )
    value = f"{node.value * 1e6:.3g} s saved a MB"
    protection = _PROTECTION.get(node.protected_by, node.protected_by)
    pins = f" ({', '.join(node.pins)})" if node.pins else ""
    lines += [
        f"  stored     {span(int(node.age_s))} ago",
        f"  used       {span(int(node.idle_s))} ago, {many(node.hits, 'restore')} ended here",
        f"  value      {value}, lowest goes first; protected by {protection}{pins}",
    ]
    if node.quarantined:
        lines.append("  set aside: no lookup finds it")
    lines += [f"  next       {key.hex()}" for key in node.child_keys]
    if text:
        lines.append(f"  text       {cut_text(text, 66)}")
    if node.token_ids:
        ids = " ".join(map(str, node.token_ids))
        lines += textwrap.wrap(ids, 79, initial_indent="  tokens     ", subsequent_indent=" " * 13)
    return lines
