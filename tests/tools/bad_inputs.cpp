#include "tests/tools/bad_inputs.h"

#include "tests/support/raw_token_file.h"
#include "tests/support/tiny_model.h"

namespace dms {
namespace {

const std::string train = "train run.yaml --run-dir out";
const std::string eval = "eval --model model --adapters run --data held-out.h5 --json out.json";
const std::string eval_sidecar = "eval --model model --adapters sidecar --data held-out.h5 --json out.json";
const std::string prepare = "prepare --tokenizer model --out out.h5 ";
const std::string hf_export = "export --run run --to hf --out out";
const std::string report = "report --run run --summary eval.json --out out.html";

const std::string weights = "model/model.safetensors", config = "model/config.json";

Spoil recipe(std::string from, std::string to) { return replaced("run.yaml", std::move(from), std::move(to)); }
Spoil config_json(std::string from, std::string to) { return replaced(config, std::move(from), std::move(to)); }

// The model's weights with tensor `index` of the file changed.
Spoil tensor(size_t index, std::function<void(RawTensor&)> change) {
  return [=](Sandbox& sandbox) {
    std::vector<RawTensor> tensors = tiny_model_tensors({});
    change(tensors.at(index));
    sandbox.write(weights, safetensors_bytes(tensors));
  };
}
Spoil weights_header(std::string header, std::string data = "") {
  return written(weights, safetensors_bytes(header, data));
}

Spoil token_file(std::function<void(RawTokenFile&)> change) {
  return [=](Sandbox& sandbox) {
    RawTokenFile raw;
    change(raw);
    sandbox.write("train.h5", raw_token_file(raw));
  };
}

ChildOptions full_disk_after(int64_t size_bytes) {
  ChildOptions options;
  options.file_size_limit_bytes = size_bytes;
  return options;
}

ChildOptions bound_by_permissions() {
  ChildOptions options;
  options.bound_by_permissions = true;
  return options;
}

// clang-format off: a row is a line
std::vector<BadInput> make_bad_inputs() {
  const Spoil nothing = nothing_spoiled();
  return {
      // The command line
      {"NoCommand", nothing, "", "dms: no command given", "commands: prepare, train"},
      {"MisspelledCommand", nothing, "exprot", "dms: unknown command 'exprot'", "did you mean 'export'?"},
      {"UnknownCommand", nothing, "frobnicate", "dms: unknown command 'frobnicate'", "commands: "},
      {"MisspelledGlobalFlag", nothing, "--versoin", "unknown flag '--versoin'", "did you mean '--version'?"},
      {"MisspelledFlag", nothing, "export --run run --too hf --out x", "unknown flag '--too'", "did you mean '--to'?"},
      {"MissingFlag", nothing, "export --to hf --out x", "dms export: --run is required", "'dms export --help'"},
      {"StrayArgument", nothing, hf_export + " stray", "unexpected argument 'stray'"},
      {"NoInnerCommand", nothing, "bench", "dms bench: no command given", "commands: train-step"},
      {"MisspelledInnerCommand", nothing, "bench train-stpe", "dms bench: unknown command 'train-stpe'",
       "did you mean 'train-step'?"},
      {"MisspelledInnerFlag", nothing, "bench train-step --model model --sqe 64 --window 8",
       "dms bench train-step: unknown flag '--sqe'", "did you mean '--seq'?"},
      {"NumberExpected", nothing, eval + " --max-tokens many", "--max-tokens", "'dms eval --help'"},
      {"NumberOutOfRange", nothing, prepare + "text.txt --jobs 0", "--jobs", "'dms prepare --help'"},

      // YAML
      {"YamlSyntax", recipe("[train.h5]", "[train.h5"), train,
       "run.yaml:5:11: YAML syntax: end of sequence flow not found"},
      {"YamlTab", recipe("  path", "\tpath"), train, "run.yaml:2:", "the line is indented with a tab"},
      {"YamlOpenQuote", recipe("float32", "\"float32"), train, "run.yaml:21:18: YAML syntax: illegal EOF in scalar"},
      {"YamlNotUtf8", recipe("path: model", "path: caf\xe9"), train, "run.yaml:2:12: byte 0xe9 is not UTF-8 text"},
      {"YamlTwoDocuments", appended("run.yaml", "---\na: b\n"), train, "run.yaml:22:1: a second YAML document"},
      {"YamlUnknownAnchor", recipe("path: model", "path: *model"), train,
       "run.yaml:2:9: YAML syntax: the referenced anchor"},
      {"YamlDeepNesting", appended("run.yaml", "x: " + std::string(50'000, '[')), train, "YAML syntax"},
      {"RecipeMissing", nothing, "train none.yaml", "none.yaml: cannot read the file: No such file"},
      {"RecipeIsADirectory", nothing, "train model", "model: cannot read the file: Is a directory"},
      {"RecipeIsABinary", nothing, "train model/model.safetensors", "byte 0x", "expected plain text in UTF-8"},
      {"RecipeIsHuge", written("big.yaml", std::string(2 << 20, '#')), "train big.yaml",
       "big.yaml: the file is larger than 1 MiB"},
      {"RecipeIsEmpty", written("run.yaml", ""), train, "run.yaml: model.path is not set"},

      // Keys
      {"UnknownKey", recipe("window", "windwo"), train, "run.yaml:9:3: unknown option 'eviction.windwo'",
       "did you mean 'window'?"},
      {"UnknownSection", recipe("trainer:", "traniner:"), train, "run.yaml:16:1: unknown option 'traniner'",
       "did you mean 'trainer'?"},
      {"SeveralUnknownKeys", both(recipe("window", "windwo"), recipe("  steps:", "  stepz:")), train,
       "run.yaml: 2 problems", "run.yaml:17:3: unknown option 'trainer.stepz'"},
      {"DuplicateKey", appended("run.yaml", "  steps: 3\n"), train, "run.yaml:22:3: 'trainer.steps' is given twice",
       "first given at line 17"},
      {"DuplicateSection", appended("run.yaml", "model: {path: x}\n"), train, "run.yaml:22:1: 'model' is given twice"},
      {"MergeKey", recipe("  path: model", "  <<: {path: model}"), train, "unknown option 'model.<<'",
       "merge keys are not supported"},
      {"UnknownOverride", nothing, train + " trainer.stesp=3", "trainer.stesp=3: unknown option 'trainer.stesp'",
       "did you mean 'trainer.steps'?"},
      {"OverrideWithoutSection", nothing, train + " steps=3", "steps=3: unknown option 'steps'", "'trainer.steps'"},
      {"OverrideOfASection", nothing, train + " trainer=3", "trainer=3: 'trainer' is a section"},
      {"NotAnOverride", nothing, train + " steps", "'steps' is not an override", "expected key.path=value"},

      // Types and ranges
      {"WordForAnInteger", recipe("window: 8", "window: eight"), train,
       "run.yaml:9:11: 'eviction.window': 'eight' is not an integer"},
      {"RealForAnInteger", recipe("window: 8", "window: 8.0"), train,
       "run.yaml:9:11: 'eviction.window': '8.0' is not an integer"},
      {"QuotedInteger", recipe("window: 8", "window: '8'"), train,
       "run.yaml:9:11: 'eviction.window' is text in quotes"},
      {"IntegerTooSmall", recipe("global_batch: 1", "global_batch: 0"), train,
       "'trainer.global_batch': '0' is out of range", "expected an integer from 1 to"},
      {"IntegerBeyond64Bits", nothing, train + " trainer.steps=99999999999999999999",
       "'99999999999999999999' is out of range"},
      {"NotANumber", nothing, train + " trainer.learning_rate=nan", "'nan' is not a finite number"},
      {"Infinite", nothing, train + " eviction.tau=inf", "'inf' is not a finite number"},
      {"RealTooLarge", nothing, train + " trainer.beta1=1.0", "'trainer.beta1': '1.0' is out of range"},
      {"YesForAFlag", nothing, train + " data.attend_across_documents=yes", "'yes' is neither true nor false"},
      {"MisspelledChoice", recipe("linear", "linaer"), train,
       "'adapter.kind': 'linaer' is not a choice; did you mean 'linear'?", "expected one of: "},
      {"SizeWithoutUnit", nothing, train + " trainer.memory_limit=24G", "'24G' is not a size", "24GiB"},
      {"ListForAText", recipe("path: model", "path: [model]"), train, "run.yaml:2:9: 'model.path' is a list"},
      {"ScalarForASection", recipe("eviction:\n  window: 8\n", "eviction: 8\n"), train,
       "run.yaml:8:11: 'eviction' is a section, but its value is '8'"},
      {"MissingValue", recipe("window: 8", "window:"), train, "run.yaml:9:3: 'eviction.window' has no value"},

      // Rules between options
      {"WindowAsLongAsASequence", nothing, train + " eviction.window=63",
       "eviction.window (63) leaves no key to evict"},
      {"RankOfALinearAdapter", nothing, train + " adapter.rank=2", "adapter.rank is for the neuron adapter"},
      {"FallingCompression", nothing, train + " compression.final=1.2",
       "compression.final is smaller than compression.initial"},
      {"WarmStartOfLessThanASequence", nothing, train + " warm_start.tokens=10",
       "warm_start.tokens is less than one sequence"},
      {"NothingToDo", nothing, train + " warm_start.tokens=0 trainer.steps=0", "nothing to do"},
      {"NoTrainingData", nothing, train + " data.train=[]", "data.train is empty"},
      {"UnknownExportTarget", nothing, train + " export_targets=[hff]", "unknown export target 'hff'",
       "did you mean 'hf'?"},

      // The model's config.json
      {"ModelMissing", nothing, train + " model.path=none", "none: no such directory"},
      {"ModelIsAFile", nothing, train + " model.path=text.txt", "text.txt: not a directory"},
      {"ConfigMissing", removed(config), train, "model/config.json: no such file"},
      {"ConfigTruncated", truncated(config, 100), train, "model/config.json:7:3: not valid JSON"},
      {"ConfigNestedDeeply", written(config, std::string(100'000, '[')), train,
       "model/config.json: JSON nested deeper than 64 levels"},
      {"ConfigWithADuplicateKey", config_json("\"vocab_size\"", "\"head_dim\": 8, \"vocab_size\""), train,
       "model/config.json", "head_dim"},
      {"ConfigOfAnotherFamily", config_json("\"llama\"", "\"gpt2\""), train, "model/config.json: ", "llama"},
      {"ConfigWithAnotherActivation", config_json("silu", "gelu"), train, "model/config.json: ", "silu"},
      {"ConfigWithoutHiddenSize", config_json("\"hidden_size\": 32,", ""), train, "'hidden_size'"},
      {"ConfigWithTextForANumber", config_json("\"num_hidden_layers\": 2", "\"num_hidden_layers\": \"2\""), train,
       "'num_hidden_layers'"},
      {"ConfigWithUnevenHeads", config_json("\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3"), train,
       "num_key_value_heads"},
      {"ConfigOfAQuantisedModel",
       config_json("\"vocab_size\"", "\"quantization_config\": {\"bits\": 4}, \"vocab_size\""), train,
       "quantization_config"},

      // The model's weights
      {"WeightsMissing", removed(weights), train, "model: has no weights"},
      {"WeightsTruncated", truncated(weights, 60'000), train, "should end at byte", "the file looks truncated"},
      {"WeightsOfFourBytes", truncated(weights, 4), train, "is 4 bytes long: too short for a safetensors file"},
      {"WeightsHeaderTruncated", truncated(weights, 100), train, "the header should end at byte",
       "the file looks truncated"},
      {"WeightsHeaderTooLong", written(weights, std::string(8, '\x7f') + "{}"), train,
       "announces a header of 9187201950435737471 bytes"},
      {"WeightsHeaderNotJson", weights_header("{\"a\": "), train, "model/model.safetensors (header):1:"},
      {"WeightsHeaderNotAnObject", weights_header("[1, 2]"), train, "the header does not begin with '{'"},
      {"WeightsTensorTwice",
       weights_header(
           R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
           "1234"),
       train, "the key 'a' appears twice"},
      {"WeightsOverlapping",
       weights_header(
           R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
           "12345678"),
       train, "begins at data byte 4, inside the tensor before it"},
      {"WeightsShapeOverflows",
       weights_header(R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}})", "1234"), train,
       "tensor", "4294967296"},
      {"WeightsNegativeOffset", weights_header(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}})"), train,
       "tensor", "data_offsets"},
      {"WeightsWithTrailingBytes", appended(weights, "junk"), train, "but the file at byte", "something was appended"},
      {"WeightsOfAWrongShape",
       tensor(1,
              [](RawTensor& t) {
                t.shape = {4, 8};
              }),
       train, "shapes other than config.json implies", "model.layers.0.input_layernorm.weight"},
      {"WeightsOfAWrongDtype", tensor(1, [](RawTensor& t) { t.dtype = "I32"; }), train, "unsupported dtypes", "I32"},
      {"WeightsOfAnUnknownDtype", tensor(1, [](RawTensor& t) { t.dtype = "F31"; }), train, "F31"},
      {"WeightsMissingATensor", tensor(1, [](RawTensor& t) { t.name = "other"; }), train, "that config.json implies",
       "model.layers.0.input_layernorm.weight"},
      {"WeightsWithNaN", tensor(2, [](RawTensor& t) { t.bytes.replace(8, 4, "\xff\xff\xff\x7f"); }), train,
       "'model.layers.0.self_attn.q_proj.weight' holds NaN or infinity (1 of 1024 values, the first at element 2)"},
      {"IndexOfAMissingShard",
       both(removed(weights), written("model/model.safetensors.index.json",
                                      R"({"weight_map": {"lm_head.weight": "model-00001-of-00001.safetensors"}})")),
       train, "missing 1 of 1 weight files", "model-00001-of-00001.safetensors"},
      {"IndexThatLeavesTheDirectory",
       both(removed(weights),
            written("model/model.safetensors.index.json", R"({"weight_map": {"lm_head.weight": "../../etc/passwd"}})")),
       train, "'weight_map' puts", "expected the name of a file in the same directory"},

      // Token files
      {"TokensMissing", nothing, train + " data.train=none.h5", "none.h5: does not exist", "dms prepare"},
      {"TokensAreADirectory", nothing, train + " data.train=model", "model: is a directory; a token file is expected"},
      {"TokensAreText", nothing, train + " data.train=text.txt", "text.txt: is not an HDF5 token file", "dms prepare"},
      {"TokensTruncated", truncated("train.h5", 4000), train, "train.h5: "},
      {"TokensFlipped", flipped("train.h5", 5000), train,
       "train.h5: the SHA-256 of its bytes is not the one written at its end"},
      {"TokensOfAnotherTokenizer", appended("model/tokenizer.json", "\n"), train,
       "train.h5: was tokenized with another tokenizer.json"},
      {"TokensOfALargerVocabulary", token_file([](RawTokenFile& f) {
         f.tokens[17] = 300;
         f.with_attributes = false;
       }),
       train, "train.h5: its tokens need a vocabulary of 301, the model has 300"},
      {"TokenBeyondTheVocabulary", token_file([](RawTokenFile& f) { f.tokens[17] = 300; }), train,
       "train.h5: token 17 has id 300, outside the vocabulary of 300"},
      {"TokensOfReals", token_file([](RawTokenFile& f) { f.token_type = RawTokenFile::TokenType::float64; }), train,
       "train.h5: '/tokens' must be uint32 or uint16"},
      {"TokensOfText", token_file([](RawTokenFile& f) { f.token_type = RawTokenFile::TokenType::text; }), train,
       "train.h5: '/tokens' must be uint32 or uint16"},
      {"TokensInTwoDimensions", token_file([](RawTokenFile& f) { f.tokens_in_two_dimensions = true; }), train,
       "train.h5: '/tokens' must be one-dimensional"},
      {"TokensEmpty", token_file([](RawTokenFile& f) { f.tokens.clear(); }), train, "train.h5: holds no tokens"},
      {"TokenOffsetsFalling", token_file([](RawTokenFile& f) {
         f.offsets = {0, 900, 400, 1000};
       }),
       train, "train.h5: '/documents/offsets' must rise from 0 to the number of tokens, 1000"},
      {"TokenOffsetsTooLarge", token_file([](RawTokenFile& f) {
         f.offsets = {0, 1u << 31};
       }),
       train, "train.h5: '/documents/offsets' must rise"},
      {"TokenFileWithoutTokens", token_file([](RawTokenFile& f) { f.with_tokens = false; }), train,
       "train.h5: has no dataset '/tokens'"},
      {"TokenFileOfAnotherFormat", token_file([](RawTokenFile& f) { f.format = "other"; }), train,
       "train.h5: format is 'other'"},
      {"TokenFileOfAnotherVersion", token_file([](RawTokenFile& f) { f.version = 2; }), train,
       "train.h5: format version is 2"},
      {"TokenFileIncomplete", token_file([](RawTokenFile& f) { f.complete = 0; }), train,
       "train.h5: was never completed"},
      {"Hdf5OfSomethingElse", token_file([](RawTokenFile& f) {
         f.with_tokens = false;
         f.with_attributes = false;
       }),
       train, "train.h5: is an HDF5 file but not a token file"},
      {"TooFewTokens", nothing, train + " trainer.sequence_length=100000", "tokens"},

      // dms prepare
      {"TextMissing", nothing, prepare + "none.txt", "none.txt"},
      {"TextIsABinary", nothing, prepare + "model/model.safetensors", "model/model.safetensors: is not a text file"},
      {"TextIsHdf5", nothing, prepare + "train.h5", "train.h5: is an HDF5 file"},
      {"TextIsCompressed",
       written("text.xz",
               "\xfd"
               "7zXZ"),
       prepare + "text.xz", "text.xz: is compressed", "unxz"},
      {"GzipCutOff", written("text.gz", "\x1f\x8b\x08"), prepare + "text.gz", "text.gz: ends in the middle"},
      {"TemplateUnknown", written("a.jsonl", "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}\n"),
       prepare + "a.jsonl --template chatlm", "--template: unknown template 'chatlm'", "did you mean 'chatml'"},
      {"TemplateMissing", written("a.jsonl", "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}\n"),
       prepare + "a.jsonl", "model: has no chat template", "--template chatml"},
      {"RoleUnknown", written("a.jsonl", "{\"messages\": [{\"role\": \"tool\", \"content\": \"a\"}]}\n"),
       prepare + "a.jsonl --template chatml", "a.jsonl:1: a message of role 'tool'", "--template jinja"},
      {"JsonLineBroken", written("a.jsonl", "{\"text\": \"a\"}\n{\"text\": \n"), prepare + "a.jsonl", "a.jsonl:2"},
      {"JsonLineWithoutText", written("a.jsonl", "{\"txt\": \"a\"}\n"), prepare + "a.jsonl", "a.jsonl:1"},
      {"JsonTextIsANumber", written("a.jsonl", "{\"text\": 5}\n"), prepare + "a.jsonl", "'text' is 5"},
      {"DirectoryWithoutText", made_directory("empty"), prepare + "empty", "empty: holds no files"},
      {"TokenizerMissing", nothing, "prepare --tokenizer none --out out.h5 text.txt", "none"},
      {"TokenizerTruncated", truncated("model/tokenizer.json", 500), prepare + "text.txt", "model/tokenizer.json:"},
      {"TokenizerOfAnotherKind", replaced("model/tokenizer.json", "\"BPE\"", "\"Unigram\""), prepare + "text.txt",
       "Unigram"},
      {"TokenizerWithANormalizer",
       replaced("model/tokenizer.json", "\"normalizer\": null", "\"normalizer\": {\"type\": \"Lowercase\"}"),
       prepare + "text.txt", "Lowercase"},
      {"PreparedFileExists", nothing, "prepare --tokenizer model --out train.h5 text.txt", "train.h5: exists already",
       "--force"},
      {"PreparedFileNowhere", nothing, "prepare --tokenizer model --out none/out.h5 text.txt", "none/out.h5"},
      {"PreparedFileBelowAFile", nothing, "prepare --tokenizer model --out text.txt/out.h5 text.txt",
       "text.txt/out.h5"},
      {"PreparedFileInAReadOnlyDirectory", made_read_only_directory("locked"),
       "prepare --tokenizer model --out locked/out.h5 text.txt", "locked/out.h5", "Permission denied", 2,
       bound_by_permissions()},
      {"DiskFullInPrepare", nothing, prepare + "text.txt", "out.h5", "File too large", 1, full_disk_after(2000),
       "out.h5.parts/"},

      // dms train: where it writes
      {"RunExists", nothing, "train run.yaml --run-dir run", "run: already holds a run", "--resume"},
      {"RunDirIsAFile", nothing, "train run.yaml --run-dir text.txt", "text.txt: is not a directory"},
      {"RunDirBelowAFile", nothing, "train run.yaml --run-dir text.txt/run", "text.txt/run"},
      {"RunDirInAReadOnlyDirectory", made_read_only_directory("locked"), "train run.yaml --run-dir locked/run",
       "locked/run", "Permission denied", 2, bound_by_permissions()},
      {"ResumeWithAnotherRecipe", nothing, "train run.yaml --run-dir run --resume trainer.seed=7",
       "run: cannot resume with a recipe that trains differently", "trainer.seed"},
      {"DiskFullInTrain", nothing, train, "out/", "File too large", 1, full_disk_after(3000), "out/"},

      // dms eval
      // generate, bench decode
      {"PromptMissing", nothing, "generate --model model", "--prompt: is missing", "--prompts FILE"},
      {"ChatWithoutTemplate", nothing, "generate --model model --prompt a --chat", "model: has no chat template",
       "--template chatml"},
      {"PromptsMissing", nothing, "generate --model model --prompts none.txt", "none.txt"},
      {"PromptsEmpty", written("prompts.txt", "\n \n"), "generate --model model --prompts prompts.txt",
       "prompts.txt: holds no prompt"},
      {"PromptsNotJson", written("p.jsonl", "{\"prompt\": \"a\"}\nthe\n"), "generate --model model --prompts p.jsonl",
       "p.jsonl:2"},
      {"PromptsNotText", written("p.jsonl", "{\"prompt\": 3}\n"), "generate --model model --prompts p.jsonl",
       "p.jsonl:1: has no text under 'prompt'"},
      {"BudgetNotBytes", nothing, "generate --model model --prompt a --kv-budget much", "--kv-budget: is 'much'",
       "2GiB"},
      {"BudgetTooSmall", nothing, "generate --model model --prompt the --kv-budget 10", "prompt 1: has ",
       "the KV budget is 10 bytes"},
      {"StopTokensOfTheWrongType", written("model/generation_config.json", R"({"eos_token_id": "end"})"),
       "generate --model model --prompt the", "'eos_token_id' holds"},
      {"DecodeNoSuchPython", nothing,
       "bench decode --model model --context 8 --batch 2 --steps 1 --transformers ./no-such-python",
       "--transformers: cannot start './no-such-python'"},
      {"DecodeBothWays", nothing, "bench decode --model model --adapters run --context 8 --batch 2 --kv-budget 1MiB",
       "--batch: and --kv-budget: exactly one"},
      {"DecodeBudgetTooSmall", nothing,
       "bench decode --model model --adapters run --context 8 --kv-budget 10 --steps 1",
       "--kv-budget: holds not one sequence of 8 tokens"},

      // eval-tasks, retarget
      {"TaskUnknown", nothing, "eval-tasks --model model --task amie --out r.jsonl", "benchmark: 'amie' is not known",
       "did you mean 'aime'?"},
      {"TaskWithoutQuestions", nothing, "eval-tasks --model model --task aime --out r.jsonl", "--data: is missing"},
      {"TaskColumnsMissing", written("q.csv", "Question\nwhy?\n"),
       "eval-tasks --model model --task gpqa --data q.csv --out r.jsonl", "q.csv:2: has no column 'Correct Answer'"},
      {"TaskResultsOfSomethingElse", written("r.jsonl", "{}\n"),
       "eval-tasks --model model --task needles --out r.jsonl", "r.jsonl:1: is no result of 'dms eval-tasks'"},
      {"TaskSamplesAllTheSame", nothing,
       "eval-tasks --model model --task needles --samples 2 --temperature 0 --out r.jsonl",
       "--samples: are all the same at temperature 0"},
      {"RatioOutOfReach", nothing, "retarget --model model --adapters run --ratio 900 --data held-out.h5 --out out",
       "--ratio: 900", "alone allows"},
      {"TargetRatioWithoutCalibration", nothing, "generate --model model --adapters run --prompt one --target-ratio 2",
       "--target-ratio requires --calibration", "--help"},
      {"TargetRatioWithoutEvictor", nothing,
       "generate --model model --prompt one --target-ratio 2 --calibration held-out.h5",
       "--target-ratio: moves an evictor's threshold", "give --adapters"},
      {"TargetRatioOutOfReach", nothing,
       "eval --model model --adapters run --data held-out.h5 --target-ratio 900 --calibration held-out.h5",
       "--target-ratio: 900.00x is out of reach at 64 tokens", "the window of 8 alone allows 7.11x"},
      {"RetargetOntoSomething", nothing, "retarget --model model --adapters run --ratio 2 --data held-out.h5 --out run",
       "run: exists already", "--force"},

      {"AdaptersMissing", nothing, "eval --model model --adapters none --data held-out.h5", "none: no such directory"},
      {"AdaptersAreSomethingElse", nothing, "eval --model model --adapters model --data held-out.h5",
       "model: has no adapters.safetensors"},
      {"AdaptersOfAnotherModel", flipped(weights, 50'000), eval, "these adapters belong to another base model"},
      {"AdaptersOfAnotherVersion", replaced("sidecar/dms_config.json", "\"version\": 1", "\"version\": 2"),
       eval_sidecar, "sidecar/dms_config.json: 'version' is 2", "expected 1"},
      {"AdaptersWithoutAWindow", replaced("sidecar/dms_config.json", "\"window\"", "\"x\""), eval_sidecar,
       "sidecar/dms_config.json: the key 'window' is missing"},
      {"AdaptersOfAnotherKind", replaced("sidecar/dms_config.json", "\"linear\"", "\"conv\""), eval_sidecar,
       "sidecar/dms_config.json: 'adapter' is", "expected"},
      {"AdaptersTruncated", truncated("sidecar/adapters.safetensors", 900), eval_sidecar,
       "sidecar/adapters.safetensors: ", "the file looks truncated"},
      {"AdaptersForAnotherShape", written("sidecar/adapters.safetensors", safetensors_bytes({})), eval_sidecar,
       "sidecar/adapters.safetensors: "},
      {"CheckpointsAllDamaged",
       both(both(truncated("run/checkpoints/step-000000/adapters.safetensors", 100),
                 truncated("run/checkpoints/step-000001/adapters.safetensors", 100)),
            truncated("run/checkpoints/step-000002/adapters.safetensors", 100)),
       eval, "run", "the run has no complete checkpoint"},
      {"SequenceWithinTheWindow", nothing, eval + " --sequence-length 9", "--sequence-length: 9 leaves no key beyond"},
      {"UnknownDtype", nothing, eval + " --dtype float16", "--dtype", "'dms eval --help'"},
      {"HeldOutMissing", nothing, "eval --model model --adapters run --data none.h5", "none.h5: does not exist"},
      {"HeldOutOfAnotherTokenizer", appended("model/tokenizer.json", "\n"), eval,
       "held-out.h5: was tokenized with another tokenizer.json"},
      {"FiguresNowhere", nothing, "eval --model model --adapters run --data held-out.h5 --json none/out.json",
       "none/out.json: cannot be created"},
      {"FiguresInAReadOnlyDirectory", made_read_only_directory("locked"),
       "eval --model model --adapters run --data held-out.h5 --json locked/out.json",
       "locked/out.json: cannot be created", "Permission denied", 2, bound_by_permissions()},
      {"DiskFullInEval", nothing, eval, "out.json", "File too large", 1, full_disk_after(1000)},

      // dms export
      {"ExportTargetUnknown", nothing, "export --run run --to hff --out out", "no export target 'hff'", "'hf'"},
      {"ExportOfNoRun", nothing, "export --run none --to hf --out out --model model", "none"},
      {"ExportExists", nothing, "export --run run --to hf --out model", "model: ", ""},
      {"ExportIsAFile", nothing, "export --run run --to hf --out text.txt", "text.txt: exists and is not a directory"},
      {"ExportBelowAFile", nothing, "export --run run --to hf --out text.txt/out", "text.txt/out"},
      {"ExportInAReadOnlyDirectory", made_read_only_directory("locked"), "export --run run --to hf --out locked/out",
       "locked/out: cannot be created", "Permission denied", 2, bound_by_permissions()},
      {"DiskFullInExport", nothing, hf_export, "cannot write 'out.partial.", "", 1, full_disk_after(50'000)},

      // dms inspect and dms bench
      {"InspectOfNothing", nothing, "inspect none", "none"},
      {"InspectOfSomethingElse", nothing, "inspect text.txt", "text.txt: is nothing that `dms inspect` knows"},
      {"InspectOfADamagedModel", truncated(weights, 60'000), "inspect model", "should end at byte",
       "the file looks truncated"},
      {"InspectOfADamagedTokenFile", flipped("train.h5", 5000), "inspect train.h5",
       "the SHA-256 of its bytes is not the one"},
      {"BenchOfNoModel", nothing, "bench train-step --model none --seq 64 --window 8", "none: no such directory"},
      {"BenchAttentionOfHeadsThatDoNotDivide", nothing, "bench attention --seq 64 --window 8 --heads 9 --kv-heads 4",
       "--kv-heads: 4 does not divide --heads 9"},
      {"BenchAttentionWithAWindowTooLarge", nothing, "bench attention --seq 64 --window 64",
       "--window: 64 leaves no key"},
      {"BenchAttentionOfAModelWithoutAdapters", nothing, "bench attention --seq 64 --window 8 --model model",
       "--adapters"},
      {"BenchWithAWindowTooLarge", nothing, "bench train-step --model model --seq 64 --window 64", "window"},

      // dms report
      {"ReportOfNoRun", nothing, "report --run none", "none"},
      {"FiguresBroken", truncated("eval.json", 200), report, "eval.json:"},
      {"FiguresOfSomethingElse", nothing, "report --run run --summary model/config.json --out out.html",
       "model/config.json: "},
      {"MetricsBroken", appended("run/metrics.jsonl", "{\"step\": oops\n"), report, "run/metrics.jsonl"},
      {"ReportNowhere", nothing, "report --run run --out none/out.html", "none/out.html: cannot be created"},
      {"DiskFullInReport", nothing, report, "out.html", "File too large", 1, full_disk_after(1000)},
  };
}
// clang-format on

}  // namespace

const std::vector<BadInput>& bad_inputs() {
  static const std::vector<BadInput> table = make_bad_inputs();
  return table;
}

}  // namespace dms
