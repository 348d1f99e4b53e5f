#!/usr/bin/env python3
"""Token ids and decoded text equal to the `tokenizers` library, on awkward strings and on real text.

Usage: tokenizer_reference.py TOKENIZE_LINES MODEL_DIR
TOKENIZE_LINES is the test program of that name; MODEL_DIR the sample model's directory.  The other families'
tokenizers are not at hand, so their pre-tokenizers, normaliser, added tokens and post-processor are put on a vocabulary
trained here: what differs between families is everything but the vocabulary.
"""

import functools
import json
import pathlib
import random
import subprocess
import sys
import sysconfig
import tempfile
import unicodedata
import unittest

import tokenizers

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
TOKENIZE_LINES = None
MODEL_DIR = None

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "<|begin_of_text|>", "<｜User｜>", "<tool>", "[w]"]
FRAGMENTS = [
    "'s", "'S", "'ll", "'LL", "'re", "'ſ", "don't", "’s", "I'VE", "'", "a", "Z", "the", " the", "  ", "   ", "\t", "\n", "\r\n",
    "\n\n", " \n", "\n ", "\u00a0", "\u2003", "\u3000", "\u180e", "\u200b", "\u200d", "\u2028", "\u0085", "\x0b", "\x0c", "\x1c",
    "\x1f", "\x00", "\x01", "\x7f", "\ufeff", "0", "7", "12", "123", "1234", "½", "²", "Ⅷ", "٣", "〇", "一", "𝟘", "①", ".", ",",
    "!", "?!", "...", "--", "://", "{", "}", "()", "#", "_", "__init__", "é", "e\u0301", "e\u0323\u0301", "\u0301", "ﬁ", "Å", "Å",
    "ö", "o\u0308", "ẛ\u0323", "가", "가", "각", "日本", "漢字", "مرحبا", "עִבְרִית", "हिन्दी", "ไทย", "👩‍👩‍👧", "🏳️‍🌈", "🇩🇪", "✨", "𐍈", "𝔘",
    "\U000e0041", "\U0010fffd", "\uffff", "\ue000", "�", "ß", "İ", "ı", "ŉ", "K", "Ω",
]


# Code points that the 128 ASCII bytes have in a byte-level vocabulary.
BYTE_ALPHABET = {b: chr(b) if 33 <= b <= 126 else chr(256 + (b if b < 33 else 33)) for b in range(128)}


@functools.cache
def awkward_strings():
    """A fixed few thousand: each fragment, pairs, mixes, every block of all planes, long runs."""
    rng = random.Random(20240607)
    strings = ["", *FRAGMENTS, *SPECIALS]
    strings += [a + b for a in FRAGMENTS for b in rng.sample(FRAGMENTS, 6)]
    pool = FRAGMENTS + SPECIALS
    strings += ["".join(rng.choices(pool, k=rng.randint(3, 40))) for _ in range(1000)]
    strings += ["".join(rng.choices(" \t\n\r\u00a0\u2003ab1.", k=rng.randint(2, 30))) for _ in range(300)]
    assigned = [c for c in map(chr, range(0x110000)) if known_to_all(c)]
    for start in range(0, len(assigned), 97):
        block = assigned[start:start + 97]
        strings.append("".join(block))
        strings.append("a " + " ".join(rng.sample(block, min(20, len(block)))) + " 1")
    marks = [c for c in assigned if unicodedata.combining(c)]
    strings += ["a" + c + "\u0345\u0323" + c + "\u0334" for c in marks]
    strings += ["".join(rng.sample(marks, 12)) for _ in range(200)]
    strings += [c * n for c in " \n\ta1.é😀" for n in (2, 3, 4, 7, 8, 64, 65, 1000)]
    return strings


def known_to_all(character):
    """Characters of Unicode 14, Python 3.11's; libraries know different sets of newer ones, and no surrogates."""
    category = unicodedata.category(character)
    return category not in ("Cs", "Cn")


@functools.cache
def real_texts():
    """Over half a megabyte: the sample text where it was made, this machine's documentation, Python's own library."""
    texts, size = [], 0
    stdlib = sysconfig.get_paths()["stdlib"]
    for root, pattern in ((REPOSITORY / "quickstart/text", "**/*.txt"), ("/usr/share/doc", "*/README*"),
                          ("/usr/share/doc", "*/NEWS*"), ("/usr/share/i18n/locales", "*"), (stdlib, "*.py")):
        for path in sorted(pathlib.Path(root).glob(pattern))[:40]:
            if path.suffix == ".gz" or not path.is_file():
                continue
            text = path.read_bytes()[:60_000].decode("utf-8", errors="ignore")
            texts.append(text)
            size += len(text)
    return texts, size


def ours(model_dir, texts, add_special_tokens):
    lines = "".join(json.dumps({"text": t, "add_special_tokens": add_special_tokens}) + "\n" for t in texts)
    run = subprocess.run([TOKENIZE_LINES, str(model_dir)], input=lines, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in run.stdout.split("\n")[:-1]]


