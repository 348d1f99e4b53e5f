"""Exports for FastDMS in FastDMS: its loader, its models and its eviction rule, on the CPU, against `dms eval`.

Usage: export_fastdms_reference.py PATH_TO_DMS PATH_TO_HARD_LOGITS_SAMPLE [unittest arguments]

The package is imported as installed. Its attention kernels need a GPU; in their place stands plain attention over the
keys that its own rule (build_dms_live_mask) keeps live for each query, which is what a cache swept after every token
computes.
"""

import os
import shutil
import sys
import types
import unittest

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # its small functions are compiled otherwise

from exported_model import TEMPORARY, Exported, hard_path, random_tokens, run_export  # noqa: E402

import torch  # noqa: E402
import torch.distributed  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

WINDOW = None  # of the model that runs; infinite for dense attention


def live_attention(q, k, v, softmax_scale, causal, **_):
    """q [T, H, d]; k, v [T, G, d]."""
    from fastdms.engine.dms import build_dms_live_mask
    from fastdms.utils.context import get_context

    assert causal
    count, kv_heads, _ = k.shape
    evictions = get_context().dms_layer_evictions
    evict = evictions[max(evictions)].T  # of the layer that runs: [G, T]
    rows = []
    for position in range(count):
        live = build_dms_live_mask(evict, current_position=position, window_size=WINDOW)[:, : position + 1]
        query = q[position].unflatten(0, (kv_heads, -1))
        score = torch.einsum("grd,tgd->grt", query, k[: position + 1]) * softmax_scale
        weight = score.masked_fill(~live[:, None], float("-inf")).softmax(-1)
        rows.append(torch.einsum("grt,tgd->grd", weight, v[: position + 1]).flatten(0, 1))
    return torch.stack(rows)


def import_fastdms():
    kernels = types.ModuleType("flash_attn")
    kernels.flash_attn_varlen_func = live_attention
    kernels.flash_attn_with_kvcache = None
    sys.modules["flash_attn"] = kernels
    from fastdms.layers.layernorm import RMSNorm

    # Its norm scales float32 inputs in place, residual stream included; half precision, which it is made for, is copied.
    def forward(self, x, residual=None):
        total = x if residual is None else x + residual
        normed = total * torch.rsqrt(total.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight
        return normed if residual is None else (normed, total)

    RMSNorm.forward = forward
    torch.distributed.init_process_group(
        "gloo", init_method="file://" + os.path.join(TEMPORARY, "rendezvous"), rank=0, world_size=1
    )


VARIANTS = {
    "llama": dict(family="llama", bias="none", channel="last"),
    "llama-bias": dict(family="llama", channel="last", rank=3, alpha_scale=200.0, alpha_offset=30.0),
    "llama-turned": dict(family="llama", channel="pair", turned=True, alpha_scale=200.0, alpha_offset=30.0),
    "llama-pair": dict(family="llama", channel="pair", bias="none", alpha_scale=50.0, alpha_offset=2.5),
    "qwen3": dict(family="qwen3", bias="none", channel="last"),
    "qwen3-rank-3": dict(family="qwen3", bias="none", channel="last", rank=3),
}


def load(path):
    """As its engine does: metadata, class and weights, strictly."""
    from fastdms.engine.dms import load_dms_metadata
    from fastdms.models.registry import build_model
    from fastdms.utils.loader import load_model

    model = build_model(transformers.AutoConfig.from_pretrained(path))
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, float("nan"))  # so that a tensor not loaded is noticed
    load_model(model, path)
    for index, layer in enumerate(model.model.layers):
        layer.self_attn.attn.layer_id = index
    return model.eval(), load_dms_metadata(path)


def run(model, metadata, tokens, evict=True):
    """Logits [T, V] and decisions, one [T, G] a layer."""
    global WINDOW
    from fastdms.utils.context import reset_context, set_context

    WINDOW = metadata.window_size if evict else len(tokens)
    decisions = {}
    set_context(
        True, dms_capture_enabled=True, dms_alpha_scale=metadata.alpha_scale, dms_alpha_offset=metadata.alpha_offset,
        dms_layer_evictions=decisions, max_seqlen_q=len(tokens), max_seqlen_k=len(tokens),
    )  # fmt: skip
    with torch.no_grad():
        hidden = model(torch.tensor(tokens), torch.arange(len(tokens)))
        logits = torch.nn.functional.linear(hidden, model.lm_head.weight)
    reset_context()
    return logits, [decisions[layer] for layer in range(len(decisions))]


