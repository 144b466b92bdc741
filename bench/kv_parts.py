"""The parts of `kv_roundtrip`: each measures one thing and returns its figures by name.

The engine here is made as the daemon's `main` makes it; saves go through the link's own queue,
packer and sender. Rows are those that the thin model computed, used again and again: a block's
bytes do not depend on which block it is.
"""

import asyncio
import contextlib
import json
import os
import time
from array import array
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ds4.v1 import inference_pb2, inference_pb2_grpc, kvstore_pb2, types_pb2
from ds4_daemon.engine.loop import Ended, Engine, Generated
from ds4_daemon.engine.prefix import Prefixes
from ds4_daemon.engine.prefix_session import LATTICE_TOKENS, is_spared
from ds4_daemon.engine.prefix_state import block_pieces, checkpoint_pieces
from ds4_daemon.engine.reuse import Terms, make_prefixes
from ds4_daemon.kvlink.link import Link
from ds4_daemon.kvlink.pack import Pieces, pack
from ds4_daemon.kvlink.records import Chain, CheckpointKind, Save
from ds4_daemon.kvlink.restore import Terms as RestoreTerms
from ds4_daemon.kvlink.store import Identity
from ds4_daemon.model.files import open_model
from ds4_daemon.model.load import load_network
from ds4_daemon.model.network import Network
from ds4_daemon.sched.policy import Limits
from ds4_daemon.sched.sampling import Sampling
from ds4_daemon.sched.sequence import Sequence
from ds4_runtime.address import Home
from ds4_runtime.kv_keys import (
    BLOCK_TOKENS,
    block_keys,
    canonical_json,
    fingerprint_digest,
    root_key,
)

from bench import thin_model
from bench.kv_process import SERVICE_FLAGS, Process

Figures = dict[str, float]
_SIZE = 256_000_000


def limits(folder: Path) -> Figures:
    """memcpy, write with fsync, and read of a file that is not in memory; GB/s."""
    data = np.random.default_rng(0).integers(0, 256, _SIZE, np.uint8)
    copy = np.empty_like(data)
    copy[:] = data  # touch
    began_s = time.perf_counter()
    copy[:] = data
    memcpy_s = time.perf_counter() - began_s
    path = folder / f"ds4-bench-{os.getpid()}"
    try:
        began_s = time.perf_counter()
        with path.open("wb") as file:
            file.write(data.data)
            file.flush()
            os.fsync(file.fileno())
        write_s = time.perf_counter() - began_s
        with path.open("rb", buffering=0) as file:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            began_s = time.perf_counter()
            while file.readinto(copy[:4_000_000].data):
                pass
            read_s = time.perf_counter() - began_s
    finally:
        path.unlink(missing_ok=True)
    size = _SIZE / 1e9
    return {
        "memcpy_gb_s": size / memcpy_s,
        "disk_write_gb_s": size / write_s,
        "disk_read_gb_s": size / read_s,
    }


def model_folder(folder: Path) -> Path:
    """The thin model, written once a folder."""
    return thin_model.write(folder / "ds4-thin-model")


@contextlib.asynccontextmanager
async def engine(home: Path, model: Path) -> AsyncIterator[Engine]:
    """An engine on the thin model, linked to the service of this home."""
    files = open_model(model)
    terms = Terms(True, 10**9, 0.0, 60.0)

    def reuse(network: Network, engine: Engine) -> Prefixes:
        return make_prefixes(network, engine, files, "thin", Home(home), terms)

    made = Engine(lambda: load_network(files, device="cpu"), Limits(4, 512), 10, reuse)
    await made.start(0)
    try:
        yield made
    finally:
        await made.close(30)
        assert made.prefixes is not None
        made.prefixes.close_link(30)


def prompt(tokens: int) -> list[int]:
    """The same for every process."""
    return [int(i) for i in np.random.default_rng(1).integers(3, 8000, tokens)]


async def decode(engine: Engine, name: str, ids: list[int], steps: int) -> list[float]:
    """Milliseconds of each decode step but the first."""
    events = engine.submit(Sequence(name, array("i", ids), Sampling(), steps + 1))
    times: list[float] = []
    while not isinstance(event := await events.get(), Ended):
        if isinstance(event, Generated):
            times.append(time.perf_counter())
    if event.error is not None:
        raise event.error
    return [float(ms) for ms in np.diff(times) * 1e3]


class Rows(NamedTuple):
    """Records of the thin model's own values, to be sent again under other keys."""

    link: Link
    block: Pieces
    checkpoint: Pieces
    block_bytes: int  # packed
    checkpoint_bytes: int
    wide_bytes: tuple[int, int]  # the same of both with rotated channels as a CPU computes them


