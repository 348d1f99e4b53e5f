#!/usr/bin/env python3
"""Kills training runs at random points and demands that each resumes to the last bit.

usage: tools/survive_kills.py [--dms build/dms] [--points 200] [--nproc 2] [--seed 1]

Trains a tiny random model once without disturbance.  Then, --points times: starts the same run, sends SIGKILL to its
launcher and all its ranks at a random moment, checks that nothing incomplete has a final name, resumes (on another
number of ranks), and compares losses, adapter and optimizer with the undisturbed run.  Needs nothing but Python.
"""

import argparse
import hashlib
import json
import os
import pathlib
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time

LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INNER, VOCABULARY = 2, 32, 4, 2, 8, 64, 300
STEPS = 10

RECIPE = f"""
model: {{path: model}}
data: {{train: [train.h5]}}
eviction: {{window: 8}}
compression: {{initial: 1.5, final: 2.0, ramp_steps: 4}}
warm_start: {{tokens: 256}}
trainer: {{steps: {STEPS}, global_batch: 4, sequence_length: 64, checkpoint_every: 1, keep: 3, dtype: float32}}
"""


def write_model(directory):
    rng = random.Random(5)
    shapes = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for i in range(LAYERS):
        prefix = f"model.layers.{i}."
        shapes |= {
            prefix + "input_layernorm.weight": (HIDDEN,),
            prefix + "post_attention_layernorm.weight": (HIDDEN,),
            prefix + "self_attn.q_proj.weight": (HEADS * HEAD_DIM, HIDDEN),
            prefix + "self_attn.k_proj.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
            prefix + "self_attn.v_proj.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
            prefix + "self_attn.o_proj.weight": (HIDDEN, HEADS * HEAD_DIM),
            prefix + "mlp.gate_proj.weight": (INNER, HIDDEN),
            prefix + "mlp.up_proj.weight": (INNER, HIDDEN),
            prefix + "mlp.down_proj.weight": (HIDDEN, INNER),
        }
    header, data = {}, b""
    for name, shape in shapes.items():
        count = shape[0] * (shape[1] if len(shape) == 2 else 1)
        scale, mean = (1.0 / shape[1] ** 0.5, 0.0) if len(shape) == 2 else (0.1, 1.0)
        values = struct.pack(f"<{count}f", *(rng.gauss(mean, scale) for _ in range(count)))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(values)]}
        data += values
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": HIDDEN, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM, "intermediate_size": INNER,
        "vocab_size": VOCABULARY, "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "hidden_act": "silu", "tie_word_embeddings": True, "torch_dtype": "float32", "bos_token_id": 0,
        "eos_token_id": 1,
    }
    (directory / "config.json").write_text(json.dumps(config))
    # A byte-level BPE without merges: the 256 bytes, as printable characters.
    printable = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b <= 255]
    characters = {b: chr(b) for b in printable}
    for i, b in enumerate(b for b in range(256) if b not in printable):
        characters[b] = chr(256 + i)
    vocabulary = {"<bos>": 0, "<eos>": 1} | {characters[b]: 2 + b for b in range(256)}
    special = [{"id": i, "content": c, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
                "special": True} for i, c in enumerate(["<bos>", "<eos>"])]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    (directory / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": None,
        "pre_tokenizer": byte_level, "post_processor": None, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": vocabulary, "merges": []}}))
    (directory / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<bos>", "eos_token": "<eos>"}))


def write_inputs(dms, directory, rng):
    """A model, a recipe and a token file."""
    (directory / "model").mkdir()
    write_model(directory / "model")
    (directory / "recipe.yaml").write_text(RECIPE)
    words = ["of", "and", "one", "time", "in", "the", "sea", "was", "red", "12", "\n"]
    (directory / "text.txt").write_text(" ".join(rng.choice(words) for _ in range(4000)))
    subprocess.run([dms, "prepare", "--tokenizer", "model", "--out", "train.h5", "text.txt"], cwd=directory,
                   check=True, capture_output=True)


def outcome(run):
    """What two runs must have in common: losses, adapter, optimizer."""
    losses = [(r["step"], r["loss"], r["grad_norm"]) for r in map(json.loads, (run / "metrics.jsonl").open())]
    last = run / "checkpoints" / f"step-{STEPS:06d}"
    return losses, [(last / f"{n}.safetensors").read_bytes() for n in ("adapters", "optimizer")]


def incomplete_files(run):
    """Checkpoints under a final name that their manifest does not describe to the byte."""
    wrong = []
    for checkpoint in (run / "checkpoints").glob("step-??????"):
        manifest = checkpoint / "manifest.json"
        if not manifest.exists():
            wrong.append(f"{checkpoint.name}: no manifest")
            continue
        for name, listed in json.loads(manifest.read_text())["files"].items():
            data = (checkpoint / name).read_bytes() if (checkpoint / name).exists() else b""
            if len(data) != listed["bytes"] or hashlib.sha256(data).hexdigest() != listed["sha256"]:
                wrong.append(f"{checkpoint.name}/{name}")
    return wrong


class Runs:
    def __init__(self, dms, directory, nproc):
        self.dms, self.directory, self.nproc = dms, directory, nproc
        self.environment = dict(os.environ, OMP_NUM_THREADS="1")

    def command(self, run, nproc, *more):
        return [self.dms, "train", "recipe.yaml", "--run-dir", run, "--nproc", str(nproc), *more]

    def finish(self, run, nproc, *more):
        end = subprocess.run(self.command(run, nproc, *more), cwd=self.directory, env=self.environment,
                             capture_output=True, text=True)
        if end.returncode != 0:
            sys.exit(f"{run}: exit code {end.returncode}\n{end.stderr}")

    def kill_after(self, run, seconds):
        """True when the run was still going."""
        process = subprocess.Popen(self.command(run, self.nproc), cwd=self.directory, env=self.environment,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        time.sleep(seconds)
        going = process.poll() is None
        if going:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return going


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dms", default="build/dms")
    parser.add_argument("--points", type=int, default=200)
    parser.add_argument("--nproc", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)

    with tempfile.TemporaryDirectory(prefix="dms-kills-") as name:
        directory = pathlib.Path(name)
        dms = str(pathlib.Path(arguments.dms).resolve())
        write_inputs(dms, directory, rng)
        runs = Runs(dms, directory, arguments.nproc)
        begin = time.monotonic()
        runs.finish("undisturbed", arguments.nproc)
        duration = time.monotonic() - begin
        expected = outcome(directory / "undisturbed")

        killed = 0
        for point in range(arguments.points):
            run = f"run-{point}"
            seconds = rng.uniform(0.0, duration)
            killed += runs.kill_after(run, seconds)
            wrong = incomplete_files(directory / run)
            if wrong:
                sys.exit(f"point {point}, killed after {seconds:.3f} s: incomplete under a final name: {wrong}")
            runs.finish(run, rng.choice([1, 2, 4]), "--resume")
            if outcome(directory / run) != expected:
                sys.exit(f"point {point}, killed after {seconds:.3f} s: the resumed run differs from the undisturbed one")
            left = [p.name for p in (directory / run / "checkpoints").iterdir() if "." in p.name]
            if left:
                sys.exit(f"point {point}: left behind: {left}")
        if killed == 0:
            sys.exit("no run was killed before it had ended")
        print(f"{arguments.points} of {arguments.points} resumed to the last bit ({killed} killed before their end)")


if __name__ == "__main__":
    main()
