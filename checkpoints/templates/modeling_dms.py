"""Llama, Qwen2 and Qwen3 decoders with Dynamic Memory Sparsification (DMS), in plain PyTorch.

Differences from the dense model: each attention layer computes one eviction logit per token and KV head
(configuration_dms.py states the rule), and keys and values live in a compact cache (cache_dms.py) that drops evicted
tokens for real. With the neuron adapter one channel of a query head carries the logit and no longer takes part in the
attention score.

`model.dms_eviction = False` turns the base model on. For debugging, `model.dms_record = True` keeps the eviction logits
of the last forward in `model.dms_logits` (one [B, G, T] per layer), and `model.dms_replay` = such a list makes the next
forwards take their decisions from it (indexed by position in the sequence) instead of computing them.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import __version__ as transformers_version
from transformers.activations import ACT2FN
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from .cache_dms import DmsCache, DmsCacheLayer
from .configuration_dms import DmsLlamaConfig, DmsQwen2Config, DmsQwen3Config

TRANSFORMERS_4 = int(transformers_version.split(".")[0]) < 5


class DmsRMSNorm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        normed = x.float()
        normed = normed * torch.rsqrt(normed.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * normed.to(x.dtype)


class DmsMLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class DmsNeuron(nn.Module):
    """The borrowed query channels of one layer: row g is (query head, channel) index[g], computed by new weights."""

    def __init__(self, config):
        super().__init__()
        num_kv_heads = config.num_key_value_heads
        self.rank = config.dms_rank
        if self.rank == 0:
            self.weight = nn.Parameter(torch.zeros(num_kv_heads, config.hidden_size))
        else:
            self.lora_A = nn.Linear(config.hidden_size, self.rank, bias=False)
            self.lora_B = nn.Linear(self.rank, num_kv_heads, bias=False)
        if config.dms_adapter_bias == "per_head":
            self.bias = nn.Parameter(torch.zeros(num_kv_heads))
        self.register_buffer("index", torch.zeros(num_kv_heads, 2, dtype=torch.int64))
        if config.dms_turned_channels:
            self.register_buffer("angle", torch.zeros(num_kv_heads))

    def forward(self, normed):
        """[B, T, D] -> [B, T, G], in float32."""
        normed = normed.float()
        if self.rank == 0:
            return F.linear(normed, self.weight.float())
        return F.linear(F.linear(normed, self.lora_A.weight.float()), self.lora_B.weight.float())

    def remove_from(self, query):
        """Takes what is borrowed out of the queries [B, T, H, d]. It is channel c of a head turned by an angle in its
        rotary pair (c, c + d/2): RoPE, a rotation in the same plane, changes nothing about that."""
        query = query.clone()
        head, channel = self.index.unbind(1)
        if not hasattr(self, "angle"):
            query[:, :, head, channel] = 0
            return query
        half = query.shape[-1] // 2
        partner = (channel + half) % (2 * half)
        angle = torch.where(channel < half, self.angle, -self.angle).float()
        cos, sin = angle.cos(), angle.sin()
        own, other = query[:, :, head, channel].float(), query[:, :, head, partner].float()
        along = cos * own + sin * other
        query[:, :, head, channel] = (own - cos * along).to(query.dtype)
        query[:, :, head, partner] = (other - sin * along).to(query.dtype)
        return query


class DmsAttention(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        # Qwen2 always has biases on q, k, v and never on o; the other families say so in attention_bias.
        qwen2 = config.model_type == "dms_qwen2"
        bias = getattr(config, "attention_bias", False)
        self.q_proj = nn.Linear(config.hidden_size, heads * self.head_dim, bias=qwen2 or bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_heads * self.head_dim, bias=qwen2 or bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_heads * self.head_dim, bias=qwen2 or bias)
        self.o_proj = nn.Linear(heads * self.head_dim, config.hidden_size, bias=bias and not qwen2)
        self.qk_norm = config.model_type == "dms_qwen3"
        if self.qk_norm:
            self.q_norm = DmsRMSNorm(self.head_dim, config.rms_norm_eps)
            self.k_norm = DmsRMSNorm(self.head_dim, config.rms_norm_eps)
        if config.dms_adapter == "linear":
            self.dms_proj_alpha = nn.Linear(config.hidden_size, kv_heads, bias=config.dms_adapter_bias == "per_head")
            self.dms_proj_alpha_norm = DmsRMSNorm(config.hidden_size, config.rms_norm_eps)
        else:
            self.dms_neuron = DmsNeuron(config)

    def _scale(self, x, adapter):
        """Adapter output [B, T, G] -> eviction logits [B, G, T], in float32."""
        logit = self.config.dms_alpha_scale * x - self.config.dms_alpha_offset
        if getattr(adapter, "bias", None) is not None:
            logit = logit + adapter.bias.float()
        return logit.transpose(1, 2)

    def _query(self, normed):
        """The dense model's query [B, T, H, d], before RoPE."""
        query = self.q_proj(normed).unflatten(-1, (-1, self.head_dim))
        return self.q_norm(query) if self.qk_norm else query

    def _neuron_query(self, normed):
        """The query without its borrowed channels, and what those carry: [B, T, H, d] and logits [B, G, T]."""
        x = self.dms_neuron(normed)
        head, channel = self.dms_neuron.index.unbind(1)
        if self.qk_norm:
            # The borrowed channel is part of its head's norm, and is read after it.
            query = self.q_proj(normed).unflatten(-1, (-1, self.head_dim)).float()
            query[:, :, head, channel] = x
            query = query * torch.rsqrt(query.pow(2).mean(-1, keepdim=True) + self.q_norm.eps)
            x = query[:, :, head, channel] * self.q_norm.weight.float()[channel]
            query = self.q_norm.weight * query.to(normed.dtype)
        else:
            query = self._query(normed)
        return self.dms_neuron.remove_from(query), self._scale(x, self.dms_neuron)

    def forward(self, residual, normed, cos, sin, cache, valid, keep_state, replay):
        """residual, normed [B, T, D]: the layer's input before and after input_layernorm.

        Returns the attention output [B, T, D] and the eviction logits [B, G, T] (None with eviction off).
        """
        logit = None
        if not self.config.dms_eviction:
            query = self._query(normed)
        elif self.config.dms_adapter == "linear":
            query = self._query(normed)
            read = self.dms_proj_alpha_norm(residual.float())
            logit = self._scale(F.linear(read, self.dms_proj_alpha.weight.float()), self.dms_proj_alpha)
        else:
            query, logit = self._neuron_query(normed)
        key = self.k_proj(normed).unflatten(-1, (-1, self.head_dim))
        key = self.k_norm(key) if self.qk_norm else key
        value = self.v_proj(normed).unflatten(-1, (-1, self.head_dim))

        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        query, key = apply_rotary_pos_emb(query, key, cos, sin)
        if logit is not None and self.config.dms_adapter == "neuron" and self.config.dms_zero_after_rope:
            query = self.dms_neuron.remove_from(query.transpose(1, 2)).transpose(1, 2)

        evict = None
        if logit is not None:
            decided = logit
            if replay is not None:
                begin = cache.get_seq_length()
                decided = replay[self.layer_idx][:, :, begin : begin + key.shape[2]].to(logit.device)
            evict = decided > 0
        output = cache.attend(query, key, value, evict, valid, self.scaling, keep_state)
        return self.o_proj(output.transpose(1, 2).flatten(2)), logit


