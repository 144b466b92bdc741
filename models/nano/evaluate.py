"""Measures the embedded model with ds4's own network, tokenizer and text layer, as a user gets it.

    python models/nano/evaluate.py --data CORPUS [--shipped GGUF] [--parent FOLDER] [--quick]
                                   [--sections NAME ...] [--json FILE [--resume]]
                                   [--workers 2] [--seed 1]

Prints a section of Markdown as soon as it is measured, and all figures as JSON in the last line
and in FILE. What ships is measured, or the parent where no file is named; with both, the first
section compares them. `--resume` takes from FILE the sections that are in it. The sections and what
each measures: `evaluation/sections.py`.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

# As a script, this file finds its neighbours whatever the working folder.
sys.path.insert(0, str(Path(__file__).parents[2]))
# Set before numpy is loaded: see evaluation/crew.py.
for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

from ds4_client import Ds4Error  # noqa: E402 (after the path and the threads)
from ds4_daemon.errors import DaemonError  # noqa: E402 (likewise)

from bench.machine import describe  # noqa: E402 (likewise)
from models.nano.data import corpus  # noqa: E402 (likewise)
from models.nano.evaluation import report, sections  # noqa: E402 (likewise)
from models.nano.evaluation.subject import Opened  # noqa: E402 (likewise)


def evaluate(
    task: sections.Task, names: list[str], out: Path | None, resume: bool
) -> dict[str, Any]:
    """Measure and print the sections; `out` is written anew after each."""
    found: dict[str, Any] = {"asked": task.asked, "machine": describe(), "seconds": {}}
    if resume and out is not None and out.exists():
        before = json.loads(out.read_text("utf-8"))
        if before.get("asked") != task.asked:
            raise ValueError(f"{out} is of another model, seed or size: {before.get('asked')}")
        found = before
    model = task.opened.model
    print(f"# {model.name}, {_size(model):,} bytes\n\n" + "\n".join(found["machine"]) + "\n")
    for name in names:
        if name not in found:
            start_s = time.perf_counter()
            found[name] = sections.SECTIONS[name](task)
            found["seconds"][name] = round(time.perf_counter() - start_s, 1)
            if out is not None:
                _write(out, found)
        lines = report.WORDED[name](found[name])
        print("\n".join([*lines, "", f"({found['seconds'][name]} s)", ""]), flush=True)
    return found


def _size(model: Path) -> int:
    files = [model] if model.is_file() else list(model.glob("*.safetensors"))
    return sum(file.stat().st_size for file in files)


def _write(out: Path, found: dict[str, Any]) -> None:
    scratch = out.with_name(f".{out.name}.new")
    scratch.write_text(json.dumps(found), "utf-8")
    scratch.rename(out)


def _task(args: argparse.Namespace) -> sections.Task:
    """Raises ValueError and DaemonError for what is missing or wrong, before anything is run."""
    if args.shipped is None and args.parent is None:
        raise ValueError("nothing to measure: name --shipped GGUF, --parent FOLDER, or both")
    if args.parent is not None and not args.parent.is_dir():
        raise ValueError(f"--parent {args.parent} is no folder: name what export.py wrote")
    if not (args.data / corpus.HELD_OUT).is_file():
        raise ValueError(f"--data {args.data} has no {corpus.HELD_OUT}: name the corpus's folder")
    if args.resume and args.json is None:
        raise ValueError("--resume takes up what is in a file: name it with --json")
    if args.workers < 1:
        raise ValueError(f"--workers {args.workers}: at least one has to work")
    named = [model for model in (args.shipped, args.parent) if model is not None]
    vocabularies = [Opened(model).tokenizer().specials for model in named]
    if any(other != vocabularies[0] for other in vocabularies):
        raise ValueError("--shipped and --parent have different tokenizers: not one model")
    size = sections.QUICK if args.quick else sections.FULL
    return sections.Task(args.shipped, args.parent, args.data, size, args.workers, args.seed)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shipped", type=Path, metavar="GGUF")
    parser.add_argument("--parent", type=Path, metavar="FOLDER")
    parser.add_argument("--data", type=Path, metavar="CORPUS", required=True)
    parser.add_argument("--quick", action="store_true", help="few cases: to see that all works")
    parser.add_argument("--sections", nargs="*", default=[], metavar="NAME",
                        help=f"of {', '.join(sections.SECTIONS)}; all by default")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1))
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    try:
        names = sections.chosen(args.sections)
        found = evaluate(_task(args), names, args.json, args.resume)
    except DaemonError as error:
        print(f"{error.reason}: {error}", file=sys.stderr)
        return 1
    except (Ds4Error, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
