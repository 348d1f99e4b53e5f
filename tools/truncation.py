#!/usr/bin/env python3
"""What eviction.truncate_at changes in a training step: its loss, its gradients, and the keys that attention visits.

The step of tools/transformers_step.py, under a trained evictor and on real text, once without truncation and once with
each value, the same noise for all.  Prints, per value, over all samples: the step's KL; the gradient's relative distance
from the untruncated one, its cosine, and the share of far keys that survive.

--logit X replaces what the evictor has learned by one logit for every key: a state that training from nothing passes
through, in which keys that matter much are as likely to go as any other.

Example: tools/truncation.py --model quickstart/model --adapters quickstart/run/checkpoints/step-000024 \\
             --data quickstart/held-out-perl.h5
"""

import argparse
import json
import math
import pathlib

import h5py
import safetensors.torch
import torch
import transformers
import transformers_step as step


def load_adapters(directory, model):
    config = json.loads((pathlib.Path(directory) / "dms_config.json").read_text())
    if config["adapter"] != "linear":
        raise SystemExit(f"{directory}: a {config['adapter']} adapter; this script reads linear ones")
    eviction = step.RelaxedEviction(
        model, config["window"], config["decision_shift"], bias=config["bias"] == "per_head",
        alpha_scale=config["alpha_scale"], alpha_offset=config["alpha_offset"],
    )  # fmt: skip
    tensors = safetensors.torch.load_file(pathlib.Path(directory) / "adapters.safetensors")
    parameters = dict(model.named_parameters())
    for name, tensor in tensors.items():
        parameters[name].data.copy_(tensor)
    return eviction


def samples(path, length, count):
    with h5py.File(path) as file:
        tokens = file["tokens"]
        stride = max(length, (len(tokens) - length) // max(1, count - 1)) if count > 1 else length
        return [torch.tensor(tokens[i * stride :][:length].astype("int64"))[None] for i in range(count)]


def noise_of(seed):
    def noise(layer, shape):
        generator = torch.Generator().manual_seed(seed * 1000 + layer)
        return torch.logit(torch.rand(shape, generator=generator), eps=1e-7)

    return noise


def measure(model, eviction, tokens, teacher, noise, truncate_at):
    """KL, gradient, surviving keys, far keys."""
    eviction.truncate_at = truncate_at
    kept = []
    relax = eviction.relax

    def counting_relax(logit):
        relax(logit)
        kept.append(torch.isfinite(eviction.bias[..., : -eviction.window - 1]))

    eviction.relax = counting_relax
    with eviction.student(noise):
        student = model(tokens, use_cache=False).logits
    eviction.relax = relax
    kl = step.distillation_loss(teacher, student)
    gradient = torch.autograd.grad(kl, eviction.parameters)
    survivors = torch.stack(kept)
    return kl.item(), torch.cat([g.flatten() for g in gradient]), int(survivors.sum()), survivors.numel()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", required=True, help="Hugging Face model directory")
    parser.add_argument("--adapters", required=True, help="directory of adapters.safetensors")
    parser.add_argument("--data", required=True, help="token file")
    parser.add_argument("--logit", type=float, help="every key's eviction logit")
    parser.add_argument("--seq", type=int, default=1024)
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--values", type=float, nargs="+", default=[17, 20, 24, 30])
    options = parser.parse_args()

    transformers.utils.logging.disable_progress_bar()
    model = step.load_model(options.model)
    eviction = load_adapters(options.adapters, model)
    if options.logit is not None:
        for name, parameter in model.named_parameters():
            if name.endswith("dms_proj_alpha.weight"):
                parameter.data.zero_()
            elif name.endswith("dms_proj_alpha.bias"):
                parameter.data.fill_(options.logit + model.model.layers[0].self_attn.dms_proj_alpha.alpha_offset)
    values = [math.inf, *options.values]
    rows = {value: [] for value in values}
    for seed, tokens in enumerate(samples(options.data, options.seq, options.samples)):
        with torch.no_grad():
            teacher = model(tokens, use_cache=False).logits
        for value in values:
            kl, gradient, kept, far = measure(model, eviction, tokens, teacher, noise_of(seed), value)
            if value == math.inf:
                reference = gradient
            distance = ((gradient - reference).norm() / reference.norm()).item()
            cosine = torch.cosine_similarity(gradient, reference, dim=0).item()
            rows[value].append((kl, distance, cosine, kept / far))
            print(f"sample {seed} truncate_at {value}: {rows[value][-1]}", flush=True)
    print(f"{'truncate_at':>11} {'KL':>10} {'gradient distance':>18} {'cosine':>9} {'survivors':>10}")
    for value, measured in rows.items():
        kl, distance, cosine, share = (sum(column) / len(measured) for column in zip(*measured))
        print(f"{value:11g} {kl:10.6f} {distance:18.5f} {cosine:9.5f} {share:10.4f}")


if __name__ == "__main__":
    main()
