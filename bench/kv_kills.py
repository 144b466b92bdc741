"""What clients get while ds4-daemon or ds4-kvcache is killed at any moment.

    python -m bench.kv_kills [--rounds 200] [--seed 1] [--minutes 0]

A real daemon with the stand-in model and a real service. In each round four clients ask at once,
some for what is computed and saved for the first time, some for what is stored; one of the two
processes gets SIGKILL at a moment from the seed and is started again, and all is asked once more.
Every answer must be the one that was given without a cache; the death of the service may be noticed
by no client; what the service then delivers must be the bytes that the daemon made (their CRC-32),
in their place, and its structure sound. One in four restores is recomputed by the daemon's canary.
The last line is JSON; exits with 1 if anything was wrong. The test suite runs a few rounds.
`bench.kv_faults` breaks the service's file in all other ways.
"""

import argparse
import contextlib
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
from ds4.v1 import inference_pb2 as pb
from ds4.v1 import kvstore_pb2, types_pb2
from ds4_daemon import standin
from ds4_daemon.engine.prefix_state import layout_of
from ds4_daemon.engine.reuse import identity
from ds4_daemon.kvlink.store import Identity
from ds4_daemon.model.files import open_model
from ds4_daemon.model.load import load_network
from ds4_runtime.address import Home

from tests.wire.conftest import Daemon
from tests.wire.kv_service import BLOCK, CHECKPOINT, Link, Service, prompt

# A budget that a few dozen rounds fill, so that records are evicted too.
SERVICE = ("--min-tokens", "128", "--budget-bytes", "40000000", "--free-floor-bytes", "0")
# Sessions end with their request, so that what is reused came from the service.
DAEMON = (
    *("--kv-min-saving-s", "0", "--live-sessions-bytes", "0", "--kv-deadline-s", "20"),
    *("--kv-canary-every", "4"),
)
VOCABULARY = 8000  # ids that the stand-in has, without special ones
PROMPTS = [[3 + i % VOCABULARY for i in prompt(100 + n, 300 + 150 * n)] for n in range(4)]
TOKENS = 6
LATEST_S = 3.0  # the work of a round takes about as long
WRONG = ("wrong_answers", "wrong_bytes", "crashes", "errors", "bad_structure", "canary_failures")


