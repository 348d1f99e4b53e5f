"""A trained Dynamic Memory Sparsification (DMS) evictor as a press of KVPress.

    from dms_kvpress import DmsPress
    with DmsPress()(model):
        model.generate(...)

adapters.safetensors and dms_config.json are read from the directory of this file. Every layer and KV head has one
*eviction logit* per token; a key and its value go once they are more than `window` tokens in the past if

    logit[token + decision_shift] > 0,   logit = alpha_scale * x - alpha_offset (+ bias[KV head])

where x comes from the adapter: "linear" reads the residual stream, "neuron" one borrowed channel of the query
projection, which then no longer takes part in the attention score.

Letters: B sequences, T tokens, H query heads, G KV heads, D hidden size, d head dimension.
"""

import json
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from kvpress import DMSPress, ScorerPress
from safetensors.torch import load_file
from torch.nn import functional as F


class _Layer:
    """One layer's adapter, in float32: [B, T, D] after input_layernorm -> logits [B, G, T]."""

    def __init__(self, settings, tensors, attention, input_norm):
        self.settings, self.head_dim = settings, attention.head_dim
        prefix = f"model.layers.{attention.layer_idx}.self_attn."
        device = input_norm.weight.device
        read = {name[len(prefix) :]: value.to(device) for name, value in tensors.items() if name.startswith(prefix)}
        self.bias = read.get("dms_proj_alpha.bias", read.get("dms_neuron.bias"))
        if settings["adapter"] == "linear":
            self.rows = _folded(read["dms_proj_alpha.weight"], read["dms_proj_alpha_norm.weight"], input_norm.weight)
            return
        self.head, self.channel = read["dms_neuron.index"].unbind(1)
        self.rows = read.get("dms_neuron.weight")
        if self.rows is None:
            self.rows = read["dms_neuron.lora_B.weight"] @ read["dms_neuron.lora_A.weight"]
        self.angle = read.get("dms_neuron.angle", torch.zeros(len(self.head), device=device))

    def logits(self, normed, attention):
        normed = normed.float()
        x = F.linear(normed, self.rows)
        if self.settings["adapter"] == "neuron" and hasattr(attention, "q_norm"):
            x = self._through_norm(normed, x, attention)
        logit = self.settings["alpha_scale"] * x - self.settings["alpha_offset"]
        if self.bias is not None:
            logit = logit + self.bias
        return logit.transpose(1, 2)

    def _through_norm(self, normed, x, attention):
        """The borrowed channel after q_norm; it is part of its head's norm."""
        heads = attention.q_proj.weight.unflatten(0, (-1, attention.head_dim))[self.head].float()  # [G, d, D]
        query = torch.einsum("btD,gdD->btgd", normed, heads)
        query[..., torch.arange(len(self.head), device=query.device), self.channel] = x
        norm = attention.q_norm
        scale = torch.rsqrt(query.pow(2).mean(-1) + norm.variance_epsilon)
        return x * scale * norm.weight.float()[self.channel]

    def replace_borrowed(self, module, args, output):
        """Hook of q_proj, for models that normalise queries: the borrowed channel holds x, as q_norm is to see it."""
        query = output.unflatten(-1, (-1, self.head_dim)).clone()
        query[:, :, self.head, self.channel] = F.linear(args[0].float(), self.rows).to(query.dtype)
        return query.flatten(2)

    def remove_borrowed(self, module, args, output):
        """Hook of q_proj, or of q_norm where there is one: takes the borrowed direction out of the query."""
        query = output.unflatten(-1, (-1, self.head_dim)) if output.dim() == 3 else output
        query = query.clone()
        partner = (self.channel + self.head_dim // 2) % self.head_dim
        sign = torch.where(self.channel < partner, 1.0, -1.0)  # of the turn from the channel to its partner
        cos, sin = self.angle.cos(), sign * self.angle.sin()
        own, other = query[:, :, self.head, self.channel].float(), query[:, :, self.head, partner].float()
        along = cos * own + sin * other
        query[:, :, self.head, self.channel] = (own - cos * along).to(query.dtype)
        query[:, :, self.head, partner] = (other - sin * along).to(query.dtype)
        return query.view_as(output)


def _folded(weight, norm_weight, input_norm_weight):
    """Rows that read the normed input instead of the residual stream: RMSNorm_a(h) = RMSNorm_in(h) * w_a / w_in."""
    input_norm_weight = input_norm_weight.float()
    rows = weight * norm_weight
    dead = input_norm_weight == 0
    if rows[:, dead].any():
        raise ValueError("input_layernorm erases channels that the adapter reads: this model cannot be scored by KVPress")
    return torch.where(dead, 0.0, rows / torch.where(dead, 1.0, input_norm_weight))


@dataclass
class DmsScorer(ScorerPress):
    """Scores of the trained evictor: minus the logit that decides about a token. Below 0 means evict.

    With decision_shift 1 the newest token is undecided and scores infinity. A stock DMSPress does not come back to it:
    there, tokens generated one by one are never evicted. DmsPress does.
    """

    directory: str = field(default_factory=lambda: str(Path(__file__).resolve().parent))

    def __post_init__(self):
        super().__post_init__()
        with open(Path(self.directory) / "dms_config.json") as file:
            self.settings = json.load(file)
        self._tensors = load_file(Path(self.directory) / "adapters.safetensors")
        self._layers = []

    def post_init_from_model(self, model):
        config = model.config
        layers = model.model.layers
        rows = next(v for k, v in self._tensors.items() if k.endswith((".dms_proj_alpha.weight", ".index")))
        expected = (sum(name.endswith((".dms_proj_alpha.weight", ".index")) for name in self._tensors), rows.shape[0])
        found = (len(layers), config.num_key_value_heads)
        width = self._tensors.get("model.layers.0.self_attn.dms_proj_alpha_norm.weight")
        if expected != found or (width is not None and width.shape[0] != config.hidden_size):
            raise ValueError(
                f"this evictor was trained on {self.settings['base_model']} ({expected[0]} layers, {expected[1]} KV "
                f"heads), but the model has {found[0]} layers and {found[1]} KV heads"
            )
        self._layers = [
            _Layer(self.settings, self._tensors, layer.self_attn, layer.input_layernorm) for layer in layers
        ]

    def logits(self, module, hidden_states):
        """[B, G, T]: one logit per token of this call."""
        return self._layers[module.layer_idx].logits(hidden_states, module)

    def score(self, module, hidden_states, keys, values, attentions, kwargs):
        if self.settings["adapter"] == "neuron" and not getattr(self, "_queries_are_edited", False):
            raise ValueError("a neuron evictor also changes the queries, which a scorer alone cannot do: use DmsPress")
        score = -self.logits(module, hidden_states)
        shift = self.settings["decision_shift"]
        return F.pad(score[:, :, shift:], (0, shift), value=float("inf"))


@dataclass
class DmsPress(DMSPress):
    """DMSPress with the trained evictor: its window, its threshold, and decisions that arrive one token later."""

    press: DmsScorer = field(default_factory=DmsScorer)
    threshold: float = 0.0
    sliding_window_size: int = None
    decoding: bool = True

    def __post_init__(self):
        settings = self.press.settings
        if self.sliding_window_size is None:
            self.sliding_window_size = settings["window"]
        if self.sliding_window_size < settings["decision_shift"]:
            raise ValueError("KVPress masks keys before the next token is seen: the window must be at least 1")
        self._logits = {}  # per layer [B, G, T], all tokens seen
        self._evicted = {}  # per layer [B, G, T], once True always True

    @contextmanager
    def __call__(self, model):
        with super().__call__(model), self._hooked(model):
            yield

    @contextmanager
    def _hooked(self, model):
        hooks = []
        try:
            for layer in model.model.layers:
                hooks.append(layer.self_attn.register_forward_pre_hook(self._follow_cache, with_kwargs=True))
            if self.press.settings["adapter"] == "neuron":
                self.press._queries_are_edited = True
                for layer, adapter in zip(model.model.layers, self.press._layers):
                    attention = layer.self_attn
                    if hasattr(attention, "q_norm"):
                        hooks.append(attention.q_proj.register_forward_hook(adapter.replace_borrowed))
                        hooks.append(attention.q_norm.register_forward_hook(adapter.remove_borrowed))
                    else:
                        hooks.append(attention.q_proj.register_forward_hook(adapter.remove_borrowed))
            yield
        finally:
            self.press._queries_are_edited = False
            for hook in hooks:
                hook.remove()

    def _follow_cache(self, module, args, kwargs):
        """The pipeline crops the cache after each question: what was evicted beyond is gone."""
        evicted, length = self._evicted.get(module.layer_idx), int(kwargs["cache_position"][0])
        if evicted is not None and 0 < length < evicted.shape[2]:
            evicted = evicted[:, :, :length]
            module.masked_key_indices = list(torch.where(evicted)) if evicted.any() else None

    def forward_hook(self, module, input, kwargs, output):
        hidden = kwargs["hidden_states"]
        index = module.layer_idx
        begin = int(kwargs["cache_position"][0])
        if begin == 0:
            self._logits.pop(index, None)
            self._evicted.pop(index, None)
            if index == 0:
                self.compression_ratios.clear()
        elif not self.decoding:
            return output

        # Tokens from `begin` on are new: the cache may have been cropped to there since the last call.
        new = self.press.logits(module, hidden)
        known = self._logits.get(index, new[:, :, :0])[:, :, :begin]
        if known.shape[2] != begin:
            raise ValueError(f"{begin} tokens are in the cache, but the press has seen {known.shape[2]} of them")
        logits = self._logits[index] = torch.cat([known, new], 2)
        total = logits.shape[2]
        decided = F.pad(logits[:, :, self.press.settings["decision_shift"] :] > -self.threshold, (0, total))[:, :, :total]
        decided[:, :, max(total - self.sliding_window_size, 0) :] = False
        gone = self._evicted.get(index, decided[:, :, :0])[:, :, :total]
        evicted = self._evicted[index] = decided | F.pad(gone, (0, total - gone.shape[2]))
        module.masked_key_indices = list(torch.where(evicted)) if evicted.any() else None
        self.compression_ratios[index] = evicted.float().mean().item()
        return output
