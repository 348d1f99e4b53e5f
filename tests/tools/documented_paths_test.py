"""Every file that the documents name exists, and every link target too.

Usage: documented_paths_test.py REPOSITORY
"""

import os
import re
import subprocess
import sys

FOLDERS = "recipes|data|model|checkpoints|trainer|tools|tests"
# `data/token_file.h`, but not build/dms, quickstart/run or shell globs.
NAMED = re.compile(rf"`((?:{FOLDERS})/[\w./-]+\.(?:h|cpp|py|sh|md|yaml|png))`")
LINK = re.compile(r"\]\(([^)#:]+)\)")


def missing_paths(root, document, text):
    here = os.path.dirname(document)
    missing = [path for path in NAMED.findall(text) if not os.path.exists(os.path.join(root, path))]
    missing += [path for path in LINK.findall(text) if not os.path.exists(os.path.join(root, here, path))]
    return missing


def main():
    root = sys.argv[1]
    listed = subprocess.run(["git", "-C", root, "ls-files", "*.md"], capture_output=True, text=True, check=True)
    documents = listed.stdout.split()
    assert "README.md" in documents, "README.md is not tracked"
    failures = 0
    for document in documents:
        with open(os.path.join(root, document)) as file:
            for path in missing_paths(root, document, file.read()):
                print(f"{document} names {path}, which does not exist")
                failures += 1
    # The check itself must be able to fail.
    assert missing_paths(root, "README.md", "see `model/no_such_file.h` and [x](nowhere.md)") == [
        "model/no_such_file.h",
        "nowhere.md",
    ]
    return 1 if failures else 0


sys.exit(main())
