"""Tiny base models with random adapters, exported by `dms export`; those for transformers loaded as users load them.

Makes a temporary directory when imported, because transformers reads HF_MODULES_CACHE when it is.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
TEMPORARY = tempfile.mkdtemp(prefix="dms-export-")
os.environ["HF_MODULES_CACHE"] = os.path.join(TEMPORARY, "modules")  # read when transformers is imported

import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers  # noqa: E402

from dms_dense import dense_logits  # noqa: E402

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

SIZES = dict(
    hidden_size=48, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2, intermediate_size=64,
    vocab_size=97, max_position_embeddings=4096, tie_word_embeddings=True, initializer_range=0.3,
    bos_token_id=None, eos_token_id=None, pad_token_id=0, rms_norm_eps=1e-5,
)  # fmt: skip
FAMILIES = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(
        rope_parameters=dict(rope_type="llama3", rope_theta=500.0, factor=8.0, low_freq_factor=1.0,
                             high_freq_factor=4.0, original_max_position_embeddings=32), **SIZES)),
    "qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(
        rope_parameters=dict(rope_type="default", rope_theta=1000.0), **SIZES)),
    "qwen3": lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(
        rope_parameters=dict(rope_type="default", rope_theta=1000.0), head_dim=16, **SIZES)),
}  # fmt: skip
HEAD_DIM = {"llama": 8, "qwen2": 8, "qwen3": 16}


def make_base(family, path):
    """A random base model whose biases and norms are far from their initial zeros and ones, saved by transformers."""
    model = FAMILIES[family]()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.copy_(1 + 0.3 * torch.randn_like(parameter))
            elif name.endswith(".bias"):
                parameter.copy_(torch.randn_like(parameter))
    model.save_pretrained(path)
    vocabulary = {chr(33 + i): i for i in range(90)} | {f"<{i}>": i for i in range(90, 97)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(os.path.join(path, "tokenizer.json"))
    with open(os.path.join(path, "tokenizer_config.json"), "w") as file:
        json.dump({"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "!"}, file)


def base_hash(path):
    """The identity of a base model of one weight file, as checkpoints/model_dir.h defines it."""
    file = os.path.join(path, "model.safetensors")
    with open(file, "rb") as stream:
        data = stream.read()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    header.pop("__metadata__", None)
    lines = "".join(f"{name} {entry['dtype']} {entry['shape']}\n" for name, entry in sorted(header.items()))
    lines += hashlib.sha256(data).hexdigest() + "\n"
    return hashlib.sha256(lines.encode()).hexdigest()


def make_sidecar(family, path, base, adapter, rank=0, bias="per_head", channel="any", turned=False, **settings):
    """Random adapters that evict about half of the tokens.

    channel: "last" borrows the last channel of random heads; "pair": either channel of the last rotary pair. turned: by
    random angles.
    """
    layers, kv_heads, width = SIZES["num_hidden_layers"], SIZES["num_key_value_heads"], SIZES["hidden_size"]
    group = SIZES["num_attention_heads"] // kv_heads
    tensors = {}
    for layer in range(layers):
        prefix = f"model.layers.{layer}.self_attn."
        if adapter == "linear":
            tensors[prefix + "dms_proj_alpha.weight"] = torch.randn(kv_heads, width) * 0.02
            tensors[prefix + "dms_proj_alpha_norm.weight"] = 1 + 0.3 * torch.randn(width)
            name = "dms_proj_alpha.bias"
        else:
            name = "dms_neuron.bias"
            if rank == 0:
                tensors[prefix + "dms_neuron.weight"] = torch.randn(kv_heads, width) * 0.02
            else:
                tensors[prefix + "dms_neuron.lora_A.weight"] = torch.randn(rank, width) * 0.2
                tensors[prefix + "dms_neuron.lora_B.weight"] = torch.randn(kv_heads, rank) * 0.1
            head = torch.arange(kv_heads) * group + torch.randint(group, (kv_heads,))
            size = HEAD_DIM[family]
            index = torch.randint(size, (kv_heads,))
            if channel == "last":
                index = torch.full((kv_heads,), size - 1)
            elif channel == "pair":
                index = size // 2 - 1 + size // 2 * torch.randint(2, (kv_heads,))
            tensors[prefix + "dms_neuron.index"] = torch.stack([head, index], 1)
            if turned:
                tensors[prefix + "dms_neuron.angle"] = torch.rand(kv_heads) * 6 - 3
        if bias == "per_head":
            tensors[prefix + name] = torch.randn(kv_heads) * 3 + 5
    config = dict(
        format="dms-adapters", version=1, adapter=adapter, bias=bias, rank=rank, alpha_scale=100.0, alpha_offset=5.0,
        window=6, decision_shift=1, zero_after_rope=False, attend_across_documents=True, target_cr=4.0, step=10,
        sequence_length=64, base_model="tiny", base_sha256=base_hash(base), recipe_sha256="", created_by="test",
    ) | settings  # fmt: skip
    os.makedirs(path)
    metadata = {key: value if isinstance(value, str) else json.dumps(value) for key, value in config.items()}
    metadata |= {key: f"{value:g}" for key, value in config.items() if isinstance(value, float)}
    save_file(tensors, os.path.join(path, "adapters.safetensors"), metadata)
    with open(os.path.join(path, "dms_config.json"), "w") as file:
        json.dump(config, file)
    return config


def portable_config(path):
    """config.json as dense_logits reads it: rope_theta and rope_scaling apart, whichever release wrote it."""
    with open(os.path.join(path, "config.json")) as file:
        config = json.load(file)
    if "rope_parameters" in config:
        rope = dict(config["rope_parameters"])
        config["rope_theta"] = rope.pop("rope_theta")
        config["rope_scaling"] = rope if rope["rope_type"] != "default" else None
    return config


def run_export(program, *arguments):
    return subprocess.run([program, "export", *arguments], capture_output=True, text=True)


def hard_path(sample, model_dir, adapters, tokens, chunk):
    """Logits [T, V] and eviction logits, one [G, T] a layer, by `dms eval`'s hard path in chunks of that length.

    sample: the program hard_logits_sample.
    """
    ids, out = os.path.join(TEMPORARY, "ids"), os.path.join(TEMPORARY, "hard.safetensors")
    with open(ids, "w") as file:
        file.write(" ".join(map(str, tokens)))
    subprocess.run([sample, model_dir, adapters, ids, str(chunk), out], check=True)
    tensors = load_file(out)
    return tensors.pop("logits"), [tensors[f"eviction.{layer}"] for layer in range(len(tensors))]


class Exported:
    """A base model, a sidecar and the directory exported from them, with the dense reference beside it."""

    def __init__(self, program, name, target, family, seed=0, **sidecar):
        torch.manual_seed(seed)
        root = os.path.join(TEMPORARY, name)
        self.base, self.sidecar, self.path = (os.path.join(root, part) for part in ("base", "sidecar", "export"))
        os.makedirs(self.base)
        make_base(family, self.base)
        self.dms = make_sidecar(family, self.sidecar, self.base, **sidecar)
        done = run_export(program, "--run", self.sidecar, "--model", self.base, "--to", target, "--out", self.path)
        if done.returncode != 0:
            raise RuntimeError(done.stderr)
        self.config = portable_config(self.base)
        self.weights = load_file(os.path.join(self.base, "model.safetensors"))
        self.weights |= load_file(os.path.join(self.sidecar, "adapters.safetensors"))

    def dense(self, tokens, evict=True, call_starts=None):
        return dense_logits(self.config, self.dms, self.weights, tokens, evict, call_starts)


class Export(Exported):
    """One for transformers, loaded.

    `overrides`: DMS settings set at loading, for values that the trainer does not offer but the model code handles.
    """

    def __init__(self, program, name, family, overrides=None, **options):
        super().__init__(program, name, "hf", family, **options)
        self.overrides = {f"dms_{key}": value for key, value in (overrides or {}).items()}
        self.dms |= overrides or {}
        self.model = self.load()

    def load(self, **options):
        options.setdefault("dtype", torch.float32)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            self.path, trust_remote_code=True, **self.overrides, **options
        )
        return model.eval()


def random_tokens(*shape, seed=1):
    return torch.randint(1, SIZES["vocab_size"], shape, generator=torch.Generator().manual_seed(seed))


def cache_module(model):
    """The exported cache_dms.py as the model imported it."""
    return sys.modules[type(model).__module__.rsplit(".", 1)[0] + ".cache_dms"]
