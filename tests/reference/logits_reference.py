"""The network computes what transformers computes: logits in float32 of the sample model, of tiny random models with the
structure of every target model, of every RoPE scaling, and of one model in every form of storage.

    logits_reference.py PATH_TO_LOGITS_SAMPLE MODEL_DIR
"""

import json
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

import target_models
from target_models import randomise_what_starts_constant

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


# Head dimension 32, so that yarn's ramp has channels on both sides and between.
YARN = dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=512)
ROPES = {
    "linear": dict(rope_type="linear", rope_theta=10000.0, factor=2.5),
    "yarn": YARN,
    "yarn with an attention factor": {**YARN, "attention_factor": 0.8, "beta_fast": 16.0, "beta_slow": 2.0},
    "yarn with mscale": {**YARN, "mscale": 0.707, "mscale_all_dim": 1.2, "truncate": False},
    "yarn of half an mscale": {**YARN, "mscale": 0.707, "mscale_all_dim": 0},
    "llama3": {**LLAMA3, "rope_theta": 500.0},
}


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

    def compare_tiny(self, model_dir, vocabulary):
        torch.manual_seed(0)
        ids = [torch.randint(0, vocabulary, (length,)).tolist() for length in (1, 17, 150)]
        self.assertLessEqual(self.largest_difference(model_dir, ids), 1e-4)

    def test_tiny_models_of_every_family(self):
        torch.manual_seed(0)
        for name, model in tiny_models():
            with self.subTest(name):
                randomise_what_starts_constant(model)
                model.save_pretrained(self.dir / "model")
                self.compare_tiny(self.dir / "model", TINY["vocab_size"])

    def test_the_structure_of_every_target_model(self):
        self.assertGreaterEqual(len(target_models.NAMES), 15)
        groups = set()
        for name in target_models.NAMES:
            with self.subTest(name):
                torch.manual_seed(1)
                print(name, end=" ")
                target_models.make_target(name, self.dir / name)
                config = target_models.tiny_config(name)
                groups.add(config["num_attention_heads"] // config["num_key_value_heads"])
                self.compare_tiny(self.dir / name, target_models.VOCABULARY)
        self.assertEqual(groups, {2, 3, 4, 5, 6, 7, 8})

    def test_every_rope_scaling_in_both_generations_of_keys(self):
        for name, rope in ROPES.items():
            torch.manual_seed(0)
            model = LlamaForCausalLM(LlamaConfig(**{**TINY, "max_position_embeddings": 2048}, head_dim=32,
                                                 rope_parameters=dict(rope)))
            model.save_pretrained(self.dir / "model")
            config_file = self.dir / "model" / "config.json"
            with self.subTest(name, keys="rope_parameters"):
                print(name, end=" ")
                self.compare_tiny(self.dir / "model", TINY["vocab_size"])
            config = json.loads(config_file.read_text())
            parameters = config.pop("rope_parameters")
            config["rope_theta"] = parameters.pop("rope_theta")
            if name == "yarn":  # the older name of the key
                parameters["type"] = parameters.pop("rope_type")
            config_file.write_text(json.dumps(config | {"rope_scaling": parameters}))
            with self.subTest(name, keys="rope_scaling"):
                print(name, end=" ")
                self.compare_tiny(self.dir / "model", TINY["vocab_size"])

    def test_every_form_of_storage(self):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            torch.manual_seed(0)
            model = Qwen2ForCausalLM(Qwen2Config(**TINY)).to(dtype)
            randomise_what_starts_constant(model)
            for sharded in (False, True):
                with self.subTest(dtype, sharded=sharded):
                    path = self.dir / f"{dtype}-{sharded}"
                    model.save_pretrained(path, max_shard_size="20KB" if sharded else "1GB")
                    if sharded:
                        rename_shards(path)
                    self.compare_tiny(path, TINY["vocab_size"])


def rename_shards(path):
    """Names that nobody could guess: the index alone says what they are."""
    index_file = path / "model.safetensors.index.json"
    index = json.loads(index_file.read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert len(shards) > 2, "one shard would prove nothing"
    names = {shard: f"weights of {i} (final)-{len(shards):06d}.safetensors" for i, shard in enumerate(shards)}
    names[shards[0]] = f"model-00001-of-{len(shards):06d}.safetensors"  # as DeepSeek counts
    for old, new in names.items():
        (path / old).rename(path / new)
    index["weight_map"] = {tensor: names[shard] for tensor, shard in index["weight_map"].items()}
    index_file.write_text(json.dumps(index))


if __name__ == "__main__":
    MODEL = pathlib.Path(sys.argv.pop())
    SAMPLE = sys.argv.pop()
    unittest.main(verbosity=2)
