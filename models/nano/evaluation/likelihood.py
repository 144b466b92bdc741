"""How well the model foretells held-out text: bits a byte by source, and how far rounding moved it.

A document begins with begin-of-text; one longer than PIECE_TOKENS is read in pieces, each of which
begins so. Bytes are those of the text, and the end-of-text is not counted. KL is of the reference's
distribution against the subject's, in nats a token, over the same tokens.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from ds4_daemon.model.network import Network, Segment, Want
from ds4_daemon.model.state import SessionState
from ds4_daemon.text.tokenizer import Tokenizer

from models.nano.evaluation.subject import Subject

PIECE_TOKENS = 4096
_CHUNK = 512


class Piece(NamedTuple):
    """Ids of a document or a part of one, with begin-of-text, and the bytes of its text."""

    source: str
    ids: list[int]
    bytes: int


class Tally(NamedTuple):
    """Sums over tokens. Without a reference its fields are 0."""

    source: str
    bytes: int
    tokens: int
    nats: float
    reference_nats: float = 0.0
    agreed: int = 0
    kl: float = 0.0


def pieces(
    documents: Iterable[tuple[str, str]], tokenizer: Tokenizer, most_bytes: int
) -> list[Piece]:
    """The documents (source, text) of each source up to `most_bytes`, the last piece whole."""
    taken: dict[str, int] = {}
    out: list[Piece] = []
    for source, text in documents:
        ids = tokenizer.encode(text)
        sizes = [len(tokenizer.piece(token)) for token in ids]
        if sum(sizes) != len(text.encode()):
            raise ValueError(f"the tokenizer changes the text of a document of {source}")
        for start in range(0, len(ids), PIECE_TOKENS - 1):
            if taken.get(source, 0) >= most_bytes:
                break
            stop = start + PIECE_TOKENS - 1
            piece = Piece(source, [tokenizer.bos_id, *ids[start:stop]], sum(sizes[start:stop]))
            taken[source] = taken.get(source, 0) + piece.bytes
            out.append(piece)
    return out


def measure(subject: Subject, cases: list[Piece]) -> list[Tally]:
    """One tally a piece."""
    return [_tally(subject, piece) for piece in cases]


def _tally(subject: Subject, piece: Piece) -> Tally:
    networks = [n for n in (subject.network, subject.reference) if n is not None]
    states = [network.new_state() for network in networks]
    ids = np.array(piece.ids, np.int32)
    nats, reference_nats, agreed, kl = 0.0, 0.0, 0, 0.0
    for start in range(0, len(ids) - 1, _CHUNK):
        targets = ids[start + 1 : start + 1 + _CHUNK]
        given = ids[start : start + len(targets)]
        logs = [_log_softmax(n, s, given) for n, s in zip(networks, states, strict=True)]
        at = np.arange(len(targets))
        nats -= float(logs[0][at, targets].sum(dtype=np.float64))
        if len(logs) > 1:
            reference_nats -= float(logs[1][at, targets].sum(dtype=np.float64))
            agreed += int((logs[0].argmax(1) == logs[1].argmax(1)).sum())
            kl += float((np.exp(logs[1]) * (logs[1] - logs[0])).sum(dtype=np.float64))
    return Tally(piece.source, piece.bytes, len(ids) - 1, nats, reference_nats, agreed, kl)


def _log_softmax(network: Network, state: SessionState, ids: np.ndarray) -> np.ndarray:
    (logits,) = network.forward([Segment(state, ids, Want.ALL)])
    assert logits is not None
    logits -= logits.max(axis=1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logits


def by_source(tallies: Iterable[Tally]) -> dict[str, dict[str, float]]:
    """For each source, and "all": bits a byte, and against the reference where there was one."""
    groups: dict[str, list[Tally]] = {}
    for tally in tallies:
        for name in (tally.source, "all"):
            groups.setdefault(name, []).append(tally)
    order = sorted(name for name in groups if name != "all") + ["all"] * ("all" in groups)
    return {name: _row(groups[name]) for name in order}


def _row(tallies: list[Tally]) -> dict[str, float]:
    size, tokens = sum(t.bytes for t in tallies), sum(t.tokens for t in tallies)
    bits = sum(t.nats for t in tallies) / math.log(2) / size
    row = {"bytes": size, "tokens": tokens, "bits_a_byte": bits}
    if reference := sum(t.reference_nats for t in tallies) / math.log(2) / size:
        row |= {
            "reference_bits_a_byte": reference,
            "ratio": bits / reference,
            "top1_agreement": sum(t.agreed for t in tallies) / tokens,
            "kl_nats": sum(t.kl for t in tallies) / tokens,
        }
    return row
