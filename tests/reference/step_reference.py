#!/usr/bin/env python3
"""Whole training steps of `dms train` against transformers and autograd (tools/transformers_step.py).

Each variant is a run of two steps. Its checkpoints hold the adapters before and after each step and Adam's moments, so
the gradients that the program computed can be told; Python starts each step from the same adapters and draws the same
samples and the same noise from definitions of its own.

Usage: step_reference.py PATH_TO_DMS MODEL_DIR [unittest arguments]     (MODEL_DIR: the sample model)
"""

import copy
import functools
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
import unittest

import exported_model
import h5py
import numpy as np
import target_models
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "tools"))
import transformers_step  # noqa: E402

PROGRAM = SAMPLE_MODEL = None  # set by main
MASK64 = (1 << 64) - 1
TOLERANCE = 1e-3  # of gradients, relative; part of it is lost in telling them from moments


def philox(key, counter):
    """Philox4x32-10 (Salmon et al. 2011): the first of the four words, of an array of counters [N, 4]."""
    key = [np.uint64(word) for word in key]
    c0, c1, c2, c3 = np.asarray(counter, np.uint64).T
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    for _ in range(10):
        product0, product2 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (product2 >> shift) ^ c1 ^ key[0], product2 & low, (product0 >> shift) ^ c3 ^ key[1], product0 & low
        key = [(key[0] + np.uint64(0x9E3779B9)) & low, (key[1] + np.uint64(0xBB67AE85)) & low]
    return c0


def logistic_noise(seed, step, sample, layer, num_kv_heads, num_tokens):
    """[G, T], as model/noise.h defines it."""
    token = np.tile(np.arange(num_tokens), num_kv_heads)
    head = np.repeat(np.arange(num_kv_heads), num_tokens)
    counter = np.stack([token, layer << 16 | head, np.full_like(token, sample), np.full_like(token, step)], 1)
    u = (philox((seed & 0xFFFFFFFF, seed >> 32), counter).astype(np.float64) + 0.5) / 2**32
    return torch.from_numpy(np.log(u) - np.log1p(-u)).float().view(num_kv_heads, num_tokens)


class SplitMix64:
    def __init__(self, state):
        self.state = state & MASK64

    def next(self):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK64
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK64
        return z ^ (z >> 31)

    def below(self, bound):
        while True:
            product = self.next() * bound
            if product & MASK64 >= (-bound & MASK64) % bound:
                return product >> 64


