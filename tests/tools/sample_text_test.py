#!/usr/bin/env python3
"""tools/sample_text.py without the network: what its converters keep, and that the two parts stay apart."""

import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools"))

import sample_text


def html_text(source):
    return "\n\n".join(sample_text.html_passages(source))


def pod_text(source):
    return "\n\n".join(sample_text.pod_passages(source))


class Html(unittest.TestCase):
    def test_navigation_and_markup_go_and_entities_are_resolved(self):
        self.assertEqual(
            html_text('<html><head><title>T</title></head><body><div class="navheader"><a>Prev</a><hr /></div>'
                      '<p>a &lt;b&gt;\n <em>c</em>&#8230;</p><div id="footer">Last updated</div></body></html>'),
            "a <b> c…")

    def test_code_keeps_its_lines(self):
        self.assertEqual(html_text("<p>see</p><pre>if (x)\n  y();\n\nz();\n</pre>"),
                         "see\n\n    if (x)\n      y();\n\n    z();")

    def test_terms_stand_together_above_their_definition(self):
        self.assertEqual(html_text("<dl><dt>-n</dt><dt>--dry-run</dt><dd><p>Do nothing.</p><p>Really.</p></dd>"
                                   "<dt>-v</dt><dd>Talk.</dd></dl><p>End.</p>"),
                         "-n\n--dry-run\n    Do nothing.\n\n    Really.\n\n-v\n    Talk.\n\nEnd.")

    def test_one_entry_of_the_outermost_list_is_one_passage(self):
        passages = sample_text.html_passages("<p>p</p><dl><dt>a</dt><dd>1<ul><li>x</li><li>y</li></ul></dd>"
                                             "<dt>b</dt><dd>2<dl><dt>c</dt><dd>3</dd></dl></dd></dl>")
        self.assertEqual(passages, ["p", "a\n    1\n\n      - x\n      - y", "b\n    2\n\n    c\n        3"])

    def test_ordered_lists_are_numbered(self):
        self.assertEqual(sample_text.html_passages("<ol><li>one</li><li>two</li></ol>"), [" 1. one", " 2. two"])

    def test_rows_of_a_table_stand_on_lines_of_their_own(self):
        self.assertEqual(html_text("<table><tr><th>k</th><th>v</th></tr><tr><td>1</td><td>2</td></tr></table>"),
                         "k | v\n1 | 2")

    def test_rows_of_paragraphs_are_kept_apart(self):
        row = "<tr><td><p>{}</p><p>about {}</p></td></tr>"
        self.assertEqual(html_text(f"<table>{row.format('f', 'f')}{row.format('g', 'g')}</table>"),
                         "f\nabout f\n\ng\nabout g")


class Pod(unittest.TestCase):
    def test_formatting_codes(self):
        self.assertEqual(pod_text("Use B<I<x>> or C<< a->b >>, E<lt>tagE<gt>, E<eacute>, E<0x41>.X<index entry>"),
                         "Use x or a->b, <tag>, é, A.")

    def test_links_read_as_words(self):
        self.assertEqual(pod_text('L<perlre>, L<text|perlop>, L<perlop/"Quote">, L</Here>, L<http://a.b/c>'),
                         'perlre, text, "Quote" in perlop, "Here", http://a.b/c')

    def test_code_keeps_its_lines_and_its_angle_brackets(self):
        self.assertEqual(pod_text("Text\n\n  my C<x>;\n    y;\n"), "Text\n\n  my C<x>;\n    y;")

    def test_items_and_blocks_for_other_formatters(self):
        source = ("=head1 NAME\n\nx\n\n=begin html\n\n<b>no</b>\n\n=end html\n\n=for comment no\n\n"
                  "=over 4\n\n=item -a\n\n=item -b\n\nBoth.\n\n=item -c\n\nOne.\n\n=back\n\n=cut\n")
        self.assertEqual(sample_text.pod_passages(source), ["NAME", "x", "-a\n-b\n    Both.", "-c\n    One."])


class Parts(unittest.TestCase):
    PASSAGE = "A passage of which we can say that it is long enough to be judged. " * 40

    def test_a_passage_stays_only_in_the_first_document_that_has_it(self):
        own = [f"{name} says this only once, at some length, so it stays. " * 30 for name in "ab"]
        kept = sample_text.without_repetition({"a": [own[0], self.PASSAGE[:900]], "b": [own[1], self.PASSAGE[:900]]})
        self.assertIn(self.PASSAGE[:900], kept["a"])
        self.assertNotIn(self.PASSAGE[:900], kept["b"])
        self.assertIn(own[1], kept["b"])

    def test_near_duplicates_and_stubs_are_left_out(self):
        kept = sample_text.without_repetition(
            {"a": [self.PASSAGE], "copy": [self.PASSAGE, "Less than half of this document is new. " * 45],
             "stub": ["See a."]})
        self.assertEqual(list(kept), ["a"])

    def test_documents_go_to_one_part_by_their_names_alone(self):
        documents = {f"document{i}": f"text {i}\n" for i in range(2000)}
        with tempfile.TemporaryDirectory() as out:
            counts = sample_text.write_set("git", documents, pathlib.Path(out))
            train = {path.stem for path in pathlib.Path(out, "train/git").iterdir()}
            held_out = {path.stem for path in pathlib.Path(out, "held-out/git").iterdir()}
        self.assertEqual(train | held_out, set(documents))
        self.assertFalse(train & held_out)
        self.assertEqual(counts["held-out"]["documents"], len(held_out))
        self.assertAlmostEqual(len(held_out) / 2000, 0.15, delta=0.03)
        self.assertEqual({sample_text.is_held_out("git", "gittutorial") for _ in range(3)}, {True})


if __name__ == "__main__":
    unittest.main()
