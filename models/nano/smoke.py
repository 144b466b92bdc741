"""Five minutes on a new machine: speed eager and compiled, memory, and a short whole training.

Prints JSON lines; the last has `smoke` and sums it up. Called by `train.py --smoke`.
"""

import json
import time
from dataclasses import replace
from typing import Any

import torch

from models.nano import feed, qat
from models.nano.geometry import GEOMETRY
from models.nano.train import Plan, Trainer, wall_clock

_MEASURED_STEPS = 8
_SEQUENCES = (1024, 4096)
_TRAINED_MINUTES = 2.5


def smoke(plan: Plan, source: feed.Source, device: torch.device) -> None:
    """Measure, then train in `plan.out` with the quicker way."""
    report: dict[str, Any] = {"torch": torch.__version__, "device": str(device)}
    if device.type == "cuda":
        report["device"] = torch.cuda.get_device_name()
    for mode in ("none", "parts"):
        for sequence in _SEQUENCES:
            report[f"{mode}/{sequence}"] = _measure(plan, device, mode, sequence)
            print(json.dumps(report), flush=True)
    quicker = max(("none", "parts"), key=lambda m: report[f"{m}/1024"]["tokens_per_s"])
    started = time.monotonic()
    plan = replace(plan, minutes=_TRAINED_MINUTES, compiled=quicker, checkpoint_s=45)
    trainer = Trainer(plan, GEOMETRY, source, device, wall_clock(started))
    name, stack = trainer.trainee.expert_parameters()[0]
    for _ in range(2):  # the second time without first-use costs
        began = time.perf_counter()
        qat.projected(name, stack.data)
        _wait(device)
        report["project_one_stack_s"] = round(time.perf_counter() - began, 3)
    trainer.run()
    lines = [json.loads(line) for line in (plan.out / "log.jsonl").read_text().splitlines()]
    curve = [line["loss"] for line in lines if "loss" in line]
    report |= {"trained_with": quicker, "steps": trainer.step, "tokens": trainer.tokens}
    report |= {"loss_first": curve[:1], "loss_last": curve[-1:]}
    resumed = Trainer(plan, GEOMETRY, source, device, wall_clock(time.monotonic()))
    report["resumed"] = resumed.resume() and resumed.step == trainer.step
    resumed.close()
    print(json.dumps({"smoke": report}), flush=True)
    (plan.out / "smoke.json").write_text(json.dumps(report, indent=1))


def _measure(plan: Plan, device: torch.device, mode: str, sequence: int) -> dict[str, Any]:
    stage = replace_stage(plan, sequence)
    plan = replace(plan, stages=stage, minutes=1e6, compiled=mode, out=plan.out / "measured",
                   corpus=None)  # fmt: skip
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    source = feed.noise(GEOMETRY.vocab_size)  # the data's own speed is measured by data/stream.py
    trainer = Trainer(plan, GEOMETRY, source, device, wall_clock(time.monotonic()))
    began = time.perf_counter()
    trainer.one_step()
    _wait(device)
    first_s = time.perf_counter() - began
    trainer.one_step()
    _wait(device)
    began, tokens = time.perf_counter(), trainer.tokens
    for _ in range(_MEASURED_STEPS):
        trainer.one_step()
    _wait(device)
    speed = (trainer.tokens - tokens) / (time.perf_counter() - began)
    trainer.close()
    out: dict[str, Any] = {"tokens_per_s": round(speed), "first_step_s": round(first_s, 1)}
    if device.type == "cuda":
        out["gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 1)
    return out


def replace_stage(plan: Plan, sequence: int) -> Any:
    """One stage of one row length."""
    return (plan.stages[0]._replace(until=1.0, sequences=(sequence,)),)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
