"""The network computes what transformers computes: logits in float32 of the sample model and of tiny random models of
every family.

    logits_reference.py PATH_TO_LOGITS_SAMPLE MODEL_DIR
"""

import pathlib
import subprocess
import sys
import tempfile
import unittest

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import (AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM,
                          Qwen3Config, Qwen3ForCausalLM)

SAMPLE = MODEL = None

TEXTS = [
    "The eviction of a key is decided once, and it takes effect when the key leaves the window.",
    "def fibonacci(n):\n    a, b = 0, 1\n    while n > 0:\n        a, b, n = b, a + b, n - 1\n    return a\n",
    "In 1492, 3 ships and 86.5 men crossed 5000 km of ocean; \u00bfverdad? \u6f22\u5b57 \u2603 \U0001f642",
    "The quick brown fox jumps over the lazy dog. " * 25,
    "x",
]

TINY = dict(vocab_size=211, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=6,
            num_key_value_heads=2, max_position_embeddings=4096, initializer_range=0.3)
LLAMA3 = dict(rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=64)


def tiny_models():
    yield "llama", LlamaForCausalLM(LlamaConfig(**TINY))
    yield "llama, tied, one KV head a query head, no head_dim of its own", LlamaForCausalLM(
        LlamaConfig(**{**TINY, "num_key_value_heads": 6, "tie_word_embeddings": True}))
    yield "llama3 rope scaling", LlamaForCausalLM(
        LlamaConfig(**TINY, head_dim=16, rope_parameters=LLAMA3))
    yield "qwen2", Qwen2ForCausalLM(Qwen2Config(**TINY))
    yield "qwen3", Qwen3ForCausalLM(Qwen3Config(**TINY, head_dim=16))


def randomise_what_starts_constant(model):
    """Norm weights start at 1 and biases at 0: a reader that lost them would agree by luck."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.add_(torch.randn_like(parameter) * 0.2)
            elif name.endswith("bias"):
                parameter.copy_(torch.randn_like(parameter) * 0.5)


class LogitsAgree(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.dir = pathlib.Path(directory.name)

    def largest_difference(self, model_dir, ids_of_texts):
        model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
        ids_file, out = self.dir / "ids.txt", self.dir / "logits.safetensors"
        ids_file.write_text("".join(" ".join(map(str, ids)) + "\n" for ids in ids_of_texts))
        subprocess.run([SAMPLE, model_dir, ids_file, out], check=True)
        ours = load_file(out)
        self.assertEqual(len(ours), len(ids_of_texts))
        largest = 0.0
        for i, ids in enumerate(ids_of_texts):
            with torch.no_grad():
                theirs = model(torch.tensor([ids])).logits[0]
            self.assertEqual(ours[f"logits.{i}"].shape, theirs.shape)
            self.assertGreater(theirs.abs().max().item(), 1.0, "logits near zero would agree with anything")
            difference = (ours[f"logits.{i}"] - theirs).abs().max().item()
            self.assertEqual(difference, difference, "NaN")
            largest = max(largest, difference)
        print(f"max abs difference {largest:.2e}", flush=True)
        return largest

    def test_sample_model_on_five_texts(self):
        tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
        ids = [tokenizer.encode(text).ids for text in TEXTS]
        self.assertGreater(max(map(len, ids)), 200)
        self.assertLessEqual(self.largest_difference(MODEL, ids), 2e-4)

    def test_tiny_models_of_every_family(self):
        torch.manual_seed(0)
        ids = [torch.randint(0, TINY["vocab_size"], (length,)).tolist() for length in (1, 17, 150)]
        for name, model in tiny_models():
            with self.subTest(name):
                randomise_what_starts_constant(model)
                model_dir = self.dir / "model"
                model.save_pretrained(model_dir)
                self.assertLessEqual(self.largest_difference(model_dir, ids), 1e-4)


if __name__ == "__main__":
    MODEL = pathlib.Path(sys.argv.pop())
    SAMPLE = sys.argv.pop()
    unittest.main(verbosity=2)
