"""Our graders against those of lm-evaluation-harness, on constructed answers.

usage: grading_reference.py GRADE_LINES

Their file is loaded by path: importing the package would pull in every dependency of every task.
"""

import importlib.metadata
import importlib.util
import itertools
import json
import pathlib
import random
import sys

from graded_answers import count_differences


def load_harness_grader():
    files = importlib.metadata.files("lm_eval")
    path = next(f for f in files if str(f).endswith("lm_eval/tasks/aime/utils.py")).locate()
    spec = importlib.util.spec_from_file_location("harness_aime", pathlib.Path(path))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def math_pairs():
    """(what the model wrote, the key): the same number or expression in two spellings, or two different ones."""
    numbers = ["0", "7", "12", "-3", "0.5", ".5", "3.14", "1000", "1\\!000", "2/3", "-2/3", "10/4", "x/2"]
    expressions = [
        "\\frac{1}{2}", "\\frac12", "\\dfrac{1}{2}", "\\tfrac12", "\\frac1{72}", "\\frac{-3}{4}", "\\sqrt{2}", "\\sqrt2",
        "2\\sqrt{3}", "2\\sqrt3", "\\left(1,2\\right)", "(1, 2)", "(1,2)", "x=5", "x = 5", "5", "ab = 5", "90^\\circ",
        "90^{\\circ}", "90", "50\\%", "50", "\\$18", "18", "5 \\text{ cm}", "5\\text{ meters}", "\\text{even}",
        "\\pi", "3\\pi", "x^2+1", "x^2 + 1", "\\{1,2\\}", "[0,1)", "\\infty", "-\\infty", "\\frac{\\sqrt3}{2}",
        "\\frac{\\sqrt{3}}{2}", "a = \\frac12", "\n7", "1,000", "\\begin{pmatrix}1\\\\2\\end{pmatrix}",
    ]  # fmt: skip
    return list(itertools.product(numbers, numbers)) + list(itertools.product(expressions, expressions))


def texts(answer):
    """Ways in which a model ends its solution."""
    return [
        f"So the answer is $\\boxed{{{answer}}}$.",
        f"First \\boxed{{0}}, no: \\boxed{{{answer}}}",
        f"\\fbox{{{answer}}}",
    ]


def main():
    program = sys.argv[1]
    harness = load_harness_grader()
    pick = random.Random(0)
    questions, expected = [], []
    for given, key in math_pairs():
        text = pick.choice(texts(given))
        questions.append({"kind": "math", "text": text, "answer": key})
        boxed = harness.remove_boxed(harness.last_boxed_only_string(text)) if "\\boxed" in text else given
        expected.append("1" if harness.is_equiv(boxed, key) else "0")
    for value in range(0, 1000, 7):
        for given in (str(value), str(value + 1), f"x = {value}", f"{value}.5"):
            text = pick.choice(texts(given)[:2])
            questions.append({"kind": "integer", "text": text, "answer": str(value)})
            expected.append(str(harness.process_results({"answer": str(value)}, [text])["exact_match"]))
    for text in (
        "\\boxed{a{b}c}", "x \\boxed{1} y \\boxed{2}", "\\boxed 5$ z", "none", "\\boxed{open", "\\boxed{}",
        "\\boxed{\\frac{1}{\\sqrt{2}}} done", "\\fbox{9}",
    ):  # fmt: skip
        found = harness.last_boxed_only_string(text)
        if found is not None:
            found = found[found.index("{") + 1 : -1] if "{" in found else harness.remove_boxed(found)
        questions.append({"kind": "boxed", "text": text, "answer": ""})
        expected.append(json.dumps(found))

    num_differing = count_differences(program, "lm-eval", questions, expected)
    assert expected.count("1") > 100 and len(expected) > 2000
    sys.exit(1 if num_differing else 0)


if __name__ == "__main__":
    main()
