#!/usr/bin/env python3
"""The imported sample model, judged by the libraries it is made for: transformers and tokenizers.

Usage: sample_model_reference.py MODEL_DIR   (made by tools/import_sample_model.py)
"""

import os
import pathlib
import sys
import unittest

os.environ["TQDM_DISABLE"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools"))

import tokenizers
import torch
import transformers

import import_sample_model

MODEL_DIR = None  # set from the command line
AWKWARD = [
    "Plain prose, with a full stop.",
    "x  2", "tabs\t\tand\r\nline ends \n\n\n   indented 42  1234567 3.14159e-10",
    "don't we'll I'VE 'tis", "naïve café Straße Ünïcödé ﬁligature",
    "日本語のテキストと中文混排 العربية עברית हिन्दी", "emoji 👩‍👩‍👧‍👦 🏳️‍🌈 ✨ and combining a\u0301e\u0308",
    "if (x<<=2){ y = &z->w[0]; } /* // */ # $@%^", " leading", "trailing ", "   ", "\n", "½ ² Ⅷ ٣ 〇",
    "a\u00a0b\u2003c\u3000d\u180ee\u200bf",
]


class SampleModel(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        torch.set_num_threads(1)
        transformers.utils.logging.disable_progress_bar()
        cls.tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL_DIR)
        cls.model = transformers.AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)

    def test_weights_equal_those_of_the_transformers_gguf_loader(self):
        gguf_path = import_sample_model.fetch_gguf()
        theirs = transformers.AutoModelForCausalLM.from_pretrained(
            gguf_path.parent, gguf_file=gguf_path.name, dtype=torch.float32).state_dict()
        ours = self.model.state_dict()
        self.assertEqual(set(ours), set(theirs))
        self.assertEqual(len(ours), 30 * 9 + 3)
        for name, weight in ours.items():
            self.assertEqual(weight.shape, theirs[name].shape, name)
            self.assertTrue(torch.equal(weight, theirs[name]), name)

    def test_both_generations_of_rope_keys_say_the_same(self):
        config = self.model.config
        self.assertEqual(config.rope_parameters["rope_theta"], 100000.0)
        self.assertEqual(config.rope_parameters["rope_type"], "default")
        written = transformers.PretrainedConfig.get_config_dict(MODEL_DIR)[0]
        self.assertEqual(written["rope_theta"], 100000.0)
        self.assertIsNone(written["rope_scaling"])
        self.assertEqual(config.rms_norm_eps, 1e-5)

    def test_text_survives_a_round_trip(self):
        for text in AWKWARD:
            ids = self.tokenizer(text)["input_ids"]
            self.assertTrue(all(0 <= i < 49152 for i in ids), text)
            self.assertEqual(self.tokenizer.decode(ids), text)

    def test_digits_are_split_before_the_spaces_in_front_of_them(self):
        tokens = self.tokenizer.tokenize("x  2")
        self.assertEqual(tokens, ["x", "ĠĠ", "2"])

    def test_transformers_and_tokenizers_read_the_same_ids(self):
        plain = tokenizers.Tokenizer.from_file(f"{MODEL_DIR}/tokenizer.json")
        for text in AWKWARD + ["<|im_start|>user\nhi<|im_end|>\n", "a<|endoftext|>b"]:
            self.assertEqual(self.tokenizer(text)["input_ids"], plain.encode(text).ids, text)

    def test_special_tokens(self):
        self.assertEqual(len(self.tokenizer), 49152)
        self.assertEqual(self.tokenizer.bos_token_id, 1)
        self.assertEqual(self.tokenizer.eos_token_id, 2)
        self.assertEqual(self.tokenizer.pad_token_id, 2)
        self.assertEqual(self.tokenizer.unk_token_id, 0)
        self.assertEqual(sorted(self.tokenizer.all_special_ids), [0, 1, 2])
        self.assertEqual(self.tokenizer("<|im_end|>")["input_ids"], [2])

    def test_bytes_without_a_token_are_dropped(self):
        self.assertEqual(self.tokenizer("a\x04b\x06c\x13d\x14e\x16f\x1dg")["input_ids"],
                         self.tokenizer.convert_tokens_to_ids(list("abcdefg")))

    def test_a_simple_question_is_answered_and_the_answer_ends(self):
        messages = [{"role": "user", "content": "What is the capital of France?"}]
        prompt = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        self.assertTrue(prompt.startswith("<|im_start|>system\n"))
        ids = self.tokenizer(prompt, return_tensors="pt")["input_ids"]
        self.assertEqual(ids[0, 0].item(), 1)
        self.assertNotEqual(ids[0, 1].item(), 1)  # BOS is in the template and must not be added again
        out = self.model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=48)
        answer = out[0, ids.shape[1]:].tolist()
        self.assertEqual(answer[-1], 2)
        self.assertIn("The capital of France is Paris", self.tokenizer.decode(answer, skip_special_tokens=True))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    MODEL_DIR = sys.argv.pop(1)
    unittest.main()