async def rows(engine: Engine) -> Rows:
    """A block and a checkpoint as the network computed them, with V4's own rounding: its rotated
    channels are bf16 (a row takes 583 bytes), where a CPU computes them in float32 (711)."""
    await decode(engine, "rows", prompt(140), 1)
    prefixes = engine.prefixes
    assert prefixes is not None
    link = prefixes.link
    assert link is not None
    session = prefixes.idle[-1]
    layout = link.layout
    wide = block_pieces(session.state, layout, 0), checkpoint_pieces(session.snapshots[128])
    block, checkpoint = (_rounded(pieces, layout.head_dim - layout.rotated) for pieces in wide)
    sizes = [len(pack(pieces, layout)[1]) for pieces in (block, checkpoint, *wide)]
    return Rows(link, block, checkpoint, sizes[0], sizes[1], (sizes[2], sizes[3]))


def _rounded(pieces: Pieces, plain: int) -> Pieces:
    """The same with rotated channels as bf16, rounded to nearest even."""
    rounded = []
    for rows in pieces.rows:
        made = np.array(rows)
        bits = np.array(rows[:, plain:]).view(np.uint32)
        bits += 0x7FFF + (bits >> 16 & 1)
        bits &= np.uint32(0xFFFF0000)
        made[:, plain:] = bits.view(np.float32)
        rounded.append(made)
    return Pieces(tuple(rounded), pieces.keys, pieces.rest)


class Feed:
    """Saves a prefix block by block, as a session does, waiting where the queue is full."""

    def __init__(self, rows: Rows, ids: list[int], salt: str) -> None:
        self._rows = rows
        self._ids = ids
        self._chain = Chain(salt)
        self._root = root_key(rows.link.digest, salt)
        self._keys = block_keys(self._root, ids)
        self._sizes = (rows.block_bytes, rows.checkpoint_bytes)
        self.sent_bytes = 0
        self.blocks = 0

    def _save(self, block: int, kind: CheckpointKind | None) -> Save:
        at = block * BLOCK_TOKENS
        return Save(
            self._chain,
            self._keys[block],
            self._keys[block - 1] if block else self._root,
            block + 1,
            self._rows.block if kind is None else self._rows.checkpoint,
            self._sizes[kind is not None],
            () if kind else tuple(self._ids[at : at + BLOCK_TOKENS]),
            kind,
        )

    async def up_to(self, tokens: int, kind: CheckpointKind) -> None:
        """The blocks up to `tokens` and a checkpoint there."""
        while self.blocks < tokens // BLOCK_TOKENS:
            await self._put(self._save(self.blocks, None))
            self.blocks += 1
        await self._put(self._save(self.blocks - 1, kind))

    async def _put(self, save: Save) -> None:
        sender = self._rows.link.sender
        while sender.queue_bytes > 40_000_000:  # noqa: ASYNC110 (the sender knows no loop)
            await asyncio.sleep(0.002)
        if not self._rows.link.save(save):
            raise RuntimeError("a record was dropped")
        self.sent_bytes += save.nbytes


async def twenty_turns(
    engine: Engine, found: "Rows", service: Process, tokens: int, turns: int
) -> Figures:
    """A session that grows to `tokens`, saved at the ends of prompts and answers and on the
    lattice, as fast as it goes while another one decodes."""
    before, written = service.settled(), service.written_bytes
    feed = Feed(found, prompt(tokens), "")
    decoding = asyncio.create_task(decode(engine, "beside", prompt(7), 100_000))
    await asyncio.sleep(0.5)
    began_s = time.monotonic()
    marks = sorted(_marks(tokens, turns).items())
    for at, kind in marks:
        await feed.up_to(at, kind)
    await asyncio.to_thread(found.link.sender.flush, 300)
    took_s = time.monotonic() - began_s
    engine.cancel("beside")
    await decoding
    stats = service.settled()
    written = service.written_bytes - written
    raw, stored = _grown(stats, before)

    def thinned(step: int, block_bytes: int, checkpoint_bytes: int) -> float:
        """Raw bytes with the last turn's two ends and every so many steps of the lattice."""
        checkpoints = 2 + tokens // (step * LATTICE_TOKENS)
        return (feed.blocks * block_bytes + checkpoints * checkpoint_bytes) / tokens

    sizes = found.block_bytes, found.checkpoint_bytes
    return {
        "put_mb_s": feed.sent_bytes / 1e6 / took_s,
        "raw_bytes_per_token": thinned(4, *sizes),
        "raw_bytes_per_token_day": thinned(16, *sizes),
        "raw_bytes_per_token_cpu": thinned(4, *found.wide_bytes),
        "raw_bytes_per_token_cpu_day": thinned(16, *found.wide_bytes),
        "raw_bytes_per_token_fresh": raw / tokens,
        "zstd_ratio": raw / stored,
        "write_amplification": written / stored,
        "twenty_turns_gb": written / 1e9,
        "block_bytes": found.block_bytes,
        "checkpoint_bytes": found.checkpoint_bytes,
    }


