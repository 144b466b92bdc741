"""An engine in a process of its own, which tells all that it knows: logits, state, counters.

    python -m tests.wire.kv_probe HOME MODEL PROMPTS.npz OUT.npz

Each array of PROMPTS is a prompt, run in the order of their names. OUT has, for each, the logits
of every step that gave some, every array of the state in the end, the tokens, and what came from
where. Engine, link and model are the daemon's own.
"""

import asyncio
import sys
from array import array
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ds4_daemon.engine.loop import Ended, Engine, Generated
from ds4_daemon.engine.prefix import Prefixes
from ds4_daemon.engine.reuse import Terms, make_prefixes
from ds4_daemon.model.files import open_model
from ds4_daemon.model.load import load_network
from ds4_daemon.model.network import Network
from ds4_daemon.model.state import SessionState
from ds4_daemon.sched.policy import Limits
from ds4_daemon.sched.sampling import Sampling
from ds4_daemon.sched.sequence import Sequence
from ds4_runtime.address import Home

TERMS = Terms(service=True, live_bytes=10**9, min_saving_s=0.0, deadline_s=30.0)
TOKENS = 8


def arrays(state: SessionState) -> list[np.ndarray]:
    """Everything that a state remembers, in order."""
    out = []
    for layer in state.layers:
        buffers = [layer.window]
        for compressor in (layer.compressor, layer.indexer):
            if compressor is not None:
                buffers += [compressor.tail, compressor.entries]
        out += [buffer.part(0, len(buffer)) for buffer in buffers]
    return out


async def run(home: Path, model: Path, prompts: Any) -> dict[str, np.ndarray]:
    files = open_model(model)
    out: dict[str, np.ndarray] = {}
    logits: list[np.ndarray] = []

    def load() -> Network:
        network = load_network(files, device="cpu")
        forward = network.forward

        def watched(batch: Any) -> Any:
            rows = forward(batch)
            logits.extend(row for row in rows if row is not None)
            return rows

        network.forward = watched  # type: ignore[method-assign]
        return network

    def reuse(network: Network, engine: Engine) -> Prefixes:
        return make_prefixes(network, engine, files, "probe", Home(home), TERMS)

    engine = Engine(load, Limits(4, 512), 10, reuse)
    await engine.start(0)
    assert engine.prefixes is not None
    for name in prompts.files:
        logits.clear()
        sequence = Sequence(name, array("i", prompts[name].tolist()), Sampling(), TOKENS)
        events = engine.submit(sequence)
        tokens = []
        while not isinstance(event := await events.get(), Ended):
            if isinstance(event, Generated):
                tokens.append(event.choice.id)
        assert event.error is None
        (session,) = engine.prefixes.idle
        for i, values in enumerate(arrays(session.state)):
            out[f"{name}/state/{i}"] = values
        out[f"{name}/logits"] = np.stack(logits)
        out[f"{name}/tokens"] = np.array(tokens)
        out[f"{name}/restored"] = np.array(sequence.cached_restored_tokens)
        out[f"{name}/miss"] = np.array(sequence.miss.value)
        # The next prompt is to come from the service.
        await engine.ask(partial(engine.prefixes.shelf.take, session))
    await engine.close(5)
    engine.prefixes.close_link(10)
    return out


def main() -> None:
    home, model, prompts, out = map(Path, sys.argv[1:])
    np.savez(out, allow_pickle=False, **asyncio.run(run(home, model, np.load(prompts))))


if __name__ == "__main__":
    main()
