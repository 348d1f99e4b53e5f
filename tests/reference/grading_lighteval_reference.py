"""Our graders against those of lighteval, on constructed answers to AIME's and GPQA's questions.

usage: grading_lighteval_reference.py GRADE_LINES

Only its extraction and comparison are loaded: the package as a whole wants the libraries of every task and metric.
MATH is not compared: lighteval decides there by symbolic equality, ours by the benchmark's own string rules.
"""

import importlib
import importlib.metadata
import pathlib
import random
import sys
import types
from unittest.mock import MagicMock

from graded_answers import count_differences

# Packages whose __init__ is skipped, and modules that grading only imports.
PACKAGES = ["metrics", "metrics/utils", "tasks", "tasks/templates", "tasks/templates/utils", "utils", "models"]
NOT_NEEDED = ["pytablewriter", "datasets", "lighteval.utils.utils", "lighteval.metrics.utils.metric_utils"]


def load_lighteval():
    files = importlib.metadata.files("lighteval")
    root = pathlib.Path(next(f for f in files if str(f) == "lighteval/__init__.py").locate()).parent
    for path in ["", *PACKAGES]:
        module = types.ModuleType(".".join(["lighteval", *filter(None, path.split("/"))]))
        module.__path__ = [str(root / path)]
        sys.modules[module.__name__] = module
    for name in NOT_NEEDED:
        sys.modules[name] = MagicMock()
    # It would check that the libraries of an extra are installed.
    importlib.import_module("lighteval.utils.imports").requires = lambda *_: lambda function: function


def make_graders():
    """As the tasks aime24 and gpqa:diamond configure their metrics."""
    from lighteval.metrics.utils import extractive_match_utils as extraction
    from lighteval.metrics.utils.math_comparison import compare_gold_target
    from lighteval.tasks.requests import Doc
    from lighteval.utils.language import Language

    def grader(targets):
        def grade(text, choices, index):
            doc = Doc(query="", choices=choices, gold_index=index)
            regexes = extraction.get_extraction_regexes(doc, targets, Language.ENGLISH)
            gold, given = (
                extraction.extract_target_from_pred(t, regexes, "first_match", "any_match", 5)
                for t in (choices[index], text)
            )
            return "1" if compare_gold_target(gold or [choices[index]], given, 6, timeout_seconds=5) else "0"

        return grade

    letters = extraction.IndicesExtractionConfig(
        prefix_for_extraction="NativeLetters", try_extract_without_anchor=True
    )
    return grader([extraction.ExprExtractionConfig(), extraction.LatexExtractionConfig()]), grader([letters])


def main():
    program = sys.argv[1]
    load_lighteval()
    grade_integer, grade_letter = make_graders()
    pick = random.Random(1)
    questions, expected = [], []
    for value in range(0, 1000, 9):
        for given in (str(value), str(value + 1), f"x = {value}", f"{value:03d}"):
            text = pick.choice([
                f"So the answer is $\\boxed{{{given}}}$.",
                f"We try 7 and \\boxed{{7}} fails.\n\nTherefore the final answer is \\boxed{{{given}}}.",
                f"<think>2 + 2</think>\n**Answer**\n\\[\n\\boxed{{{given}}}\n\\]",
            ])  # fmt: skip
            questions.append({"kind": "integer", "text": text, "answer": str(value)})
            expected.append(grade_integer(text, [str(value)], 0))
    for key in range(4):
        for given in "ABCD":
            for text in (
                f"Answer: {given}", f"**Answer: {given}**", f"Answer: ${given}$", f"answer: ({given})",
                f"First I doubt it.\n\nAnswer: {given}", f"Answer: {given}.", f"Answer: {given}\n", f"\\boxed{{{given}}}",
                f"The energy is 3.2 eV.\nAnswer: {given}) because", f"Answer:{given}", f"Answer: \\boxed{{{given}}}",
            ):  # fmt: skip
                questions.append({"kind": "letter", "text": text, "answer": "ABCD"[key]})
                expected.append(grade_letter(text, list("ABCD"), key))

    num_differing = count_differences(program, "lighteval", questions, expected)
    assert expected.count("1") > 200 and len(expected) > 500
    sys.exit(1 if num_differing else 0)


if __name__ == "__main__":
    main()
