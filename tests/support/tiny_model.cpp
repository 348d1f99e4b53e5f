#include "tests/support/tiny_model.h"

#include <nlohmann/json.hpp>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <stdexcept>

namespace dms {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t num_special_tokens = 3;
const char* const special_tokens[num_special_tokens] = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}

  // Box-Muller on the engine's bits: std::normal_distribution differs between standard libraries.
  float normal() {
    constexpr double two_pi = 6.283185307179586;
    const double u = (static_cast<double>(engine_() >> 11) + 0.5) * 0x1p-53;
    const double v = static_cast<double>(engine_() >> 11) * 0x1p-53;
    return static_cast<float>(std::sqrt(-2.0 * std::log(u)) * std::cos(two_pi * v));
  }

 private:
  std::mt19937_64 engine_;
};

RawTensor random_tensor(Random& random, const std::string& name, std::vector<int64_t> shape, float mean,
                        float deviation) {
  size_t count = 1;
  for (int64_t size : shape) count *= static_cast<size_t>(size);
  std::string bytes(count * sizeof(float), '\0');
  for (size_t i = 0; i < count; ++i) {
    const float value = mean + deviation * random.normal();
    std::memcpy(bytes.data() + i * sizeof value, &value, sizeof value);
  }
  return {name, "F32", std::move(shape), std::move(bytes)};
}

std::string utf8(uint32_t code_point) {
  if (code_point < 0x80) return std::string(1, static_cast<char>(code_point));
  return {static_cast<char>(0xC0 | (code_point >> 6)), static_cast<char>(0x80 | (code_point & 0x3F))};
}

// The byte-level alphabet: printable bytes stand for themselves, the others for U+0100 upwards, in order.
std::vector<std::string> byte_tokens() {
  std::vector<std::string> tokens(256);
  uint32_t next = 0x100;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    tokens[byte] = utf8(printable ? byte : next++);
  }
  return tokens;
}

// Frequent pairs of English; "\u0120" is the space.
const std::vector<std::pair<std::string, std::string>> merges = {
    {"h", "e"},        {"i", "n"},      {"\u0120", "t"},   {"\u0120", "a"},  {"r", "e"},      {"o", "n"},
    {"\u0120t", "he"}, {"e", "r"},      {"a", "t"},        {"\u0120", "s"},  {"e", "n"},      {"\u0120", "o"},
    {"o", "r"},        {"\u0120", "w"}, {"e", "s"},        {"\u0120", "c"},  {"i", "s"},      {"i", "t"},
    {"in", "g"},       {"\u0120", "f"}, {"\u0120", "b"},   {"\u0120o", "f"}, {"e", "d"},      {"a", "l"},
    {"\u0120a", "n"},  {"\u0120", "p"}, {"\u0120an", "d"}, {"\u0120", "in"}, {"a", "r"},      {"\u0120", "m"},
    {"\u0120t", "o"},  {"l", "e"},      {"a", "n"},        {"\u0120", "d"},  {"i", "c"},      {"e", "t"},
    {"i", "on"},       {"o", "u"},      {"\u0120", "h"},   {"s", "t"},       {"\u0120", "l"},
};

}  // namespace

std::vector<RawTensor> tiny_model_tensors(const TinyModel& model) {
  Random random(model.seed);
  std::vector<RawTensor> tensors;
  const auto weight = [&](const std::string& name, int64_t out, int64_t in) {
    tensors.push_back(random_tensor(random, name, {out, in}, 0.0f, 1.0f / std::sqrt(static_cast<float>(in))));
  };
  const auto norm = [&](const std::string& name) {
    tensors.push_back(random_tensor(random, name, {model.hidden_size}, 1.0f, 0.1f));
  };
  const int64_t query_size = model.num_heads * model.head_dim, kv_size = model.num_kv_heads * model.head_dim;
  tensors.push_back(
      random_tensor(random, "model.embed_tokens.weight", {model.vocab_size, model.hidden_size}, 0.0f, 0.5f));
  for (int64_t i = 0; i < model.num_layers; ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".";
    norm(layer + "input_layernorm.weight");
    weight(layer + "self_attn.q_proj.weight", query_size, model.hidden_size);
    weight(layer + "self_attn.k_proj.weight", kv_size, model.hidden_size);
    weight(layer + "self_attn.v_proj.weight", kv_size, model.hidden_size);
    weight(layer + "self_attn.o_proj.weight", model.hidden_size, query_size);
    norm(layer + "post_attention_layernorm.weight");
    weight(layer + "mlp.gate_proj.weight", model.intermediate_size, model.hidden_size);
    weight(layer + "mlp.up_proj.weight", model.intermediate_size, model.hidden_size);
    weight(layer + "mlp.down_proj.weight", model.hidden_size, model.intermediate_size);
  }
  norm("model.norm.weight");
  if (!model.tied_embeddings) weight("lm_head.weight", model.vocab_size, model.hidden_size);
  return tensors;
}

