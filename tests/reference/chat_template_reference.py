#!/usr/bin/env python3
"""`dms prepare` on conversations: tokens and loss masks equal transformers' apply_chat_template.

Usage: chat_template_reference.py PATH_TO_DMS MODEL_DIR          (MODEL_DIR: the sample model)
"""

import functools
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import unittest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import chat_templates  # noqa: E402
import h5py  # noqa: E402
import real_tokenizers  # noqa: E402
import transformers  # noqa: E402

transformers.logging.set_verbosity_error()
PROGRAM = SAMPLE_MODEL = None
DATE = "03 Feb 2025"
TEMPORARY = tempfile.TemporaryDirectory()

PIECES = ["hello", " there", "\n", "\n\n", "  ", "\t", "1492", "é", "e\u0301", "ｅ", "日本語", "🙂", "\u00a0", "\u3000x", "</s>", "'s",
          "<|im_end|>", "<｜User｜>", "{{ x }}", "{% if %}", "\\n", "\u0301", "ﬁ", "가", "x=1;", '"quoted"', "<b>&amp;", "..."]  # fmt: skip


def words(rng, low=0):
    return "".join(rng.choices(PIECES, k=rng.randint(low, 12)))


def answer(rng):
    shape = rng.random()
    if shape < 0.5:
        return words(rng)
    ends = rng.choice(["\n</think>\n\n", "</think>", "\n\n</think>\n", "</think></think>"])
    return rng.choice(["<think>\n", "<think>", "", "\n<think>\n\n"]) + words(rng) + ends + words(rng)


@functools.cache
def conversations(with_system=True, plain=False):
    rng = random.Random(7)
    result = []
    for _ in range(150):
        conversation = []
        if with_system and rng.random() < 0.4:
            conversation.append({"role": "system", "content": words(rng)})
        for _ in range(rng.randint(1, 3)):
            conversation.append({"role": "user", "content": words(rng, 1)})
            text = words(rng) if plain else answer(rng)
            conversation.append({"role": "assistant", "content": text})
        result.append(conversation)
    return result


@functools.cache
def tokenizer_dir(name):
    return real_tokenizers.write(name, TEMPORARY.name)


@functools.cache
def model_dir(tokenizer, template):
    path = pathlib.Path(TEMPORARY.name) / f"{tokenizer}-{abs(hash(template))}"
    path.mkdir()
    os.link(tokenizer_dir(tokenizer) / "tokenizer.json", path / "tokenizer.json")
    shutil.copy(tokenizer_dir(tokenizer) / "tokenizer_config.json", path)
    (path / "chat_template.jinja").write_text(template, encoding="utf-8")
    return path


@functools.cache
def reference_tokenizer(path):
    config = json.loads((path / "tokenizer_config.json").read_text(encoding="utf-8"))
    template = config.get("chat_template")
    if (path / "chat_template.jinja").exists():
        template = (path / "chat_template.jinja").read_text(encoding="utf-8")
    tokens = {key: config[key] for key in ("bos_token", "eos_token") if config.get(key)}
    return transformers.PreTrainedTokenizerFast(tokenizer_file=str(path / "tokenizer.json"), chat_template=template, **tokens)


