"""A ds4-kvcache that is used without a pause: `python -m bench.kv_soak [--hours 24] [--budget GB]`.

Stores prompts of V4 Flash's block size with common beginnings, and restores recent ones between,
until the time is over. Prints a line a minute, the machine and the commit before them, and fails
when the files outgrow 1.10 times the budget, a record takes longer than 50 ms to store at the 99th
percentile, memory grows, anything is damaged, or a byte is wrong.
"""

import argparse
import random
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles

import psutil
from ds4.v1 import kvcache_pb2 as pb

from bench.machine import describe
from tests.wire.kv_service import BLOCK, CHECKPOINT, PACKED, Link, Service, prompt

BLOCK_BYTES = 449_132
WINDOW_BYTES = 8_000_000
PUT_P99_MS, FILE_RATIO, MEMORY_RATIO = 50.0, 1.10, 1.2


@dataclass
class Minute:
    """What was measured since the last line."""

    put_ms: list[float] = field(default_factory=list)  # a record
    lookup_ms: list[float] = field(default_factory=list)
    hits: int = 0
    lookups: int = 0


class Load:
    """One daemon's worth of work. Records of equal place in a prompt have equal bytes."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._random = random.Random(1)
        self._data = [self._random.randbytes(BLOCK_BYTES) for _ in range(4)]
        self._recent: list[list[int]] = []
        self._seed = 0
        self.stored_bytes = 0

    def turn(self, minute: Minute) -> None:
        """Store one prompt, and restore one of the last ones."""
        self._seed += 1
        shared = prompt(self._seed % 3, 512)
        tokens = prompt(self._seed, self._random.randrange(600, 6000), shared)
        began_s = time.perf_counter()
        answer = self._link.send(self._records(tokens))
        minute.put_ms.append(1000 * (time.perf_counter() - began_s) / (len(tokens) // 128))
        self.stored_bytes += answer.stored * BLOCK_BYTES
        self._recent = [*self._recent[-7:], tokens]
        began_s = time.perf_counter()
        found = self._link.lookup(self._random.choice(self._recent))
        minute.lookup_ms.append(1000 * (time.perf_counter() - began_s))
        minute.lookups += 1
        if found.lease:
            restored = self._link.fetch_into_slab(found.lease, found.resume_tokens, WINDOW_BYTES)
            self._link.stub.Release(pb.ReleaseRequest(lease=found.lease))
            for header, data in restored.records:
                assert data == self._data[header.depth % 4], "wrong bytes"
            minute.hits += not restored.failure

    def _records(self, tokens: list[int]) -> Iterator[tuple[pb.RecordHeader, bytes]]:
        parent = self._link.root()
        keys = self._link.keys(tokens)
        for depth, key in enumerate(keys, 1):
            data = self._data[depth % 4]
            header = pb.RecordHeader(
                key=key, kind=BLOCK, codec=PACKED, depth=depth, data_bytes=BLOCK_BYTES,
                crc32=zlib.crc32(data), parent_key=parent,
                token_ids=tokens[128 * (depth - 1) : 128 * depth],
            )  # fmt: skip
            yield header, data
            parent = key
        end = pb.RecordHeader(
            key=keys[-1], kind=CHECKPOINT, codec=PACKED, depth=len(keys), data_bytes=BLOCK_BYTES,
            crc32=zlib.crc32(data),
        )  # fmt: skip
        yield end, data


def soak(service: Service, hours: float, budget_bytes: int) -> None:
    """Run to the end of the time, or to the first limit that is broken."""
    assert service.process is not None
    process = psutil.Process(service.process.pid)
    began_s = time.monotonic()
    with service.link(block_bytes=BLOCK_BYTES) as link:
        load, first_rss = Load(link), 0
        while time.monotonic() - began_s < 3600 * hours:
            minute, end_s = Minute(), time.monotonic() + 60
            while time.monotonic() < end_s:
                load.turn(minute)
            stats, rss = link.stat(), process.memory_info().rss
            # The first minute fills the budget, whose pages count as memory while they are mapped.
            first_rss = first_rss or (rss if load.stored_bytes > 2 * budget_bytes else 0)
            ratio = stats.file_bytes / budget_bytes
            put, lookup = quantiles(minute.put_ms, n=100), quantiles(minute.lookup_ms, n=100)
            print(
                f"{(time.monotonic() - began_s) / 60:6.1f} min"
                f"  stored {load.stored_bytes / 1e9:.1f} GB  file/budget {ratio:.3f}"
                f"  rss {rss / 1e6:.0f} MB  put p99 {put[-1]:.1f} ms"
                f"  lookup p50 {lookup[49]:.1f} p99 {lookup[-1]:.1f} ms"
                f"  hits {minute.hits}/{minute.lookups}  commit p99 {stats.commit_p99_ms:.0f} ms",
                flush=True,
            )
            assert ratio <= FILE_RATIO, "the files outgrew the budget"
            assert put[-1] <= PUT_P99_MS, "records take too long to store"
            assert not first_rss or rss <= MEMORY_RATIO * first_rss, "memory grows"
            assert not stats.corruptions, "records were damaged"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--budget", type=float, default=1.0, help="in GB")
    arguments = parser.parse_args()
    print("\n".join(describe(("lmdb", "zstandard", "grpcio"))))
    budget_bytes = int(1e9 * arguments.budget)
    home = Path(tempfile.mkdtemp(prefix="ds4-", dir="/tmp"))
    flags = ("--budget-bytes", str(budget_bytes), "--daily-write-budget-bytes", "0")
    service = Service(home, *flags, "--free-floor-bytes", "0").start()
    try:
        soak(service, arguments.hours, budget_bytes)
        assert service.stop() == 0
    finally:
        service.kill()
        shutil.rmtree(home)


if __name__ == "__main__":
    main()
