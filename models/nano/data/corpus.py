"""The packed public text: xz files of groups of documents, read whole and never written.

A group starts with a line of U+001D and its name, documents are separated by a line of U+001E.
Owns the file format and which groups make which part of the training mixture. It knows no tokens.
Called by the tokenizer's training, by the sample makers, and by the tests.
"""

import json
import lzma
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

FILES = ("simple_clear.txt.xz", "classics_100MB.txt.xz")
HELD_OUT = "heldout.jsonl"  # only for evaluation: nothing here reads it but `held_out`


def groups(path: Path) -> dict[str, list[str]]:
    """Documents of one packed file by the name of their group."""
    # newline="": a carriage return of a document stays what it is.
    with lzma.open(path, "rt", encoding="utf-8", newline="") as file:
        packed = file.read()
    found: dict[str, list[str]] = {}
    for group in packed.split("\x1d")[1:]:
        name, _, body = group.partition("\n")
        documents = (document.strip("\n") for document in body.split("\n\x1e\n"))
        found.setdefault(name, []).extend(document for document in documents if document)
    return found


@cache
def read(corpus: Path) -> Mapping[str, list[str]]:
    """All training documents by group; takes some seconds, so it is kept."""
    found: dict[str, list[str]] = {}
    for name in FILES:
        found.update(groups(corpus / name))
    return found


def held_out(corpus: Path) -> Iterator[tuple[str, str]]:
    """(source, text) of every held-out document. Never to be trained on."""
    for line in (corpus / HELD_OUT).read_text("utf-8").splitlines():
        document = json.loads(line)
        yield document["src"], document["text"]
