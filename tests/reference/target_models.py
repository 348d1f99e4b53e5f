"""Random models with the structure of the released ones, small enough to compare: made by transformers from the
config.json texts in tests/model/configs/."""

import json
import pathlib

import torch
from transformers import AutoConfig, AutoModelForCausalLM

CONFIGS = pathlib.Path(__file__).resolve().parents[1] / "model" / "configs"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.json"))
HEAD_DIM, KV_HEADS, VOCABULARY = 8, 2, 97


def tiny_config(name):
    """The released config with fewer and smaller layers: what makes a model of its kind stays. Query heads a KV head,
    D against H * d, the ratio of RoPE's ranges, epsilon, tied or not, keys that are absent."""
    config = json.loads((CONFIGS / f"{name}.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim", config["hidden_size"] // heads)
    tiny_heads = heads // kv_heads * KV_HEADS
    tiny = dict(num_hidden_layers=2, num_attention_heads=tiny_heads, num_key_value_heads=KV_HEADS,
                hidden_size=tiny_heads * HEAD_DIM * config["hidden_size"] // (heads * head_dim),
                intermediate_size=56, vocab_size=VOCABULARY, max_position_embeddings=4096, initializer_range=0.3,
                bos_token_id=None, eos_token_id=None, torch_dtype="float32")  # fmt: skip
    if "head_dim" in config:
        tiny["head_dim"] = HEAD_DIM
    if config.get("rope_scaling"):
        # Positions up to 150 see every range: wavelengths of d = 8 and this theta end at 2 pi * theta ** (3 / 4).
        tiny["rope_theta"] = 200.0
        tiny["rope_scaling"] = config["rope_scaling"] | {"original_max_position_embeddings": 128}
    return config | tiny


def randomise_what_starts_constant(model):
    """Norm weights start at 1 and biases at 0: a reader that lost them would agree by luck."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.add_(torch.randn_like(parameter) * 0.2)
            elif name.endswith("bias"):
                parameter.copy_(torch.randn_like(parameter) * 0.5)


def make_target(name, path):
    """A model directory whose config.json keeps the released form: transformers' own would have today's keys."""
    path = pathlib.Path(path)
    path.mkdir(parents=True, exist_ok=True)
    text = json.dumps(tiny_config(name), indent=2)
    (path / "config.json").write_text(text)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path), dtype=torch.float32)
    randomise_what_starts_constant(model)
    model.save_pretrained(path)
    (path / "config.json").write_text(text)
