"""Trains the embedded model for so many minutes, and can be killed and resumed at any time.

    python models/nano/train.py --data CORPUS --out DIR --minutes M [--resume] [--init MODEL]
                                [--seed N] [--device cuda] [--compile none|parts] [--smoke]

Writes DIR/log.jsonl (a line every ten steps) and checkpoints DIR/step-N that ds4 opens as models.
The time counts from the start of the process, compilation included; a resumed run goes on where the
checkpoint's clock stood. Several GPUs train together when it is started once for each (ranks.py):
each takes `--micro-tokens` of every step. `--smoke` first measures tokens a second, eager and
compiled, then trains for five minutes with the whole schedule. `--data noise` needs no corpus.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ds4_daemon.model.config import ModelConfig

# As a script, this file finds its neighbours whatever the working folder.
sys.path.insert(0, str(Path(__file__).parents[2]))

from models.nano import checkpoint, feed, heldout, optim, probes, qat, schedule
from models.nano.geometry import GEOMETRY
from models.nano.model import Trainee
from models.nano.ranks import Ranks

BIAS_STEP = 1e-3
REFRESH_STEPS = 8  # between projections of the experts
_LOG_STEPS = 10
_COUNTED_TOKENS = 131_072  # whose frequencies balance the hash layers
_RANK_SEED = 10_000_000
_BEGIN_AHEAD = 0.05  # of the time: workers of the next phase take seconds to start


@dataclass(frozen=True)
class Plan:
    """What a run is told."""

    out: Path
    minutes: float
    seed: int = 1
    micro_tokens: int = 65_536
    accumulate: int = 1
    compiled: str = "none"
    quantized: str = "project"  # or "noise", "none"
    checkpoint_s: float = 300.0
    evaluate_s: float = 400.0
    corpus: Path | None = None  # for figures on the way; None: without them
    matrix_rate: float = optim.MATRIX_RATE
    orthogonal: bool = True
    stages: tuple[schedule.Stage, ...] = schedule.STAGES
    max_steps: int | None = None


class Trainer:
    """One run: the model, its optimizer, its data and its clock.

    `clock` gives seconds since the run began; a resumed run adds what the checkpoint had used.
    """

    def __init__(
        self,
        plan: Plan,
        config: ModelConfig,
        source: feed.Source,
        device: torch.device,
        clock: Callable[[int], float],
        ranks: Ranks | None = None,
    ) -> None:
        self.plan = plan
        self.ranks = ranks or Ranks()
        self.config = config
        self.device = device
        self._source = source
        self._clock = self.ranks.clock(clock, device)
        self.step = 0
        self.tokens = 0
        self._used_s = 0.0
        self._feeds: dict[tuple[int, int], feed.Feed] = {}
        self.bf16 = device.type == "cuda"
        self.trainee = Trainee(config, device, plan.seed, self.bf16, plan.compiled)
        self.optimizer = optim.Optimizer(self.trainee.net, plan.matrix_rate, plan.orthogonal)
        plan.out.mkdir(parents=True, exist_ok=True)

    def prepare(self, init: Path | None = None) -> None:
        """Compile what is compiled, while the data's workers start; begin from the weights of
        `init`, or else balance the hash layers by the first tokens that come."""
        first = self.plan.stages[0].sequences[0]
        reader = self._feed(0, first)
        if self.plan.compiled != "none":
            shape = (max(1, self.plan.micro_tokens // first), first)
            ids = torch.zeros(shape, dtype=torch.long, device=self.device)
            loss, _ = self.trainee.losses(ids, ids)
            loss.mean().backward()
            self.trainee.net.zero_grad(set_to_none=True)
        if init is not None:
            state = checkpoint.state_of(init, self.config)
            self.trainee.net.load_state_dict(state)
            self.optimizer.load(state, {})
            return  # of one file: all ranks have the same
        counts = torch.zeros(self.config.vocab_size, dtype=torch.long)
        while counts.sum() < _COUNTED_TOKENS:
            ids = reader.next().ids.flatten().cpu()
            counts += torch.bincount(ids, minlength=len(counts))
        self.trainee.balance_tables(counts.numpy(), self.plan.seed)
        self.ranks.copy(list(self.trainee.net.state_dict().values()))  # each counted its own

    @property
    def used_s(self) -> float:
        return self._used_s + self._clock(self.step)

    @property
    def progress(self) -> float:
        return self.used_s / (60 * self.plan.minutes)

    def resume(self) -> bool:
        """Take up the last checkpoint, if there is one."""
        found = checkpoint.steps(self.plan.out)
        if not found:
            return False
        state, moments, progress = checkpoint.load(found[-1], self.config)
        self.trainee.net.load_state_dict(state)
        self.optimizer.load(state, moments)
        self.step, self.tokens = progress["step"], progress["tokens"]
        self._used_s = progress["used_s"] - self._clock(self.step) * progress["virtual"]
        return True

    def save(self) -> Path:
        """A checkpoint of now."""
        state = dict(self.trainee.net.state_dict())
        state.update(self.optimizer.masters)
        progress = {
            "step": self.step,
            "tokens": self.tokens,
            "used_s": self.used_s,
            "minutes": self.plan.minutes,
            "seed": self.plan.seed,
            "virtual": getattr(self._clock, "virtual", False),
        }
        moments = self.optimizer.moments()
        return checkpoint.save(self.plan.out, self.config, state, moments, progress)

    def run(self) -> None:
        """Train until the time is up, then write the last checkpoint."""
        saved_s = evaluated_s = logged_s = self.used_s
        logged_tokens = self.tokens
        while self.progress < 1 and self.step != self.plan.max_steps:
            losses = self.one_step()
            now = self.used_s
            if self.ranks.first and (self.step == 1 or self.step % _LOG_STEPS == 0):
                speed = (self.tokens - logged_tokens) / max(now - logged_s, 1e-9)
                self.log(losses | {"tokens_per_s": round(speed)} | self._loads())
                logged_s, logged_tokens = self.used_s, self.tokens
            if self.ranks.first and now - evaluated_s > self.plan.evaluate_s:
                self.evaluate()
                evaluated_s = self.used_s
            if self.ranks.first and now - saved_s > self.plan.checkpoint_s:
                self.save()
                saved_s = self.used_s
        if self.ranks.first:
            self.evaluate()
            self.save()
        self.close()

    def one_step(self) -> dict[str, Any]:
        """One optimizer step; returns what happened, for the log."""
        stage = schedule.stage_at(self.progress, self.plan.stages)
        self._switch()
        sequences = self.plan.stages[stage].sequences
        sequence = sequences[self.step % len(sequences)]
        reader = self._feed(stage, sequence)
        totals = torch.zeros(2, device=self.device)
        loads = None
        for _ in range(self.plan.accumulate):
            batch = reader.next()
            loss, divergence = self.trainee.losses(batch.ids, batch.targets)
            loss = (loss * batch.weights).sum() / batch.weights.sum().clamp_min(1)
            ((loss + divergence) / self.plan.accumulate).backward()
            self.optimizer.collect()
            totals += torch.stack([loss.detach(), divergence.detach()]) / self.plan.accumulate
            now = self.trainee.loads()
            loads = now if loads is None else [a + b for a, b in zip(loads, now, strict=True)]
            self.tokens += batch.ids.numel() * self.ranks.size
        assert loads is not None
        self.ranks.total(loads)
        self.ranks.mean(self.optimizer.gradients())
        rate = schedule.rate(self.progress, self.step)
        norm = self.optimizer.step(rate)
        self.trainee.balance(loads, BIAS_STEP)
        self._last_loads = loads
        if self.step % REFRESH_STEPS == 0:  # sums on two GPUs need not agree to the last bit
            self.ranks.copy(list(self.optimizer.masters.values()))
        self.step += 1
        phase = self.plan.stages[stage].phase
        return {
            "phase": phase, "sequence": sequence, "totals": totals, "norm": norm, "rate": rate,
        }  # fmt: skip

    def _switch(self) -> None:
        late = self.progress >= schedule.SPARSE_FROM
        self.trainee.choose_sparsely(late)
        self.trainee.round_kv(late)
        on = self.progress >= schedule.QUANTIZED_FROM and self.plan.quantized != "none"
        if on and (self.step % REFRESH_STEPS == 0 or not self.optimizer.shift):
            project = qat.projected if self.plan.quantized == "project" else qat.noisy
            for name, parameter in self.trainee.expert_parameters():
                master = self.optimizer.masters[name]
                # Of what a checkpoint keeps of it, so that training sees the file that will ship.
                shift = project(name, master.to(parameter.dtype).float()) - master
                self.optimizer.shift[name] = shift.to(parameter.dtype)
            self.optimizer.write()

    def _feed(self, stage: int, sequence: int) -> feed.Feed:
        ahead = schedule.stage_at(self.progress + _BEGIN_AHEAD, self.plan.stages)
        for number in {stage, ahead}:
            for length in set(self.plan.stages[number].sequences):
                if (number, length) not in self._feeds:
                    rows = max(1, self.plan.micro_tokens // length)
                    # Where it begins decides what it holds: a resumed run reads on, not again.
                    seed = self.plan.seed * 1_000_000 + self.step * self.plan.accumulate
                    seed += self.ranks.rank * _RANK_SEED
                    phase = self.plan.stages[number].phase
                    stream = self._source(phase, length, rows, seed)
                    self._feeds[number, length] = feed.Feed(stream, self.device)
        for key in [key for key in self._feeds if key[0] < stage]:
            self._feeds.pop(key).close()
        return self._feeds[stage, sequence]

    def _loads(self) -> dict[str, Any]:
        loads = [load / load.mean() for load in self._last_loads]
        masses = [i.mass.item() for i in self.trainee.indexers if i.mass is not None]
        return {
            "load_max": [round(load.max().item(), 3) for load in loads],
            "load_min": [round(load.min().item(), 3) for load in loads],
            "index_mass": [round(mass, 4) for mass in masses],
        }

    def log(self, entry: dict[str, Any]) -> None:
        """Add a line to log.jsonl and to the output."""
        if "totals" in entry:
            loss, divergence = entry.pop("totals").tolist()
            entry |= {"loss": round(loss, 4), "divergence": round(divergence, 4)}
            entry["norm"] = round(entry["norm"].item(), 4)
        if self.device.type == "cuda":
            entry["gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 1)
        head = {"step": self.step, "used_s": round(self.used_s, 1), "tokens": self.tokens}
        line = json.dumps(head | entry)
        print(line, flush=True)
        with (self.plan.out / "log.jsonl").open("a") as file:
            file.write(line + "\n")

    def evaluate(self) -> None:
        """Log the held-out loss of every source, and the share of right answers by kind, if there
        is a corpus."""
        if self.plan.corpus is None:
            return
        with self.trainee.uncompiled():
            losses = heldout.losses(self.trainee, self.plan.corpus / "heldout.jsonl")
            right = probes.rates(self.trainee, self.plan.corpus)
        self.log({"heldout": losses, "right": right})

    def close(self) -> None:
        """End the data workers."""
        for reader in self._feeds.values():
            reader.close()
        self._feeds.clear()


def wall_clock(started: float) -> Callable[[int], float]:
    """Seconds since `started`, whatever the step."""
    return lambda _step: time.monotonic() - started


def main() -> None:
    started = time.monotonic()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", required=True, help="the corpus's folder, or `noise`")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=5)
    parser.add_argument("--micro-tokens", type=int, default=65_536)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--compile", choices=("none", "parts"), default="none")
    parser.add_argument("--qat", choices=("project", "noise", "none"), default="project")
    parser.add_argument("--rate", type=float, default=optim.MATRIX_RATE)
    parser.add_argument("--optimizer", choices=("muon", "adamw"), default="muon")
    parser.add_argument("--max-steps", type=int)
    parser.add_argument("--init", type=Path, help="a model to begin from: folder or GGUF")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    if not args.resume and checkpoint.steps(args.out):
        parser.error(f"{args.out} has checkpoints: use --resume or another folder")
    device = torch.device(args.device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    torch.backends.cuda.matmul.allow_tf32 = True
    noise = args.data == "noise"
    source = feed.noise(GEOMETRY.vocab_size) if noise else feed.of_corpus(
        Path(args.data), args.workers
    )  # fmt: skip
    plan = Plan(
        args.out, args.minutes, args.seed, args.micro_tokens, args.accumulate, args.compile,
        args.qat, corpus=None if noise else Path(args.data), matrix_rate=args.rate,
        orthogonal=args.optimizer == "muon", max_steps=args.max_steps,
    )  # fmt: skip
    if args.smoke:
        from models.nano.smoke import smoke

        smoke(plan, source, device)
        return
    ranks = Ranks.join(device)
    trainer = Trainer(plan, GEOMETRY, source, device, wall_clock(started), ranks)
    if not (args.resume and trainer.resume()):
        trainer.prepare(args.init)
    trainer.run()
    ranks.leave()


if __name__ == "__main__":
    main()
