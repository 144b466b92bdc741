"""The network as the trainer runs it: transformers' own modules with what training needs added.

Owns the replaced forwards: the indexer keeps its scores and sees detached inputs, routers compute
in float32 and count their experts' load, a layer's hyper-connections can be compiled alone. Names,
shapes and weights stay those of `DeepseekV4ForCausalLM`, in 5.17 and in 5.23.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from ds4_daemon.model.config import ModelConfig
from torch import nn
from transformers import DeepseekV4ForCausalLM

from bench.transformers_peer import peer_config
from models.nano import attention, fused
from models.nano.parts import Parts, collapse, expand

FLOAT32 = (".attn_hc.", ".ffn_hc.", ".hc_head.")  # what stays float32 in a bf16 model


class Trainee:
    """A model under training, with the handles that the trainer turns."""

    def __init__(
        self,
        config: ModelConfig,
        device: torch.device,
        seed: int,
        bf16: bool,
        compiled: str = "none",
    ) -> None:
        torch.manual_seed(seed)
        self.config = config
        self.device = device
        self.net: Any = DeepseekV4ForCausalLM(peer_config(config))
        self.net.config._attn_implementation = attention.NAME
        if device.type == "cuda" and bf16:
            self.net.config._experts_implementation = "grouped_mm"
        for name, parameter in self.net.named_parameters():
            if bf16 and not any(part in name for part in FLOAT32):
                parameter.data = parameter.data.to(torch.bfloat16)  # buffers stay float32
        self.net.to(device)
        self.net.train()
        self.balance_tables(np.zeros(config.vocab_size, np.int64), seed)
        self.parts = Parts() if compiled == "parts" else None
        for layer in self.net.model.layers:
            _adapt(layer, config)
            if self.parts is not None:
                fused.install(layer, self.parts, config.rms_norm_eps)

    def _routers(self, hashed: bool) -> Iterator[Any]:
        for layer in self.net.model.layers:
            if layer.mlp.is_hash == hashed:
                yield layer.mlp.gate

    def balance_tables(self, frequencies: npt.NDArray[np.int64], seed: int) -> None:
        """Choose the hash layers' experts anew, for tokens of such frequencies."""
        for number, router in enumerate(self._routers(hashed=True)):
            router.tid2eid.copy_(balanced_table(self.config, frequencies, seed + number))

    @property
    def indexers(self) -> list[Any]:
        """The indexers of the CSA layers, in order."""
        compressors = (layer.self_attn.compressor for layer in self.net.model.layers)
        return [c.indexer for c in compressors if hasattr(c, "indexer")]

    def hidden(self, ids: torch.Tensor) -> torch.Tensor:
        """ids [B, S] → what the head reads, [B, S, hidden]."""
        band = attention.mask(ids.shape[0], ids.shape[1], self.device)
        out = self.net.model(input_ids=ids, attention_mask=band, use_cache=False)
        return out.last_hidden_state

    def losses(self, ids: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss of every token [B, S] in nats, and the indexers' mean divergence."""
        logits = self.net.lm_head(self.hidden(ids)).flatten(0, 1)
        if self.parts is not None:
            loss = self.parts.token_losses(logits, targets.flatten())
        else:
            loss = nn.functional.cross_entropy(logits.float(), targets.flatten(), reduction="none")
        divergences = [indexer.divergence for indexer in self.indexers]
        divergence = torch.stack(divergences).mean() if divergences else loss.new_zeros(())
        return loss.view_as(targets), divergence

    @contextmanager
    def uncompiled(self) -> Iterator[None]:
        """For rows of other lengths than training's, each of which would be compiled anew."""
        if self.parts is None:
            yield
            return
        self.parts.compiled = False
        try:
            yield
        finally:
            self.parts.compiled = True

    def choose_sparsely(self, sparse: bool) -> None:
        """Whether attention sees the indexer's choice or every entry."""
        for indexer in self.indexers:
            indexer.sparse = sparse

    def round_kv(self, on: bool) -> None:
        """Whether keys pass through FP8 as they do in the daemon's cache."""
        for layer in self.net.model.layers:
            layer.self_attn.round_kv = on

    def loads(self) -> list[torch.Tensor]:
        """Tokens of each expert in the last forward, a layer each, hash layers first."""
        return [layer.mlp.gate.load for layer in self.net.model.layers]

    def balance(self, loads: list[torch.Tensor], step: float) -> None:
        """Move every routing bias a step towards an even load."""
        with torch.no_grad():
            for layer, load in zip(self.net.model.layers, loads, strict=True):
                if not layer.mlp.is_hash:
                    bias = layer.mlp.gate.e_score_correction_bias
                    bias += step * torch.sign(load.mean() - load)

    def expert_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Gate-up and down stacks of the routed experts."""
        return [(n, p) for n, p in self.net.named_parameters() if ".mlp.experts." in n]


def balanced_table(
    config: ModelConfig, frequencies: npt.NDArray[np.int64], seed: int
) -> torch.Tensor:
    """(vocab, k) distinct experts of each token, so that experts serve equally many tokens.

    Tokens choose from the most frequent on; each takes the k least loaded experts, ties by chance.
    """
    rng = np.random.default_rng(seed)
    load = np.zeros(config.n_routed_experts)
    k = config.num_experts_per_tok
    table = np.empty((config.vocab_size, k), np.int64)
    for token in np.argsort(-frequencies, kind="stable"):
        chosen = np.lexsort((rng.random(len(load)), load))[:k]
        load[chosen] += frequencies[token] + 1
        table[token] = chosen
    return torch.from_numpy(table)


def _adapt(layer: Any, config: ModelConfig) -> None:
    layer.forward = MethodType(_layer_forward, layer)
    layer.mlp.gate.forward = MethodType(_router_forward, layer.mlp.gate)
    layer.mlp.gate.load = None
    attn = layer.self_attn
    attn.round_kv = False
    attn.rope_width = config.qk_rope_head_dim
    indexer = getattr(attn.compressor, "indexer", None)
    if indexer is not None:
        indexer.forward = MethodType(_indexer_forward, indexer)
        indexer.sparse = False
        indexer.shipped_topk = 64  # the smallest that may be shipped: its mass is logged
        indexer.scores = indexer.divergence = indexer.mass = None


def _layer_forward(self: Any, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    input_ids = kwargs.pop("input_ids", None)
    rows, tokens, m, width = hidden_states.shape
    streams = hidden_states.reshape(rows * tokens, m, width)
    for mix, norm, block in (
        (self.attn_hc, self.input_layernorm, self.self_attn),
        (self.ffn_hc, self.post_attention_layernorm, self.mlp),
    ):
        x, post, comb = collapse(
            streams, mix.fn, mix.base, mix.scale,
            mix.hc_sinkhorn_iters, mix.hc_eps, mix.input_norm.eps,
        )  # fmt: skip
        h = norm(x.view(rows, tokens, width))
        y = block(h, **kwargs)[0] if block is self.self_attn else block(h, input_ids=input_ids)
        streams = expand(streams, y.reshape(rows * tokens, width), post, comb)
    return streams.view(rows, tokens, m, width)


def _router_forward(
    self: Any, hidden_states: torch.Tensor, input_ids: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    flat = hidden_states.reshape(-1, self.hidden_dim)
    logits = nn.functional.linear(flat.float(), self.weight.float())
    scores = self.score_fn(logits)
    if input_ids is None:
        with torch.no_grad():
            biased = scores + self.e_score_correction_bias
            indices = torch.topk(biased, self.top_k, dim=-1, sorted=False).indices
    else:
        indices = self.tid2eid[input_ids.reshape(-1)]
    experts = torch.arange(self.num_experts, device=indices.device)
    self.load = (indices.unsqueeze(-1) == experts).sum(dim=(0, 1)).float()
    weights = scores.gather(1, indices)
    weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20) * self.routed_scaling_factor
    return logits, weights.to(hidden_states.dtype), indices


def _indexer_forward(
    self: Any,
    hidden_states: torch.Tensor,
    q_residual: torch.Tensor,
    position_ids: torch.Tensor,
    past_key_values: Any,
    layer_idx: int,
) -> torch.Tensor:
    """Which entries each query sees, [B, S, k], -1 where none; leaves `scores` [B, S, entries]."""
    rows, tokens, _ = hidden_states.shape
    x, qr = hidden_states.detach(), q_residual.detach()
    ratio, width = self.compress_rate, self.head_dim
    count = tokens // ratio
    shape = (rows, count, ratio, 2 * width)
    kv = self.kv_proj(x)[:, : count * ratio].view(shape)
    gate = (self.gate_proj(x)[:, : count * ratio].view(shape) + self.position_bias).float()
    # Every entry pools the last window's first halves and its own window's second halves.
    last_kv = nn.functional.pad(kv[:, :-1, :, :width], (0, 0, 0, 0, 1, 0))
    last_gate = nn.functional.pad(gate[:, :-1, :, :width], (0, 0, 0, 0, 1, 0), value=float("-inf"))
    gate = torch.cat([last_gate, gate[..., width:]], dim=2).softmax(dim=2)
    keys = self.kv_norm((torch.cat([last_kv, kv[..., width:]], dim=2) * gate.to(kv.dtype)).sum(2))
    at = (torch.arange(count, device=x.device) * ratio).unsqueeze(0).expand(rows, -1)
    keys = _rotated(keys.unsqueeze(2), *self.rotary_emb(keys, at, self.rope_layer_type))[:, :, 0]
    query = self.q_b_proj(qr).view(rows, tokens, self.num_heads, width)
    query = _rotated(query, *self.rotary_emb(x, position_ids, self.rope_layer_type))
    heads = nn.functional.relu(torch.einsum("bqhd,bkd->bqhk", query, keys)) * width**-0.5
    head_weights = self.scorer.weights_proj(x) * self.num_heads**-0.5
    scores = torch.einsum("bqhk,bqh->bqk", heads, head_weights).float()
    entries = torch.arange(count, device=x.device).view(1, 1, -1)
    visible = entries < ((position_ids + 1) // ratio).unsqueeze(-1)
    self.scores = scores.masked_fill(~visible, attention.HIDDEN)
    chosen = entries.expand(rows, tokens, -1)
    if self.sparse and self.index_topk < count:
        chosen = self.scores.detach().topk(self.index_topk, dim=-1).indices
        visible = visible.expand(rows, -1, -1).gather(-1, chosen)
    return torch.where(visible, chosen, -1)


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x [B, S, heads, D] with its last channels rotated, by pairs."""
    rope = 2 * cos.shape[-1]
    kept, turned = x[..., :-rope], x[..., -rope:].float().unflatten(-1, (-1, 2))
    a, b = turned.unbind(-1)
    c, s = cos.unsqueeze(2).float(), sin.unsqueeze(2).float()
    turned = torch.stack([a * c - b * s, a * s + b * c], dim=-1).flatten(-2)
    return torch.cat([kept, turned.to(x.dtype)], dim=-1)
