"""A DMS decoder written down densely, in float64: [T, T] masks, no cache, no tricks. What exports are compared with.

It shares no code with the exported files: weights and settings go in as they stand in the safetensors and JSON files.
"""

import math

import torch


def rms_norm(x, weight, eps):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def inverse_frequencies(config, head_dim):
    frequencies = config["rope_theta"] ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    scaling = config.get("rope_scaling")
    if not scaling:
        return frequencies
    assert scaling["rope_type"] == "llama3"
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    original, factor = scaling["original_max_position_embeddings"], scaling["factor"]
    scaled = []
    for frequency in frequencies.tolist():
        wavelength = 2 * math.pi / frequency
        if wavelength < original / high:
            scaled.append(frequency)
        elif wavelength > original / low:
            scaled.append(frequency / factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            scaled.append((1 - smooth) * frequency / factor + smooth * frequency)
    return torch.tensor(scaled, dtype=torch.float64)


def rotate(x, frequencies):
    """x [T, heads, d], positions 0 .. T - 1."""
    angle = torch.arange(x.shape[0], dtype=torch.float64)[:, None] * frequencies
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def borrowed_directions(weights, neuron, head_dim):
    """Per KV head: the query head, the channel and the unit vector over the head's channels that is borrowed."""
    index = weights[neuron + "index"].tolist()
    angles = weights.get(neuron + "angle", torch.zeros(len(index))).double().tolist()
    directions = []
    for (head, channel), angle in zip(index, angles):
        first, second = channel % (head_dim // 2), channel % (head_dim // 2) + head_dim // 2
        direction = torch.zeros(head_dim, dtype=torch.float64)
        if channel == first:  # e_first turned by the angle, or e_second
            direction[first], direction[second] = math.cos(angle), math.sin(angle)
        else:
            direction[first], direction[second] = -math.sin(angle), math.cos(angle)
        directions.append((head, channel, direction))
    return directions


def dense_logits(config, dms, weights, tokens, evict=True, call_starts=None):
    """Logits [T, V] and eviction logits, one [G, T] a layer, of one sequence of token ids.

    config: the base model's config.json. dms: adapter, rank, bias, alpha_scale, alpha_offset, window, decision_shift,
    zero_after_rope. weights: name -> tensor, base and adapters together. evict=False: the base model.
    call_starts: per query, the position from which its distance to keys counts, for runtimes that evict between calls:
    the first position of the call; -1 for a call that evicts nothing. Default: every query its own.
    """
    w = {name: tensor.double() for name, tensor in weights.items()}
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    eps, count = config["rms_norm_eps"], len(tokens)
    frequencies = inverse_frequencies(config, head_dim)
    hidden = w["model.embed_tokens.weight"][torch.tensor(tokens)]
    eviction_logits = []
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."

        def linear(x, name):
            y = x @ w[prefix + name + ".weight"].T
            bias = w.get(prefix + name + ".bias")
            return y if bias is None else y + bias

        normed = rms_norm(hidden, w[prefix + "input_layernorm.weight"], eps)
        q = linear(normed, "self_attn.q_proj").view(count, heads, head_dim)
        k = linear(normed, "self_attn.k_proj").view(count, kv_heads, head_dim)
        v = linear(normed, "self_attn.v_proj").view(count, kv_heads, head_dim)

        x = None
        borrowed = []
        if evict and dms["adapter"] == "linear":
            read = rms_norm(hidden, w[prefix + "self_attn.dms_proj_alpha_norm.weight"], eps)
            x = read @ w[prefix + "self_attn.dms_proj_alpha.weight"].T
            bias = w.get(prefix + "self_attn.dms_proj_alpha.bias")
        elif evict:
            neuron = prefix + "self_attn.dms_neuron."
            borrowed = borrowed_directions(weights, neuron, head_dim)
            if dms["rank"] == 0:
                rows = w[neuron + "weight"]
            else:
                rows = w[neuron + "lora_B.weight"] @ w[neuron + "lora_A.weight"]
            x = normed @ rows.T
            bias = w.get(neuron + "bias")
        if prefix + "self_attn.q_norm.weight" in w:
            for g, (head, channel, _) in enumerate(borrowed):
                q[:, head, channel] = x[:, g]
            q = rms_norm(q, w[prefix + "self_attn.q_norm.weight"], eps)
            k = rms_norm(k, w[prefix + "self_attn.k_norm.weight"], eps)
            if borrowed:
                x = torch.stack([q[:, head, channel] for head, channel, _ in borrowed], 1)
        for head, _, direction in borrowed:
            q[:, head] -= (q[:, head] @ direction)[:, None] * direction

        q, k = rotate(q, frequencies), rotate(k, frequencies)
        if dms["zero_after_rope"]:
            for head, _, direction in borrowed:
                q[:, head] -= (q[:, head] @ direction)[:, None] * direction

        visible = torch.ones(kv_heads, count, count, dtype=torch.bool).tril()
        if evict:
            logit = (dms["alpha_scale"] * x - dms["alpha_offset"] + (0 if bias is None else bias)).T
            eviction_logits.append(logit)
            starts = torch.arange(count) if call_starts is None else torch.tensor(call_starts)
            distance = starts[:, None] - torch.arange(count)
            for g in range(kv_heads):
                for key in range(count - dms["decision_shift"]):
                    if logit[g, key + dms["decision_shift"]] > 0:
                        visible[g, distance[:, key] > dms["window"], key] = False
        outputs = []
        for head in range(heads):
            g = head // (heads // kv_heads)
            score = q[:, head] @ k[:, g].T / math.sqrt(head_dim)
            outputs.append(score.masked_fill(~visible[g], -math.inf).softmax(-1) @ v[:, g])
        hidden = hidden + linear(torch.cat(outputs, -1), "self_attn.o_proj")
        normed = rms_norm(hidden, w[prefix + "post_attention_layernorm.weight"], eps)
        gate = torch.nn.functional.silu(linear(normed, "mlp.gate_proj"))
        hidden = hidden + linear(gate * linear(normed, "mlp.up_proj"), "mlp.down_proj")
    hidden = rms_norm(hidden, w["model.norm.weight"], eps)
    return hidden @ w.get("lm_head.weight", w["model.embed_tokens.weight"]).T, eviction_logits
