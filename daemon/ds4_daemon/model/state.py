"""The live state of one sequence: what the network remembers between steps.

Per layer a sliding window of key rows; on compressed layers the entries so far and the rows of
the window that is not yet closed (model-spec §3.1).  Entries only grow; everything else is
bounded.  A state cannot be rewound, and between the slices of a pass it is `torn`: its layers lie
at different positions, and only what it was at an earlier checkpoint can be forked off it.
"""

from dataclasses import dataclass, fields

from ds4_daemon.kernels.ops import Ops, RowBuffer
from ds4_daemon.model.config import CSA_RATIO, ModelConfig


@dataclass(slots=True)
class CompressorState:
    """Rows not yet pooled, `[c ‖ gate]`, and the entries pooled so far.

    An overlapping compressor also keeps the rows of the last closed window, which the next
    entry pools again.
    """

    tail: RowBuffer
    entries: RowBuffer


@dataclass(slots=True)
class LayerState:
    """`window`: key rows of the last positions; the others by layer kind, else None."""

    window: RowBuffer
    compressor: CompressorState | None = None
    indexer: CompressorState | None = None

    @property
    def nbytes(self) -> int:
        compressors = [c for c in (self.compressor, self.indexer) if c is not None]
        buffers = [self.window, *(getattr(c, f.name) for c in compressors for f in fields(c))]
        return sum(b.nbytes for b in buffers)


class SessionState:
    """One sequence's layers, its length in tokens, and whether it is whole."""

    def __init__(self, config: ModelConfig, ops: Ops) -> None:
        self.length = 0
        self.torn = False  # a pass holds it, or was dropped midway
        self.layers = [_layer_state(config, ops, ratio) for ratio in config.compress_ratios]

    @property
    def nbytes(self) -> int:
        """Bytes reserved for this state."""
        return sum(layer.nbytes for layer in self.layers)


def _layer_state(config: ModelConfig, ops: Ops, ratio: int) -> LayerState:
    def compressor(width: int, *, activations: bool = False) -> CompressorState:
        halves = 2 if ratio == CSA_RATIO else 1
        return CompressorState(
            tail=ops.rows(2 * halves * width), entries=ops.rows(width, activations=activations)
        )

    return LayerState(
        window=ops.rows(config.head_dim, activations=True),
        compressor=compressor(config.head_dim, activations=True) if ratio else None,
        indexer=compressor(config.index_head_dim) if ratio == CSA_RATIO else None,
    )
