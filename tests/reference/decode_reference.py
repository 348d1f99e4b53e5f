#!/usr/bin/env python3
"""What `dms bench decode` is compared with: transformers really decodes the sequences that the row counts.

Usage: decode_reference.py DMS
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools"))

import torch
import transformers

import transformers_decode

DMS = None  # set from the command line


def tiny_model():
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, initializer_range=0.3, max_position_embeddings=256,
        rope_theta=10000.0, tie_word_embeddings=True)  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


class Decode(unittest.TestCase):
    def test_copied_caches_go_on_as_their_prompts_do(self):
        model = tiny_model()
        prompts = torch.randint(96, (2, 30))
        with torch.no_grad():
            caches = [transformers_decode.read_prompt(model, tokens)[0] for tokens in prompts]
            cache = transformers_decode.batched(caches, 5)
            logits = model(torch.tensor([[7]] * 5), past_key_values=cache, use_cache=True).logits[:, -1]
            for sequence in range(5):
                tokens = torch.cat([prompts[sequence % 2], torch.tensor([7])])
                expected = model(tokens[None]).logits[0, -1]
                self.assertLess((logits[sequence] - expected).abs().max().item(), 1e-4)
            seconds = transformers_decode.decode(model, cache, 5, 3)
        self.assertEqual(len(seconds), 3)
        self.assertEqual(cache.layers[0].keys.shape, (5, 2, 30 + 1 + 2 + 3, 8))

    def test_the_benchmark_counts_the_same_sequences_for_both(self):
        with tempfile.TemporaryDirectory() as folder:
            model = tiny_model()
            model.save_pretrained(f"{folder}/model")
            figures = f"{folder}/figures.json"
            subprocess.run(
                [DMS, "bench", "decode", "--model", f"{folder}/model", "--context", "20,40", "--batch", "1,3",
                 "--distinct", "2", "--steps", "2", "--dtype", "float32", "--transformers", sys.executable,
                 "--json", figures], check=True, capture_output=True)  # fmt: skip
            rows = json.loads(pathlib.Path(figures).read_text())["rows"]
        found = [(row["context"], row["engine"], row["evict"], row["sequences"]) for row in rows]
        self.assertEqual(found, [(context, engine, False, batch) for context in (20, 40)
                                 for engine in ("transformers", "dms") for batch in (1, 3)])  # fmt: skip
        for row in rows:
            elements = row["sequences"] * 2 * 2 * (row["context"] + 4) * 2 * 8
            if row["engine"] == "transformers":
                self.assertEqual(row["kv_bytes"], 4 * elements)
            else:
                self.assertGreaterEqual(row["kv_bytes"], 4 * elements)
            self.assertAlmostEqual(row["tokens_per_s"] * row["step_seconds"], row["sequences"])


if __name__ == "__main__":
    DMS = sys.argv.pop(1)
    unittest.main()
