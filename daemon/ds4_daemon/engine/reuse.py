"""Makes what reuses prefixes for a loaded model: its fingerprint, its layout, and the link.

Called by `main` through the engine, on the engine's thread once the model is loaded: hashing
weights for the first time takes a while.
"""

import time
from typing import NamedTuple

import structlog
from ds4_runtime.address import Home
from ds4_runtime.kv_keys import canonical_json, fingerprint_digest

from ds4_daemon.engine.canary import Canary
from ds4_daemon.engine.loop import Engine
from ds4_daemon.engine.prefix import Prefixes
from ds4_daemon.engine.prefix_state import layout_of
from ds4_daemon.kvlink import restore
from ds4_daemon.kvlink.layout import Layout
from ds4_daemon.kvlink.link import Link
from ds4_daemon.kvlink.store import LAYOUT_VERSION, Identity
from ds4_daemon.model.files import ModelFiles
from ds4_daemon.model.fingerprint import fingerprint_parts, tokenizer_digest, weights_digest
from ds4_daemon.model.network import Network, Segment, Want

_log = structlog.get_logger()


class Terms(NamedTuple):
    """What the settings say of reuse."""

    service: bool  # restore from and save to ds4-kvcache
    live_bytes: int
    min_saving_s: float
    deadline_s: float
    canary_every: int = 0  # restores between two that are compared; 0: none is


def make_prefixes(
    network: Network, engine: Engine, files: ModelFiles, name: str, home: Home, terms: Terms
) -> Prefixes:
    """The sessions of this model, linked to the service of this home."""
    layout = layout_of(network.config)
    link = canary = None
    if terms.service and layout.fits:
        link = Link(
            home.socket("kvcache"),
            identity(network, files, name, home, layout),
            layout,
            restore.Terms(terms.min_saving_s, terms.deadline_s),
        )
        canary = Canary(
            link,
            network.new_state,
            lambda state, ids: network.forward([Segment(state, ids, Want.NONE)]),
            every=terms.canary_every,
            chunk_tokens=engine.limits.chunk_tokens,
            wake=engine.wake,
        )
    return Prefixes(
        network.new_state,
        layout,
        link,
        canary=canary,
        live_bytes=terms.live_bytes,
        min_saving_s=terms.min_saving_s,
        prefill_tok_s=lambda: engine.totals.prefill.tokens_per_s,
        wake=engine.wake,
    )


def identity(
    network: Network, files: ModelFiles, name: str, home: Home, layout: Layout
) -> Identity:
    """What this model's store is opened with."""
    began_s = time.monotonic()
    parts = fingerprint_parts(
        network.config,
        weights_digest(files, home.cache_dir / "weights.json"),
        tokenizer_digest(files),
        device=network.device,
        dtype=network.dtype,
        rounding=network.rounding,
        layout_version=LAYOUT_VERSION,
    )
    text = canonical_json(parts)
    digest = fingerprint_digest(text)
    _log.info(
        "fingerprint known", digest=digest.hex(), ms=round((time.monotonic() - began_s) * 1e3)
    )
    return Identity(digest, text, layout.block_bytes, name)
