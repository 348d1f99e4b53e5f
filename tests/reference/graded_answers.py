"""Answers graded by this program and by a harness, side by side."""

import json
import subprocess


def count_differences(program, harness, questions, expected):
    """Runs GRADE_LINES over `questions`, prints where it differs from what `harness` says, and how many do."""
    lines = "".join(json.dumps(question) + "\n" for question in questions)
    result = subprocess.run([program], input=lines, capture_output=True, text=True, check=True)
    actual = result.stdout.splitlines()
    assert len(actual) == len(expected), (len(actual), len(expected))
    differing = [(q, e, a) for q, e, a in zip(questions, expected, actual) if e != a]
    for question, e, a in differing[:20]:
        print(f"{question}: {harness} {e}, ours {a}")
    print(f"{len(expected)} answers, {expected.count('1')} right by {harness}, {len(differing)} differences")
    return len(differing)
