"""Exported models against a dense float64 reference, through transformers as users load them.

Usage: export_hf_reference.py PATH_TO_DMS [unittest arguments]
"""

import functools
import os
import shutil
import sys
import unittest

from exported_model import TEMPORARY, Export, cache_module, random_tokens, run_export

import torch
import transformers

PROGRAM = None  # set by main

VARIANTS = {
    "llama-linear": dict(family="llama", adapter="linear"),
    "llama-linear-shift-0": dict(family="llama", adapter="linear", decision_shift=0, bias="none"),
    "llama-linear-shift-3": dict(family="llama", adapter="linear", overrides=dict(decision_shift=3)),
    "llama-linear-window-0": dict(family="llama", adapter="linear", overrides=dict(window=0)),
    "llama-neuron": dict(family="llama", adapter="neuron"),
    "llama-neuron-turned": dict(family="llama", adapter="neuron", channel="pair", turned=True),
    "llama-neuron-turned-after-rope": dict(
        family="llama", adapter="neuron", channel="pair", turned=True, zero_after_rope=True
    ),
    "llama-neuron-rank-3": dict(family="llama", adapter="neuron", rank=3, zero_after_rope=True),
    "qwen2-linear": dict(family="qwen2", adapter="linear"),
    "qwen2-neuron": dict(family="qwen2", adapter="neuron", bias="none"),
    "qwen3-linear": dict(family="qwen3", adapter="linear"),
    "qwen3-neuron": dict(family="qwen3", adapter="neuron", zero_after_rope=True),
    "qwen3-neuron-rank-1": dict(family="qwen3", adapter="neuron", rank=1, decision_shift=0),
}


def left_padded(rows):
    """Rows [1, n] of different lengths as one batch, and its attention mask."""
    length = max(row.shape[1] for row in rows)
    pads = [length - row.shape[1] for row in rows]
    tokens = torch.cat([torch.nn.functional.pad(row, (n, 0)) for row, n in zip(rows, pads)])
    return tokens, torch.stack([(torch.arange(length) >= n).long() for n in pads])


def for_every_export(test):
    """Runs a test once per variant, without gradients and with prefill blocks far shorter than the inputs."""

    @functools.wraps(test)
    def run(self):
        for name, export in self.exports.items():
            with self.subTest(name), torch.no_grad():
                cache_module(export.model).BLOCK_TOKENS = 16
                test(self, export)

    return run