class ChatCase(unittest.TestCase):
    def prepare(self, path, data, *options):
        """Tokens and mask of each document, and the file's attributes."""
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        source, out = pathlib.Path(directory.name) / "chat.jsonl", pathlib.Path(directory.name) / "out.h5"
        source.write_text("".join(json.dumps({"messages": c}) + "\n" for c in data))
        command = [PROGRAM, "prepare", "--tokenizer", path, "--out", out, "--date", DATE, *options, source]
        done = subprocess.run(command, capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        with h5py.File(out) as file:
            offsets, tokens = file["documents/offsets"][:], file["tokens"][:]
            mask = file["loss_mask"][:] if "loss_mask" in file else None
            attributes = dict(file.attrs)
        documents = [(tokens[a:b].tolist(), None if mask is None else mask[a:b].tolist()) for a, b in zip(offsets, offsets[1:])]
        return documents, attributes

    def compare(self, path, data, *options):
        documents, attributes = self.prepare(path, data, *options)
        tokenizer = reference_tokenizer(path)
        self.assertEqual(len(documents), len(data))
        targets = 0
        for conversation, (tokens, mask) in zip(data, documents):
            expected = tokenizer.apply_chat_template(
                conversation, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, date_string=DATE)
            self.assertEqual(tokens, expected["input_ids"], conversation)
            # A position counts when the token after it is the assistant's.
            self.assertEqual(mask, expected["assistant_masks"][1:] + [0], conversation)
            targets += sum(mask)
        self.assertGreater(targets, 10 * len(data))
        return attributes


class Families(ChatCase):
    def test_built_in_in_place_of_the_models_own(self):
        for name, (template, tokenizer, built_in) in chat_templates.FAMILIES.items():
            with self.subTest(name):
                # R1's own deletes reasoning; r1-raw is what it would be without that.
                reference = chat_templates.R1_RAW if built_in == "r1-raw" else template
                attributes = self.prepare(model_dir(tokenizer, template), conversations()[:2])[1]
                self.assertEqual(attributes["template"], built_in)
                self.assertEqual(attributes["date_string"], DATE)
                attributes = self.compare(model_dir(tokenizer, reference), conversations(), "--template", built_in)
                self.assertEqual(attributes["template"], built_in)

    def test_jinja_itself(self):
        for name, (template, tokenizer, _) in chat_templates.FAMILIES.items():
            with self.subTest(name):
                attributes = self.compare(model_dir(tokenizer, template), conversations(), "--template", "jinja")
                self.assertEqual(attributes["template"], "jinja")

    def test_r1_as_its_template_says(self):
        self.compare(model_dir("r1-distill-qwen", chat_templates.R1), conversations(), "--template", "r1")

    def test_another_template_is_not_taken_for_a_family(self):
        other = chat_templates.QWEN_25.replace("'\\n' }}\n{%- endfor", "'\\n\\n' }}\n{%- endfor")
        self.assertNotEqual(other, chat_templates.QWEN_25)
        attributes = self.compare(model_dir("qwen2.5", other), conversations())
        self.assertEqual(attributes["template"], "jinja")


class Unmarked(ChatCase):
    """Templates that do not say which words are the assistant's: told from what each turn adds."""

    def masked_text(self, path, documents):
        tokenizer = reference_tokenizer(path)
        return ["".join(tokenizer.decode(t) if m else "·" for t, m in zip(tokens[1:], mask)) for tokens, mask in documents]

    def test_the_sample_model(self):
        data = conversations(plain=True)
        documents, attributes = self.prepare(SAMPLE_MODEL, data)
        self.assertEqual(attributes["template"], "chatml")
        self.assertEqual(documents, self.prepare(SAMPLE_MODEL, data, "--template", "jinja")[0])
        tokenizer = reference_tokenizer(SAMPLE_MODEL)
        for conversation, (tokens, _) in zip(data, documents):
            self.assertEqual(tokens, tokenizer.apply_chat_template(conversation, return_dict=False))
        everything = self.prepare(SAMPLE_MODEL, data, "--loss-on", "all")[0]
        self.assertEqual(everything, [(tokens, None) for tokens, _ in documents])

    def test_generate_asks_in_the_template(self):
        messages = [{"role": "system", "content": "Answer in French."}, {"role": "user", "content": "What is red?"}]
        text = reference_tokenizer(SAMPLE_MODEL).apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        answers = []
        for prompt in (["--prompt", text], ["--chat", "--system", messages[0]["content"], "--prompt", messages[1]["content"]]):
            command = [PROGRAM, "generate", "--model", SAMPLE_MODEL, "--max-new-tokens", "12", "--temperature", "0", *prompt]
            answers.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        self.assertGreater(len(answers[0]), 10)
        self.assertEqual(*answers)

    def test_a_template_of_no_family(self):
        path = model_dir("qwen2.5", chat_templates.INST)
        data = [[{"role": "user", "content": "question"}, {"role": "assistant", "content": "an answer"},
                 {"role": "user", "content": "more"}, {"role": "assistant", "content": "of it"}]]  # fmt: skip
        config = json.loads((path / "tokenizer_config.json").read_text())
        (path / "tokenizer_config.json").write_text(json.dumps(config | {"bos_token": "<|endoftext|>"}))
        documents, attributes = self.prepare(path, data)
        self.assertEqual(attributes["template"], "jinja")
        text = self.masked_text(path, documents)[0]
        self.assertEqual(text.replace("·", ""), " an answer<|im_end|> of it<|im_end|>")

    def test_what_a_template_refuses_is_said(self):
        path = model_dir("qwen2.5", chat_templates.INST)
        with self.assertRaisesRegex(AssertionError, r"chat.jsonl:1: .*no system turns here"):
            self.prepare(path, [[{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]])

    def test_rewritten_turns_need_a_choice(self):
        unmarked = chat_templates.QWEN_3.replace("{%- generation %}", "").replace("{% endgeneration %}", "")
        path = model_dir("qwen3", unmarked)
        data = [[{"role": "user", "content": "a"}, {"role": "assistant", "content": "<think>x</think>b"},
                 {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]]  # fmt: skip
        with self.assertRaisesRegex(AssertionError, "--loss-on all"):
            self.prepare(path, data, "--template", "jinja")
        documents, attributes = self.prepare(path, data, "--template", "jinja", "--loss-on", "all")
        tokenizer = reference_tokenizer(path)
        self.assertEqual(documents[0], (tokenizer.apply_chat_template(data[0], return_dict=False), None))
        self.assertEqual(self.prepare(path, data)[1]["template"], "qwen3")  # the built-in knows


if __name__ == "__main__":
    PROGRAM, SAMPLE_MODEL = os.path.abspath(sys.argv[1]), pathlib.Path(sys.argv[2])
    del sys.argv[1:3]
    try:
        unittest.main(verbosity=2)
    finally:
        TEMPORARY.cleanup()