def _marks(tokens: int, turns: int) -> dict[int, CheckpointKind]:
    """Where a session of equal turns gets checkpoints: a third of each turn is answer."""
    marks = dict.fromkeys(range(LATTICE_TOKENS, tokens, LATTICE_TOKENS), CheckpointKind.LATTICE)
    for turn in range(1, turns + 1):
        end = tokens * turn // turns
        asked = end - tokens // turns // 3
        marks[asked // BLOCK_TOKENS * BLOCK_TOKENS] = CheckpointKind.PROMPT_END
        marks[end // BLOCK_TOKENS * BLOCK_TOKENS] = CheckpointKind.OUTPUT_END
    saved: set[int] = set()
    for at, kind in sorted(marks.items()):
        if kind is CheckpointKind.LATTICE and is_spared(at, saved):
            del marks[at]
        else:
            saved.add(at)
    return marks


def _grown(now: kvstore_pb2.StatResponse, before: kvstore_pb2.StatResponse) -> tuple[int, int]:
    """Raw and stored bytes of records that came in between."""

    def total(stats: kvstore_pb2.StatResponse, field: str) -> int:
        classes = [c for c in stats.total.classes if c.name != "index"]
        return sum(getattr(c, field) for c in classes)

    fields = ("raw_bytes", "stored_bytes")
    raw, stored = (total(now, f) - total(before, f) for f in fields)
    return raw, stored


def restores(home: Path, model: Path, service: Process, tokens: int, times: int) -> Figures:
    """A real daemon restores the session again and again; its own log tells how long that took."""
    flags = ("--model", str(model), "--live-sessions-bytes", "0", "--kv-deadline-s", "60")
    request = inference_pb2.GenerateRequest(
        prompt=inference_pb2.Prompt(token_ids=types_pb2.TokenIds(ids=[*prompt(tokens), 5])),
        sampling=types_pb2.Sampling(temperature=0, max_tokens=1),
    )
    first_token_s: list[float] = []
    processor_s: list[float] = []
    daemon = Process("ds4_daemon.main", home, *flags)
    with daemon:
        for _ in range(times + 1):
            before_s = daemon.processor_s + service.processor_s
            with daemon.channel() as channel:
                stub = inference_pb2_grpc.InferenceStub(channel)
                last = list(stub.Generate(request, timeout=300))[-1].finished
            if last.usage.cached_restored_tokens != tokens:
                raise RuntimeError(f"not restored: {last}")
            first_token_s.append(last.usage.ttft_ms / 1e3)
            processor_s.append(daemon.processor_s + service.processor_s - before_s)
    lines = [json.loads(line) for line in daemon.log.read_text().splitlines()]
    took = [line for line in lines if line["event"] == "prefix restored"]
    warm = [line["ms"] / 1e3 for line in took[1:]]
    warm_s = min(warm)
    return {
        "restore_100k_s": warm_s,
        "restore_median_s": float(np.median(warm)),
        "restored_processor_s": min(processor_s[1:]),
        "restore_first_s": took[0]["ms"] / 1e3,
        "restore_gb_s": took[0]["bytes"] / 1e9 / warm_s,
        "restored_first_token_s": min(first_token_s[1:]),
    }


def churn(home: Path, found: Rows, budget_bytes: int) -> Figures:
    """A store that is sent ten times its budget: how large its file is then."""
    text = canonical_json({"bench": "churn"})
    identity = Identity(fingerprint_digest(text), text, found.link.layout.block_bytes, "churn")
    flags = ["--budget-bytes", str(budget_bytes), *SERVICE_FLAGS[2:]]
    with Process("ds4_kvcache.main", home, *flags) as service:
        link = Link(
            Home(home).socket("kvcache"), identity, found.link.layout, RestoreTerms(0.0, 60.0)
        )
        try:
            return asyncio.run(_churned(service, found._replace(link=link), budget_bytes))
        finally:
            link.close(30)


async def _churned(service: Process, found: Rows, budget_bytes: int) -> Figures:
    """Prefixes of 2,048 tokens, each in a salt of its own."""
    number, sent, refused = 0, 0, 0
    while sent < 10 * budget_bytes:
        feed = Feed(found, prompt(2048), f"churn {number}")
        try:
            await feed.up_to(2048, CheckpointKind.PROMPT_END)
        except RuntimeError:  # all that could make room was written in this moment
            refused += 1
            await asyncio.sleep(0.3)
        sent += feed.sent_bytes
        number += 1
    await asyncio.to_thread(found.link.sender.flush, 300)
    stats = service.settled()
    return {
        "file_ratio": stats.total.file_bytes / budget_bytes,
        "churned_budgets": sent / budget_bytes,
        "churn_evictions": float(stats.total.evictions),
        "churn_refusals": float(refused),
    }
