"""From a checkpoint to a model folder, if ds4's own network computes what the trainer's does.

    python models/nano/export.py CHECKPOINT OUT [--tokens 512] [--seed 1]

Writes the bf16 parent in the released layout to OUT, and compares the logits of both networks in
float32, without the cache's rounding, over random tokens: OUT appears only if none differs by more
than 1e-3. Takes seconds.
"""

import argparse
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from ds4_daemon.model.files import open_model
from ds4_daemon.model.load import load_network
from ds4_daemon.model.network import Segment, Want

# As a script, this file finds its neighbours whatever the working folder.
sys.path.insert(0, str(Path(__file__).parents[2]))

from models.nano import checkpoint
from models.nano.model import Trainee

LARGEST_DIFFERENCE = 1e-3
_FILES = ("config.json", "model.safetensors", "tokenizer.json")


def trainee_of(folder: Path, device: torch.device | None = None) -> Trainee:
    """The trainer's network, float32, with the weights of a checkpoint or exported folder."""
    files = open_model(folder)
    config = files.config
    files.close()
    trainee = Trainee(config, device or torch.device("cpu"), 0, bf16=False)
    trainee.net.load_state_dict(checkpoint.state_of(folder, config))
    trainee.net.eval()
    trainee.choose_sparsely(True)
    return trainee


def difference(folder: Path, tokens: int, seed: int) -> float:
    """The largest difference of a logit between both networks."""
    trainee = trainee_of(folder)
    vocabulary = trainee.config.vocab_size
    ids = np.random.default_rng(seed).integers(0, vocabulary, tokens).astype(np.int32)
    with torch.no_grad():
        theirs = trainee.net.lm_head(trainee.hidden(torch.from_numpy(ids).long()[None]))[0]
    network = load_network(folder, device="cpu", rounding=False)
    (ours,) = network.forward([Segment(network.new_state(), ids, Want.ALL)])
    assert ours is not None
    return float(np.abs(ours - theirs.numpy()).max())


def export(folder: Path, out: Path, tokens: int, seed: int) -> float:
    """Write `out`, whole or not at all; returns the largest difference, raises if too large."""
    scratch = out.with_name(f".{out.name}.new")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    for name in _FILES:
        shutil.copyfile(folder / name, scratch / name)
    found = difference(scratch, tokens, seed)
    if not found <= LARGEST_DIFFERENCE:
        raise ValueError(f"logits differ by {found:.2g}, more than {LARGEST_DIFFERENCE}")
    scratch.rename(out)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokens", type=int, default=512, help="a multiple of 128")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    found = export(args.checkpoint, args.out, args.tokens, args.seed)
    print(f"{args.out}: the largest difference of a logit is {found:.2g}")


if __name__ == "__main__":
    main()