def sample_positions(num_tokens, length, seed, index):
    """Which positions of one token file make up a sample, as data/sample_order.h promises."""
    windows = num_tokens // length
    generator = SplitMix64(SplitMix64(seed).next() ^ SplitMix64(~(index // windows)).next())
    shift = generator.below(num_tokens)
    order = list(range(windows))
    for last in range(windows, 1, -1):
        other = generator.below(last)
        order[last - 1], order[other] = order[other], order[last - 1]
    return [(shift + order[index % windows] * length + i) % num_tokens for i in range(length)]


class TokenFile:
    """Documents with a loss mask, made by h5py."""

    def __init__(self, path, tokens, offsets, mask):
        self.path, self.tokens, self.offsets, self.mask = path, np.asarray(tokens), offsets, np.asarray(mask, "u1")
        with h5py.File(path, "w") as file:
            file["tokens"], file["offsets"], file["loss_mask"] = self.tokens.astype("<i8"), np.asarray(offsets), self.mask

    def sample(self, length, seed, index):
        """Tokens, mask and document offsets of a sample."""
        positions = sample_positions(len(self.tokens), length, seed, index)
        starts = [i for i, position in enumerate(positions) if i == 0 or position in self.offsets]
        return self.tokens[positions].tolist(), torch.tensor(self.mask[positions]), starts + [length]


DEFAULTS = {
    "adapter": {"kind": "linear", "rank": 0, "bias": "per_head"},
    "eviction": {"window": 7, "decision_shift": 1, "tau": 0.1, "truncate_at": 24.0},
    "compression": {"initial": 2.0, "final": 8.0, "ramp_steps": 2, "loss_weight": 1.5, "count": "soft"},
    "distillation": {"kl": "forward", "temperature": 1.0},
    "warm_start": {"tokens": 640, "compression": 2.0, "weight_decay": 0.01},
    "trainer": {"steps": 2, "global_batch": 2, "sequence_length": 64, "learning_rate": 0.001, "schedule": "linear",
                "clip": 0.05, "seed": (5 << 32) + 3, "dtype": "float32", "checkpoint_every": 1, "keep": 9,
                "activation_checkpointing": "none"},
}  # fmt: skip

# family, adapter kind, and what differs from DEFAULTS
VARIANTS = {
    "linear": ("llama", {}),
    "linear-shift-0": ("llama", {"eviction.decision_shift": 0, "adapter.bias": "none"}),
    "linear-window-0": ("llama", {"eviction.window": 0, "trainer.activation_checkpointing": "full"}),
    "linear-reverse": ("qwen2", {"distillation.kl": "reverse", "distillation.temperature": 2.0, "trainer.clip": 0}),
    "linear-straight-through": ("qwen3", {"compression.count": "straight_through"}),
    "linear-documents": ("llama", {"data.attend_across_documents": False, "trainer.activation_checkpointing": "full"}),
    "linear-no-truncation": ("llama", {"eviction.truncate_at": 1e9, "eviction.tau": 1.0}),
    "neuron": ("llama", {"adapter.kind": "neuron"}),
    "neuron-shift-0": ("qwen2", {"adapter.kind": "neuron", "eviction.decision_shift": 0, "adapter.bias": "none"}),
    "neuron-rank-1": ("llama", {"adapter.kind": "neuron", "adapter.rank": 1}),
    "neuron-last": ("llama", {"adapter.kind": "neuron", "adapter.channel": "last", "adapter.zeroing_steps": 2}),
    "neuron-qwen3": ("qwen3", {"adapter.kind": "neuron"}),
    "neuron-qwen3-last": ("qwen3", {"adapter.kind": "neuron", "adapter.channel": "last", "adapter.rank": 2,
                                    "adapter.bias": "none", "adapter.zero_after_rope": True}),
    "neuron-documents": ("llama", {"adapter.kind": "neuron", "adapter.rank": 2, "eviction.decision_shift": 0,
                                   "data.attend_across_documents": False}),
}  # fmt: skip


# The structure of every target model, by the name of its config.
TARGETS = {f"target-{name}": (name, {"trainer.global_batch": 1, "trainer.steps": 1}) for name in target_models.NAMES}


class Run:
    """A finished run of `dms train`, and its steps computed anew."""

    def __init__(self, name, model, token_file, changes):
        self.model_path, self.file = str(model), token_file
        self.recipe = DEFAULTS | {"model": {"path": str(model)}, "data": {"train": [str(token_file.path)]}}
        self.recipe = self.with_recipe(changes).recipe
        root = pathlib.Path(exported_model.TEMPORARY) / "step" / name
        root.mkdir(parents=True)
        recipe_path, self.path = root / "recipe.yaml", root / "run"
        recipe_path.write_text(json.dumps(self.recipe))  # JSON is YAML
        done = subprocess.run([PROGRAM, "train", recipe_path, "--run-dir", self.path], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(done.stderr)
        self.metrics = [json.loads(line) for line in (self.path / "metrics.jsonl").read_text().splitlines()]

    def with_recipe(self, changes):
        """The same run, taken for one of another recipe."""
        other = copy.copy(self)
        other.recipe = copy.deepcopy(self.recipe)
        for key, value in changes.items():
            section, option = key.split(".")
            other.recipe[section][option] = value
        return other

    @functools.cache
    def checkpoint(self, step, name="adapters"):
        return load_file(self.path / "checkpoints" / f"step-{step:06d}" / f"{name}.safetensors")

    def gradients(self, step):
        """Told from Adam's first moments: m' = beta1 m + (1 - beta1) g."""
        after = self.checkpoint(step + 1, "optimizer")
        before = self.checkpoint(step, "optimizer") if step > 0 else {}
        clip, norm = self.recipe["trainer"]["clip"], self.metrics[step]["grad_norm"]
        scale = clip / norm if 0 < clip < norm else 1.0
        gradients = {}
        for name, moment in after.items():
            if name.endswith(".exp_avg"):
                previous = before.get(name, torch.zeros_like(moment)).double()
                gradients[name.removesuffix(".exp_avg")] = (moment.double() - 0.9 * previous) / 0.1 / scale
        return gradients

    def load(self, step):
        """The frozen model with the evictor as it was before `step`."""
        adapter, eviction = self.recipe["adapter"], self.recipe["eviction"]
        config = json.loads((self.path / "checkpoints" / f"step-{step:06d}" / "dms_config.json").read_text())
        tensors = self.checkpoint(step)
        model = transformers_step.load_model(self.model_path)
        borrowed = []
        if adapter["kind"] == "neuron":
            layers = range(model.config.num_hidden_layers)
            for neuron in (f"model.layers.{layer}.self_attn.dms_neuron." for layer in layers):
                index = tensors[neuron + "index"]
                angle = tensors.get(neuron + "angle", torch.zeros(len(index)))
                borrowed.append([(*place, turn) for place, turn in zip(index.tolist(), angle.tolist())])
        zeroing_steps = adapter.get("zeroing_steps", 0)
        evictor = transformers_step.RelaxedEviction(
            model, kind=adapter["kind"], rank=adapter["rank"], bias=adapter["bias"] == "per_head", borrowed=borrowed,
            alpha_scale=config["alpha_scale"], alpha_offset=config["alpha_offset"],
            zero_after_rope=adapter.get("zero_after_rope", False),
            share=max(1 - step / zeroing_steps, 0) if zeroing_steps else 0, **eviction
        )  # fmt: skip
        parameters = {name: tensor for name, tensor in tensors.items() if not name.endswith((".index", ".angle"))}
        result = model.load_state_dict(parameters, strict=False)
        assert not result.unexpected_keys and not [name for name in result.missing_keys if "dms_" in name]
        return model, evictor

    def samples(self, step):
        trainer = self.recipe["trainer"]
        batch, length, seed = trainer["global_batch"], trainer["sequence_length"], trainer["seed"]
        return [(index, *self.file.sample(length, seed, index)) for index in range(step * batch, (step + 1) * batch)]

    def noise(self, step, sample, config):
        """One [G, T] a layer."""
        trainer = self.recipe["trainer"]
        return [
            logistic_noise(trainer["seed"], step, sample, layer, config.num_key_value_heads, trainer["sequence_length"])
            for layer in range(config.num_hidden_layers)
        ]

    def target_cr(self, step):
        compression = self.recipe["compression"]
        progress = min(step / compression["ramp_steps"], 1)
        return compression["initial"] + (compression["final"] - compression["initial"]) * progress

    def learning_rate(self, step):
        trainer = self.recipe["trainer"]
        return trainer["learning_rate"] * (1 - step / trainer["steps"] if trainer["schedule"] == "linear" else 1)

    def reference_step(self, step):
        """Losses and gradients by the definitions, document by document."""
        model, evictor = self.load(step)
        recipe = self.recipe
        kl_sum, positions = 0, 0
        counted, token_alphas, evicted = [], [], []
        for index, tokens, mask, offsets in self.samples(step):
            positions += int(mask.sum())
            noise = self.noise(step, index, model.config)
            if recipe["data"].get("attend_across_documents", True):
                offsets = [0, len(tokens)]
            for begin, end in zip(offsets, offsets[1:]):
                teacher, student = transformers_step.teacher_and_student_logits(
                    model, evictor, torch.tensor([tokens[begin:end]]), lambda layer, _: noise[layer][None, :, begin:end]
                )
                kl_sum += (self.divergence(teacher[0], student[0]) * mask[begin:end]).sum()
                counted.append(evictor.counted_alphas().flatten())
                logits = torch.stack(evictor.logits)
                noise_part = torch.stack(noise)[:, None, :, begin:end]
                token_alphas.append(torch.sigmoid((logits + noise_part) / evictor.tau).flatten())
                decisions = logits[..., evictor.decision_shift :]
                evicted.append((decisions[..., : max(0, end - begin - evictor.window - 1)] > 0).flatten())
        counted, token_alphas, evicted = map(torch.cat, (counted, token_alphas, evicted))
        assert counted.shape == evicted.shape
        fraction = counted.mean()
        if recipe["compression"]["count"] == "straight_through":
            hard = (token_alphas > 0.5).float()
            fraction = (token_alphas + (hard - token_alphas).detach()).mean()
        target_cr = self.target_cr(step)
        compression_loss = transformers_step.compression_loss(fraction, target_cr, recipe["compression"]["loss_weight"])
        kl = kl_sum / positions
        (kl + compression_loss).backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        figures = {
            "loss": (kl + compression_loss).item(), "kl": kl.item(), "compression_loss": compression_loss.item(),
            "target_cr": target_cr, "lr": self.learning_rate(step), "alpha_mean": counted.mean().item(), "eviction_rate": evicted.float().mean().item(),
            "grad_norm": math.sqrt(sum(g.double().pow(2).sum().item() for g in gradients.values()))}  # fmt: skip
        return figures, gradients

    def divergence(self, teacher, student):
        temperature = self.recipe["distillation"]["temperature"]
        p, q = ((logits / temperature).log_softmax(-1) for logits in (teacher, student))
        if self.recipe["distillation"]["kl"] == "reverse":
            p, q = q, p
        return (p.exp() * (p - q)).sum(-1) * temperature**2


def relative_error(actual, expected):
    """Of two dicts of tensors with the same names and shapes: the largest ||a - e|| / ||e|| of any; NaN stays NaN.

    A gradient that is exactly zero (no key of a layer is soft) must be exactly zero.
    """
    assert actual.keys() == expected.keys() and actual
    errors = []
    for name, e in expected.items():
        assert actual[name].shape == e.shape, name
        distance, size = (actual[name].double() - e.double()).norm().item(), e.double().norm().item()
        errors.append(distance / size if size else distance if distance == 0 or math.isnan(distance) else math.inf)
    return math.nan if any(map(math.isnan, errors)) else max(errors)


@functools.cache
def tiny_model(family):
    path = os.path.join(exported_model.TEMPORARY, f"base-{family}")
    torch.manual_seed(1)
    if family in target_models.NAMES:
        target_models.make_target(family, path)
    else:
        exported_model.make_base(family, path)
    return path


@functools.cache
def tiny_token_file(masked):
    random = np.random.default_rng(3)
    tokens, offsets = random.integers(exported_model.SIZES["vocab_size"], size=500), [0, 40, 44, 45, 130, 200, 300, 310, 500]
    path = os.path.join(exported_model.TEMPORARY, f"tokens-{masked}.h5")
    return TokenFile(path, tokens, offsets, random.random(500) < (0.7 if masked else 1))


@functools.cache
def tiny_run(name):
    family, changes = (VARIANTS | TARGETS)[name]
    return Run(name, tiny_model(family), tiny_token_file(masked=True), changes)


@functools.cache
def sample_model_token_file():
    """What a pretrained model has seen the like of: this file."""
    tokenizer = Tokenizer.from_file(os.path.join(SAMPLE_MODEL, "tokenizer.json"))
    tokens = tokenizer.encode(pathlib.Path(__file__).read_text()).ids
    path = os.path.join(exported_model.TEMPORARY, "this-file.h5")
    return TokenFile(path, tokens, [0, len(tokens)], np.ones(len(tokens)))


class Definitions(unittest.TestCase):
    def test_philox_gives_the_published_numbers(self):
        ones = 0xFFFFFFFF
        self.assertEqual(philox((0, 0), [[0, 0, 0, 0]]).tolist(), [0x6627E8D5])
        self.assertEqual(philox((ones, ones), [[ones] * 4]).tolist(), [0x408F276D])
        pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
        self.assertEqual(philox((0xA4093822, 0x299F31D0), [pi, pi]).tolist(), [0xD16CFE09] * 2)

    def test_relative_error_sees_one_wrong_element(self):
        expected = {"a": torch.tensor([1.0, -2.0, 2.0]), "b": torch.tensor([[1e-6, 0.0]])}
        self.assertEqual(relative_error(expected, expected), 0)
        for name, index, value, error in (("a", 2, -2.0, 4 / 3), ("b", (0, 1), 1e-6, 1.0), ("a", 1, -2.03, 0.01)):
            actual = {key: tensor.clone() for key, tensor in expected.items()}
            actual[name][index] = value
            self.assertAlmostEqual(relative_error(actual, expected), error, places=6)
            actual[name][index] = math.nan
            self.assertTrue(math.isnan(relative_error(actual, expected)))
        for actual in ({}, {"a": expected["a"]}, expected | {"b": torch.zeros(2)}):
            with self.assertRaises(AssertionError):
                relative_error(actual, expected)


class StepAgainstAutograd(unittest.TestCase):
    def assert_near(self, actual, expected, relative, name):
        self.assertLessEqual(abs(actual - expected), 1e-5 + relative * abs(expected), name)  # false for NaN

    def assert_step_agrees(self, run, step):
        figures, gradients = run.reference_step(step)
        for name, expected in figures.items():
            self.assert_near(run.metrics[step][name], expected, TOLERANCE if name == "grad_norm" else 1e-5, name)
        self.assertLessEqual(relative_error(run.gradients(step), gradients), TOLERANCE)

    def test_losses_and_gradients(self):
        for name in VARIANTS:
            with self.subTest(name):
                for step in range(2):
                    self.assert_step_agrees(tiny_run(name), step)

    def test_the_structure_of_every_target_model(self):
        for name in TARGETS:
            with self.subTest(name):
                self.assert_step_agrees(tiny_run(name), 0)

    def test_a_small_difference_in_the_rule_is_noticed(self):
        wrong = {
            "eviction.window": 8, "eviction.decision_shift": 0, "eviction.tau": 0.101, "eviction.truncate_at": 3.0,
            "compression.loss_weight": 1.4, "compression.count": "straight_through", "compression.final": 12.0,
            "distillation.kl": "reverse", "distillation.temperature": 1.1, "data.attend_across_documents": False,
            "trainer.seed": (6 << 32) + 3}  # fmt: skip
        run = tiny_run("linear")
        for key, value in wrong.items():
            with self.subTest(key), self.assertRaises(AssertionError):
                self.assert_step_agrees(run.with_recipe({key: value}), 1)

    def test_the_timed_step_makes_the_same_updates(self):
        for kind in ("linear", "neuron"):
            with self.subTest(kind):
                changes = {"adapter.kind": kind, "trainer.schedule": "constant", "compression.loss_weight": 1.0}
                run = Run(f"timed-{kind}", tiny_model("llama"), tiny_token_file(masked=False), changes)
                model, evictor = run.load(0)
                optimizer = torch.optim.Adam(evictor.parameters, lr=0.001, betas=(0.9, 0.95))
                for step in range(2):
                    samples = run.samples(step)
                    noise = [run.noise(step, index, model.config) for index, *_ in samples]
                    figures = transformers_step.training_step(
                        model, evictor, optimizer, torch.tensor([tokens for _, tokens, *_ in samples]),
                        run.target_cr(step), lambda layer, _: torch.stack([sample[layer] for sample in noise]), clip=0.05,
                    )  # fmt: skip
                    for name, value in figures.items():
                        self.assert_near(run.metrics[step][name], value, TOLERANCE, name)
                start, end = run.checkpoint(0), run.checkpoint(2)
                parameters = {name: p.detach() for name, p in model.named_parameters() if "dms_" in name}
                updates = {name: p - start[name] for name, p in parameters.items()}
                # Adam's first steps have the size of the learning rate whatever the gradient's: where that is all but
                # zero, rounding decides about their sign.
                error = relative_error({name: end[name] - start[name] for name in parameters}, updates)
                self.assertLessEqual(error, 0.01)

    def test_the_sample_model(self):
        for kind in ("linear", "neuron"):
            with self.subTest(kind):
                changes = {
                    "adapter.kind": kind, "eviction.window": 32, "warm_start.tokens": 512, "trainer.steps": 1,
                    "trainer.global_batch": 1, "trainer.sequence_length": 128}  # fmt: skip
                run = Run(f"sample-model-{kind}", SAMPLE_MODEL, sample_model_token_file(), changes)
                self.assert_step_agrees(run, 0)


if __name__ == "__main__":
    PROGRAM, SAMPLE_MODEL = os.path.abspath(sys.argv[1]), sys.argv[2]
    del sys.argv[1:3]
    try:
        unittest.main(verbosity=2)
    finally:
        shutil.rmtree(exported_model.TEMPORARY)