class FastDms(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.exports = {
            name: Exported(DMS, "fastdms-" + name, "fastdms", adapter="neuron", decision_shift=0, **options)
            for name, options in VARIANTS.items()
        }
        import_fastdms()  # after transformers has looked for flash_attn

    def test_logits_and_decisions_equal_those_of_eval(self):
        for name, export in self.exports.items():
            with self.subTest(name):
                tokens = random_tokens(1, 60)[0].tolist()
                model, metadata = load(export.path)
                logits, decisions = run(model, metadata, tokens)
                expected, eviction = hard_path(SAMPLE, export.base, export.sidecar, tokens, 1)
                evicted = 0
                for mine, theirs in zip(eviction, decisions):
                    clear = mine.abs() > 1e-3
                    self.assertTrue(torch.equal(mine[clear] > 0, theirs.T[clear]))
                    evicted += (mine > 0).sum().item()
                self.assertTrue(20 < evicted < 220, evicted)  # of 240
                self.assertLess((logits - expected).abs().max().item(), 1e-4)
                # Neither the channel nor the eviction is without effect here.
                dense, _ = run(model, metadata, tokens, evict=False)
                self.assertGreater((dense - expected).abs().max().item(), 0.1)

    def test_metadata(self):
        for name, export in self.exports.items():
            with self.subTest(name):
                _, metadata = load(export.path)
                self.assertEqual(metadata.source_kind, "packaged_metadata")
                self.assertEqual(metadata.window_size, export.dms["window"])
                self.assertEqual(metadata.alpha_scale, export.dms["alpha_scale"])
                if export.dms["bias"] == "none":
                    self.assertEqual(metadata.alpha_offset, export.dms["alpha_offset"])
                self.assertEqual(metadata.target_cr, 4)

    def test_a_tensor_that_fastdms_does_not_know_is_left_out(self):
        # Old checkpoints carry rotary tables; its loader fails on any name that is no parameter.
        base = os.path.join(TEMPORARY, "old-base")
        export = self.exports["llama"]
        shutil.copytree(export.base, base)
        weights = dict(export.weights)
        weights = {name: tensor for name, tensor in weights.items() if "dms" not in name}
        weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
        save_file(weights, os.path.join(base, "model.safetensors"), {"format": "pt"})
        out = os.path.join(TEMPORARY, "old-export")
        done = run_export(
            DMS, "--run", export.sidecar, "--model", base, "--to", "fastdms", "--out", out, "--ignore-base-hash"
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        tokens = random_tokens(1, 20)[0].tolist()
        self.assertTrue(torch.equal(run(*load(out), tokens)[0], run(*load(export.path), tokens)[0]))
        shutil.copy(os.path.join(export.sidecar, "adapters.safetensors"), out)
        with self.assertRaises(AttributeError):  # the strictness that this test relies on
            load(out)

    def test_what_it_cannot_hold_is_refused_with_the_remedy(self):
        for options, remedy in (
            (dict(family="llama", adapter="linear"), "adapter.kind: neuron"),
            (dict(family="qwen2", adapter="neuron", channel="last", decision_shift=0), "qwen3 models only"),
            (dict(family="llama", adapter="neuron", channel="last"), "eviction.decision_shift: 0"),
            (dict(family="llama", adapter="neuron", decision_shift=0, bias="none", seed=3), "adapter.channel: last"),
            (
                dict(family="llama", adapter="neuron", decision_shift=0, channel="last", zero_after_rope=True),
                "adapter.zero_after_rope: false",
            ),
            (dict(family="qwen3", adapter="neuron", decision_shift=0, channel="last"), "adapter.bias: none"),
            (
                dict(family="llama", adapter="neuron", decision_shift=0, channel="last", alpha_offset=5.0),
                "adapter.bias: none",
            ),
        ):
            with self.subTest(remedy), self.assertRaisesRegex(RuntimeError, remedy):
                Exported(DMS, "refused", "fastdms", **options)
            shutil.rmtree(os.path.join(TEMPORARY, "refused"))


if __name__ == "__main__":
    DMS, SAMPLE = sys.argv[1:3]
    try:
        unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
    finally:
        shutil.rmtree(TEMPORARY)
