#!/usr/bin/env python3
"""Makes the sample text: the documentation of Perl, Git and PostgreSQL as plain text, one file a document.

  OUT/train/{perl,git,postgresql}/NAME.txt      about 85% of the documents
  OUT/held-out/{perl,git,postgresql}/NAME.txt   the others, chosen by a hash of the document's name
  OUT/manifest.json                             packages, counts and bytes

The source is Debian's documentation packages, downloaded (no root needed) and unpacked aside, never installed.  Markup,
navigation and indexes go; prose and code stay.  The three projects repeat themselves (Git's pages share option lists,
release notes list the same fixes again), and a passage that stands in both parts would make the held-out text easier
than it is.  So release notes are left out, and each passage is kept only in the first document that has it.

The same packages give the same files.  OUT is written aside and renamed; one made by this very script is left alone.
"""

import argparse
import hashlib
import html
import html.parser
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

HELD_OUT_SHARE = 0.15
MIN_DOCUMENT_CHARS = 1500   # shorter ones are stubs and tables of contents
MIN_REPEATED_CHARS = 60     # shorter passages ("See also", "=over") repeat without harm
MAX_REPEATED_SHARE = 0.5    # a document that loses more than this to earlier ones is a near-duplicate

# Set -> packages (the first that the distribution has is taken) and where its documents are.
SETS = {
    "perl": (["perl-doc"], "usr/share/perl/*/pod/*.pod"),
    "git": (["git-doc"], "usr/share/doc/git-doc/**/*.html"),
    "postgresql": ([f"postgresql-doc-{version}" for version in (15, 16, 14, 17)],
                   "usr/share/doc/postgresql-doc-*/html/*.html"),
}
# Release notes; licence texts; translations; generated indexes and tables.
EXCLUDED = {
    "perl": r"perl5?\d*delta|perlhist|perlgpl|perlartistic|perl(cn|jp|ko|tw)|perltoc|perluniprops",
    "git": r"(howto-)?index|howto-howto-index",
    "postgresql": r"release.*|bookindex|index|legalnotice|sql-keywords-appendix|biblio|acronyms",
}


class Text:
    """A document being collected: passages, the units in which repetition is judged, each a run of lines."""

    def __init__(self):
        self.passages = []
        self.is_open = False

    def end_passage(self):
        self.is_open = False

    def add(self, block, tight=False):
        """Appends to the open passage, after a blank line unless `tight`, or opens a new one."""
        if self.is_open:
            self.passages[-1] += ("\n" if tight else "\n\n") + block
        else:
            self.passages.append(block)
            self.is_open = True


def indented(block, columns):
    return "\n".join(" " * columns + line.rstrip() if line.strip() else "" for line in block.split("\n"))


class HtmlText(html.parser.HTMLParser):
    """The HTML of AsciiDoc and DocBook as text: paragraphs on one line, lists and code indented by four columns."""

    SKIPPED_TAGS = {"head", "script", "style"}
    SKIPPED_CLASSES = {"navheader", "navfooter", "toc", "list-of-tables", "list-of-figures", "list-of-examples",
                       "attribution"}
    SKIPPED_IDS = {"footer", "toc"}
    BLOCKS = {"p", "div", "h1", "h2", "h3", "h4", "h5", "h6", "blockquote", "caption", "br", "hr", "tr", "li", "dt",
              "dd"}
    GROUPS = {"ul", "ol", "dl", "table"}
    VOID = {"br", "hr", "img", "meta", "link", "input", "col"}

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.text = Text()
        self.inline = []
        self.skip_depth = 0
        self.in_pre = False
        self.groups = []      # the open lists and tables, outermost first
        self.numbers = []     # for each of them, how many items or cells (of the row) it has had
        self.mark = ""        # stands before the first block of a list item
        self.in_term = False
        self.tight = False
        self.row_gap = False  # whether a blank line stands before the first block of this table row

    def indent(self):
        depth = sum(group != "table" for group in self.groups)
        return 4 * (depth - (self.in_term and depth > 0))

    def flush(self):
        raw, self.inline = "".join(self.inline).replace("\u200b", ""), []
        if self.in_pre:
            block = indented(raw.expandtabs().strip("\n"), self.indent() + 4)
        else:
            block = " ".join(raw.split())
            if block.strip("|- "):
                indent = self.indent() - len(self.mark)
                block = indented(self.mark + block, indent)
            else:
                block = ""
        if block.strip():
            if not self.groups:
                self.text.end_passage()
            self.text.add(block, self.tight)
            self.mark = ""
            self.tight = False
            self.row_gap = False

    def is_skipped(self, tag, attributes):
        return (tag in self.SKIPPED_TAGS or attributes.get("id") in self.SKIPPED_IDS
                or not self.SKIPPED_CLASSES.isdisjoint((attributes.get("class") or "").split()))

    def handle_starttag(self, tag, attributes):
        if self.skip_depth or self.is_skipped(tag, dict(attributes)):
            self.skip_depth += tag not in self.VOID
        elif self.in_pre:
            return
        elif tag in self.GROUPS:
            self.flush()
            if not self.groups:
                self.text.end_passage()
            self.groups.append(tag)
            self.numbers.append(0)
        elif tag in ("td", "th"):
            if self.numbers and self.numbers[-1]:
                self.inline.append(" | ")
            if self.numbers:
                self.numbers[-1] += 1
        elif tag in self.BLOCKS:
            self.flush()
            self.start_block(tag)
        elif tag == "pre":
            self.flush()
            self.in_pre = True

    def start_block(self, tag):
        outermost = len(self.groups) == 1
        if tag == "dt":
            # Several terms of one entry stand together; a term after a definition begins the next entry.
            if outermost and not self.in_term:
                self.text.end_passage()
            self.tight = self.in_term
            self.in_term = True
        elif tag == "dd":
            self.in_term = False
            self.tight = True
        elif tag == "li" and self.groups:
            if outermost:
                self.text.end_passage()
            self.numbers[-1] += 1
            self.mark = f"{self.numbers[-1]:2}. " if self.groups[-1] == "ol" else "  - "
            self.tight = self.numbers[-1] > 1
        elif tag == "tr" and self.groups:
            self.row_gap = self.numbers[-1] == 1  # one-cell rows hold paragraphs: keep them apart
            self.tight = not self.row_gap
            self.numbers[-1] = 0
        elif self.groups[-1:] == ["table"] or tag == "br":
            self.tight = not self.row_gap

    def handle_endtag(self, tag):
        if self.skip_depth:
            self.skip_depth -= tag not in self.VOID
        elif tag == "pre":
            self.flush()
            self.in_pre = False
        elif self.in_pre:
            return
        elif tag in self.GROUPS and self.groups:
            self.flush()
            self.groups.pop()
            self.numbers.pop()
            self.mark = ""
            self.in_term = False
            self.tight = False
            if not self.groups:
                self.text.end_passage()
        elif tag in self.BLOCKS:
            self.flush()

    def handle_data(self, data):
        if not self.skip_depth:
            self.inline.append(data)


