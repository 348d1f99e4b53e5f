#!/usr/bin/env python3
"""How fast this program tokenizes beside the `tokenizers` library: same text, same threads, alternating rounds.

Usage: tokenizer_speed.py TOKENIZE_SPEED TOKENIZER_DIR TEXT_FILE [--threads 2] [--rounds 3]
Prints a line a round and the ratio of medians.  Both get documents of about 10 kB; the library its fastest call.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import time


def documents(text):
    """As tokenize_speed.cpp cuts them."""
    begin = 0
    while begin < len(text):
        line_end = text.find(b"\n", min(begin + 10_000, len(text)))
        end = len(text) if line_end < 0 else line_end + 1
        yield text[begin:end].decode(errors="replace")
        begin = end


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("program")
    parser.add_argument("tokenizer")
    parser.add_argument("text")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    os.environ["RAYON_NUM_THREADS"] = str(options.threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    import tokenizers

    text = pathlib.Path(options.text).read_bytes()
    batch = list(documents(text))
    speeds = {"ours": [], "tokenizers": []}
    for _ in range(options.rounds):
        command = [options.program, options.tokenizer, options.text, str(options.threads)]
        ours = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        library = tokenizers.Tokenizer.from_file(os.path.join(options.tokenizer, "tokenizer.json"))
        begin = time.perf_counter()
        num_tokens = sum(len(e.ids) for e in library.encode_batch_fast(batch, add_special_tokens=False))
        seconds = time.perf_counter() - begin
        if num_tokens != ours["tokens"]:
            raise SystemExit(f"different tokens: {ours['tokens']} here, {num_tokens} there")
        speeds["ours"].append(ours["bytes"] / ours["seconds"] / 1e6)
        speeds["tokenizers"].append(len(text) / seconds / 1e6)
        print({name: round(values[-1], 1) for name, values in speeds.items()}, "MB/s", flush=True)
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    print(f"{medians['ours'] / medians['tokenizers']:.2f} times the library's {medians['tokenizers']:.1f} MB/s")


if __name__ == "__main__":
    main()
