"""`dms report` writes a well-formed, self-contained, accessible page, whatever stands in its inputs.

    report_page_test.py PATH_TO_DMS STYLE.css
"""

import html.parser
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree

DMS = STYLE = None

HOSTILE = "</script><script>alert('x')</script><img src=http://example.invalid/x onerror=\"y\">&amp;"
VOID = {"meta", "br", "img", "link", "input", "hr", "col"}


class Page(html.parser.HTMLParser):
    """Collects what the tests ask about; complains about tags that do not nest."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.sample, self.ids = [], [], "", []
        self.in_sample = 0
        self.feed(text)
        self.close()
        if self.open:
            raise ValueError(f"never closed: {self.open}")

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if "id" in attributes:
            self.ids.append(attributes["id"])
        if tag in VOID:
            return
        self.open.append(tag)
        if attributes.get("class") == "sample":
            self.in_sample = len(self.open)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if not self.open or self.open[-1] != tag:
            raise ValueError(f"</{tag}> closes {self.open}")
        if len(self.open) == self.in_sample:
            self.in_sample = 0
        self.open.pop()

    def handle_data(self, data):
        if self.in_sample:
            self.sample += data


def evaluation():
    positions = [{"from": 16 * i, "to": 16 * i + 16, "kl_mean": 0.01 * i} for i in range(4)]
    last_uses = [{"from": 0, "to": 1, "tokens": 9, "kl_mean": 0.5}, {"from": 1, "to": 2, "tokens": 8, "kl_mean": 0.1},
                 {"from": 16, "to": 32, "tokens": 7, "kl_mean": 0.2}]  # fmt: skip
    baseline = {"kl_mean": 0.5, "kl_mean_by_last_use": last_uses, "kl_mean_second_half": 0.7, "kv_memory_ratio": 4.1, "kl_mean_by_position": positions}
    return {
        "kl_mean": 0.02, "kl_mean_second_half": 0.03, "kv_memory_ratio": 4.0, "kv_read_ratio": 2.0,
        "ppl_teacher": 10.0, "ppl_student": 10.5, "eviction_rate": 0.8, "noise_floor_kl": 1e-9,
        "top1_agreement": 0.9, "tokens": 64, "sequence_length": 64, "window": 8, "adapter": "linear",
        "kl_mean_by_last_use": last_uses, "target_ratio": 4.0, "kv_live_ratio": 4.2, "ratio_drift": 0.05,
        "kl_mean_by_position": positions, "sliding_window": baseline, "streaming_llm": baseline,
        "per_layer_head_keep_rate": [[0.1, 0.5], [0.0, 1.0]],
        "memory_by_length": [{"tokens": 32 * i, "dense_bytes": 4096 * i, "allocated_bytes": 1024 * i}
                             for i in range(4)],
        "sample": {"heads_total": 4, "tokens": [{"text": text, "kept_heads": 2}
                                                for text in ["Hello", "\n", "  ", HOSTILE, "é中", "\t\"'"]]},
        "sets": {HOSTILE: {"kl_mean": 0.02, "kv_memory_ratio": 4.0}, "b": {"kl_mean": 0.03, "kv_memory_ratio": 3.9}},
    }


class ReportPage(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.dir = pathlib.Path(directory.name)
        self.run_dir = self.dir / "run <i>"
        self.run_dir.mkdir()
        # JSON is YAML, with the quoting done.
        (self.run_dir / "recipe.yaml").write_text(json.dumps(
            {"model": {"path": "models/tiny"}, "warm_start": {"tokens": 100}, "data": {"held_out": [HOSTILE]}}))
        with open(self.run_dir / "metrics.jsonl", "w") as file:
            for step in range(3):
                record = dict.fromkeys(["loss", "kl", "compression_loss", "eviction_rate", "alpha_mean", "grad_norm",
                                        "lr", "tokens_per_s", "mfu", "seconds"], 0.5)
                file.write(json.dumps({"step": step, **record, "target_cr": 4, "peak_memory_bytes": 1 << 30}) + "\n")

    def report(self, evaluation=None, name="Tiny", inference=False, tasks=()):
        command = [DMS, "report", "--run", self.run_dir, "--out", self.dir / "report.html", "--name", name]
        if inference:
            command += ["--decode", *self.decode_files(), "--tasks", *self.task_files(), *tasks]
        if evaluation is not None:
            (self.dir / "eval.json").write_text(json.dumps(evaluation))
            command += ["--summary", self.dir / "eval.json"]
        subprocess.run(command, check=True, capture_output=True)
        self.text = (self.dir / "report.html").read_text()
        return Page(self.text)

    def decode_files(self):
        for context in (1024, 8192):
            rows = [{"engine": engine, "evict": evict, "context": context, "sequences": 4, "kv_bytes": context << 10,
                     "tokens_per_s": 1000.0 * (1 + evict) / context, "kv_budget_bytes": budget}
                    for engine, evict in (("transformers", False), ("dms", False), ("dms", True))
                    for budget in (0, 1 << 30)]  # fmt: skip
            path = self.dir / f"decode-{context}.json"
            path.write_text(json.dumps({"rows": rows}))
            yield path

    def task_files(self, questions="x", prompt_tokens=5):
        """Per evictor 4 problems with 4 samples; the evictor reads a quarter and is right on one problem less."""
        for evictor, keys, right in (("none", 4096, 3), ("trained", 1024, 2), ("sinks + window", 1024, 0)):
            texts = ["evictor", "task", "questions_sha256", "model", "model_sha256", "adapters", "adapters_sha256",
                     "chat_template", "thinking", "dtype"]  # fmt: skip
            numbers = ["streaming_keys", "max_new_tokens", "temperature", "top_p", "top_k", "seed"]
            conditions = dict.fromkeys(texts, "x") | dict.fromkeys(numbers, 1)
            conditions |= {"evictor": evictor, "task": "aime", "bytes_per_key": 256, "questions_sha256": questions}
            lines = [{"conditions": conditions}]
            for problem in range(4):
                for sample in range(4):
                    good = problem < right
                    lines.append({"item": str(problem), "sample": sample, "score": float(good), "truncated": False,
                                  "answer": "1" if good else "2", "prompt_tokens": prompt_tokens, "new_tokens": 10,
                                  "keys_read": keys, "peak_kv_bytes": keys << 8, "text": HOSTILE})  # fmt: skip
            path = self.dir / f"{evictor}-{questions}.jsonl"
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
            yield path

    def test_throughput_and_tasks_are_compared_at_equal_cost(self):
        page = self.report(evaluation(), inference=True)
        self.assertNotIn("dms bench decode --model", self.text)
        tables = re.findall(r"<table>.*?</table>", self.text, re.S)
        self.assertEqual(len(tables), 7)
        # The original's best: one sample, 3 of 4. A sample reads 4096 keys of 256 bytes, 1 MiB.
        self.assertIn("At the KV reads of the original&#39;s best (1.00 MiB): original 75%, sinks + window 0%, this model 50%.",
                      self.text)
        self.assertEqual(len([1 for tag, a in page.tags if tag == "circle" and a["class"] == "dot dms"]), 2 + 2 + 3 + 4)
        # Two contexts at an equal budget: the three engines side by side, and what eviction is worth.
        for style in ["dms", "streaming", "sliding"]:
            self.assertEqual(len([1 for tag, a in page.tags if tag == "rect" and a["class"] == f"bar {style}"]), 2)
        self.assertEqual(self.text.count("Speed in 1.00 GiB of KV memory, after 8,192 tokens."), 2)
        self.assertIn("0.244 tokens/s, 4 sequences, 2.0×", self.text)
        self.assertIn("transformers, DynamicCache</td><td class=\"number\">1.00 GiB", self.text)
        command = [DMS, "report", "--run", self.run_dir, "--out", self.dir / "r.html", "--tasks", self.dir / "eval.json"]
        refused = subprocess.run(command, capture_output=True, text=True)
        self.assertEqual(refused.returncode, 2)
        self.assertIn("eval.json: holds no answers", refused.stderr)

    def test_only_answers_to_the_same_questions_are_compared(self):
        self.report(evaluation(), inference=True, tasks=self.task_files("longer", 2048))
        self.assertEqual(len(re.findall(r"aime of 5.00 tokens \(questions x\): accuracy against", self.text)), 3)
        self.assertEqual(len(re.findall(r"aime of 2,048 tokens \(questions longer\): accuracy against", self.text)), 3)
        self.assertLess(self.text.index("aime of 5.00 tokens"), self.text.index("aime of 2,048 tokens"))

    def test_the_last_use_and_the_drift_of_the_ratio_are_shown(self):
        self.report(evaluation())
        self.assertIn("<tr><th scope=\"row\">16 to 31</th><td class=\"number\">7</td><td class=\"number\">0.200</td>",
                      self.text)
        self.assertIn("<tr><th scope=\"row\">new to the text</th><td class=\"number\">9</td>", self.text)
        self.assertIn("4.00×</td><td class=\"number\">4.20×</td><td class=\"number\">+5%</td>", self.text)
        without = {key: value for key, value in evaluation().items() if "last_use" not in key and "ratio" not in key}
        self.report(without | {"kv_memory_ratio": 4.0})
        self.assertNotIn("Drift", self.text)

    def test_tags_nest_and_ids_are_unique_with_and_without_an_evaluation(self):
        for given in [None, {"kl_mean": 0.1, "kv_memory_ratio": 2.0}, evaluation()]:
            page = self.report(given)
            self.assertEqual(len(page.ids), len(set(page.ids)))
            tags = [tag for tag, _ in page.tags]
            for once in ["html", "h1", "main", "header", "footer", "script", "style"]:
                self.assertEqual(tags.count(once), 1, once)

    def test_nothing_is_loaded_from_anywhere(self):
        page = self.report(evaluation(), name=HOSTILE, inference=True)
        for tag, attributes in page.tags:
            self.assertNotIn(tag, {"link", "img", "iframe", "object", "embed", "base", "image", "use"})
            for attribute in attributes:
                self.assertNotIn(attribute, {"src", "href", "srcset", "data", "action", "xlink:href", "style"})
                self.assertFalse(attribute.startswith("on"), attribute)
        self.assertEqual(sum(tag == "script" for tag, _ in page.tags), 1)
        style = re.search(r"<style>(.*?)</style>", self.text, re.S).group(1)
        script = re.search(r"<script>(.*?)</script>", self.text, re.S).group(1)
        for code in [style, script]:
            for loader in ["url(", "@import", "http:", "https:", "fetch(", "import("]:
                self.assertNotIn(loader, code)

    def test_the_sample_reads_exactly_as_it_was_given(self):
        given = evaluation()
        page = self.report(given)
        self.assertEqual(page.sample, "".join(token["text"] for token in given["sample"]["tokens"]))

    def test_drawings_are_well_formed_and_described(self):
        self.report(evaluation(), name=HOSTILE, inference=True)
        drawings = re.findall(r"<svg.*?</svg>", self.text, re.S)
        self.assertGreaterEqual(len(drawings), 13)
        for drawing in drawings:
            root = xml.etree.ElementTree.fromstring(drawing)
            if root.get("aria-hidden") == "true":
                continue
            self.assertEqual(root.get("role"), "img")
            self.assertGreater(len(root.get("aria-label")), 10)
            _, _, width, height = map(float, root.get("viewBox").split())
            for element in root.iter():
                for attribute, limit in [("x", width), ("y", height)]:
                    if element.get(attribute) is not None:
                        self.assertGreaterEqual(float(element.get(attribute)), 0)
                        self.assertLessEqual(float(element.get(attribute)), limit)

    def test_tables_have_captions_and_header_cells(self):
        self.report(evaluation())
        tables = re.findall(r"<table>.*?</table>", self.text, re.S)
        self.assertEqual(len(tables), 5)
        for table in tables:
            self.assertIn("<caption>", table)
            self.assertIn('scope="col"', table)
            self.assertIn('scope="row"', table)

    def test_text_stands_out_from_its_background_in_both_schemes(self):
        def luminance(colour):
            parts = [int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)]
            linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
            return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

        def contrast(a, b):
            high, low = sorted([luminance(a), luminance(b)], reverse=True)
            return (high + 0.05) / (low + 0.05)

        self.assertAlmostEqual(contrast("#ffffff", "#000000"), 21)
        blocks = re.findall(r":root \{(.*?)\}", STYLE, re.S)
        self.assertEqual(len(blocks), 3)  # light, dark, print
        for block in blocks:
            colour = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
            for ink in ["ink", "soft", "accent"]:
                for paper in ["page", "card", "code", "band"]:
                    self.assertGreaterEqual(contrast(colour[ink], colour[paper]), 4.5, (ink, paper))
            for line in ["dms", "streaming", "sliding"]:
                self.assertGreaterEqual(contrast(colour[line], colour["card"]), 3, line)
            for level in range(9):
                ink = colour["k-low-ink" if level < 6 else "k-high-ink"]
                self.assertGreaterEqual(contrast(ink, colour[f"k{level}"]), 4.5, level)
            # Neighbouring levels differ in lightness, always in the same direction: readable without colour vision.
            steps = [luminance(colour[f"k{level}"]) for level in range(9)]
            self.assertIn(steps, [sorted(steps), sorted(steps, reverse=True)])


if __name__ == "__main__":
    STYLE = pathlib.Path(sys.argv.pop(2)).read_text()
    DMS = sys.argv.pop(1)
    unittest.main()
