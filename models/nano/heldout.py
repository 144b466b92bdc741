"""Loss on held-out text by source, as training goes on: nats a token and bits a byte."""

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import torch

ROW_TOKENS = 1024
_ROWS = 8  # of each source


def documents(path: Path) -> dict[str, list[str]]:
    """The held-out texts by source."""
    out: dict[str, list[str]] = {}
    for line in path.read_text("utf-8").splitlines():
        document = json.loads(line)
        out.setdefault(document["src"], []).append(document["text"])
    return out


@cache
def _rows(path: Path) -> dict[str, tuple[torch.Tensor, float]]:
    """By source: ids [rows, ROW_TOKENS + 1] and the bytes of a token."""
    from ds4_daemon.text.tokenizer import Tokenizer

    from models.nano.checkpoint import TOKENIZER

    tokenizer = Tokenizer.load(TOKENIZER)
    ids: dict[str, list[int]] = {}
    sizes: dict[str, int] = {}
    wanted = _ROWS * (ROW_TOKENS + 1)
    for source, texts in documents(path).items():
        have = ids.setdefault(source, [])
        sizes[source] = 0
        for text in texts:
            if len(have) < wanted:
                have += [0, *tokenizer.encode(text), 1]
                sizes[source] += len(text.encode())
    out = {}
    for source, have in ids.items():
        rows = min(_ROWS, len(have) // (ROW_TOKENS + 1))
        if rows:
            cut = torch.tensor(have[: rows * (ROW_TOKENS + 1)]).view(rows, -1)
            out[source] = cut, sizes[source] / len(have)
    return out


def losses(trainee: Any, path: Path) -> dict[str, dict[str, float]]:
    with torch.no_grad():
        out = {}
        for source, (rows, bytes_a_token) in _rows(path).items():
            ids = rows.to(trainee.device)
            loss = trainee.losses(ids[:, :-1], ids[:, 1:].contiguous())[0].mean().item()
            bits = loss / math.log(2) / bytes_a_token
            out[source] = {"loss": round(loss, 4), "bits_a_byte": round(bits, 4)}
        return out
