#!/usr/bin/env python3
"""The training step as one would write it today with transformers and autograd, timed.

The frozen model runs twice: plainly as the teacher, and as the student with a dense [T, T] bias on its attention
scores, log(1 - alpha) of every key beyond the window.  Full logits of both, KL plus the compression loss, backward,
clipping, Adam.  `dms bench train-step` computes the same step and prints the same figures; tools/compare_step.sh runs
both, and tests/reference/step_reference.py checks that their losses and gradients agree.

Example: tools/transformers_step.py --model quickstart/model --seq 1024 --window 64
"""

import argparse
import functools
import json
import math
import statistics
import time

import torch
import torch.nn.functional as F
import transformers
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward


class EvictionLogit(nn.Module):
    """alpha_scale * x - alpha_offset + bias, x linear in a token's features: [B, T, D] -> [B, G, T], in float32.

    rank > 0 makes the projection the product of two factors.
    """

    def __init__(self, hidden_size, num_kv_heads, rank=0, bias=True, alpha_scale=100.0, alpha_offset=5.0):
        super().__init__()
        self.alpha_scale, self.alpha_offset, self.rank = alpha_scale, alpha_offset, rank
        if rank == 0:
            self.weight = nn.Parameter(torch.zeros(num_kv_heads, hidden_size))
        else:
            self.lora_A = nn.Linear(hidden_size, rank, bias=False)
            self.lora_B = nn.Linear(rank, num_kv_heads, bias=False)
            nn.init.zeros_(self.lora_B.weight)
        self.bias = nn.Parameter(torch.zeros(num_kv_heads)) if bias else None

    def project(self, features):
        """x, [B, T, G]."""
        features = features.float()
        return F.linear(features, self.weight) if self.rank == 0 else self.lora_B(self.lora_A(features))

    def forward(self, features):
        return self.scale(self.project(features))

    def scale(self, x):
        logit = self.alpha_scale * x - self.alpha_offset
        return (logit if self.bias is None else logit + self.bias).transpose(1, 2)


def logistic_noise(layer, shape):
    return torch.logit(torch.rand(shape), eps=1e-7)


@functools.lru_cache(maxsize=1)
def causal_mask_and_far_keys(length, window):
    distance = torch.arange(length)[:, None] - torch.arange(length)
    return torch.zeros(length, length).masked_fill(distance < 0, -math.inf), distance > window


class RelaxedEviction:
    """Attaches eviction logits to a frozen model; inside `with student(noise):` its attention evicts.

    linear reads a normalised copy of the residual stream before each layer; neuron reads the query projection's input
    and takes `borrowed[layer][g]` = (query head, channel, angle in its rotary pair) out of the attention score, all but
    `share` of it.  Parameters get the names that adapter files use.  After a forward pass of the student, `logits` and
    `alphas` hold one [B, G, T] a layer.
    """

    def __init__(self, model, window, decision_shift=1, kind="linear", rank=0, bias=True, borrowed=None,
                 alpha_scale=100.0, alpha_offset=5.0, tau=0.1, truncate_at=17.0, zero_after_rope=False,
                 share=0.0):  # fmt: skip
        config = model.config
        self.window, self.decision_shift, self.tau, self.truncate_at = window, decision_shift, tau, truncate_at
        self.zero_after_rope = zero_after_rope
        self.group_size = config.num_attention_heads // config.num_key_value_heads
        self.noise = None  # a function while the student runs
        model.requires_grad_(False)
        for index, layer in enumerate(model.model.layers):
            attention = layer.self_attn
            attention.eviction = self
            logit = EvictionLogit(config.hidden_size, config.num_key_value_heads, rank, bias, alpha_scale, alpha_offset)
            if kind == "linear":
                attention.dms_proj_alpha = logit
                attention.dms_proj_alpha_norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
                attention.dms_proj_alpha_norm.weight.data.copy_(layer.input_layernorm.weight)
                layer.register_forward_pre_hook(self.read_residual)
            else:
                attention.dms_neuron = logit
                attention.borrowed = borrowed[index]
                attention.kept = kept_queries(config.num_attention_heads, attention.head_dim, borrowed[index], share)
                attention.q_proj.register_forward_hook(
                    lambda module, inputs, q, attention=attention: self.borrow(attention, inputs[0], q)
                )
                if hasattr(attention, "q_norm"):
                    attention.q_norm.register_forward_hook(
                        lambda module, inputs, q, attention=attention: self.borrow_normed(attention, inputs[0], q)
                    )
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def student(self, noise=logistic_noise):
        self.noise, self.logits, self.alphas = noise, [], []
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.noise = None

    def read_residual(self, layer, inputs):
        if self.noise is not None:
            attention = layer.self_attn
            self.relax(attention.dms_proj_alpha(attention.dms_proj_alpha_norm(inputs[0].float())))

    def borrow(self, attention, hidden, q):
        if self.noise is None:
            return q
        if hasattr(attention, "q_norm"):
            attention.borrowed_x = attention.dms_neuron.project(hidden)  # for the norm, which comes next
            return q
        self.relax(attention.dms_neuron(hidden))
        return remove(attention, q.unflatten(-1, (-1, attention.head_dim))).flatten(2)

    def borrow_normed(self, attention, q, normed):
        """q, normed [B, T, H, d]: before and after the q norm of the frozen model."""
        if self.noise is None:
            return normed
        norm, x = attention.q_norm, []
        rows = []
        for head in range(q.shape[2]):
            row = q[:, :, head].float()
            for g, (borrowed_head, channel, _) in enumerate(attention.borrowed):
                if borrowed_head == head:
                    new = row.clone()
                    new[..., channel] = attention.borrowed_x[..., g]
                    factor = torch.rsqrt(new.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)
                    x.append((new * factor * norm.weight)[..., channel])
                    row = row * factor * norm.weight
                    break
            else:
                row = normed[:, :, head]
            rows.append(row.to(q.dtype))
        self.relax(attention.dms_neuron.scale(torch.stack(x, -1)))
        return remove(attention, torch.stack(rows, 2))

    def relax(self, logit):
        """Keeps the layer's logits and alphas, and what its far keys' scores gain: [B, G, T]."""
        z = (logit + self.noise(len(self.logits), logit.shape)) / self.tau
        shift = min(self.decision_shift, z.shape[-1])
        z = F.pad(z[..., shift:], (0, shift), value=-1e30)  # the last tokens' fate is not decided yet: kept
        self.logits.append(logit)
        self.alphas.append(torch.sigmoid(z))
        self.bias = F.logsigmoid(-z).masked_fill(z <= -17, 0).masked_fill(z >= self.truncate_at, -math.inf)

    def attention_mask(self):
        """[B, H, T, T], added to the scores."""
        causal, far = causal_mask_and_far_keys(self.bias.shape[-1], self.window)
        mask = torch.where(far, self.bias[:, :, None, :], causal)
        return mask.repeat_interleave(self.group_size, dim=1)

    def counted_alphas(self):
        """[L, B, G, n]: the n keys that have a query beyond their window."""
        return torch.stack(self.alphas)[..., : max(0, self.alphas[0].shape[-1] - self.window - 1)]


