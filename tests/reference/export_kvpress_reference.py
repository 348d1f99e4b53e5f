"""Exports for KVPress in KVPress: hooked into the base model by its press machinery and run by its pipeline.

Usage: export_kvpress_reference.py PATH_TO_DMS PATH_TO_HARD_LOGITS_SAMPLE [unittest arguments]
"""

import importlib.util
import os
import shutil
import sys
import unittest

from exported_model import TEMPORARY, Exported, hard_path, random_tokens

import torch
import transformers
from kvpress import AdaKVPress, DMSPress

VARIANTS = {
    "llama-linear": dict(family="llama", adapter="linear"),
    "llama-linear-shift-0": dict(family="llama", adapter="linear", decision_shift=0, bias="none"),
    "llama-neuron-rank-3": dict(family="llama", adapter="neuron", rank=3),
    "llama-neuron-turned": dict(family="llama", adapter="neuron", channel="pair", turned=True),
    "qwen2-linear": dict(family="qwen2", adapter="linear", window=1),
    "qwen2-neuron": dict(family="qwen2", adapter="neuron", bias="none"),
    "qwen3-linear": dict(family="qwen3", adapter="linear"),
    "qwen3-neuron": dict(family="qwen3", adapter="neuron", decision_shift=0),
}


def import_press(path, name):
    """The file dms_kvpress.py of an export, as a module of its own."""
    spec = importlib.util.spec_from_file_location(name, os.path.join(path, "dms_kvpress.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


class KvPress(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.exports, cls.modules, cls.models = {}, {}, {}
        for name, options in VARIANTS.items():
            export = Exported(DMS, "kvpress-" + name, "kvpress", **options)
            cls.exports[name] = export
            cls.modules[name] = import_press(export.path, "press_" + name.replace("-", "_"))
            cls.models[name] = transformers.AutoModelForCausalLM.from_pretrained(
                export.base, dtype=torch.float32, attn_implementation="sdpa"
            ).eval()

    def decode(self, model, press, calls):
        """Logits of a sequence that is read in these calls."""
        cache, logits = transformers.DynamicCache(), []
        with torch.no_grad(), press(model):
            for tokens in calls:
                logits.append(model(tokens, past_key_values=cache).logits)
        return torch.cat(logits, 1)

    def test_decoding_equals_eval(self):
        tokens = random_tokens(1, 60)
        for name, export in self.exports.items():
            with self.subTest(name):
                press = self.modules[name].DmsPress()
                logits = self.decode(self.models[name], press, tokens.split(1, 1))
                expected, eviction = hard_path(SAMPLE, export.base, export.sidecar, tokens[0].tolist(), 1)
                for layer, mine in enumerate(eviction):
                    theirs, clear = press._logits[layer][0], mine.abs() > 1e-3
                    self.assertTrue(torch.equal(mine[clear] > 0, theirs[clear] > 0))
                self.assertTrue(0.1 < press.compression_ratio < 0.9, press.compression_ratio)
                self.assertLess((logits[0] - expected).abs().max().item(), 1e-3)
                # The model is left as it was found.
                with torch.no_grad():
                    plain = self.models[name](tokens, use_cache=False).logits
                self.assertGreater((plain[0] - expected).abs().max().item(), 0.1)
                self.assertLess((plain[0] - export.dense(tokens[0].tolist(), evict=False)[0]).abs().max().item(), 1e-3)

    def test_a_prompt_and_chunks_equal_the_dense_reference(self):
        # KVPress prefills densely and evicts between calls. Its fake keys exist for few queries at a time.
        tokens = random_tokens(1, 50)
        lengths = [33, 2] + [1] * 15
        starts = [-1] * 33 + [33] * 2 + list(range(35, 50))
        for name, export in self.exports.items():
            with self.subTest(name):
                logits = self.decode(self.models[name], self.modules[name].DmsPress(), tokens.split(lengths, 1))
                expected, _ = export.dense(tokens[0].tolist(), call_starts=starts)
                self.assertLess((logits[0] - expected).abs().max().item(), 1e-3)

    def test_the_scorer_in_a_stock_dms_press(self):
        tokens = random_tokens(1, 50)
        name = "llama-linear-shift-0"  # decisions that do not wait for the next token are all a DMSPress knows
        module, model = self.modules[name], self.models[name]
        window = self.exports[name].dms["window"]
        stock = DMSPress(module.DmsScorer(), threshold=0.0, sliding_window_size=window, decoding=True)
        lengths = [30] + [1] * 20
        mine = self.decode(model, module.DmsPress(), tokens.split(lengths, 1))
        theirs = self.decode(model, stock, tokens.split(lengths, 1))
        self.assertLess((mine - theirs).abs().max().item(), 1e-4)
        # In the prompt, which is all that it sees at once, decisions of shift 1 are exact too.
        module, model = self.modules["llama-linear"], self.models["llama-linear"]
        for press in (module.DmsPress(decoding=False), DMSPress(module.DmsScorer(), 0.0, window)):
            logits = self.decode(model, press, tokens.split([49, 1], 1))
            expected, _ = self.exports["llama-linear"].dense(tokens[0].tolist(), call_starts=[-1] * 49 + [49])
            self.assertLess((logits[0] - expected).abs().max().item(), 1e-3)

    def test_the_scorer_in_a_press_with_a_fixed_ratio(self):
        module, model = self.modules["llama-linear"], self.models["llama-linear"]
        cache = transformers.DynamicCache()
        with torch.no_grad(), AdaKVPress(module.DmsScorer(compression_ratio=0.5))(model):
            model(random_tokens(1, 40), past_key_values=cache)
        masked = model.model.layers[1].self_attn.masked_key_indices
        self.assertEqual(len(masked[0]), 40)  # half of 2 heads x 40 tokens
        for layer in model.model.layers:
            layer.self_attn.masked_key_indices = None
        with self.assertRaisesRegex(ValueError, "use DmsPress"), torch.no_grad():
            scorer = self.modules["qwen2-neuron"].DmsScorer(compression_ratio=0.5)
            with scorer(self.models["qwen2-neuron"]):
                self.models["qwen2-neuron"](random_tokens(1, 40), past_key_values=transformers.DynamicCache())

    def test_pipeline(self):
        context, question = "Acontextofsomelength." * 2, "W"
        for name in ("llama-linear", "qwen3-neuron"):
            export, model = self.exports[name], self.models[name]
            tokenizer = transformers.AutoTokenizer.from_pretrained(export.base, bos_token="#")
            pipe = transformers.pipeline("kv-press-text-generation", model=model, tokenizer=tokenizer)
            press = self.modules[name].DmsPress()
            answer = pipe(context, question=question, press=press, max_new_tokens=8)["answer"]
            # The same by hand: dense prefill, the question in one call, then greedy tokens.
            encode = lambda text: tokenizer.encode(text, add_special_tokens=False)  # noqa: E731
            prompt, asked = encode("#" + context), encode(question + "\n")
            self.assertEqual((len(prompt), len(asked)), (43, 1))
            tokens = prompt + asked
            starts = [-1] * len(prompt) + [len(prompt)] * len(asked)
            generated = []
            for _ in range(8):
                logits, _ = export.dense(tokens, call_starts=starts)
                generated.append(logits[-1].argmax().item())
                starts.append(len(tokens))
                tokens.append(generated[-1])
            self.assertEqual(answer, tokenizer.decode(generated, skip_special_tokens=True))
            several = pipe(context, questions=[question, "Y"], press=press, max_new_tokens=8)["answers"]
            self.assertEqual(several[0], answer)
            self.assertEqual(len(several), 2)

    def test_another_model_is_refused(self):
        with self.assertRaisesRegex(ValueError, "was trained on tiny"):
            small = transformers.LlamaForCausalLM(
                transformers.LlamaConfig(num_hidden_layers=1, hidden_size=48, num_attention_heads=6, vocab_size=97)
            )
            with self.modules["llama-linear"].DmsPress()(small):
                pass


if __name__ == "__main__":
    DMS, SAMPLE = sys.argv[1:3]
    try:
        unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
    finally:
        shutil.rmtree(TEMPORARY)