class DmsDecoderLayer(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        self.self_attn = DmsAttention(config, layer_idx)
        self.mlp = DmsMLP(config)
        self.input_layernorm = DmsRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = DmsRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden, cos, sin, cache, valid, keep_state, replay):
        attended, logit = self.self_attn(
            hidden, self.input_layernorm(hidden), cos, sin, cache, valid, keep_state, replay
        )
        hidden = hidden + attended
        return hidden + self.mlp(self.post_attention_layernorm(hidden)), logit


def valid_tokens(attention_mask, batch, past, tokens, cache):
    """Which of the new tokens are real: [B, T], or None when all are. Refuses what a compact cache cannot do."""
    if attention_mask is None:
        if cache is not None and cache.has_padding:
            raise ValueError("the cache was filled with an attention_mask that hides padding: pass it on")
        return None
    if not torch.is_tensor(attention_mask) or attention_mask.dim() != 2:
        raise ValueError("a DMS model takes a two-dimensional attention_mask (1 = token, 0 = padding) only")
    if attention_mask.shape != (batch, past + tokens):
        raise ValueError(
            f"attention_mask must cover the {past} tokens in the cache and the {tokens} new ones: expected shape "
            f"{(batch, past + tokens)}, got {tuple(attention_mask.shape)}"
        )
    mask = attention_mask.bool()
    if past > 0 and (cache.has_padding or not mask.all()):
        if (mask[:, :past].sum(1).to(cache.tokens_read().device) != cache.tokens_read()).any():
            raise ValueError(
                "attention_mask hides or shows other tokens than when they entered the cache, and what a compact cache "
                "has read it cannot take back. Tokens generated for a sequence that had ended count as read: continue "
                "its conversation from a fresh cache"
            )
    valid = mask[:, past:]
    return None if valid.all() else valid