def kept_queries(num_heads, head_dim, borrowed, share):
    """[H, d, d]: identity less (1 - share) of the projection on each borrowed direction."""
    kept = torch.eye(head_dim).repeat(num_heads, 1, 1)
    for head, channel, angle in borrowed:
        half = head_dim // 2
        first, second = channel % half, channel % half + half
        turned = (math.cos(angle), math.sin(angle)) if channel == first else (-math.sin(angle), math.cos(angle))
        direction = torch.zeros(head_dim)
        direction[first], direction[second] = turned
        kept[head] -= (1 - share) * torch.outer(direction, direction)
    return kept


def remove(attention, q):
    """q [B, T, H, d] without what is borrowed."""
    return torch.einsum("bthd,hde->bthe", q, attention.kept.to(q.dtype))


def delayed_eviction_attention(module, query, key, value, attention_mask, **options):
    student = module.eviction.noise is not None
    if student and module.eviction.zero_after_rope:
        query = remove(module, query.transpose(1, 2)).transpose(1, 2)
    mask = module.eviction.attention_mask().to(query.dtype) if student else None
    return sdpa_attention_forward(module, query, key, value, mask, **options)


transformers.AttentionInterface.register("delayed_eviction", delayed_eviction_attention)


def load_model(path, dtype=torch.float32):
    return transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=dtype, attn_implementation="delayed_eviction"
    ).eval()


def teacher_and_student_logits(model, eviction, tokens, noise=logistic_noise):
    with torch.no_grad():
        teacher = model(tokens, use_cache=False).logits
    with eviction.student(noise):
        student = model(tokens, use_cache=False).logits
    return teacher, student


def distillation_loss(teacher, student):
    """KL(teacher || student), nats a position."""
    teacher, student = teacher.float().flatten(0, 1), student.float().flatten(0, 1)
    return F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="batchmean")


def compression_loss(fraction, target_cr, weight=1.0):
    return weight * F.relu(1 - 1 / target_cr - fraction)


def training_step(model, eviction, optimizer, tokens, target_cr, noise=logistic_noise, clip=1.0):
    teacher, student = teacher_and_student_logits(model, eviction, tokens, noise)
    kl = distillation_loss(teacher, student)
    loss = kl + compression_loss(eviction.counted_alphas().mean(), target_cr)
    optimizer.zero_grad()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(eviction.parameters, clip)
    optimizer.step()
    return {"loss": loss.item(), "kl": kl.item(), "grad_norm": norm.item()}


def peak_memory_bytes():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", required=True, help="Hugging Face model directory")
    parser.add_argument("--seq", type=int, required=True, help="tokens of the sequence")
    parser.add_argument("--window", type=int, required=True, help="tokens for which a key stays untouched")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--steps", type=int, default=3, help="timed steps, after one that is not")
    parser.add_argument("--json", metavar="FILE", default="/dev/stdout", help="where the figures go")
    options = parser.parse_args()

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    model = load_model(options.model, getattr(torch, options.dtype))
    eviction = RelaxedEviction(model, options.window)
    optimizer = torch.optim.Adam(eviction.parameters, lr=3e-5, betas=(0.9, 0.95))
    seconds = []
    for _ in range(1 + options.steps):
        tokens = torch.randint(model.config.vocab_size, (1, options.seq))
        begin = time.perf_counter()
        training_step(model, eviction, optimizer, tokens, target_cr=8.0)
        seconds.append(time.perf_counter() - begin)
    seconds = seconds[1:]
    median = statistics.median(seconds)
    figures = {
        "tokens_per_s": options.seq / median,
        "step_seconds": median,
        "step_seconds_min": min(seconds),
        "step_seconds_max": max(seconds),
        "peak_memory_bytes": peak_memory_bytes(),
        "dtype": options.dtype,
        "threads": torch.get_num_threads(),
    }
    with open(options.json, "w") as file:
        file.write(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
