"""The weighted mean of two checkpoints of one training, one begun from the other.

    python models/nano/average.py LAST EARLIER SHARE OUT

OUT, a checkpoint for `export.py`, has SHARE (0 to 1) of EARLIER's weights and the rest of LAST's.
What a long training remembers of the few texts it has seen often, and has lost of others, the mean
gives back, and keeps what both can do (Wortsman et al. 2022, "Robust fine-tuning of zero-shot
models"). That only holds for weights that a straight line of good models joins: measure the mean.
"""

import argparse
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def average(last: Path, earlier: Path, share: float, out: Path) -> None:
    """Write `out`. Raises ValueError if the two don't have the same tensors, or integers (the
    tables of the hash layers) that differ: those can't be averaged."""
    if not 0 <= share <= 1:
        raise ValueError(f"{share} is no share: give a number from 0 to 1")
    one, other = (load_file(folder / "model.safetensors") for folder in (last, earlier))
    if {n: t.shape for n, t in one.items()} != {n: t.shape for n, t in other.items()}:
        raise ValueError(f"{last} and {earlier} are not of one network")
    mean = {}
    for name, tensor in one.items():
        if tensor.is_floating_point():
            mean[name] = torch.lerp(tensor.float(), other[name].float(), share).to(tensor.dtype)
        elif torch.equal(tensor, other[name]):
            mean[name] = tensor
        else:
            raise ValueError(f"{name} differs: the two are not of one training")
    out.mkdir(parents=True)
    save_file(mean, out / "model.safetensors")
    for name in ("config.json", "tokenizer.json"):
        shutil.copyfile(last / name, out / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("last", type=Path)
    parser.add_argument("earlier", type=Path)
    parser.add_argument("share", type=float)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    average(args.last, args.earlier, args.share, args.out)


if __name__ == "__main__":
    main()