def html_passages(source):
    parser = HtmlText()
    parser.feed(source)
    parser.close()
    parser.flush()
    return parser.text.passages


POD_CODE = re.compile(r"([A-Z])(<<+\s|<)")
POD_ESCAPES = {"lt": "<", "gt": ">", "verbar": "|", "sol": "/"}


def pod_link(target):
    """L<...>: the text if one is given, else the page, section or address in words."""
    if "|" in target and "://" not in target.split("|")[0]:
        return target.split("|", 1)[0]
    if "://" in target or "/" not in target:
        return target
    page, section = target.split("/", 1)
    section = '"' + section.strip('"') + '"'
    return f"{section} in {page}" if page else section


def pod_inline(text, end=None, start=0):
    """Plain text of a POD paragraph with its formatting codes resolved.  Returns (text, position after `end`)."""
    out, position = [], start
    while position < len(text):
        if end and text.startswith(end, position):
            return "".join(out), position + len(end)
        code = POD_CODE.match(text, position)
        if not code:
            out.append(text[position])
            position += 1
            continue
        letter, opening = code.groups()
        closing = ">" if opening == "<" else " " + ">" * (len(opening) - 1)
        inner, position = pod_inline(text, closing, code.end())
        if letter == "E":
            number = re.fullmatch(r"0?(x[0-9A-Fa-f]+|\d+)", inner)
            inner = POD_ESCAPES.get(inner) or html.unescape(f"&#{number[1]};" if number else f"&{inner};")
        elif letter == "L":
            inner = pod_link(inner)
        elif letter in "XZ":
            inner = ""
        out.append(inner)
    return "".join(out), position


def pod_passages(source):
    """Perl's POD as text, laid out like HtmlText.  `=begin`/`=for` blocks are for other formatters and go."""
    text = Text()
    indents = []        # of the open =over blocks
    skipping = False
    after_item = False
    for paragraph in re.split(r"\n[ \t]*\n+", source):
        paragraph = paragraph.strip("\n")
        command = re.match(r"=([a-z]+)(\d?)\s*", paragraph)
        name = command[1] if command else ""
        if name in ("begin", "end"):
            skipping = name == "begin"
        if skipping or not paragraph.strip() or (command and name not in ("head", "item", "over", "back")):
            continue
        rest = paragraph[command.end():] if command else paragraph
        if name == "over":
            if not indents:
                text.end_passage()
            indents.append(4)
        elif name == "back":
            indents = indents[:-1]
        elif name == "head":
            indents = []
            text.end_passage()
            text.add(" ".join(pod_inline(rest)[0].split()))
            text.end_passage()
        elif name == "item":
            if len(indents) == 1 and not after_item:
                text.end_passage()
            label = " ".join(pod_inline(rest)[0].split())
            text.add(indented("-" if label == "*" else label.removeprefix("* "), sum(indents[:-1])), tight=after_item)
        else:
            if not indents:
                text.end_passage()
            if paragraph[0] in " \t":
                text.add(indented(paragraph.expandtabs(), sum(indents)), tight=False)
            else:
                text.add(indented(" ".join(pod_inline(rest)[0].split()), sum(indents)), tight=after_item)
        after_item = name == "item"
    return text.passages