class Pair:
    """A daemon and its service, and what was counted of them. `WRONG` are the counts that must
    stay 0."""

    def __init__(self, home: Path, model: Path, seed: int) -> None:
        self.counts: Counter[str] = Counter(dict.fromkeys(WRONG, 0))
        self._dice = random.Random(seed)
        self._rounds = 0
        self._seen: Counter[str] = Counter()  # what the running daemon's counters were last
        self._service, self._daemon = Service(home, *SERVICE), Daemon(home, model, *DAEMON)
        self._identity = _identity(home, model)
        self._expected: list[list[int]] = []

    def start(self) -> None:
        """Start both, and have every answer without the cache."""
        self._service.start()
        self._daemon.start()
        cache = pb.CachePolicy(bypass=True, no_save=True)
        self._expected = [self._ask(ids, cache)[0] for ids in PROMPTS]

    def end(self) -> None:
        """End both, whatever they do."""
        for one in (self._daemon, self._service):
            if one.process is not None:
                one.process.kill()
                one.process.wait()

    def round(self) -> None:
        """Ask, kill, start again, ask again, and look at what is stored."""
        self._rounds += 1
        victim: Service | Daemon = self._dice.choice((self._service, self._daemon))
        name = "service" if victim is self._service else "daemon"
        salts = [f"{self._rounds - self._dice.randrange(2)}" for _ in PROMPTS]
        delay_s = self._dice.uniform(0, LATEST_S)
        self._all(
            salts, "before", may_fail=name == "daemon", at=lambda: self._kill(victim, delay_s)
        )
        self._revive(self._daemon if name == "service" else self._service)
        victim.start()
        self.counts[f"kills_of_{name}"] += 1
        self._all(salts, f"after_kill_of_{name}", may_fail=False)
        self._revive(self._service, self._daemon)
        self._look(salts)
        if name == "daemon":
            self._seen.clear()
        link = self._daemon.status().kv_link
        now = Counter(
            canaries=link.canaries,
            canary_failures=link.canary_failures,
        )
        self.counts.update(now - self._seen)
        self._seen = now
        self.counts["rounds"] += 1

    def _revive(self, *processes: Service | Daemon) -> None:
        """Count and start again those that ended although nobody killed them."""
        for one in processes:
            if one.process is not None and one.process.poll() is not None:
                self.counts["crashes"] += 1
                one.start()

    def _kill(self, victim: Service | Daemon, delay_s: float) -> None:
        time.sleep(delay_s)
        assert victim.process is not None
        victim.process.kill()
        victim.process.wait()

    def _all(
        self, salts: list[str], when: str, *, may_fail: bool, at: Callable[[], None] = lambda: None
    ) -> None:
        """Every prompt at once, with something done meanwhile."""
        with ThreadPoolExecutor(len(PROMPTS)) as pool:
            policies = [pb.CachePolicy(salt=salt) for salt in salts]
            jobs = [pool.submit(self._ask, *one) for one in zip(PROMPTS, policies, strict=True)]
            at()
            for job, wanted in zip(jobs, self._expected, strict=True):
                try:
                    tokens, usage = job.result()
                except (grpc.RpcError, EOFError) as error:
                    self.counts["cut_off" if may_fail else "errors"] += 1
                    if not may_fail:
                        print(f"round {self._rounds}, {when}: {error}", file=sys.stderr)
                    continue
                self.counts["answers"] += 1
                self.counts["wrong_answers"] += tokens != wanted
                self.counts[f"hits_{when}"] += usage.cached_restored_tokens > 0
                self.counts[f"asked_{when}"] += 1

    def _ask(self, ids: list[int], cache: pb.CachePolicy) -> tuple[list[int], pb.Usage]:
        """A greedy answer; EOFError where it ends without an end."""
        request = pb.GenerateRequest(
            prompt=pb.Prompt(token_ids=types_pb2.TokenIds(ids=ids)),
            sampling=types_pb2.Sampling(temperature=0, max_tokens=TOKENS, ignore_eos=True),
            cache=cache,
        )
        with self._daemon.inference() as stub:
            events = list(stub.Generate(request, timeout=60))
        if not events or events[-1].finished.reason != pb.FINISH_REASON_LENGTH:
            raise EOFError("an answer without an end")
        return [i for e in events for i in e.delta.token_ids], events[-1].finished.usage

    def _look(self, salts: list[str]) -> None:
        """What the service delivers of each prompt, and whether its structure is sound."""
        one = self._identity
        with self._service.channel() as channel:
            link = Link(channel, one.json, one.block_bytes)
            for ids, salt in zip(PROMPTS, salts, strict=True):
                found = link.lookup(ids, salt)
                if not found.lease:
                    continue
                fetched = link.fetch(found.lease, found.resume_tokens)
                keys = link.keys(ids[: found.resume_tokens], salt)
                blocks = [h.key for h, _ in fetched.records if h.kind == BLOCK]
                ends = [h.key for h, _ in fetched.records if h.kind == CHECKPOINT]
                right = not fetched.failure and blocks == keys and ends == keys[-1:]
                self.counts["wrong_bytes"] += not right
                self.counts["records_read"] += len(fetched.records)
            request = kvstore_pb2.VerifyRequest(structure_only=True)
            self.counts["bad_structure"] += list(link.stub.Verify(request, timeout=60))[
                -1
            ].bad_records

    def finish(self) -> None:
        """Read everything that is stored, and what the service counted."""
        with self._service.channel() as channel:
            link = Link(channel, self._identity.json, self._identity.block_bytes)
            last = list(link.stub.Verify(kvstore_pb2.VerifyRequest(), timeout=60))[-1]
            self.counts["records_verified"] += last.checked_records
            self.counts["wrong_bytes"] += last.bad_records
            self.counts["evictions"] = link.stat().evictions


def _identity(home: Path, model: Path) -> Identity:
    """What the daemon opens its store with."""
    with open_model(model) as files:
        network = load_network(files, device="cpu")
        return identity(network, files, "stand-in", Home(home), layout_of(network.config))


def run(model: Path, rounds: int, seed: int, limit_s: float = 0) -> Counter[str]:
    """So many rounds, or as many as begin within `limit_s` seconds where that is not 0."""
    home = Path(tempfile.mkdtemp(prefix="ds4-", dir="/tmp"))
    pair = Pair(home, model, seed)
    end_s = time.monotonic() + limit_s
    try:
        pair.start()
        while pair.counts["rounds"] < rounds and (not limit_s or time.monotonic() < end_s):
            pair.round()
        pair.finish()
    except BaseException:
        for log in ("daemon.log", "kvcache.log"):
            with contextlib.suppress(OSError):
                print(f"{log}:\n{(home / log).read_text()[-5000:]}")
        raise
    finally:
        pair.end()
        shutil.rmtree(home)
    return pair.counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=0, help="begin no round after; 0: no end")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ds4-", dir="/tmp") as folder:
        model = standin.make(Path(folder) / "stand-in").gguf
        counts = run(model, arguments.rounds, arguments.seed, 60 * arguments.minutes)
    print(json.dumps({key: counts[key] for key in [*WRONG, *sorted(set(counts) - set(WRONG))]}))
    return 1 if any(counts[key] for key in WRONG) else 0


if __name__ == "__main__":
    sys.exit(main())
