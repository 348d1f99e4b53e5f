"""`dms eval`'s hard path and the exported model are one function: decisions, logits and greedy text.

Usage: export_agreement_reference.py PATH_TO_DMS PATH_TO_HARD_LOGITS_SAMPLE [MODEL_DIR ADAPTER_DIR] [unittest arguments]
With MODEL_DIR and ADAPTER_DIR (a real model and its run) they are exported and compared too.
"""

import os
import sys
import unittest

from exported_model import TEMPORARY, Export, cache_module, hard_path, random_tokens, run_export

import torch
import transformers

DMS = SAMPLE = None  # set by main
REAL = []

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

    def test_export_of_the_real_model(self):
        if not REAL:
            self.skipTest("no MODEL_DIR and ADAPTER_DIR given")
        base, adapters = REAL
        path = os.path.join(TEMPORARY, "real")
        done = run_export(DMS, "--run", adapters, "--model", base, "--to", "hf", "--out", path)
        self.assertEqual(done.returncode, 0, done.stderr)
        model = transformers.AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True, dtype=torch.float32)
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        with open(os.path.join(os.path.dirname(__file__), "../../CONTRIBUTING.md")) as file:
            tokens = tokenizer(file.read())["input_ids"][:300]
        self.check(model.eval(), base, adapters, tokens)
        self.check_greedy(model, base, adapters, tokens[:150], 30)


if __name__ == "__main__":
    DMS, SAMPLE = sys.argv[1:3]
    rest = sys.argv[3:]
    if len(rest) >= 2 and os.path.isdir(rest[0]):
        REAL, rest = rest[:2], rest[2:]
    unittest.main(argv=[sys.argv[0], *rest])