class DmsPreTrainedModel(PreTrainedModel):
    base_model_prefix = "model"
    supports_gradient_checkpointing = False
    _no_split_modules = ["DmsDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _supports_sdpa = True

    def __init__(self, config):
        super().__init__(config)
        if config.dms_adapter == "linear":
            adapter = ["dms_proj_alpha", "dms_proj_alpha_norm"]
        elif TRANSFORMERS_4:  # wants names of modules
            adapter = ["dms_neuron"]
        else:  # the whole module would include dms_neuron.index, and turn it into floats
            adapter = ["dms_neuron.weight", "dms_neuron.bias", "dms_neuron.angle", "lora_A", "lora_B"]
        self._keep_in_fp32_modules_strict = adapter


class DmsModel(DmsPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        if config.dms_adapter not in ("linear", "neuron"):
            raise ValueError(f"dms_adapter must be 'linear' or 'neuron', not {config.dms_adapter!r}")
        if not 0 <= config.dms_decision_shift <= config.dms_window + 1:
            raise ValueError("dms_decision_shift must lie between 0 and dms_window + 1")
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList([DmsDecoderLayer(config, i) for i in range(config.num_hidden_layers)])
        self.norm = DmsRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config=config)
        self.dms_record = False
        self.dms_logits = None
        self.dms_replay = None
        self.post_init()

    def _cache(self, past_key_values):
        if isinstance(past_key_values, DmsCache):
            return past_key_values
        if past_key_values is not None and past_key_values.get_seq_length() > 0:
            raise ValueError(
                f"a DMS model continues only from its own cache, not from a filled {type(past_key_values).__name__}"
            )
        return DmsCache(self.config)

    def _positions(self, position_ids, attention_mask, valid, past, tokens, device):
        if position_ids is None:
            if attention_mask is None:
                return torch.arange(past, past + tokens, device=device)[None]
            return (attention_mask.long().cumsum(1) - 1).clamp_(min=0)[:, past:].to(device)
        step = position_ids.diff(dim=-1) != 1
        if valid is not None:
            step = step & (valid[:, :-1] & valid[:, 1:]).to(step.device)
        if step.any():
            raise ValueError("a DMS model takes one document a row: position_ids must count up by one")
        return position_ids

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        use_cache=None,
        output_attentions=None,
        output_hidden_states=None,
        return_dict=None,
        cache_position=None,  # implied by the cache; accepted because generate() passes it
        **kwargs,
    ):
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("specify exactly one of input_ids and inputs_embeds")
        if output_attentions or (output_attentions is None and self.config.output_attentions):
            raise ValueError("output_attentions is not supported: a DMS model never forms attention matrices")
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        batch, tokens, _ = hidden.shape

        # Without a cache, each layer's state lives only as long as the layer runs.
        keep_state = use_cache or past_key_values is not None
        cache = self._cache(past_key_values) if keep_state else None
        past = cache.get_seq_length() if keep_state else 0
        valid = valid_tokens(attention_mask, batch, past, tokens, cache)
        if keep_state and valid is not None:
            cache.has_padding = True
        positions = self._positions(position_ids, attention_mask, valid, past, tokens, hidden.device)
        cos, sin = self.rotary_emb(hidden, positions)

        logits, states = [], [hidden]
        for index, layer in enumerate(self.layers):
            layer_cache = (
                cache.layers[index]
                if keep_state
                else DmsCacheLayer(self.config.dms_window, self.config.dms_decision_shift)
            )
            hidden, logit = layer(hidden, cos, sin, layer_cache, valid, keep_state, self.dms_replay)
            if self.dms_record:
                logits.append(logit)
            if output_hidden_states:
                states.append(hidden)
        hidden = self.norm(hidden)
        states[-1] = hidden  # as in the dense models, the last state is normalised
        self.dms_logits = logits if self.dms_record else None

        output = BaseModelOutputWithPast(
            last_hidden_state=hidden,
            past_key_values=cache,
            hidden_states=tuple(states) if output_hidden_states else None,
        )
        return output if return_dict is not False else output.to_tuple()