class SourceMissing(Exception):
    """A package could not be had or is not laid out as expected."""


def unpack(packages, cache, directory):
    """Unpacks the first of `packages` that can be downloaded; returns the name of its .deb."""
    download = pathlib.Path(__file__).resolve().parent / "download_debs.sh"
    complaints = ""
    for package in packages:
        downloaded = subprocess.run(["bash", download, cache, package], stderr=subprocess.PIPE, text=True)
        if downloaded.returncode == 0:
            deb = sorted(cache.glob(f"{package}_*.deb"))[-1]
            subprocess.run(["dpkg-deb", "-x", deb, directory], check=True)
            return deb.name
        complaints += downloaded.stderr
    raise SourceMissing(f"could not download {' or '.join(packages)}:\n{complaints}")


def read_documents(set_name, root):
    """Name -> passages, without the excluded ones, in the order of their names."""
    pattern = SETS[set_name][1]
    paths = [path for path in sorted(root.glob(pattern)) if path.is_file() and not path.is_symlink()]
    if not paths:
        raise SourceMissing(f"no documents at {pattern} in the {set_name} package")
    base = os.path.commonpath([path.parent for path in paths])
    excluded = re.compile(EXCLUDED[set_name])
    documents = {}
    for path in paths:
        name = "-".join(path.relative_to(base).with_suffix("").parts)
        if not excluded.fullmatch(name):
            source = path.read_text(encoding="utf-8")
            documents[name] = html_passages(source) if path.suffix == ".html" else pod_passages(source)
    return documents


def without_repetition(documents):
    """Drops what an earlier document says already, then what is too short or mostly repeated."""
    seen = set()
    kept_documents = {}
    for name, passages in documents.items():
        kept, new = [], set()
        for passage in passages:
            key = hashlib.sha256(" ".join(passage.split()).encode()).digest()
            if len(passage) < MIN_REPEATED_CHARS or key not in seen:
                kept.append(passage)
                new.add(key)
        seen |= new
        text = "\n\n".join(kept) + "\n"
        total_chars = sum(map(len, passages))
        if len(text) >= MIN_DOCUMENT_CHARS and sum(map(len, kept)) >= (1 - MAX_REPEATED_SHARE) * total_chars:
            kept_documents[name] = text
    return kept_documents


def is_held_out(set_name, name):
    digest = hashlib.sha256(f"{set_name}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < HELD_OUT_SHARE * 2**64


def write_set(set_name, documents, out):
    counts = {part: {"documents": 0, "bytes": 0} for part in ("train", "held-out")}
    for name, text in documents.items():
        part = "held-out" if is_held_out(set_name, name) else "train"
        path = out / part / set_name / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        counts[part]["documents"] += 1
        counts[part]["bytes"] += path.stat().st_size
    return counts


def script_sha256():
    return hashlib.sha256(pathlib.Path(__file__).read_bytes()).hexdigest()


def is_complete(out):
    """Whether `out` was made by this very script.  It is renamed into place when finished, so it is whole then."""
    try:
        return json.loads((out / "manifest.json").read_text())["script_sha256"] == script_sha256()
    except (OSError, ValueError, KeyError):
        return False


def make_sample(cache, out):
    manifest = {"script_sha256": script_sha256(), "sets": {}}
    for set_name, (packages, _) in SETS.items():
        with tempfile.TemporaryDirectory() as unpacked:
            deb = unpack(packages, cache, unpacked)
            documents = without_repetition(read_documents(set_name, pathlib.Path(unpacked)))
        counts = write_set(set_name, documents, out)
        manifest["sets"][set_name] = {"package": deb, **counts}
        print(f"{set_name}: " + ", ".join(
            f"{part} {count['documents']} documents, {count['bytes'] / 1e6:.2f} MB" for part, count in counts.items()),
            flush=True)
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, type=pathlib.Path, metavar="DIR", help="e.g. quickstart/text")
    arguments = parser.parse_args()
    out = arguments.out.absolute()
    if is_complete(out):
        print(f"{arguments.out}: already made")
        return 0
    if out.exists() and any(out.iterdir()) and not (out / "manifest.json").exists():
        raise SourceMissing(f"{out} is not empty and was not made by this script; remove it or choose another --out")
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    cache = pathlib.Path(base) / "dms-retrofit" / "documentation"
    out.parent.mkdir(parents=True, exist_ok=True)
    staged = pathlib.Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.partial-"))
    try:
        make_sample(cache, staged)
        staged.chmod(0o755)
        if out.exists():
            shutil.rmtree(out)
        staged.rename(out)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (SourceMissing, OSError, subprocess.CalledProcessError) as failure:
        print(f"sample_text.py: {failure}", file=sys.stderr)
        sys.exit(1)
