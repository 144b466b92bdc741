"""What the KV cache costs and saves, between the daemon's own parts and a real ds4-kvcache.

    python bench/kv_roundtrip.py [--quick] [--only decode] [--json] [--folder DIR]

On the thin model (`bench.thin_model`), whose cached rows are V4 Flash's own. Prints, with the
machine and the commit, and as JSON on the last line:

    restore_100k_s       from Lookup to arrays of 100k tokens, warm, by a real ds4-daemon: the best
                         of several; restore_median_s beside it
    restored_processor_s of both processes, for a request that restores and computes one token
    put_mb_s             packed, sent, stored, while the engine decodes
    file_ratio           file / budget after writing ten times the budget
    decode_p99_ratio     p99 of a decode step beside what a prefill saves at once / without;
                         decode_p99_ratio_off: of two halves of those without, what the machine does
                         by itself; decode_others_cores: what other processes took meanwhile
    raw_bytes_per_token  on disk before zstd, with the checkpoints that thinning leaves
                         after an hour: the ends of the last turn, every 16,384 tokens
    raw_bytes_per_token_day  the same after a day: its ends, every 65,536 tokens
                         (both with rotated channels as bf16, as V4 has them; `_cpu`: as float32)
    zstd_ratio           raw / stored
    write_amplification  written by the process / stored
    twenty_turns_gb      written for a session that grows to 100k tokens in twenty turns
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a file, it finds its siblings
# Two threads wait for each other at every product, so a decode step loses 20 to 50 ms to whatever
# else runs for a moment, be it a save or not; on two cores one thread is as fast.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from bench import kv_parts as parts
from bench.kv_process import SERVICE_FLAGS, Process
from bench.kv_stall import decode_stall
from bench.machine import describe

TOKENS = 100_096  # 782 blocks: the first whole ones past 100k
TURNS = 20
KEYS = (
    "restore_100k_s",
    "put_mb_s",
    "file_ratio",
    "decode_p99_ratio",
    "raw_bytes_per_token",
    "raw_bytes_per_token_day",
    "zstd_ratio",
    "write_amplification",
    "twenty_turns_gb",
)


async def measure(folder: Path, quick: bool, only: str) -> dict[str, float]:
    """All figures, in the order of what depends on what."""
    found = {} if only else parts.limits(folder)
    with tempfile.TemporaryDirectory(prefix="ds4-kv-", dir=folder) as name:
        home = Path(name)
        model = parts.model_folder(folder)
        service = Process("ds4_kvcache.main", home, *SERVICE_FLAGS)
        with service:
            async with parts.engine(home, model) as engine:
                rows = await parts.rows(engine)
                log("decode")
                found |= await decode_stall(engine, rows, service, windows=4 if quick else 24)
                if only == "decode":
                    return found
                log("twenty turns")
                found |= await parts.twenty_turns(engine, rows, service, TOKENS, TURNS)
            log("restores")
            found |= parts.restores(home, model, service, TOKENS, times=3 if quick else 6)
        log("churn")
        budget_bytes = 64_000_000 if quick else 400_000_000
        found |= await asyncio.to_thread(parts.churn, home / "churn", rows, budget_bytes)
    found["restore_of_memcpy"] = found["restore_gb_s"] / found["memcpy_gb_s"]
    found["restore_of_disk_read"] = found["restore_gb_s"] / found["disk_read_gb_s"]
    found["put_of_disk_write"] = found["put_mb_s"] / 1e3 / found["disk_write_gb_s"]
    return found


def log(stage: str) -> None:
    print(f"# {time.strftime('%H:%M:%S')} {stage}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under a minute, with more noise")
    parser.add_argument("--only", choices=("decode",), default="", help="one part")
    parser.add_argument("--json", action="store_true", help="print only the last line")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    arguments = parser.parse_args()
    began_s = time.monotonic()
    found = asyncio.run(measure(arguments.folder, arguments.quick, arguments.only))
    if not arguments.json:
        for line in describe(("numpy", "lmdb", "zstandard", "grpcio")):
            print(f"# {line}")
        for key, value in found.items():
            print(f"{key:28} {value:10.4g}")
        print(f"# {time.monotonic() - began_s:.0f} s")
    order = [*(key for key in KEYS if key in found), *sorted(set(found) - set(KEYS))]
    print(json.dumps({key: round(found[key], 4) for key in order}))


if __name__ == "__main__":
    main()
