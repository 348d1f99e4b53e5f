"""Random models and token files to try `dms` on; needs nothing but Python.

A model is a Llama directory in Hugging Face's layout with float32 weights and a byte-level tokenizer without merges.
"""

import dataclasses
import json
import random
import struct
import subprocess


@dataclasses.dataclass(frozen=True)
class Shape:
    layers: int = 2
    hidden: int = 32
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 8
    inner: int = 64
    vocabulary: int = 300  # at least 258: two special tokens and 256 bytes
    tied: bool = True

    def tensors(self):
        """Name -> shape, as a file holds them."""
        shapes = {"model.embed_tokens.weight": (self.vocabulary, self.hidden), "model.norm.weight": (self.hidden,)}
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        for i in range(self.layers):
            prefix = f"model.layers.{i}."
            shapes |= {
                prefix + "input_layernorm.weight": (self.hidden,),
                prefix + "post_attention_layernorm.weight": (self.hidden,),
                prefix + "self_attn.q_proj.weight": (queries, self.hidden),
                prefix + "self_attn.k_proj.weight": (keys, self.hidden),
                prefix + "self_attn.v_proj.weight": (keys, self.hidden),
                prefix + "self_attn.o_proj.weight": (self.hidden, queries),
                prefix + "mlp.gate_proj.weight": (self.inner, self.hidden),
                prefix + "mlp.up_proj.weight": (self.inner, self.hidden),
                prefix + "mlp.down_proj.weight": (self.hidden, self.inner),
            }
        if not self.tied:
            shapes["lm_head.weight"] = (self.vocabulary, self.hidden)
        return shapes

    def bytes(self):
        return 4 * sum(numel(shape) for shape in self.tensors().values())


def numel(shape):
    return shape[0] * (shape[1] if len(shape) == 2 else 1)


# Gaussian numbers are slow to draw in Python: larger tensors repeat this many.
_DISTINCT = 1 << 16


def _values(rng, count, mean, deviation):
    """Little-endian float32."""
    distinct = min(count, _DISTINCT)
    block = struct.pack(f"<{distinct}f", *(rng.gauss(mean, deviation) for _ in range(distinct)))
    return (block * -(-count // distinct))[: 4 * count]


def write_model(directory, shape=Shape(), seed=5):
    """Into an existing directory."""
    rng = random.Random(seed)
    header, offset = {}, 0
    for name, size in shape.tensors().items():
        end = offset + 4 * numel(size)
        header[name] = {"dtype": "F32", "shape": size, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (directory / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for size in shape.tensors().values():
            mean, deviation = (0.0, size[1] ** -0.5) if len(size) == 2 else (1.0, 0.1)
            file.write(_values(rng, numel(size), mean, deviation))
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim, "intermediate_size": shape.inner, "vocab_size": shape.vocabulary,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": shape.tied, "torch_dtype": "float32", "bos_token_id": 0, "eos_token_id": 1,
    }
    (directory / "config.json").write_text(json.dumps(config))
    _write_tokenizer(directory)


def _write_tokenizer(directory):
    """A byte-level BPE without merges: the 256 bytes, as printable characters."""
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


def write_tokens(dms, model, path, words=4000, seed=1):
    """A token file of random words, with the model's tokenizer."""
    rng = random.Random(seed)
    vocabulary = ["of", "and", "one", "time", "in", "the", "sea", "was", "red", "12", "\n"]
    text = path.with_suffix(".txt")
    text.write_text(" ".join(rng.choice(vocabulary) for _ in range(words)))
    subprocess.run([dms, "prepare", "--tokenizer", model, "--out", path, text], check=True, capture_output=True)
