"""Training on several devices at once: two processes take the steps that one takes alone."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing

from models.nano import feed, schedule
from models.nano.ranks import Ranks
from models.nano.train import Plan, Trainer
from tests.nano.test_train import CONFIG, CPU, Steps

STEPS = 3


def of_both(phase: str, sequence: int, rows: int, seed: int) -> Iterator[tuple[Any, Any]]:
    """What the two processes read, a batch of each in turn."""
    streams = [feed.noise(CONFIG.vocab_size)(phase, sequence, rows, seed + r) for r in (0, 10**7)]
    while True:
        for stream in streams:
            yield next(stream)


def train(out: Path, source: feed.Source, ranks: Ranks, accumulate: int) -> dict[str, Any]:
    plan = Plan(out, minutes=STEPS, micro_tokens=256, accumulate=accumulate, quantized="none",
                stages=(schedule.Stage("A", 1.0, (64,)),))  # fmt: skip
    clock = Steps() if ranks.first else lambda _step: 1e9  # only the first one's may count
    run = Trainer(plan, CONFIG, source, CPU, clock, ranks)
    run.run()
    hashed, *learned = [layer.mlp.gate for layer in run.trainee.net.model.layers]
    biases = [gate.e_score_correction_bias for gate in learned]
    found = {"masters": run.optimizer.masters, "biases": biases, "tokens": run.tokens}
    run.prepare()
    run.close()
    return found | {"table": hashed.tid2eid}


def member(rank: int, out: Path, port: int) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(port)}  # fmt: skip
    torch.set_num_threads(1)
    ranks = Ranks.join(CPU)
    found = train(out / f"rank-{rank}", feed.noise(CONFIG.vocab_size), ranks, 1)
    torch.save(found, out / f"{rank}.pt")
    ranks.leave()


def test_two_ranks_take_the_steps_of_one(tmp_path: Path) -> None:
    """Weights, routing biases and the count of tokens are those of one process with both's data,
    whatever the second one's clock says, and only the first one writes."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(member, (tmp_path, port), nprocs=2)
    tables = [torch.load(tmp_path / f"{rank}.pt")["table"] for rank in (0, 1)]
    assert torch.equal(*tables)  # though each has seen other tokens
    alone = train(tmp_path / "alone", of_both, Ranks(), 2)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found["tokens"] == alone["tokens"] == 2 * STEPS * 256
        torch.testing.assert_close(found["masters"], alone["masters"], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found["biases"], alone["biases"], atol=1e-6, rtol=0)
    assert list((tmp_path / "rank-0").glob("step-3"))
    assert not list((tmp_path / "rank-1").iterdir())
