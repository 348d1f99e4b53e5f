"""Checks #include lines: which folder may see which, and that each third-party library stays in its place.

usage: include_direction_test.py REPOSITORY
"""

import pathlib
import re
import sys

VISIBLE = {
    "recipes": {"recipes"},
    "data": {"data", "recipes"},
    "model": {"model", "recipes"},
    "checkpoints": {"checkpoints", "data", "model", "recipes"},
    "trainer": {"trainer", "checkpoints", "data", "model", "recipes"},
    "tools": {"tools", "trainer", "checkpoints", "data", "model", "recipes"},
    "tests": {"tests", "tools", "trainer", "checkpoints", "data", "model", "recipes"},
}

# What is included -> the only files that may include it.
PLACES = [
    (r"yaml-cpp/", r"recipes/yaml_tree\.cpp"),
    (r"(hdf5|H5)", r"(data/token_file\w*\.(h|cpp)|tests/support/raw_token_file\.cpp)"),
    (r"(pcre2|utf8proc)", r"data/\w+\.cpp"),
    (r"(arrow|parquet)/", r"data/parquet_file_arrow\.cpp"),
    (r"zlib", r"data/input_file\.cpp"),
    (r"CLI/", r"(tools/\w+\.cpp|\w+/\w+_pch\.h)"),
    (r"nlohmann/json\.hpp", r"(.*\.cpp|\w+/\w+_pch\.h|tests/.*)"),
    (r"protozero/", r"trainer/tensorboard\.cpp"),
    (r"(ATen|c10|torch)/", r"(model|checkpoints|trainer|tools|tests)/.*"),
    (r"torch/csrc/distributed/", r"trainer/ranks\w*\.(h|cpp)"),
    (r"gtest/", r"tests/.*"),
]

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)


def violations(path, text):
    folder = path.split("/")[0]
    found = []
    for _, included in INCLUDE.findall(text):
        included_folder = included.split("/")[0]
        if included_folder in VISIBLE and included_folder not in VISIBLE[folder]:
            found.append(f"{path}: {folder}/ must not see {included}")
        for pattern, place in PLACES:
            if re.match(pattern, included) and not re.fullmatch(place, path):
                found.append(f"{path}: {included} belongs in {place} only")
    return found


def check_the_checker():
    for path, line in [
        ("recipes/schema.cpp", '#include "data/token_file.h"'),
        ("data/tokenizer.cpp", '#include "model/block.h"'),
        ("model/block.cpp", '#include "checkpoints/model_dir.h"'),
        ("checkpoints/export.cpp", '#include "trainer/step.h"'),
        ("trainer/run.cpp", '  #  include "tools/commands.h"'),
        ("tools/dms.cpp", '#include "tests/support/tiny_model.h"'),
        ("recipes/schema.cpp", "#include <yaml-cpp/yaml.h>"),
        ("checkpoints/model_dir.cpp", "#include <hdf5.h>"),
        ("trainer/run.cpp", "#include <CLI/CLI.hpp>"),
        ("data/tokenizer.h", "#include <nlohmann/json.hpp>"),
        ("data/sample_order.cpp", "#include <ATen/ATen.h>"),
        ("trainer/step.cpp", "#include <torch/csrc/distributed/c10d/TCPStore.hpp>"),
    ]:
        assert violations(path, f"// first line\n{line}\n"), f"not caught: {path}: {line}"
    for path, line in [
        ("tools/dms.cpp", '#include "trainer/run.h"'),
        ("data/tokenizer.cpp", "#include <nlohmann/json.hpp>"),
        ("recipes/strict_json.h", "#include <nlohmann/json_fwd.hpp>"),
        ("model/block.h", "#include <ATen/ATen.h>"),
        ("model/block.cpp", "// as #include <CLI/CLI.hpp> would"),
    ]:
        assert not violations(path, line), f"wrongly caught: {path}: {line}"


def main():
    check_the_checker()
    root = pathlib.Path(sys.argv[1])
    files = [f for folder in VISIBLE for end in ("h", "cpp", "cu") for f in sorted((root / folder).rglob(f"*.{end}"))]
    assert len(files) > 40, f"only {len(files)} source files below {root}: wrong directory?"
    found = [v for f in files for v in violations(f.relative_to(root).as_posix(), f.read_text(encoding="utf-8"))]
    print("\n".join(found) or f"{len(files)} files: every #include points the right way")
    sys.exit(1 if found else 0)


main()