class DmsForCausalLM(DmsPreTrainedModel, GenerationMixin):
    _is_stateful = True  # evicted tokens cannot come back: generate() then refuses assisted decoding
    _tied_weights_keys = ["lm_head.weight"] if TRANSFORMERS_4 else {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config):
        super().__init__(config)
        self.model = DmsModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @property
    def dms_eviction(self):
        return self.config.dms_eviction

    @dms_eviction.setter
    def dms_eviction(self, value):
        self.config.dms_eviction = value

    @property
    def dms_logits(self):
        return self.model.dms_logits

    @property
    def dms_record(self):
        return self.model.dms_record

    @dms_record.setter
    def dms_record(self, value):
        self.model.dms_record = value

    @property
    def dms_replay(self):
        return self.model.dms_replay

    @dms_replay.setter
    def dms_replay(self, value):
        self.model.dms_replay = value

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs):
        if generation_config.cache_implementation not in (None, "dynamic"):
            raise ValueError(
                f"cache_implementation={generation_config.cache_implementation!r} does not apply to a DMS model, "
                "which has its own compact cache: leave it unset"
            )
        if model_kwargs.get("past_key_values") is None and generation_config.use_cache is not False:
            model_kwargs["past_key_values"] = DmsCache(self.config)

    def prepare_inputs_for_generation(self, *args, **kwargs):
        # The model derives positions from the mask. Those of generate() are wrong under prefill_chunk_size, where
        # transformers 5.2 gives each chunk the last positions of the prompt.
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        inputs.pop("position_ids", None)
        return inputs

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        output_attentions=None,
        output_hidden_states=None,
        return_dict=None,
        cache_position=None,
        logits_to_keep=0,
        **kwargs,
    ):
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        output = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
        )
        return output if return_dict is not False else output.to_tuple()


class DmsLlamaForCausalLM(DmsForCausalLM):
    config_class = DmsLlamaConfig


class DmsQwen2ForCausalLM(DmsForCausalLM):
    config_class = DmsQwen2Config


class DmsQwen3ForCausalLM(DmsForCausalLM):
    config_class = DmsQwen3Config
