#!/usr/bin/env python3
"""Decoding as one would write it today with transformers' DynamicCache, timed: the row `dms bench decode` compares with.

Each prompt is read once; their caches are copied until the batch is full, as `dms bench decode --distinct` does.  Then
every sequence gets one token at a time, greedily.  `dms bench decode --transformers PYTHON` runs this program with the
same prompts, weights, dtype and number of threads, and puts its figures beside its own.

Example: tools/transformers_decode.py --model quickstart/model --context 2048 --batch 1,16 --distinct 2
"""

import argparse
import gc
import json
import statistics
import time

import torch
import transformers

UNTIMED_STEPS = 2


def integers(text):
    return [int(part) for part in text.split(",")]


def read_prompts(options, vocab_size):
    """[distinct, context] token ids, from a file of one JSON list a prompt or at random."""
    if options.prompts:
        with open(options.prompts) as file:
            return torch.tensor([json.loads(line) for line in file])
    return torch.randint(vocab_size, (options.distinct, options.context))


def read_prompt(model, tokens):
    """The cache after one prompt, [(keys, values)] a layer, and the seconds it took."""
    begin = time.perf_counter()
    cache = transformers.DynamicCache()
    model(tokens[None], past_key_values=cache, use_cache=True, logits_to_keep=1)
    return [(layer.keys, layer.values) for layer in cache.layers], time.perf_counter() - begin


def batched(caches, batch):
    """A DynamicCache of `batch` sequences, each a copy of one of `caches`."""
    cache = transformers.DynamicCache()
    for index in range(len(caches[0])):
        chosen = [caches[sequence % len(caches)][index] for sequence in range(batch)]
        cache.update(torch.cat([keys for keys, _ in chosen]), torch.cat([values for _, values in chosen]), index)
    return cache


def decode(model, cache, batch, steps):
    tokens = torch.zeros(batch, 1, dtype=torch.long)
    seconds = []
    for _ in range(UNTIMED_STEPS + steps):
        begin = time.perf_counter()
        logits = model(tokens, past_key_values=cache, use_cache=True).logits
        tokens = logits[:, -1:].argmax(-1)
        seconds.append(time.perf_counter() - begin)
    return seconds[UNTIMED_STEPS:]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", required=True, help="Hugging Face model directory")
    parser.add_argument("--context", type=int, required=True, help="tokens of each prompt")
    parser.add_argument("--batch", type=integers, required=True, help="sequences decoded together: 1,4,16")
    parser.add_argument("--distinct", type=int, default=1, help="random prompts read; their caches are copied")
    parser.add_argument("--prompts", metavar="FILE", help="instead: a JSON list of token ids a line")
    parser.add_argument("--steps", type=int, default=8, help="timed steps, after two that are not")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, help="default: as torch chooses")
    parser.add_argument("--json", metavar="FILE", default="/dev/stdout", help="where the rows go")
    options = parser.parse_args()

    transformers.utils.logging.disable_progress_bar()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    model = transformers.AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype)).eval()
    prompts = read_prompts(options, model.config.vocab_size)
    caches, prefill_seconds = zip(*(read_prompt(model, tokens) for tokens in prompts))
    rows = []
    for batch in options.batch:
        gc.collect()
        cache = batched(caches, batch)
        seconds = decode(model, cache, batch, options.steps)
        step_seconds = statistics.median(seconds)
        kv_bytes = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
        rows.append({
            "sequences": batch,
            "step_seconds": step_seconds,
            "step_seconds_min": min(seconds),
            "step_seconds_max": max(seconds),
            "kv_bytes": kv_bytes,
            "kv_read_bytes_per_s": kv_bytes / step_seconds,
            "prefill_seconds": statistics.mean(prefill_seconds),
        })
        del cache
    figures = {"rows": rows, "dtype": options.dtype, "threads": torch.get_num_threads()}
    with open(options.json, "w") as file:
        file.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
