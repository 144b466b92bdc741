"""The real processes of the KV benches: a ds4-kvcache or a ds4-daemon in a home of its own."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc
from ds4.v1 import kvcache_pb2_grpc, kvstore_pb2
from ds4_runtime.address import Home, grpc_target
from grpc_health.v1 import health_pb2, health_pb2_grpc

SERVICE_FLAGS = (
    *("--budget-bytes", "4000000000", "--free-floor-bytes", "0"),
    *("--daily-write-budget-bytes", "0"),
)
_START_S = 60.0


class Process:
    """A service or a daemon, as a person would start it."""

    def __init__(self, module: str, home: Path, *flags: str) -> None:
        self.home = home
        self.log = home / f"{module}.log"
        self._command = [sys.executable, "-m", module, *flags]
        self._socket = Home(home).socket("kvcache" if "kvcache" in module else "daemon")
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Process":
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        clean = {k: v for k, v in os.environ.items() if not k.startswith("DS4_")}
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, stderr=log, env=clean | {"DS4_HOME": str(self.home)}
            )
        end_s = time.monotonic() + _START_S
        while not self._serves():
            if self._process.poll() is not None or time.monotonic() > end_s:
                self.__exit__()
                raise RuntimeError(f"{self._command} does not serve:\n{self.log.read_text()}")
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _serves(self) -> bool:
        with contextlib.suppress(grpc.RpcError), self.channel() as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            answer = health.Check(health_pb2.HealthCheckRequest(), timeout=1)
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
        return False

    def channel(self) -> grpc.Channel:
        options = [("grpc.use_local_subchannel_pool", 1)]
        return grpc.insecure_channel(grpc_target(self._socket), options)

    @property
    def written_bytes(self) -> int:
        """What it wrote to files since it started; 0 where the system does not tell.

        Not `write_bytes`: that counts a whole folio of the page cache again whenever a part of it
        is written, 2.3 times what the device wrote (docs/kv-format.md). LMDB hands each page to
        the system once a batch, and sockets are not in `wchar`.
        """
        assert self._process is not None
        counters = Path(f"/proc/{self._process.pid}/io")
        if not counters.exists():
            return 0
        fields = dict(line.split(": ") for line in counters.read_text().splitlines())
        return int(fields["wchar"])

    @property
    def processor_s(self) -> float:
        """Processor time of all its threads; 0 where the system does not tell."""
        assert self._process is not None
        stat = Path(f"/proc/{self._process.pid}/stat")
        if not stat.exists():
            return 0.0
        fields = stat.read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stats(self) -> kvstore_pb2.StatResponse:
        with self.channel() as channel:
            return kvcache_pb2_grpc.KvCacheStub(channel).Stat(kvstore_pb2.StatRequest(), timeout=10)

    def settled(self) -> kvstore_pb2.StatResponse:
        """Its figures once all is on disk."""
        while (stats := self.stats()).total.queue_bytes:
            time.sleep(0.1)
        time.sleep(0.5)
        return stats
