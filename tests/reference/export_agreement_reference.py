"""`dms eval`'s hard path and the exported model are one function: decisions, logits and greedy text.

Usage: export_agreement_reference.py PATH_TO_DMS PATH_TO_HARD_LOGITS_SAMPLE MODEL_DIR [unittest arguments]
(MODEL_DIR: the sample model)
"""

import json
import os
import shutil
import subprocess
import sys
import unittest

from exported_model import TEMPORARY, Export, cache_module, hard_path, random_tokens

import torch
import transformers

DMS = SAMPLE = MODEL = None  # set by main

VARIANTS = {
    "llama-linear": dict(family="llama", adapter="linear"),
    "llama-linear-shift-0": dict(family="llama", adapter="linear", decision_shift=0, bias="none"),
    "llama-neuron-rank-3": dict(family="llama", adapter="neuron", rank=3),
    "llama-neuron-turned": dict(family="llama", adapter="neuron", channel="pair", turned=True, zero_after_rope=True),
    "qwen3-neuron": dict(family="qwen3", adapter="neuron"),
    "qwen2-neuron": dict(family="qwen2", adapter="neuron"),
    "qwen3-linear": dict(family="qwen3", adapter="linear"),
}


class Agreement(unittest.TestCase):
    def check(self, model, base, adapters, tokens):
        """Logits with decisions replayed, decisions off the threshold, and chunked against token by token."""
        for chunk in (1, 16):
            logits, eviction = hard_path(SAMPLE, base, adapters, tokens, chunk)
            model.dms_record = True
            with torch.no_grad():
                model(torch.tensor([tokens]))
            recorded = [logit[0] for logit in model.dms_logits]
            model.dms_record = False
            evictions = 0
            for mine, theirs in zip(eviction, recorded):
                clear = mine.abs() > 1e-3
                self.assertTrue(torch.equal(mine[clear] > 0, theirs[clear] > 0))
                evictions += (mine > 0).sum().item()
            self.assertGreater(evictions, 0)
            model.dms_replay = [logit[None] for logit in eviction]
            with torch.no_grad():
                replayed = model(torch.tensor([tokens])).logits[0]
            model.dms_replay = None
            error = (replayed - logits).abs().max().item()
            self.assertLessEqual(error, 1e-3)

    def check_greedy(self, model, base, adapters, prompt, count):
        """Greedy text is the same up to the first near-tie (top-2 gap below 1e-3)."""
        generated = model.generate(torch.tensor([prompt]), max_new_tokens=count, do_sample=False)[0].tolist()
        logits, _ = hard_path(SAMPLE, base, adapters, generated[:-1], 16)
        compared = 0
        for position in range(len(prompt) - 1, len(generated) - 1):
            top = logits[position].topk(2).values
            if (top[0] - top[1]).item() < 1e-3:
                break
            self.assertEqual(generated[position + 1], logits[position].argmax().item())
            compared += 1
        self.assertGreater(compared, 4)

    def test_exports_of_tiny_models(self):
        for name, options in VARIANTS.items():
            with self.subTest(name):
                export = Export(DMS, "agreement-" + name, **options)
                cache_module(export.model).BLOCK_TOKENS = 16
                self.check(export.model, export.base, export.sidecar, random_tokens(1, 70)[0].tolist())
                self.check_greedy(export.model, export.base, export.sidecar, random_tokens(1, 20)[0].tolist(), 20)

    def test_export_of_the_sample_model(self):
        """What random weights lack: attention sinks, and an evictor fitted to keep what matters."""
        text = os.path.join(os.path.dirname(__file__), "../../CONTRIBUTING.md")
        data, recipe, run, path = (
            os.path.join(TEMPORARY, "sample-" + name) for name in ("tokens.h5", "recipe.yaml", "run", "export")
        )
        settings = {
            "model": {"path": MODEL}, "data": {"train": [data]}, "eviction": {"window": 32}, "compression": {"initial": 4.0},
            "warm_start": {"tokens": 1024, "compression": 4.0},
            "trainer": {"steps": 1, "global_batch": 1, "sequence_length": 256, "dtype": "float32"},
        }  # fmt: skip
        with open(recipe, "w") as file:
            json.dump(settings, file)  # JSON is YAML
        for command in (
            ["prepare", "--tokenizer", MODEL, "--out", data, text],
            ["train", recipe, "--run-dir", run],
            ["export", "--run", run, "--model", MODEL, "--to", "hf", "--out", path],
        ):
            done = subprocess.run([DMS, *command], capture_output=True, text=True)
            self.assertEqual(done.returncode, 0, done.stderr)
        model = transformers.AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True, dtype=torch.float32)
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, trust_remote_code=True)
        with open(text) as file:
            tokens = tokenizer(file.read())["input_ids"][:160]
        self.check(model.eval(), MODEL, run, tokens)
        self.check_greedy(model, MODEL, run, tokens[:100], 20)


if __name__ == "__main__":
    DMS, SAMPLE, MODEL = sys.argv[1:4]
    try:
        unittest.main(argv=[sys.argv[0], *sys.argv[4:]])
    finally:
        shutil.rmtree(TEMPORARY)
