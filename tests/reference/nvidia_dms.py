"""A Qwen3 model as NVIDIA Model-Optimizer's DMS code runs it, written down from a description of that code.

float64, dense, plain PyTorch; it reads an exported directory by the names their code uses (config.json keys, tensors).
Their own code is in no package registry and needs a GPU; it was not run.
"""

import json
import os

import torch
from safetensors import safe_open

# Defaults of their configuration class, for keys that config.json leaves out.
DEFAULTS = dict(
    dms_alpha_scale=100.0, dms_initial_alpha_offset=5.0, dms_window_size=512, dms_paged_attention_block_size=256,
    dms_disable_eviction=False, dms_separate_alpha=False, dms_alpha_per="head",
)  # fmt: skip


def load(path):
    """Settings and tensors; transformers' rules for which files count."""
    with open(os.path.join(path, "config.json")) as file:
        config = DEFAULTS | json.load(file)
    files = {"model.safetensors"}
    if not os.path.exists(os.path.join(path, "model.safetensors")):
        with open(os.path.join(path, "model.safetensors.index.json")) as file:
            files = set(json.load(file)["weight_map"].values())
    tensors = {}
    for name in files:
        with safe_open(os.path.join(path, name), "pt") as file:
            tensors |= {key: file.get_tensor(key).double() for key in file.keys()}
    return config, tensors


def expected_names(config):
    """Every tensor their class has, and no other: they only warn about missing ones, and start them at random."""
    names = {"model.embed_tokens.weight", "model.norm.weight"}
    if not config["tie_word_embeddings"]:
        names.add("lm_head.weight")
    parts = ["input_layernorm", "post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    parts += ["self_attn." + part for part in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")]
    if config["dms_separate_alpha"]:
        parts += ["self_attn.dms_proj_alpha", "self_attn.dms_proj_alpha_norm"]
    return names | {
        f"model.layers.{layer}.{part}.weight" for layer in range(config["num_hidden_layers"]) for part in parts
    }


def rms_norm(x, weight, eps):
    return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def rotary(x, theta):
    """x [T, heads, d]."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[0]).double()[:, None] * theta ** (-torch.arange(half).double() / half)
    turn = torch.polar(torch.ones_like(angle), angle)[:, None]
    turned = torch.complex(x[..., :half], x[..., half:]) * turn
    return torch.cat([turned.real, turned.imag], -1)


def run(path, tokens):
    """Logits [T, V] and eviction logits, one [G, T] a layer."""
    config, tensors = load(path)
    assert config["model_type"] == "qwen3" and set(tensors) == expected_names(config)
    assert config["dms_window_size"] > config["dms_paged_attention_block_size"]
    assert config["dms_alpha_per"] == "head" and not config["dms_disable_eviction"]
    heads, kv_heads, size = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    group, eps, theta = heads // kv_heads, config["rms_norm_eps"], config["rope_theta"]
    count = len(tokens)
    hidden = tensors["model.embed_tokens.weight"][tokens]
    all_logits = []
    for layer in range(config["num_hidden_layers"]):

        def weight(part):
            return tensors[f"model.layers.{layer}.{part}.weight"]

        normed = rms_norm(hidden, weight("input_layernorm"), eps)
        query = (normed @ weight("self_attn.q_proj").T).view(count, heads, size)
        query = rms_norm(query, weight("self_attn.q_norm"), eps)
        key = (normed @ weight("self_attn.k_proj").T).view(count, kv_heads, size)
        key = rms_norm(key, weight("self_attn.k_norm"), eps)
        value = (normed @ weight("self_attn.v_proj").T).view(count, kv_heads, size)

        if config["dms_separate_alpha"]:
            read = rms_norm(hidden, weight("self_attn.dms_proj_alpha_norm"), eps)
            x = read @ weight("self_attn.dms_proj_alpha").T
        else:
            x = query[:, ::group, -1].clone()
            query[:, ::group, -1] = 0
        query, key = rotary(query, theta), rotary(key, theta)
        if not config["dms_separate_alpha"]:
            query[:, ::group, -1] = 0
        logit = (config["dms_alpha_scale"] * x - config["dms_initial_alpha_offset"]).T
        all_logits.append(logit)

        decision = torch.cat([logit[:, 1:], torch.zeros(kv_heads, 1)], 1)  # the next token judges
        distance = torch.arange(count)[:, None] - torch.arange(count)
        gone = (decision > 0)[:, None] & (distance > config["dms_window_size"])
        masked = (gone | (distance < 0)).repeat_interleave(group, 0)
        score = torch.einsum("qhd,khd->hqk", query, key.repeat_interleave(group, 1)) / size**0.5
        mixed = torch.einsum(
            "hqk,khd->qhd", score.masked_fill(masked, -50000.0).softmax(-1), value.repeat_interleave(group, 1)
        )
        hidden = hidden + mixed.flatten(1) @ weight("self_attn.o_proj").T
        normed = rms_norm(hidden, weight("post_attention_layernorm"), eps)
        gate = torch.nn.functional.silu(normed @ weight("mlp.gate_proj").T)
        hidden = hidden + (gate * (normed @ weight("mlp.up_proj").T)) @ weight("mlp.down_proj").T
    hidden = rms_norm(hidden, tensors["model.norm.weight"], eps)
    return hidden @ tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"]).T, all_logits
