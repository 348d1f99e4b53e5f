#!/usr/bin/env python3
"""Random strings of all planes: token ids equal to the `tokenizers` library's, with the target models' real vocabularies.

Usage: tokenizer_fuzz.py TOKENIZE_LINES MODEL_DIR [--strings 10000] [--seed 1] [--only NAME]
MODEL_DIR is the sample model's directory. Prints a line a tokenizer; the exit code is 1 when one string differs.
"""

import argparse
import json
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import unicodedata

import real_tokenizers
import tokenizers

BATCH = 5000
EDGES = list("'sStTrRvVlLmMdD019 \t\r\n\v\f\u00a0\u2003\u3000\u180e\u200b\u200d\u2028\u0085\ufeff.,!?-_()[]{}<>|#\"\\/") + [
    "'ll", "'Re", "'ſ", "\r\n", "  ", "\n\n", " \n", "½", "Ⅷ", "٣", "𝟘", "e\u0301", "ẛ\u0323", "가", "\u1100\u1161\u11a8", "ﬁ", "Å",
    "\u0344", "👩‍👩‍👧", "🇩🇪", "日本", "カ\u3099", "İ", "ß", "\U0001d15e", "\U0010fffd", "\ue000", "�"]  # fmt: skip


def alphabets():
    """Characters of Unicode 14, which all libraries know alike, by plane and by script's neighbourhood."""
    assigned = [c for c in map(chr, range(0x110000)) if unicodedata.category(c) not in ("Cs", "Cn", "Co")]
    private = [chr(c) for c in (*range(0xE000, 0xF900, 97), *range(0xF0000, 0x10FFFE, 4099))]
    blocks = [assigned[i : i + 128] for i in range(0, len(assigned), 128)]
    marks = [c for c in assigned if unicodedata.combining(c)]
    planes = [[c for c in assigned if ord(c) >> 16 == plane] for plane in range(17)]
    return {"assigned": assigned, "private": private, "blocks": blocks, "marks": marks,
            "planes": [plane for plane in planes if plane],
            "decomposable": [c for c in assigned if unicodedata.decomposition(c)]}  # fmt: skip


def random_string(rng, sets, specials):
    kind, length = rng.random(), min(1 + int(rng.expovariate(1 / 14)), 300)
    if kind < 0.25:  # a few neighbours, with spaces and edges between
        pool = rng.choice(sets["blocks"])
        return "".join(rng.choice(pool) if rng.random() < 0.7 else rng.choice(EDGES) for _ in range(length))
    if kind < 0.45:
        return "".join(rng.choice(EDGES) for _ in range(length))
    if kind < 0.6:  # letters that carry marks
        pool = sets["decomposable"] if rng.random() < 0.5 else sets["assigned"]
        return "".join(rng.choice(pool) + "".join(rng.choices(sets["marks"], k=rng.randint(0, 3))) for _ in range(length // 2 + 1))
    if kind < 0.75:
        return "".join(rng.choice(rng.choice(sets["planes"])) for _ in range(length))
    if kind < 0.8:
        return "".join(rng.choice(sets["private"] if rng.random() < 0.5 else EDGES) for _ in range(length))
    if kind < 0.9:
        return "".join(rng.choice(specials) if rng.random() < 0.3 else rng.choice(EDGES) for _ in range(length))
    word = "".join(rng.choices("etaoinshrdluETAON0123456789 '", k=rng.randint(1, 12)))
    return (word + rng.choice(EDGES)) * rng.randint(1, 30)


def compare(program, directory, options):
    rng = random.Random(options.seed)
    sets = alphabets()
    text = (directory / "tokenizer.json").read_text(encoding="utf-8")
    specials = [token["content"] for token in json.loads(text)["added_tokens"]]
    reference = tokenizers.Tokenizer.from_str(text)
    lacks_bytes = not set(tokenizers.pre_tokenizers.ByteLevel.alphabet()) <= reference.get_vocab().keys()
    num_wrong = num_characters = 0
    for begin in range(0, options.strings, BATCH):
        strings = [random_string(rng, sets, specials) for _ in range(min(BATCH, options.strings - begin))]
        lines = "".join(json.dumps({"text": s, "add_special_tokens": False}) + "\n" for s in strings)
        # A file: two pipes, both full, would wait for each other.
        with tempfile.TemporaryFile() as requests:
            requests.write(lines.encode())
            requests.seek(0)
            answers = subprocess.run([program, str(directory)], stdin=requests, capture_output=True, check=True).stdout
        answers = [json.loads(line) for line in answers.decode().split("\n")[:-1]]
        assert len(answers) == len(strings)
        expected = reference.encode_batch(strings, add_special_tokens=False)
        for string, ours, theirs in zip(strings, answers, expected):
            num_characters += len(string)
            same = ours["ids"] == theirs.ids and ours["ids_with_ends"] == theirs.ids
            # The sample model's vocabulary lacks some bytes, which vanish; the library's offsets after one are too small.
            vanished = lacks_bytes and reference.decode(theirs.ids, skip_special_tokens=False) != string
            if not vanished and unicodedata.normalize("NFC", string) == string:
                same = same and ours["ends"] == [end for _, end in theirs.offsets]
            if not same:
                num_wrong += 1
                if num_wrong <= 5:
                    print(f"  {string!r}: {ours['ids']}, expected {theirs.ids}")
    return num_characters, num_wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("program")
    parser.add_argument("model_dir", type=pathlib.Path)
    parser.add_argument("--strings", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        for name in ("smollm2", "gpt2", *real_tokenizers.NAMES):
            if not re.search(options.only, name):
                continue
            if name == "smollm2":
                directory = options.model_dir
            elif name == "gpt2":
                directory = write_gpt2(options.model_dir, pathlib.Path(folder))
            else:
                directory = real_tokenizers.write(name, folder)
            num_characters, num_wrong = compare(options.program, directory, options)
            print(f"{name}: {options.strings} strings, {num_characters} characters, {num_wrong} differ", flush=True)
            failed = failed or num_wrong > 0
    sys.exit(failed)


def write_gpt2(model_dir, folder):
    """The sample model's vocabulary behind GPT-2's pre-tokenizer, which splits digits later than SmolLM2's."""
    description = json.loads((model_dir / "tokenizer.json").read_text(encoding="utf-8"))
    description["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    (folder / "gpt2").mkdir()
    (folder / "gpt2" / "tokenizer.json").write_text(json.dumps(description, ensure_ascii=False), encoding="utf-8")
    return folder / "gpt2"


if __name__ == "__main__":
    main()