std::string safetensors_bytes(const std::string& header, const std::string& data) {
  std::string padded = header;
  while (padded.size() % 8 != 0) padded += ' ';
  std::string file(8, '\0');
  for (size_t i = 0; i < 8; ++i) file[i] = static_cast<char>((static_cast<uint64_t>(padded.size()) >> (8 * i)) & 0xFF);
  return file + padded + data;
}

std::string safetensors_bytes(const std::vector<RawTensor>& tensors) {
  Json header = {{"__metadata__", {{"format", "pt"}}}};
  std::string data;
  for (const RawTensor& tensor : tensors) {
    header[tensor.name] = {{"dtype", tensor.dtype},
                           {"shape", tensor.shape},
                           {"data_offsets", {data.size(), data.size() + tensor.bytes.size()}}};
    data += tensor.bytes;
  }
  return safetensors_bytes(header.dump(), data);
}

std::string tiny_config_json(const TinyModel& model) {
  const Json config = {
      {"architectures", {"LlamaForCausalLM"}},
      {"model_type", "llama"},
      {"hidden_size", model.hidden_size},
      {"num_hidden_layers", model.num_layers},
      {"num_attention_heads", model.num_heads},
      {"num_key_value_heads", model.num_kv_heads},
      {"head_dim", model.head_dim},
      {"intermediate_size", model.intermediate_size},
      {"vocab_size", model.vocab_size},
      {"max_position_embeddings", 2048},
      {"hidden_act", "silu"},
      {"rms_norm_eps", 1e-5},
      {"rope_theta", 10000.0},
      {"rope_scaling", nullptr},
      {"attention_bias", false},
      {"mlp_bias", false},
      {"tie_word_embeddings", model.tied_embeddings},
      {"bos_token_id", 0},
      {"eos_token_id", 0},
      {"pad_token_id", 2},
      {"torch_dtype", "float32"},
  };
  return config.dump(2) + "\n";
}

std::string tiny_tokenizer_json(const TinyModel& model) {
  Json vocab = Json::object(), merge_list = Json::array(), added = Json::array();
  int64_t next_id = 0;
  for (const char* token : special_tokens) {
    added.push_back({{"id", next_id},
                     {"content", token},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
    vocab[token] = next_id++;
  }
  for (const std::string& token : byte_tokens()) vocab[token] = next_id++;
  if (model.vocab_size < next_id) throw std::invalid_argument("TinyModel::vocab_size < 259");
  for (const auto& [left, right] : merges) {
    if (next_id == model.vocab_size) break;
    vocab[left + right] = next_id++;
    merge_list.push_back(left + " " + right);
  }
  const Json byte_level = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}};
  const Json tokenizer = {
      {"version", "1.0"},
      {"truncation", nullptr},
      {"padding", nullptr},
      {"added_tokens", added},
      {"normalizer", nullptr},
      {"pre_tokenizer",
       {{"type", "Sequence"},
        {"pretokenizers", Json::array({{{"type", "Digits"}, {"individual_digits", true}}, byte_level})}}},
      {"post_processor", nullptr},
      {"decoder", byte_level},
      {"model",
       {{"type", "BPE"},
        {"dropout", nullptr},
        {"unk_token", nullptr},
        {"continuing_subword_prefix", nullptr},
        {"end_of_word_suffix", nullptr},
        {"fuse_unk", false},
        {"byte_fallback", false},
        {"ignore_merges", false},
        {"vocab", vocab},
        {"merges", merge_list}}},
  };
  return tokenizer.dump(2) + "\n";
}

std::string tiny_tokenizer_config_json(const TinyModel&) {
  const Json config = {
      {"tokenizer_class", "PreTrainedTokenizerFast"},
      {"model_max_length", 2048},
      {"bos_token", special_tokens[0]},
      {"eos_token", special_tokens[0]},
      {"pad_token", special_tokens[2]},
      {"clean_up_tokenization_spaces", false},
  };
  return config.dump(2) + "\n";
}

std::map<std::string, std::string> tiny_model_files(const TinyModel& model) {
  return {{"config.json", tiny_config_json(model)},
          {"model.safetensors", safetensors_bytes(tiny_model_tensors(model))},
          {"tokenizer.json", tiny_tokenizer_json(model)},
          {"tokenizer_config.json", tiny_tokenizer_config_json(model)}};
}

void write_test_file(const std::string& path, const std::string& bytes) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  file.flush();
  if (!file) throw std::runtime_error("cannot write " + path);
}

void write_tiny_model(const std::string& dir, const TinyModel& model) {
  std::filesystem::create_directories(dir);
  for (const auto& [name, bytes] : tiny_model_files(model)) write_test_file(dir + "/" + name, bytes);
}

}  // namespace dms
