"""What the KV cache does when things break.

    python -m bench.kv_faults [--rounds 200] [--seed 1] [--only kill]

Each round breaks one thing in a real ds4-kvcache and its file, chosen and placed by the seed, and
then asks for every prompt that was ever stored. What comes back must be the very bytes or a miss;
the service must serve again, take everything anew, and find nothing wrong with itself. Prints one
line a kind of fault and a JSON object at the end; fails on the first wrong byte. The test suite
runs a few rounds of each kind. `bench.kv_kills` kills the daemon too.
"""

import argparse
import contextlib
import functools
import json
import random
import shutil
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import lmdb
from ds4.v1 import admin_pb2, admin_pb2_grpc, kvcache_pb2, kvstore_pb2
from grpc import StatusCode

from tests.wire.kv_service import BLOCK, FINGERPRINT, PACKED, Link, NotServingError, Service, prompt

FLAGS = ("--min-tokens", "128", "--budget-bytes", "400000000", "--free-floor-bytes", "0")
PROMPTS = 6
BLOCK_BYTES = 150_000  # three parts
_PAGE = 4096
_TRIES = 10  # more than one fault breaks


def _whole(tokens: list[int]) -> int:
    """What can be restored of a prompt: complete blocks without its last token."""
    return 128 * ((len(tokens) - 1) // 128)


class Patient:
    """A service with prompts stored in it, and a source of randomness."""

    def __init__(self, home: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.home = home
        self.service = Service(home, *FLAGS)
        shared = prompt(seed, 384)
        self.prompts = [
            prompt(1000 * seed + i, self.random.randrange(600, 1500), shared)
            for i in range(PROMPTS)
        ]
        self.counts: Counter[str] = Counter()

    @property
    def file(self) -> Path:
        """The file of the store."""
        (folder,) = [one for one in self.service.stores if "corrupt" not in one.name]
        return folder / "data.mdb"

    def fill(self) -> None:
        """Store every prompt, and have it on disk."""
        with self.service.link(block_bytes=BLOCK_BYTES) as link:
            for i in range(PROMPTS):
                self.put(link, i)

    def put(self, link: Link, i: int) -> kvcache_pb2.PutResponse:
        tokens = self.prompts[i]
        return link.put(tokens, checkpoints=[384, _whole(tokens)])

    def start(self) -> None:
        """Start the service; once more when a damaged file ended it, as launchd would."""
        try:
            self.service.start()
        except NotServingError:
            self.counts["crashes_of_service_at_start"] += 1
            self.service.kill()
            self.service.start()

    def examine(self) -> None:
        """Ask for everything: right bytes or a miss. Then store it anew and ask again."""
        self.restore_all("after_fault")
        for i in range(PROMPTS):
            self.store_anew(i)
        with self.service.link(block_bytes=BLOCK_BYTES) as link:
            request = kvstore_pb2.VerifyRequest(repair=True)
            last = list(link.stub.Verify(request, timeout=60))[-1]
            self.counts["damaged_found_by_verify"] += last.bad_records
            last = list(link.stub.Verify(kvstore_pb2.VerifyRequest(), timeout=60))[-1]
            assert last.bad_records == 0, [one.message for one in last.findings]

    def store_anew(self, i: int) -> None:
        """Put a prompt and restore it whole, as soon as all that was damaged has been found."""
        answer = kvcache_pb2.PutResponse()
        for _ in range(_TRIES):
            with (
                contextlib.suppress(grpc.RpcError),  # the file turns out to be damaged: once more
                self.service.link(block_bytes=BLOCK_BYTES) as link,
            ):
                answer = self.put(link, i)
                if link.restore(self.prompts[i]) == _whole(self.prompts[i]):
                    return
            if answer.refusal.reason == "READ_ONLY":  # after three damaged records; a restart ends
                self.counts["read_only"] += 1
                self.service.stop()
                self.start()
        raise AssertionError("the store does not take records anew")

    def restore_all(self, when: str) -> None:
        """`Link.restore` raises on a wrong byte; a service that dies of its file is a miss."""
        for tokens in self.prompts:
            try:
                with self.service.link(block_bytes=BLOCK_BYTES) as link:
                    found = link.restore(tokens)
            except grpc.RpcError as error:
                if self.service.process is None or self.service.process.poll() is None:
                    known = error.code() in (StatusCode.DATA_LOSS, StatusCode.NOT_FOUND)
                    self.counts[f"{when}_misses_told" if known else "errors"] += 1
                    continue
                self.counts["crashes_of_service"] += 1
                self.start()
                continue
            self.counts[f"{when}_{'hits' if found else 'misses'}"] += 1


def kill(patient: Patient) -> None:
    """SIGKILL at a random moment while prompts are stored and restored."""

    def work() -> None:
        with (
            contextlib.suppress(grpc.RpcError),
            patient.service.link(block_bytes=BLOCK_BYTES) as link,
        ):
            for i in range(PROMPTS):
                patient.put(link, i)
                link.restore(patient.prompts[i])
                patient.put(link, i)
                time.sleep(0.2)  # so that some are on disk and some are not

    patient.start()
    worker = threading.Thread(target=work)
    worker.start()
    time.sleep(patient.random.uniform(0, 2.0))
    patient.service.kill()
    worker.join()
    patient.start()


def _stopped(damage: Callable[[Patient], None]) -> Callable[[Patient], None]:
    """A fault that is done to the file of a filled service which does not run."""

    @functools.wraps(damage)
    def fault(patient: Patient) -> None:
        patient.start()
        patient.fill()
        patient.service.stop()
        damage(patient)
        patient.start()

    return fault


@_stopped
def flip_bits(patient: Patient) -> None:
    """One to eight random bits of the file are flipped."""
    data = bytearray(patient.file.read_bytes())
    for _ in range(patient.random.randrange(1, 9)):
        data[patient.random.randrange(len(data))] ^= 1 << patient.random.randrange(8)
    patient.file.write_bytes(data)


@_stopped
def truncate(patient: Patient) -> None:
    """The file ends somewhere."""
    size = patient.file.stat().st_size
    with patient.file.open("r+b") as file:
        file.truncate(patient.random.randrange(size))


@_stopped
def overwrite_page(patient: Patient) -> None:
    """A page is full of noise, or of another page."""
    data = bytearray(patient.file.read_bytes())
    to, source = (_PAGE * patient.random.randrange(2, len(data) // _PAGE) for _ in range(2))
    noise = patient.random.randbytes(_PAGE)
    data[to : to + _PAGE] = (
        noise if patient.random.random() < 0.5 else data[source : source + _PAGE]
    )
    patient.file.write_bytes(data)


@_stopped
def swap_payloads(patient: Patient) -> None:
    """Two blocks have each other's frames, both sound in themselves."""
    folder = patient.file.parent
    with lmdb.open(str(folder), max_dbs=8, map_size=1 << 30) as env:
        table = env.open_db(b"part")
        with env.begin(write=True) as txn:
            found = [(bytes(k), bytes(v)) for k, v in txn.cursor(db=table)]
            keys = sorted({k[:33] for k, _ in found if k[32:33] == b"B"})
            left, right = patient.random.sample(keys, 2)
            for key, value in found:
                if key[:33] in (left, right):
                    other = right if key[:33] == left else left
                    txn.put(other + key[33:], value, db=table)


def lose_power(patient: Patient) -> None:
    """The old meta pages with any of the pages that the last transactions wrote, or none."""
    patient.start()
    with patient.service.link(block_bytes=BLOCK_BYTES) as link:
        for i in range(PROMPTS // 2):
            patient.put(link, i)
    patient.service.stop()
    old = patient.file.read_bytes()
    patient.start()
    with patient.service.link(block_bytes=BLOCK_BYTES) as link:
        for i in range(PROMPTS // 2, PROMPTS):
            patient.put(link, i)
    patient.service.stop()
    new = patient.file.read_bytes()
    # LMDB syncs data before the page that points to it, so without that page nothing is promised
    # about data: each page may be old, new, or not there yet.
    pages = max(len(old), len(new)) // _PAGE
    mixed = bytearray(max(len(old), len(new)))
    mixed[: len(old)] = old
    in_use = _in_use(old)
    for page in range(2, pages):
        if patient.random.random() < 0.5 and page not in in_use:
            mixed[page * _PAGE : (page + 1) * _PAGE] = new[page * _PAGE : (page + 1) * _PAGE]
    patient.file.write_bytes(mixed)
    patient.start()
    with patient.service.link(block_bytes=BLOCK_BYTES) as link:
        for tokens in patient.prompts[: PROMPTS // 2]:
            assert link.restore(tokens), "what was committed before the power went is lost"


def fill_disk(patient: Patient) -> None:
    """The file cannot grow past a random size: writing fails with EFBIG, as with ENOSPC."""
    limit = patient.random.randrange(200_000, 8_000_000)
    wrapper = (
        "import resource, runpy, sys\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "sys.argv[0] = 'ds4-kvcache'\n"
        "runpy.run_module('ds4_kvcache.main', run_name='__main__')"
    )
    limited = Service(patient.home, *FLAGS)
    limited.command = [sys.executable, "-c", wrapper, *FLAGS]
    whole, patient.service = patient.service, limited
    try:
        patient.start()
        with patient.service.channel() as channel:
            link = Link(channel, FINGERPRINT, BLOCK_BYTES)
            for i in range(PROMPTS):
                patient.put(link, i)
                drain = admin_pb2.DrainRequest(limit_ms=700)  # a batch each, until one has no room
                admin_pb2_grpc.AdminStub(channel).Drain(drain, timeout=30)
        patient.restore_all("on_full_disk")
        assert limited.process is not None
        assert limited.process.poll() is None, "the service died of a full disk"
        limited.stop()
    finally:
        limited.kill()
        patient.service = whole
    patient.start()


def leave(patient: Patient) -> None:
    """A daemon dies in the middle of a fetch and of a put."""
    patient.start()
    with patient.service.channel() as channel:
        link = Link(channel, FINGERPRINT, BLOCK_BYTES)
        patient.put(link, 0)
        found = link.lookup(patient.prompts[0])
        request = kvcache_pb2.FetchRequest(
            store=link.store, lease=found.lease, resume_tokens=found.resume_tokens
        )
        stream = link.stub.Fetch(request)
        for _ in range(patient.random.randrange(1, 6)):
            next(stream)

        stop = threading.Event()

        def half() -> Iterator[kvcache_pb2.PutRequest]:
            yield kvcache_pb2.PutRequest(opening=kvcache_pb2.PutOpening(store=link.store))
            header = kvcache_pb2.RecordHeader(
                key=bytes(32), kind=BLOCK, codec=PACKED, data_bytes=1000
            )
            yield kvcache_pb2.PutRequest(header=header)
            yield kvcache_pb2.PutRequest(data=bytes(500))
            stop.wait(30)

        call = link.stub.Put.future(half())
        time.sleep(patient.random.uniform(0, 0.05))
        call.cancel()
        stop.set()


def _in_use(data: bytes) -> set[int]:
    """Pages that the newest meta page leads to, by LMDB 0.9's format.

    A transaction writes to free pages and to new ones only, so no other page can be half written.
    """
    metas = []
    for page in (0, 1):
        head = struct.unpack_from("<IIQQ", data, page * _PAGE + 16)
        assert head[0] == 0xBEEFC0DE
        roots = [struct.unpack_from("<Q", data, page * _PAGE + 40 + 48 * i + 40)[0] for i in (0, 1)]
        transaction = struct.unpack_from("<Q", data, page * _PAGE + 40 + 96 + 8)[0]
        metas.append((transaction, roots))
    found: set[int] = set()
    stack = list(max(metas)[1])
    while stack:
        page = stack.pop()
        if (page + 1) * _PAGE > len(data) or page in found:  # no page, or known
            continue
        found.add(page)
        flags, lower = struct.unpack_from("<HH", data, page * _PAGE + 10)
        for i in range((lower - 16) // 2):
            (at,) = struct.unpack_from("<H", data, page * _PAGE + 16 + 2 * i)
            low, high, node_flags, key_bytes = struct.unpack_from("<HHHH", data, page * _PAGE + at)
            if flags & 0x01:  # branch: the number of the child is in three halves
                stack.append(low | high << 16 | node_flags << 32)
            elif node_flags & 0x01:  # value on pages of its own
                (first,) = struct.unpack_from("<Q", data, page * _PAGE + at + 8 + key_bytes)
                size = low | high << 16
                found.update(range(first, first + -(-(size + 16) // _PAGE)))
            elif node_flags & 0x02:  # a table, whose root is the last of its 48 bytes
                start = page * _PAGE + at + 8 + key_bytes
                stack.append(struct.unpack_from("<Q", data, start + 40)[0])
    return found


FAULTS: tuple[Callable[[Patient], None], ...] = (
    kill, flip_bits, truncate, overwrite_page, swap_payloads, lose_power, fill_disk, leave,
)  # fmt: skip


def round_of(fault: Callable[[Patient], None], seed: int) -> Counter[str]:
    """One round in a home of its own; what was counted. Raises AssertionError on a wrong byte."""
    home = Path(tempfile.mkdtemp(prefix="ds4-", dir="/tmp"))
    patient = Patient(home, seed)
    try:
        fault(patient)
        patient.examine()
    except BaseException:
        print(f"{fault.__name__} with seed {seed} failed:\n{patient.service.log.read_text()}")
        raise
    finally:
        patient.service.kill()
        shutil.rmtree(home)
    patient.counts["rounds"] += 1
    return patient.counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    names = [fault.__name__ for fault in FAULTS]
    parser.add_argument("--only", choices=names, help="one kind of fault instead of all in turn")
    arguments = parser.parse_args()
    faults = [fault for fault in FAULTS if arguments.only in (None, fault.__name__)]
    totals: dict[str, Counter[str]] = {fault.__name__: Counter() for fault in faults}
    for i in range(arguments.rounds):
        fault = faults[i % len(faults)]
        totals[fault.__name__] += round_of(fault, arguments.seed + i)
    for name, counts in totals.items():
        print(f"{name:>15}  {', '.join(f'{k} {v}' for k, v in sorted(counts.items()))}")
    print(json.dumps({"wrong_bytes": 0, **{name: dict(c) for name, c in totals.items()}}))


if __name__ == "__main__":
    main()
