#include "recipes/schema.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>

#include "recipes/user_error.h"
#include "tests/support/temporary_directory.h"

namespace dms {
namespace {

enum class Kind { neuron, linear };

// One option of every type, two levels deep.
struct Options {
  std::string title = "untitled";
  int64_t steps = 100;
  double learning_rate = 3e-5;
  bool deterministic = false;
  int64_t memory_limit = -1;
  Kind kind = Kind::neuron;
  std::vector<std::string> train = {"train.h5"};
  std::string held_out = "held-out.h5";

  bool operator==(const Options&) const = default;
};

Describe describe(Options& options) {
  return [&](Schema& s) {
    s.text("title", options.title, "What people call this run.");
    s.section("trainer", "How long and how fast.", [&] {
      s.integer("steps", options.steps, 1, 1'000'000, "Optimizer steps.");
      s.real("learning_rate", options.learning_rate, 0.0, 1.0, "Peak learning rate.");
      s.flag("deterministic", options.deterministic, "Equal to the bit on CUDA.");
      s.bytes_or_auto("memory_limit", options.memory_limit, "Per rank.");
      s.section("adapter", "", [&] {
        s.choice("kind", options.kind, {{"neuron", Kind::neuron}, {"linear", Kind::linear}}, "Which adapter.");
      });
    });
    s.section("data", "Token files.", [&] {
      s.list("train", options.train, "Training files.");
      s.path("held_out", options.held_out, "Held-out file.");
    });
  };
}

Options parse(const std::string& yaml, const std::vector<std::string>& overrides = {}) {
  Options options;
  parse_yaml_text("run.yaml", yaml, overrides, describe(options));
  return options;
}

std::string error_of(const std::string& yaml, const std::vector<std::string>& overrides = {}) {
  try {
    parse(yaml, overrides);
  } catch (const UserError& error) {
    return error.what();
  }
  return "no error";
}

TEST(Schema, ReadsEveryType) {
  const Options options = parse(
      "title: 'a: b'\n"
      "trainer:\n"
      "  steps: 1_000\n"
      "  learning_rate: 1e-4\n"
      "  deterministic: true\n"
      "  memory_limit: 24GiB\n"
      "  adapter: {kind: linear}\n"
      "data:\n"
      "  train:\n"
      "    - a.h5\n"
      "    - b c.h5\n"
      "  held_out: 12\n");
  const Options expected = {"a: b", 1000, 1e-4, true, int64_t{24} << 30, Kind::linear, {"a.h5", "b c.h5"}, "12"};
  EXPECT_EQ(options, expected);
}

TEST(Schema, KeepsDefaultsOfWhatIsNotGiven) {
  EXPECT_EQ(parse(""), Options{});
  EXPECT_EQ(parse("# only a comment\n"), Options{});
  Options expected;
  expected.steps = 7;
  EXPECT_EQ(parse("trainer:\n  steps: 7\n"), expected);
}

TEST(Schema, FollowsAnchorsAndAliases) { EXPECT_EQ(parse("title: &x abc\ndata: {held_out: *x}\n").held_out, "abc"); }

TEST(Schema, KeepsTheLineBreaksOfBlockText) {
  EXPECT_EQ(parse("title: |\n  a\n  b\n").title, "a\nb\n");
  EXPECT_EQ(parse("title: |-\n  a\n  b").title, "a\nb");
  EXPECT_EQ(parse("title: >\n  a\n  b\n").title, "a b\n");
}

TEST(Schema, AListMayBeOneText) {
  EXPECT_EQ(parse("data: {train: a.h5}").train, std::vector<std::string>{"a.h5"});
  EXPECT_EQ(parse("data: {train: []}").train, std::vector<std::string>{});
}

struct ErrorCase {
  const char* yaml;
  const char* message;
};

TEST(Schema, SaysWhereAndWhatIsWrongAndWhatWasExpected) {
  const std::vector<ErrorCase> cases = {
      {"trainer:\n  step: 3\n",
       "run.yaml:2:3: unknown option 'trainer.step'\n"
       "  options here: steps, learning_rate, deterministic, memory_limit, adapter\n"
       "  did you mean 'steps'?"},
      {"optimizer: adam\n",
       "run.yaml:1:1: unknown option 'optimizer'\n"
       "  options here: title, trainer, data"},
      {"trainer:\n  adapter:\n    <<: {kind: linear}\n",
       "run.yaml:3:5: unknown option 'trainer.adapter.<<'\n"
       "  options here: kind\n"
       "  merge keys are not supported: write the options out"},
      {"title: a\ntitle: b\n",
       "run.yaml:2:1: 'title' is given twice\n"
       "  first given at line 1: remove one"},
      {"trainer: {steps: 1}\ndata: {}\ntrainer: {steps: 2}\n",
       "run.yaml:3:1: 'trainer' is given twice\n"
       "  first given at line 1: remove one"},
      {"trainer: {steps: abc}",
       "run.yaml:1:18: 'trainer.steps': 'abc' is not an integer\n"
       "  expected an integer from 1 to 1000000; default 100"},
      {"trainer: {steps: 8.0}",
       "run.yaml:1:18: 'trainer.steps': '8.0' is not an integer\n"
       "  expected an integer from 1 to 1000000; default 100"},
      {"trainer: {steps: 0}",
       "run.yaml:1:18: 'trainer.steps': '0' is out of range\n"
       "  expected an integer from 1 to 1000000; default 100"},
      {"trainer: {steps: 99999999999999999999}",
       "run.yaml:1:18: 'trainer.steps': '99999999999999999999' is out of range\n"
       "  expected an integer from 1 to 1000000; default 100"},
      {"trainer: {steps: '100'}",
       "run.yaml:1:18: 'trainer.steps' is text in quotes: \"100\"\n"
       "  expected an integer from 1 to 1000000; default 100"},
      {"trainer: {steps: [1]}",
       "run.yaml:1:18: 'trainer.steps' is a list\n"
       "  expected an integer from 1 to 1000000; default 100"},
      {"trainer:\n  steps:\n  deterministic: true\n",
       "run.yaml:2:3: 'trainer.steps' has no value\n"
       "  remove the line to use the default, 100"},
      {"trainer: {steps: ~}",
       "run.yaml:1:11: 'trainer.steps' has no value\n"
       "  remove the line to use the default, 100"},
      {"trainer: {learning_rate: .nan}",
       "run.yaml:1:26: 'trainer.learning_rate': '.nan' is not a finite number\n"
       "  expected a number from 0 to 1; default 3.0e-05"},
      {"trainer: {learning_rate: inf}",
       "run.yaml:1:26: 'trainer.learning_rate': 'inf' is not a finite number\n"
       "  expected a number from 0 to 1; default 3.0e-05"},
      {"trainer: {learning_rate: 1.5}",
       "run.yaml:1:26: 'trainer.learning_rate': '1.5' is out of range\n"
       "  expected a number from 0 to 1; default 3.0e-05"},
      {"trainer: {deterministic: yes}",
       "run.yaml:1:26: 'trainer.deterministic': 'yes' is neither true nor false\n"
       "  expected true or false; default false"},
      {"trainer: {memory_limit: 24G}",
       "run.yaml:1:25: 'trainer.memory_limit': '24G' is not a size\n"
       "  expected a size (24GiB, 500MB, a count of bytes) or auto; default auto"},
      {"trainer: {adapter: {kind: linaer}}",
       "run.yaml:1:27: 'trainer.adapter.kind': 'linaer' is not a choice; did you mean 'linear'?\n"
       "  expected one of: neuron, linear; default neuron"},
      {"trainer: 5\n",
       "run.yaml:1:10: 'trainer' is a section, but its value is '5'\n"
       "  indent its options below it"},
      {"trainer:\ndata: {}\n",
       "run.yaml:1:1: 'trainer' is a section, but its value is nothing\n"
       "  indent its options below it, or remove the line"},
      {"title: {a: b}",
       "run.yaml:1:8: 'title' is a section\n"
       "  expected text; default untitled"},
      {"data: {train: {a: b}}",
       "run.yaml:1:15: 'data.train' is a section\n"
       "  expected a list of texts, e.g. [a, b]; default [train.h5]"},
      {"data: {train: [a, [b]]}",
       "run.yaml:1:15: 'data.train' is a list with an item that is not text\n"
       "  expected a list of texts, e.g. [a, b]; default [train.h5]"},
      {"data: {held_out: \"a\\x07b\"}",
       "run.yaml:1:18: 'data.held_out': 'a\x07"
       "b' holds a control character\n"
       "  expected a path; default held-out.h5"},
      {"- a\n- b\n", "run.yaml:1:1: expected sections with options (key: value), found a list"},
      {"just text", "run.yaml:1:1: expected sections with options (key: value), found 'just text'"},
      {"? [a, b]\n: c\n", "run.yaml:1:3: expected an option's name, found a list"},
  };
  for (const ErrorCase& c : cases) EXPECT_EQ(error_of(c.yaml), c.message) << c.yaml;
}

TEST(Schema, BoundsAreInclusive) {
  EXPECT_EQ(parse("trainer: {steps: 1, learning_rate: 0}").steps, 1);
  EXPECT_EQ(parse("trainer: {steps: 1000000, learning_rate: 1.0}").steps, 1'000'000);
  EXPECT_NE(error_of("trainer: {steps: 1000001}").find("out of range"), std::string::npos);
  EXPECT_NE(error_of("trainer: {learning_rate: -1.0e-300}").find("out of range"), std::string::npos);
  EXPECT_NE(error_of("trainer: {learning_rate: 1.0000000000000002}").find("out of range"), std::string::npos);
}

TEST(Schema, AnUnknownOptionGivenTwiceIsUnknownOnce) {
  EXPECT_EQ(error_of("zoo: 1\nzoo: 2\n"),
            "run.yaml: 2 problems\n"
            "  run.yaml:1:1: unknown option 'zoo'\n"
            "    options here: title, trainer, data\n"
            "  run.yaml:2:1: 'zoo' is given twice\n"
            "    first given at line 1: remove one");
}

TEST(Schema, ReportsAllProblemsTogetherInFileOrder) {
  EXPECT_EQ(error_of("trainer:\n  stepz: 3\n  learning_rate: fast\ndata:\n  trian: a\nmodle: x\n", {"trainer.steps=0"}),
            "run.yaml: 5 problems\n"
            "  run.yaml:2:3: unknown option 'trainer.stepz'\n"
            "    options here: steps, learning_rate, deterministic, memory_limit, adapter\n"
            "    did you mean 'steps'?\n"
            "  run.yaml:3:18: 'trainer.learning_rate': 'fast' is not a finite number\n"
            "    expected a number from 0 to 1; default 3.0e-05\n"
            "  run.yaml:5:3: unknown option 'data.trian'\n"
            "    options here: train, held_out\n"
            "    did you mean 'train'?\n"
            "  run.yaml:6:1: unknown option 'modle'\n"
            "    options here: title, trainer, data\n"
            "  trainer.steps=0: 'trainer.steps': '0' is out of range\n"
            "    expected an integer from 1 to 1000000; default 100");
}

TEST(Schema, ALongListOfProblemsIsCutAndCounted) {
  std::string yaml;
  for (int i = 0; i < 25; ++i) yaml += "option_" + std::to_string(i) + ": 1\n";
  const std::string message = error_of(yaml);
  EXPECT_NE(message.find("run.yaml: 25 problems\n"), std::string::npos) << message;
  EXPECT_NE(message.find("'option_19'"), std::string::npos) << message;
  EXPECT_EQ(message.find("'option_20'"), std::string::npos) << message;
  EXPECT_NE(message.find("\n  and 5 more"), std::string::npos) << message;
}

TEST(Schema, LocatesSyntaxErrors) {
  const std::vector<ErrorCase> cases = {
      {"a: [1, 2\nb: 3\n", "run.yaml:2:2: YAML syntax: end of sequence flow not found"},
      {"trainer:\n\tsteps: 3\n",
       "run.yaml:2:7: YAML syntax: illegal map value\n"
       "  the line is indented with a tab; YAML wants spaces"},
      {"title: *nowhere\n", "run.yaml:1:8: YAML syntax: the referenced anchor is not defined"},
      {"title: \"abc\n", "run.yaml:1:12: YAML syntax: illegal EOF in scalar"},
      {"title: a\ntrainer: {steps: 'abc\n\n", "run.yaml:2:22: YAML syntax: illegal EOF in scalar"},
      {"a: b: c\n", "run.yaml:1:5: YAML syntax: illegal map value"},
      {"title: a\n---\ntitle: b\n",
       "run.yaml:2:1: a second YAML document begins here\n"
       "  expected one document: remove the '---' line or what follows it"},
      {"title: !!str abc\n",
       "run.yaml:1:8: YAML tag 'tag:yaml.org,2002:str' is not supported\n"
       "  types come from the option table: remove the tag"},
      {"trainer: &t\n  adapter: *t\n", "run.yaml:2:12: an alias of the node that contains it"},
      {"title: caf\xe9\n", "run.yaml:1:11: byte 0xe9 is not UTF-8 text\n  expected plain text in UTF-8"},
      {"title: a\x01\n", "run.yaml:1:9: byte 0x01 is a control character\n  expected plain text in UTF-8"},
      {"\xff\xfe"
       "a",
       "run.yaml:1:1: byte 0xff is not UTF-8 text\n  expected plain text in UTF-8"},
  };
  for (const ErrorCase& c : cases) EXPECT_EQ(error_of(c.yaml), c.message) << c.yaml;
}

TEST(Schema, RefusesNestingThatWouldExhaustTheStack) {
  const std::string message = error_of("title: " + std::string(100'000, '['));
  EXPECT_NE(message.find("YAML syntax"), std::string::npos) << message;
}

TEST(Schema, AliasesDoNotMultiply) {
  // Nine levels of nine aliases: 387 million nodes if they were copied.
  std::string yaml = "a: &a0 [x, x, x, x, x, x, x, x, x]\n";
  for (int i = 1; i < 10; ++i) {
    const std::string alias = "*a" + std::to_string(i - 1);
    yaml += "b" + std::to_string(i) + ": &a" + std::to_string(i) + " [";
    for (int j = 0; j < 8; ++j) yaml += alias + ", ";
    yaml += alias + "]\n";
  }
  EXPECT_NE(error_of(yaml).find("10 problems"), std::string::npos);
}

TEST(Overrides, WinOverTheFileAndTheLastWinsOverTheFirst) {
  const Options options = parse("trainer: {steps: 5, adapter: {kind: neuron}}\ndata: {train: [a, b]}",
                                {"trainer.steps=6", "trainer.steps=7", "trainer.adapter.kind=linear",
                                 "data.train=[c, d]", "title=a: b = [c]", "data.held_out="});
  EXPECT_EQ(options.steps, 7);
  EXPECT_EQ(options.kind, Kind::linear);
  EXPECT_EQ(options.train, (std::vector<std::string>{"c", "d"}));
  EXPECT_EQ(options.title, "a: b = [c]");
  EXPECT_EQ(options.held_out, "");
}

TEST(Overrides, AreJudgedLikeTheFile) {
  const std::vector<std::pair<const char*, const char*>> cases = {
      {"trainer.steps=8.0",
       "trainer.steps=8.0: 'trainer.steps': '8.0' is not an integer\n"
       "  expected an integer from 1 to 1000000; default 100"},
      {"trainer.stesp=8", "trainer.stesp=8: unknown option 'trainer.stesp'\n  did you mean 'trainer.steps'?"},
      {"steps=8", "steps=8: unknown option 'steps'\n  did you mean 'trainer.steps'?"},
      {"wholly.different=8", "wholly.different=8: unknown option 'wholly.different'"},
      {"trainer=8", "trainer=8: 'trainer' is a section\n  expected one of its options: trainer.NAME=value"},
      {"trainer.steps",
       "trainer.steps: 'trainer.steps' is not an override\n  expected key.path=value, e.g. trainer.steps=100"},
      {"=5", "=5: '=5' is not an override\n  expected key.path=value, e.g. trainer.steps=100"},
      {"data.train=[a", "data.train=[a:1:3: YAML syntax: end of sequence flow not found"},
      {"title=\xff", "title=\xff:1:7: byte 0xff is not UTF-8 text\n  expected plain text in UTF-8"},
      {"trainer.steps=",
       "trainer.steps=: 'trainer.steps': '' is not an integer\n"
       "  expected an integer from 1 to 1000000; default 100"},
  };
  for (const auto& [text, message] : cases) EXPECT_EQ(error_of("", {text}), message) << text;
}

TEST(Overrides, DoNotHideAProblemOfTheFile) {
  EXPECT_EQ(error_of("trainer: {steps: x}", {"trainer.steps=5"}),
            "run.yaml:1:18: 'trainer.steps': 'x' is not an integer\n"
            "  expected an integer from 1 to 1000000; default 100");
}

TEST(RecipeFile, IsReadFromDiskOrRefusedByName) {
  TemporaryDirectory dir;
  Options options;
  std::ofstream(dir / "ok.yaml") << "trainer: {steps: 3}\n";
  parse_yaml_file(dir / "ok.yaml", {}, describe(options));
  EXPECT_EQ(options.steps, 3);

  const auto error_reading = [&](const std::string& path) -> std::string {
    try {
      parse_yaml_file(path, {}, describe(options));
    } catch (const UserError& error) {
      return error.what();
    }
    return "no error";
  };
  EXPECT_EQ(error_reading(dir / "none.yaml"), dir / "none.yaml" + ": cannot read the file: No such file or directory");
  EXPECT_EQ(error_reading(dir.path()), dir.path() + ": cannot read the file: Is a directory");
  std::ofstream(dir / "large.yaml") << std::string((1 << 20) + 1, '#');
  EXPECT_EQ(error_reading(dir / "large.yaml"),
            dir / "large.yaml" + ": the file is larger than 1 MiB\n  expected a YAML file with options");
}

TEST(Dump, IsGoldenWithAndWithoutHelp) {
  Options options;
  options.title = "run: 1";
  EXPECT_EQ(dump_yaml(describe(options)),
            "title: \"run: 1\"\n"
            "trainer:\n"
            "  steps: 100\n"
            "  learning_rate: 3.0e-05\n"
            "  deterministic: false\n"
            "  memory_limit: auto\n"
            "  adapter:\n"
            "    kind: neuron\n"
            "data:\n"
            "  train: [train.h5]\n"
            "  held_out: held-out.h5\n");
  const std::string with_help = dump_yaml(describe(options), true);
  EXPECT_NE(with_help.find("# How long and how fast.\ntrainer:\n  # Optimizer steps.\n  steps: 100\n"),
            std::string::npos)
      << with_help;
  EXPECT_EQ(parse(with_help), options);
}

TEST(Dump, ReadsBackExactly) {
  const std::vector<std::string> awkward = {"",    " ",      "null", "~",   "true", "1e3",       "a #b",
                                            "- a", "'",      "\"",   "\\",  "a\nb", "\t",        "caf\u00e9 \U0001F600",
                                            "[a]", "{a: b}", "*x",   "&x",  "!x",   "%x",        "@x",
                                            "a: ", ": a",    "?",    "...", "---",  "a\x7f\x01", "trailing ",
                                            "<<",  "=",      "0x1"};
  for (const std::string& text : awkward) {
    Options options;
    options.title = text;
    options.train = awkward;
    options.learning_rate = 0.1 + 0.2;
    options.memory_limit = 1536;
    options.steps = 999'999;
    options.kind = Kind::linear;
    options.deterministic = true;
    EXPECT_EQ(parse(dump_yaml(describe(options))), options) << dump_yaml(describe(options));
  }
}

TEST(Dump, OfASectionWithoutOptionsIsAnEmptyMapping) {
  const Describe nothing = [](Schema& s) { s.section("empty", "", [] {}); };
  EXPECT_EQ(dump_yaml(nothing), "empty: {}\n");
  parse_yaml_text("run.yaml", dump_yaml(nothing), {}, nothing);
}

TEST(OptionRows, ListEveryOptionWithTypeDefaultAndRange) {
  Options options;
  std::string table;
  for (const OptionRow& row : option_rows(describe(options))) {
    table += row.name + " | " + row.type + " | " + row.value + " | " + row.range + " | " + row.help + "\n";
  }
  EXPECT_EQ(table,
            "title | text | untitled |  | What people call this run.\n"
            "trainer.steps | integer | 100 | from 1 to 1000000 | Optimizer steps.\n"
            "trainer.learning_rate | number | 3.0e-05 | from 0 to 1 | Peak learning rate.\n"
            "trainer.deterministic | flag | false | true, false | Equal to the bit on CUDA.\n"
            "trainer.memory_limit | size | auto | auto, bytes, 24GiB, 500MB | Per rank.\n"
            "trainer.adapter.kind | choice | neuron | neuron, linear | Which adapter.\n"
            "data.train | list | [train.h5] |  | Training files.\n"
            "data.held_out | path | held-out.h5 |  | Held-out file.\n");
}

}  // namespace
}  // namespace dms