class ExportedModel(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.exports = {name: Export(PROGRAM, name, **options) for name, options in VARIANTS.items()}

    def assert_near(self, actual, expected, tolerance=1e-4):
        self.assertEqual(actual.shape, expected.shape)
        error = (actual.double() - expected.double()).abs().max().item()
        self.assertLessEqual(error, tolerance)  # false for NaN

    @for_every_export
    def test_one_pass_equals_the_dense_reference(self, export):
        tokens = random_tokens(2, 53)
        export.model.dms_record = True
        logits = export.model(tokens, use_cache=False).logits
        for row in range(2):
            expected, eviction_logits = export.dense(tokens[row].tolist())
            # The comparison means something only if decisions are mixed and none of them is a near-tie.
            reference = torch.stack(eviction_logits)
            self.assertGreater(reference.abs().min().item(), 2e-3)
            rate = (reference > 0).double().mean().item()
            self.assertTrue(0.2 < rate < 0.8, rate)
            for layer, expected_layer in enumerate(eviction_logits):
                self.assert_near(export.model.dms_logits[layer][row], expected_layer, 1e-3)
            self.assert_near(logits[row], expected)
            self.assertGreater((logits[row] - export.dense(tokens[row].tolist(), False)[0]).abs().max(), 0.1)
        export.model.dms_record = False

    @for_every_export
    def test_eviction_off_is_the_base_model(self, export):
        tokens = random_tokens(2, 40)
        base = transformers.AutoModelForCausalLM.from_pretrained(export.base, dtype=torch.float32)
        export.model.dms_eviction = False
        self.assert_near(export.model(tokens).logits, base(tokens).logits, 1e-5)
        export.model.dms_eviction = True
        off = export.load(dms_eviction=False)
        self.assert_near(off(tokens).logits, base(tokens).logits, 1e-5)

    @for_every_export
    def test_decoding_and_chunked_prefill_equal_one_pass(self, export):
        tokens = random_tokens(2, 61)
        model = export.model
        expected = model(tokens, use_cache=False).logits
        for devices in (("cpu",), ()):  # head by head, and through rectangles as on a GPU
            cache_module(model).HEAD_BY_HEAD_DEVICES = devices
            for splits in ([1] * 61, [20] + [1] * 41, [7] * 8 + [5], [40, 1, 1, 16, 3], [61]):
                cache, logits = None, []
                for part in tokens.split(splits, 1):
                    output = model(part, past_key_values=cache, use_cache=True)
                    cache = output.past_key_values
                    logits.append(output.logits)
                self.assert_near(torch.cat(logits, 1), expected)
                self.assertEqual(cache.get_seq_length(), 61)

    @for_every_export
    def test_cache_holds_exactly_the_live_tokens(self, export):
        tokens = random_tokens(1, 50)
        _, eviction_logits = export.dense(tokens[0].tolist())
        window, shift = export.dms["window"], export.dms["decision_shift"]
        expected = []
        for logit in eviction_logits:
            gone = logit[:, shift:] > 0
            far = torch.arange(gone.shape[1]) < 49 - window
            expected.append((50 - (gone & far).sum(1)).tolist())
        for splits in ([50], [1] * 50, [23, 1, 1, 25]):
            cache = None
            for part in tokens.split(splits, 1):
                cache = export.model(part, past_key_values=cache, use_cache=True).past_key_values
            self.assertEqual([layer.count.tolist() for layer in cache.layers], expected)
        head_dim = cache.layers[0].keys.shape[1]
        memory = cache.kv_memory()
        self.assertEqual(memory["live_bytes"], sum(map(sum, expected)) * 2 * 4 * head_dim)
        self.assertEqual(memory["dense_bytes"], 50 * 2 * 2 * 2 * 4 * head_dim)

    @for_every_export
    def test_left_padded_batch_equals_single_rows(self, export):
        rows = [random_tokens(1, n, seed=n) for n in (45, 30, 1)]
        steps = random_tokens(3, 12, seed=5)
        length = 45
        tokens, mask = left_padded(rows)
        for chunk in (45, 11):
            cache, logits = None, []
            for begin in range(0, length, chunk):
                part = slice(begin, min(begin + chunk, length))
                output = export.model(
                    tokens[:, part], attention_mask=mask[:, : part.stop], past_key_values=cache, use_cache=True
                )
                cache = output.past_key_values
                logits.append(output.logits)
            for i in range(12):
                seen = torch.cat([mask, torch.ones(3, i + 1, dtype=torch.int64)], 1)
                output = export.model(steps[:, i : i + 1], attention_mask=seen, past_key_values=cache)
                logits.append(output.logits)
            logits = torch.cat(logits, 1)
            self.assertTrue(torch.isfinite(logits).all())
            for row, prompt in enumerate(rows):
                single = export.model(torch.cat([prompt, steps[row : row + 1]], 1), use_cache=False).logits
                self.assert_near(logits[row : row + 1, length - prompt.shape[1] :], single)

    def test_prefill_by_single_padded_tokens(self):
        export = self.exports["llama-linear"]
        rows = [random_tokens(1, n, seed=n) for n in (20, 13)]
        tokens, mask = left_padded(rows)
        with torch.no_grad():
            cache, logits = None, []
            for i in range(20):
                output = export.model(
                    tokens[:, i : i + 1], attention_mask=mask[:, : i + 1], past_key_values=cache, use_cache=True
                )
                cache = output.past_key_values
                logits.append(output.logits)
            logits = torch.cat(logits, 1)
            for row, prompt in enumerate(rows):
                expected = export.model(prompt, use_cache=False).logits
                self.assert_near(logits[row : row + 1, 20 - prompt.shape[1] :], expected)

    @for_every_export
    def test_selecting_sequences_carries_the_whole_state(self, export):
        rows = [random_tokens(1, n, seed=n) for n in (30, 22, 9)]
        tokens, mask = left_padded(rows)
        steps = random_tokens(4, 15, seed=9)
        for order, select in (
            ([2, 0, 0], lambda cache: cache.reorder_cache(torch.tensor([2, 0, 0]))),
            ([0, 2], lambda cache: cache.batch_select_indices(torch.tensor([0, 2]))),
            ([1], lambda cache: cache.batch_select_indices(torch.tensor([False, True, False]))),
            ([0, 0, 1, 1, 2, 2], lambda cache: cache.batch_repeat_interleave(2)),
        ):
            cache = export.model(tokens, attention_mask=mask, use_cache=True).past_key_values
            select(cache)
            following = steps[torch.arange(len(order)) % 4]
            logits = []
            for i in range(15):
                seen = torch.nn.functional.pad(mask[order], (0, i + 1), value=1)
                logits.append(
                    export.model(following[:, i : i + 1], attention_mask=seen, past_key_values=cache).logits
                )
            logits = torch.cat(logits, 1)
            for place, row in enumerate(order):
                whole = torch.cat([rows[row], following[place : place + 1]], 1)
                expected = export.model(whole, use_cache=False).logits
                self.assert_near(logits[place : place + 1], expected[:, -15:])

    @for_every_export
    def test_greedy_generation_follows_the_dense_reference(self, export):
        prompt = random_tokens(1, 20)
        generated = export.model.generate(prompt, max_new_tokens=20, do_sample=False)[0].tolist()
        self.assertEqual(generated[:20], prompt[0].tolist())
        logits, _ = export.dense(generated[:-1])
        top = logits[19:].topk(2).values
        self.assertGreater((top[:, 0] - top[:, 1]).min().item(), 1e-3)
        self.assertEqual(generated[20:], logits[19:].argmax(-1).tolist())
        for options in (dict(use_cache=False), dict(prefill_chunk_size=7)):
            again = export.model.generate(prompt, max_new_tokens=20, do_sample=False, **options)[0].tolist()
            self.assertEqual(again, generated)

    def test_beam_search_equals_dense_beams(self):
        prompt, beams, steps = random_tokens(1, 18)[0].tolist(), 3, 8
        for name in ("llama-linear", "qwen3-neuron"):
            export = self.exports[name]
            kept = [(0.0, prompt)]
            for _ in range(steps):
                grown = []
                for score, tokens in kept:
                    log_probs = export.dense(tokens)[0][-1].log_softmax(-1)
                    grown += [(score + p, tokens + [i]) for i, p in enumerate(log_probs.tolist())]
                kept = sorted(grown, reverse=True)[:beams]
            generated = export.model.generate(
                torch.tensor([prompt]), max_new_tokens=steps, num_beams=beams, num_return_sequences=beams,
                do_sample=False,
            )  # fmt: skip
            self.assertEqual(generated.tolist(), [tokens for _, tokens in kept])

    def test_several_samples_of_one_prompt(self):
        export = self.exports["llama-linear"]
        prompts = random_tokens(2, 20)
        torch.manual_seed(0)
        output = export.model.generate(
            prompts, max_new_tokens=12, do_sample=True, num_return_sequences=3, return_dict_in_generate=True,
            output_logits=True,
        )  # fmt: skip
        self.assertEqual(output.sequences.shape, (6, 32))
        self.assertGreater(len({tuple(row) for row in output.sequences.tolist()}), 2)
        logits = torch.stack(output.logits, 1)
        for row, tokens in enumerate(output.sequences):
            self.assertEqual(tokens[:20].tolist(), prompts[row // 3].tolist())
            # Each is drawn from what the model says after its own tokens.
            self.assert_near(logits[row], export.dense(tokens[:-1].tolist())[0][19:])

    @for_every_export
    def test_conversation_continues_from_its_cache(self, export):
        cache = None
        history = random_tokens(1, 14)
        for turn in range(3):
            with torch.inference_mode(turn == 1):  # a cache may cross over
                output = export.model.generate(
                    history, max_new_tokens=9, do_sample=False, past_key_values=cache, return_dict_in_generate=True
                )
            fresh = export.model.generate(history, max_new_tokens=9, do_sample=False)
            self.assertEqual(output.sequences.tolist(), fresh.tolist())
            cache = output.past_key_values
            history = torch.cat([output.sequences.clone(), random_tokens(1, 11, seed=20 + turn)], 1)

    @for_every_export
    def test_batched_conversation_continues_from_its_cache(self, export):
        # Every turn has another length in every row: padding on the left first, then before and within the new text.
        rows = [random_tokens(1, n, seed=n) for n in (17, 6)]
        turns = [[random_tokens(1, n, seed=30 + n) for n in lengths] for lengths in ((3, 12), (9, 2))]
        tokens, mask = left_padded(rows)
        cache = None
        for turn in range(3):
            output = export.model.generate(
                tokens, attention_mask=mask, max_new_tokens=7, do_sample=False, past_key_values=cache,
                return_dict_in_generate=True,
            )  # fmt: skip
            cache, new = output.past_key_values, output.sequences[:, tokens.shape[1] :]
            rows = [torch.cat([row, new[i : i + 1]], 1) for i, row in enumerate(rows)]
            for i, row in enumerate(rows):
                alone = export.model.generate(row[:, :-7], max_new_tokens=7, do_sample=False)
                self.assertEqual(row.tolist(), alone.tolist())
            if turn == 2:
                break
            longest = max(part.shape[1] for part in turns[turn])
            parts = []
            for part in turns[turn]:
                pad = longest - part.shape[1]
                inside = pad // 2 if turn == 1 else 0  # generate() continues from the last column: that one is text
                hole = torch.zeros(1, inside, dtype=torch.int64)
                part = torch.cat([part[:, :-1], hole, part[:, -1:]], 1)
                parts.append(torch.nn.functional.pad(part, (pad - inside, 0)))
            masks = torch.cat([(part != 0).long() for part in parts])
            tokens = torch.cat([output.sequences, torch.cat(parts)], 1)
            mask = torch.cat([mask, torch.ones_like(new), masks], 1)
            rows = [torch.cat([row, part], 1) for row, part in zip(rows, turns[turn])]

    @for_every_export
    def test_padding_anywhere_equals_the_tokens_alone(self, export):
        torch.manual_seed(3)
        tokens, following = random_tokens(3, 40), random_tokens(3, 10, seed=8)
        mask = (torch.rand(3, 40) < 0.7).long()
        mask[0, 30:] = 0  # right padding
        for splits in ([40], [13, 27], [1] * 40):
            cache, logits, begin = None, [], 0
            for part in tokens.split(splits, 1):
                begin += part.shape[1]
                output = export.model(part, attention_mask=mask[:, :begin], past_key_values=cache, use_cache=True)
                cache = output.past_key_values
                logits.append(output.logits)
            for i in range(10):
                seen = torch.nn.functional.pad(mask, (0, i + 1), value=1)
                logits.append(export.model(following[:, i : i + 1], attention_mask=seen, past_key_values=cache).logits)
            logits = torch.cat(logits, 1)
            for row in range(3):
                real = torch.cat([mask[row], torch.ones(10)]).bool()
                alone = torch.cat([tokens, following], 1)[row, real]
                expected = export.model(alone[None], use_cache=False).logits[0]
                self.assert_near(logits[row, real], expected)

    def test_an_empty_foreign_cache_is_replaced_and_a_filled_one_refused(self):
        export = self.exports["llama-linear"]
        tokens = random_tokens(1, 20)
        expected = export.model.generate(tokens, max_new_tokens=5, do_sample=False)
        cache = transformers.DynamicCache()
        for options in ({}, {"prefill_chunk_size": 6}):
            generated = export.model.generate(
                tokens, max_new_tokens=5, do_sample=False, past_key_values=transformers.DynamicCache(), **options
            )
            self.assertEqual(generated.tolist(), expected.tolist())
        cache.update(torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 3, 8), 0)
        with self.assertRaisesRegex(ValueError, "only from its own cache, not from a filled DynamicCache"):
            export.model(tokens, past_key_values=cache)

    def test_what_is_refused_says_so(self):
        export = self.exports["llama-linear"]
        model, tokens = export.model, random_tokens(2, 10)
        right, interior = torch.ones(2, 10), torch.ones(2, 10)
        right[1, 7:] = 0
        interior[0, 4] = 0
        for mask in (right, interior):
            cache = model(tokens, attention_mask=mask).past_key_values
            with self.assertRaisesRegex(ValueError, "pass it on"):
                model(tokens[:, :1], past_key_values=cache)
            for changed in (torch.ones(2, 11), torch.nn.functional.pad(1 - mask, (0, 1))):
                with self.assertRaisesRegex(ValueError, "cannot take back"):
                    model(tokens[:, :1], attention_mask=changed, past_key_values=cache)
        with self.assertRaisesRegex(ValueError, r"expected shape \(2, 10\), got \(2, 4\)"):
            model(tokens, attention_mask=torch.ones(2, 4))
        with self.assertRaisesRegex(ValueError, "output_attentions is not supported"):
            model(tokens, output_attentions=True)
        with self.assertRaisesRegex(ValueError, "count up by one"):
            model(tokens, position_ids=torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4]]))
        with self.assertRaisesRegex(ValueError, "leave it unset"):
            model.generate(tokens, max_new_tokens=2, cache_implementation="static")
        cache = model(tokens).past_key_values
        with self.assertRaisesRegex(NotImplementedError, "cannot be cropped"):
            cache.crop(5)
        with self.assertRaisesRegex(ValueError, "holds 2 sequences, but the input has 1"):
            model(tokens[:1], past_key_values=cache)
        with self.assertRaisesRegex(ValueError, "assisted generation is not supported"):
            model.generate(tokens[:1], max_new_tokens=4, prompt_lookup_num_tokens=2)

    def test_allocated_memory_follows_live_memory(self):
        # Long enough that most tokens are past the window, and driven both ways through the growth of the pools.
        export = self.exports["llama-linear"]
        tokens = random_tokens(2, 1024, seed=3)
        for prefill in (1024, 900):
            with torch.no_grad():
                cache = export.model(tokens[:, :prefill], use_cache=True).past_key_values
                for i in range(prefill, 1024):
                    export.model(tokens[:, i : i + 1], past_key_values=cache)
            memory = cache.kv_memory()
            self.assertLess(memory["live_bytes"], 0.8 * memory["dense_bytes"])
            self.assertLessEqual(memory["allocated_bytes"], 1.15 * memory["live_bytes"])

    def test_bfloat16_keeps_adapters_in_float32(self):
        for name in ("qwen2-linear", "qwen3-neuron"):
            export = self.exports[name]
            model = export.load(dtype=torch.bfloat16)
            adapters = [p for n, p in model.named_parameters() if "dms_" in n]
            self.assertTrue(adapters and all(p.dtype == torch.float32 for p in adapters))
            self.assertEqual(model.lm_head.weight.dtype, torch.bfloat16)
            tokens = random_tokens(1, 30)
            with torch.no_grad():
                expected = export.model(tokens).logits
                logits = model(tokens).logits
            self.assertEqual(logits.dtype, torch.bfloat16)
            agreement = torch.nn.functional.cosine_similarity(logits.float(), expected, -1)
            self.assertGreater(agreement.median().item(), 0.99)
            self.assertEqual(model.generate(tokens, max_new_tokens=8, do_sample=False).shape, (1, 38))

    def test_replayed_decisions_are_used(self):
        export = self.exports["llama-neuron"]
        tokens = random_tokens(1, 40)
        model = export.model
        with torch.no_grad():
            model.dms_record = True
            kept = model(tokens).logits
            recorded = [logit.clone() for logit in model.dms_logits]
            model.dms_record = False
            model.dms_replay = recorded
            cache = model(tokens[:, :25]).past_key_values
            self.assert_near(model(tokens[:, 25:], past_key_values=cache).logits, kept[:, 25:])
            model.dms_replay = [-logit for logit in recorded]
            self.assertGreater((model(tokens).logits - kept).abs().max().item(), 0.1)
            model.dms_replay = None
            self.assert_near(model(tokens).logits, kept, 1e-6)

    def test_loss_hidden_states_and_gradients(self):
        for name in ("llama-linear", "qwen3-neuron"):
            export = self.exports[name]
            tokens = random_tokens(2, 30)
            cache_module(export.model).BLOCK_TOKENS = 16
            output = export.model(tokens, labels=tokens, output_hidden_states=True)
            expected = [torch.nn.functional.cross_entropy(
                export.dense(row.tolist())[0][:-1], row[1:]) for row in tokens]  # fmt: skip
            self.assertAlmostEqual(output.loss.item(), torch.stack(expected).mean().item(), 4)
            self.assertEqual(len(output.hidden_states), 3)
            output.loss.backward()
            gradient = export.model.model.layers[0].self_attn.v_proj.weight.grad
            self.assertGreater(gradient.abs().max().item(), 0)
            # A finite difference along a weight that reaches the loss through stored keys as well.
            weight = export.model.model.layers[0].self_attn.k_proj.weight
            slope, step, losses = weight.grad.norm().item(), 1e-2, []
            direction = weight.grad / slope
            for sign in (1, -1):
                with torch.no_grad():
                    weight.add_(direction, alpha=sign * step)
                    losses.append(export.model(tokens, labels=tokens).loss.item())
                    weight.sub_(direction, alpha=sign * step)
            self.assertAlmostEqual((losses[0] - losses[1]) / (2 * step) / slope, 1, 1)
            export.model.zero_grad()

    def test_pipeline_and_saving_again(self):
        export = self.exports["qwen2-neuron"]
        pipe = transformers.pipeline("text-generation", model=export.path, trust_remote_code=True)
        text = pipe("Hello", max_new_tokens=6, do_sample=False)[0]["generated_text"]
        self.assertTrue(text.startswith("Hello") and len(text) > len("Hello"), text)
        saved = os.path.join(TEMPORARY, "saved-again")
        export.model.save_pretrained(saved)
        again = transformers.AutoModelForCausalLM.from_pretrained(saved, trust_remote_code=True, dtype=torch.float32)
        tokens = random_tokens(1, 30)
        with torch.no_grad():
            self.assert_near(again.eval()(tokens).logits, export.model(tokens).logits, 1e-5)

    def test_the_base_model_is_found_in_the_recipe(self):
        export = self.exports["llama-linear"]
        run = os.path.join(TEMPORARY, "run")
        checkpoint = os.path.join(run, "checkpoints", "step-000010")
        shutil.copytree(export.sidecar, checkpoint)
        with open(os.path.join(run, "recipe.yaml"), "w") as file:
            file.write(f"later_option: 1\nmodel:\n  path: {export.base}\n")
        out = os.path.join(TEMPORARY, "from-recipe")
        done = run_export(PROGRAM, "--run", checkpoint, "--to", "hf", "--out", out)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        for name in os.listdir(export.path):
            with open(os.path.join(export.path, name), "rb") as a, open(os.path.join(out, name), "rb") as b:
                self.assertEqual(a.read(), b.read(), name)
        done = run_export(PROGRAM, "--run", export.sidecar, "--to", "hf", "--out", out)
        self.assertEqual(done.returncode, 2)
        self.assertIn("name the base model with --model", done.stderr)

    def test_the_dense_class_is_not_loaded_by_accident(self):
        with self.assertRaises(ValueError):
            transformers.AutoModelForCausalLM.from_pretrained(
                self.exports["llama-linear"].path, trust_remote_code=False
            )


if __name__ == "__main__":
    PROGRAM = sys.argv.pop(1)
    try:
        unittest.main()
    finally:
        shutil.rmtree(TEMPORARY)
