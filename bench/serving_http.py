"""Peers that serve the same model over HTTP: llama.cpp's server, and transformers' own.

Each is a process of its own and speaks the form of requests that is its quickest: token ids and
one event a token where it has them. Plain asyncio sockets, so that no client library is measured
with them. Called by `serving_peer`.
"""

import asyncio
import json
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any, Self

from bench.serving_load import Answer, Ask

_START_S = 180.0
_SLOTS = 16  # as many as ds4-daemon runs at once

# The wheel has llama.cpp's server as a library, which serves HTTP while its process lives.
_XLLAMACPP = """
import sys, threading
try:
    import xllamacpp
except ImportError:
    sys.exit(f"it is not installed: {sys.executable} -m pip install xllamacpp")
params = xllamacpp.CommonParams()
params.model.path, params.n_gpu_layers = sys.argv[1], 0
params.port, params.n_parallel, params.n_ctx = map(int, sys.argv[2:])
server = xllamacpp.Server(params)
threading.Event().wait()
"""


class Peer(ABC):
    """A process that answers `POST path` with a stream of server-sent events."""

    name = ""
    path = ""

    def __init__(self, command: list[str], port: int, log: Path) -> None:
        self._command, self.port, self._log = command, port, log
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def body(self, ask: Ask) -> dict[str, Any]:
        """The request of this peer."""

    @abstractmethod
    def count(self, event: dict[str, Any], before: int) -> int:
        """Tokens that an event brought, after `before` others."""

    def cached(self, event: dict[str, Any]) -> int:
        """Tokens of the prompt that were not computed, where an event says so."""
        return 0

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def ask(self, ask: Ask, answer: Answer) -> None:
        async with aclosing(self._events(self.body(ask))) as events:
            async for event in events:
                if "error" in event:
                    raise RuntimeError(f"{self.name} says: {event['error']}")
                if count := self.count(event, answer.tokens):
                    answer.events.append((time.perf_counter(), count))
                answer.cached_tokens += self.cached(event)

    async def _events(self, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            sent = json.dumps(body).encode()
            writer.write(
                f"POST {self.path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(sent)}\r\n\r\n".encode()
                + sent
            )
            await writer.drain()
            status = (await reader.readline()).decode()
            if " 200 " not in status:
                raise RuntimeError(f"{self.name}: {status}{(await reader.read()).decode()}")
            # Chunk sizes stand on lines of their own and never begin with "data:".
            async for line in reader:
                if line.startswith(b"data: {"):
                    yield json.loads(line[6:])
        finally:
            writer.close()

    def start(self) -> Self:
        """Start it and wait until it serves. Raises RuntimeError with its last words."""
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        end_s = time.monotonic() + _START_S
        while not self._serves():
            if self._process.poll() is not None or time.monotonic() > end_s:
                self.stop()
                last = self._log.read_text(errors="replace").splitlines()[-12:]
                raise RuntimeError("\n".join([f"{self.name} does not serve:", *last]))
            time.sleep(0.2)
        return self

    def _serves(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as probe:
                probe.sendall(
                    b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
                )
                return b" 200 " in probe.recv(64)
        except OSError:
            return False

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()


class LlamaCpp(Peer):
    """llama.cpp's server on a GGUF file, with a slot for each of sixteen requests.

    That of the wheel xllamacpp, or a `llama-server` that was built.
    """

    name = "llama.cpp"
    path = "/completion"

    def __init__(self, command: list[str], port: int, folder: Path) -> None:
        super().__init__(command, port, folder / "llama.log")

    @classmethod
    def wheel(cls, python: str, model: Path, context: int, folder: Path) -> Self:
        """`context`: tokens of each slot."""
        port = free_port()
        command = [python, "-c", _XLLAMACPP, str(model)]
        return cls([*command, str(port), str(_SLOTS), str(_SLOTS * context)], port, folder)

    @classmethod
    def built(cls, server: Path, model: Path, context: int, folder: Path, flags: list[str]) -> Self:
        """Likewise, of a program."""
        port = free_port()
        command = [str(server), "-m", str(model), "--port", str(port), "--no-webui"]
        command += ["-np", str(_SLOTS), "-c", str(_SLOTS * context), "-ngl", "0", *flags]
        return cls(command, port, folder)

    def body(self, ask: Ask) -> dict[str, Any]:
        return {
            "prompt": ask.text,
            "n_predict": ask.max_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "cache_prompt": ask.reuse,
            "stream": True,
            "return_tokens": True,
        }

    def count(self, event: dict[str, Any], before: int) -> int:
        return len(event.get("tokens", ()))

    def cached(self, event: dict[str, Any]) -> int:
        return int(event["timings"]["cache_n"]) if event.get("stop") else 0


class TransformersServe(Peer):
    """`transformers serve` on the same weights in float32.

    Its events are pieces of text; the last one tells how many tokens there were, and the ones that
    were not seen by themselves are counted with it.
    """

    name = "transformers"
    path = "/v1/completions"

    def __init__(self, python: str, folder: Path, flags: list[str]) -> None:
        port = free_port()
        code = "import sys; from transformers.cli.transformers import main; sys.exit(main())"
        self._folder = folder
        command = [python, "-c", code, "serve", str(folder), "--device", "cpu"]
        command += ["--dtype", "float32", "--port", str(port), *flags]
        super().__init__(command, port, folder / "serve.log")

    def body(self, ask: Ask) -> dict[str, Any]:
        return {
            "model": str(self._folder),
            "prompt": ask.text,
            "max_tokens": ask.max_tokens,
            "stream": True,
            "temperature": 0,
        }

    def count(self, event: dict[str, Any], before: int) -> int:
        if usage := event.get("usage"):
            return max(int(usage["completion_tokens"]) - before, 0)
        return sum(bool(choice["text"]) for choice in event["choices"])


def free_port() -> int:
    """A port of this machine that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_transformers(model: Path, folder: Path) -> Path:
    """The model as transformers loads it: float32, its tokenizer, and no token that ends a text."""
    import numpy as np
    from ds4_daemon.model.files import open_model
    from ds4_daemon.model.quant import dequantize, integers
    from ds4_daemon.model.tensor import Format
    from ds4_daemon.text.tokenizer import Tokenizer
    from tokenizers import Tokenizer as Bpe
    from transformers import GenerationConfig, PreTrainedTokenizerFast

    from bench.transformers_peer import peer_model

    files = open_model(model)

    def read(name: str) -> Any:
        tensor = files.tensor(name)
        wide = tensor.format in (Format.I32, Format.I64)
        return integers(tensor).astype(np.int64) if wide else dequantize(tensor)

    folder.mkdir(parents=True)
    peer = peer_model(files.config, read)
    peer.generation_config = GenerationConfig(do_sample=False)
    peer.config.eos_token_id = None
    peer.save_pretrained(folder)
    # Without the added vocabulary: the prompts here are plain words.
    bpe: Bpe = Tokenizer.load(files.tokenizer_source)._bpe
    PreTrainedTokenizerFast(tokenizer_object=bpe).save_pretrained(folder)
    return folder
