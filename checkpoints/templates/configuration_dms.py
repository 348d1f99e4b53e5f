"""Configuration of a decoder retrofitted with Dynamic Memory Sparsification (DMS).

A DMS model is its base model plus, for every layer and KV head, one *eviction logit* per token. A key and its value
are dropped once they are more than `dms_window` tokens in the past if their decision is positive:

    decision[t] = logit[t + dms_decision_shift],   logit = dms_alpha_scale * x - dms_alpha_offset (+ bias[KV head])

where x comes from the adapter: "linear" reads the residual stream, "neuron" one borrowed channel of the query
projection. Setting `dms_eviction` to false (in config.json or on a loaded model) gives the base model back.
"""

from transformers import LlamaConfig, Qwen2Config, Qwen3Config


class DmsSettings:
    """The DMS keys of config.json and their defaults."""

    dms_adapter = "linear"  # or "neuron"
    dms_adapter_bias = "none"  # or "per_head"
    dms_rank = 0  # neuron: 0 = one full row per KV head, r = a product of two rank-r matrices
    dms_alpha_scale = 100.0
    dms_alpha_offset = 5.0
    dms_window = 256
    dms_decision_shift = 1
    dms_zero_after_rope = False  # neuron: zero the borrowed channel after RoPE as well as before
    dms_turned_channels = False  # neuron: borrowed channels are turned by an angle in their rotary pair
    dms_eviction = True


class DmsLlamaConfig(DmsSettings, LlamaConfig):
    model_type = "dms_llama"


class DmsQwen2Config(DmsSettings, Qwen2Config):
    model_type = "dms_qwen2"


class DmsQwen3Config(DmsSettings, Qwen3Config):
    model_type = "dms_qwen3"
