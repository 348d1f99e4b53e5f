"""Tiny base models with random adapters, exported by `dms export --to hf` and loaded as users load them.

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


def make_sidecar(family, path, base, adapter, rank=0, bias="per_head", **settings):
    """Random adapters that evict about half of the tokens."""
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
            channel = torch.randint(HEAD_DIM[family], (kv_heads,))
            tensors[prefix + "dms_neuron.index"] = torch.stack([head, channel], 1)
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


def run_export(program, *arguments):
    return subprocess.run([program, "export", *arguments], capture_output=True, text=True)


class Export:
    """A base model, a sidecar and the directory exported from them, with the dense reference beside it.

    `overrides`: DMS settings set at loading, for values that the trainer does not offer but the model code handles.
    """

    def __init__(self, program, name, family, seed=0, overrides=None, **sidecar):
        torch.manual_seed(seed)
        root = os.path.join(TEMPORARY, name)
        self.base, self.sidecar, self.path = (os.path.join(root, part) for part in ("base", "sidecar", "export"))
        os.makedirs(self.base)
        make_base(family, self.base)
        self.dms = make_sidecar(family, self.sidecar, self.base, **sidecar)
        self.overrides = {f"dms_{key}": value for key, value in (overrides or {}).items()}
        self.dms |= overrides or {}
        done = run_export(program, "--run", self.sidecar, "--model", self.base, "--to", "hf", "--out", self.path)
        if done.returncode != 0:
            raise RuntimeError(done.stderr)
        with open(os.path.join(self.path, "config.json")) as file:
            self.config = json.load(file)
        self.weights = load_file(os.path.join(self.base, "model.safetensors"))
        self.weights |= load_file(os.path.join(self.sidecar, "adapters.safetensors"))
        self.model = self.load()

    def load(self, **options):
        options.setdefault("dtype", torch.float32)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            self.path, trust_remote_code=True, **self.overrides, **options
        )
        return model.eval()

    def dense(self, tokens, evict=True):
        return dense_logits(self.config, self.dms, self.weights, tokens, evict)


def random_tokens(*shape, seed=1):
    return torch.randint(1, SIZES["vocab_size"], shape, generator=torch.Generator().manual_seed(seed))


def cache_module(model):
    """The exported cache_dms.py as the model imported it."""
    return sys.modules[type(model).__module__.rsplit(".", 1)[0] + ".cache_dms"]
