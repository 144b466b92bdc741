"""Trains models/nano/tokenizer.json: 8,192 tokens for the embedded model's own text.

    python models/nano/train_tokenizer.py --corpus CORPUS [--measure]

The pre-tokenizer, the decoder and the special tokens' spellings are DeepSeek V4's own, taken from
the stand-in's tokenizer.json; only the merges are new. Special tokens lie at the low ids in the
stand-in's order (begin 0, end 1, pad 2). The placeholders of its image spans are left out: no text
can need them, and each would cost a merge. `--measure` only prints bytes per token by held-out
source. The result does not depend on chance: the same corpus and code give the same file.
"""

import argparse
import json
import random
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

# As a script, this file finds its neighbours whatever the working folder.
sys.path.insert(0, str(Path(__file__).parents[2]))

from ds4_daemon.standin import TOKENIZER as STAND_IN
from ds4_daemon.text.tokenizer import Tokenizer

from models.nano.data import corpus, mixture

VOCABULARY = 8192
TARGET = Path(__file__).with_name("tokenizer.json")
SEED = 20260801
CLASSICS_CHARACTERS = 40_000_000
GENERATED_SAMPLES = 3_000  # of each written kind


def _texts(folder: Path) -> Iterator[str]:
    rng = random.Random(SEED)
    for name, documents in corpus.read(folder).items():
        if name != "classics":
            yield from documents
            continue
        share = CLASSICS_CHARACTERS / sum(map(len, documents))
        for book in documents:
            kept = int(len(book) * share)
            start = rng.randrange(len(book) - kept + 1)
            yield book[start : start + kept]
    yield from mixture.plain_texts(rng, folder, GENERATED_SAMPLES)


def train(folder: Path) -> str:
    """The tokenizer.json of the corpus in `folder`."""
    published = json.loads(STAND_IN.read_text("utf-8"))
    added = [t for t in published["added_tokens"] if "place_holder" not in t["content"]]
    added = [{**token, "id": index} for index, token in enumerate(added)]
    specials = [token["content"] for token in added]

    learner = tokenizers.Tokenizer(models.BPE())
    learner.pre_tokenizer = tokenizers.Tokenizer.from_file(str(STAND_IN)).pre_tokenizer
    learner.train_from_iterator(
        _texts(folder),
        trainers.BpeTrainer(
            vocab_size=VOCABULARY - len(specials),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            max_token_length=16,
            show_progress=False,
        ),
    )
    learned = json.loads(learner.to_str())["model"]
    by_id = sorted(learned["vocab"], key=learned["vocab"].__getitem__)
    tokens = [*specials, *by_id]
    if len(set(tokens)) != VOCABULARY:
        raise SystemExit(f"the corpus gave {len(set(tokens))} tokens, not {VOCABULARY}")
    model = {**published["model"], "merges": learned["merges"]}
    model["vocab"] = {token: index for index, token in enumerate(tokens)}
    whole = {**published, "added_tokens": added, "model": model}
    return json.dumps(whole, ensure_ascii=False, separators=(",", ":")) + "\n"


def measure(folder: Path, path: Path) -> dict[str, float]:
    """Bytes per token of each held-out source."""
    tokenizer = Tokenizer.load(path)
    counted: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    for source, text in corpus.held_out(folder):
        counted[source] += len(text.encode())
        tokens[source] += len(tokenizer.encode(text))
    return {source: counted[source] / tokens[source] for source in counted}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--measure", action="store_true")
    args = parser.parse_args()
    if not args.measure:
        TARGET.write_text(train(args.corpus), "utf-8")
    for source, figure in measure(args.corpus, TARGET).items():
        print(f"{source:18} {figure:.3f} bytes a token")


if __name__ == "__main__":
    main()