class TokenizerCase(unittest.TestCase):
    def compare(self, model_dir, texts, add_special_tokens=False, round_trip=True):
        reference = tokenizers.Tokenizer.from_file(str(model_dir / "tokenizer.json"))
        results = ours(model_dir, texts, add_special_tokens)
        self.assertEqual(len(results), len(texts))
        vocab = json.loads(reference.to_str())["model"]["vocab"]
        lost = {byte: None for byte in range(128) if BYTE_ALPHABET[byte] not in vocab}  # dropped when encoding
        wrong = []
        for text, result in zip(texts, results):
            expected = reference.encode(text, add_special_tokens=add_special_tokens).ids
            if result["ids"] != expected:
                wrong.append(f"ids of {text[:200]!r}: {result['ids'][:60]}, expected {expected[:60]}")
            elif result["decoded"] != reference.decode(expected, skip_special_tokens=False):
                wrong.append(f"decoded {text[:200]!r}: {result['decoded'][:200]!r}")
            elif result["decoded_without_special"] != reference.decode(expected):
                wrong.append(f"decoded without special {text[:200]!r}: {result['decoded_without_special'][:200]!r}")
            elif round_trip and result["decoded"] != text.translate(lost):
                wrong.append(f"round trip of {text[:200]!r}: {result['decoded'][:200]!r}")
        self.assertEqual(wrong, [], f"{len(wrong)} of {len(texts)} texts differ: " + "\n".join(wrong[:10]))


class SampleModel(TokenizerCase):
    def test_awkward_strings(self):
        texts = awkward_strings()
        self.assertGreater(len(texts), 4000)
        self.compare(MODEL_DIR, texts)

    def test_real_text(self):
        texts, size = real_texts()
        self.assertGreater(size, 500_000)
        self.compare(MODEL_DIR, texts)

    def test_digits_split_before_spaces(self):
        self.assertEqual(len(ours(MODEL_DIR, ["x  2"], False)[0]["ids"]), 3)


@functools.cache
def trained_vocabulary():
    """tokenizer.json of a byte-level vocabulary of 3,000."""
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.train_from_iterator(
        real_texts()[0][::4] + FRAGMENTS,
        tokenizers.trainers.BpeTrainer(vocab_size=3000, show_progress=False,
                                       initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()))
    return trained.to_str()


class OtherFamilies(TokenizerCase):
    """Each family's tokenizer.json around a vocabulary of 3,000 trained on the sample texts."""

    def check(self, normalizer, pre_tokenizer, post_processor=None, ignore_merges=False, normalized_added=False):
        description = json.loads(trained_vocabulary())
        description["model"]["ignore_merges"] = ignore_merges
        if ignore_merges:  # entries that merging does not reach: only the rule can give these ids
            for word in ("Ġdocumentationalised", "zqxj"):
                description["model"]["vocab"][word] = len(description["model"]["vocab"])
        size = len(description["model"]["vocab"])
        description["added_tokens"] = [
            {"id": size + i, "content": content, "single_word": content == "[w]", "lstrip": content == "<tool>",
             "rstrip": content in ("<tool>", "<think>"), "normalized": normalized_added and content in ("<think>", "[w]"),
             "special": content not in ("<think>", "<｜User｜>")}
            for i, content in enumerate(SPECIALS)]
        description.update(normalizer=normalizer, pre_tokenizer=pre_tokenizer, post_processor=post_processor,
                           decoder={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True})
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            (folder / "tokenizer.json").write_text(json.dumps(description), encoding="utf-8")
            texts = awkward_strings() + real_texts()[0][::5] + ["zqxj documentationalised", "a[w]b [w] é[w] _[w]_ -[w]-"]
            for add_special_tokens in (False, True):
                # NFC, and tokens that swallow white space, do not give every text back.
                self.compare(folder, texts, add_special_tokens, round_trip=False)

    @staticmethod
    def split(pattern):
        return {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]}

    @staticmethod
    def template(token, ids):
        return {"type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {token: {"id": token, "ids": ids, "tokens": [token]}}}

    def test_gpt2(self):
        self.check(None, {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True})

    def test_qwen2(self):
        self.check({"type": "NFC"}, self.split(QWEN2))

    def test_normalized_added_tokens(self):
        self.check({"type": "Sequence", "normalizers": [{"type": "NFC"}]}, self.split(QWEN2), normalized_added=True)

    def test_llama3(self):
        post_processor = {"type": "Sequence", "processors": [
            {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
            self.template("<|begin_of_text|>", [3004])]}
        self.check(None, self.split(LLAMA3), post_processor, ignore_merges=True)

    def test_digit_runs(self):
        self.check(None, {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}]})


if __name__ == "__main__":
    TOKENIZE_LINES = sys.argv[1]
    MODEL_DIR = pathlib.Path(sys.argv[2])
    del sys.argv[1:3]
    unittest.main(verbosity=2)
