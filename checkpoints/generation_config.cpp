#include "checkpoints/generation_config.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "recipes/strict_json.h"
#include "recipes/user_error.h"

namespace dms {

namespace {

using nlohmann::json;

template <class T>
void read_number(const json& config, const char* key, const std::string& path, T& value) {
  const auto found = config.find(key);
  if (found == config.end() || found->is_null()) return;
  if (!found->is_number() || found->get<double>() < 0.0) {
    throw UserError(path, std::string("'") + key + "' is " + shown(*found), {"expected a number of at least 0"});
  }
  value = found->get<T>();
}

int32_t token_id(const json& value, const std::string& path) {
  if (!value.is_number_integer() || value.get<int64_t>() < 0 || value.get<int64_t>() > INT32_MAX) {
    throw UserError(path, "'eos_token_id' holds " + shown(value), {"expected a token id or a list of them"});
  }
  return value.get<int32_t>();
}

std::vector<int32_t> stop_tokens(const json& config, const std::string& path) {
  std::vector<int32_t> ids;
  const auto found = config.find("eos_token_id");
  if (found == config.end() || found->is_null()) return ids;
  if (!found->is_array()) return {token_id(*found, path)};
  for (const json& value : *found) ids.push_back(token_id(value, path));
  return ids;
}

}  // namespace

GenerationConfig read_generation_config(const std::string& model_dir) {
  GenerationConfig result;
  const std::string path = model_dir + "/generation_config.json";
  if (!std::filesystem::exists(path)) {
    const std::string config_path = model_dir + "/config.json";
    result.stop_tokens = stop_tokens(read_json_object(config_path), config_path);
    return result;
  }
  const json config = read_json_object(path);
  result.stop_tokens = stop_tokens(config, path);
  const auto do_sample = config.find("do_sample");
  if (do_sample != config.end() && !do_sample->is_null()) {
    if (!do_sample->is_boolean()) {
      throw UserError(path, "'do_sample' is " + shown(*do_sample), {"expected true or false"});
    }
    result.do_sample = do_sample->get<bool>();
  }
  read_number(config, "temperature", path, result.temperature);
  read_number(config, "top_p", path, result.top_p);
  read_number(config, "top_k", path, result.top_k);
  return result;
}

}  // namespace dms
