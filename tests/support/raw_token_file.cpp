#include "tests/support/raw_token_file.h"

#include <hdf5.h>

#include <fstream>
#include <iterator>
#include <stdexcept>

#include "tests/support/temporary_directory.h"

namespace dms {
namespace {

void require(bool succeeded) {
  if (!succeeded) throw std::runtime_error("HDF5 could not write a test file");
}

void write_text_attribute(hid_t file, const char* name, const std::string& value) {
  const hid_t type = H5Tcopy(H5T_C_S1), space = H5Screate(H5S_SCALAR);
  H5Tset_size(type, H5T_VARIABLE);
  H5Tset_cset(type, H5T_CSET_UTF8);
  const hid_t attribute = H5Acreate2(file, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
  const char* text = value.c_str();
  require(H5Awrite(attribute, type, &text) >= 0);
  H5Aclose(attribute);
  H5Sclose(space);
  H5Tclose(type);
}

void write_integer_attribute(hid_t file, const char* name, int64_t value) {
  const hid_t space = H5Screate(H5S_SCALAR);
  const hid_t attribute = H5Acreate2(file, name, H5T_STD_I64LE, space, H5P_DEFAULT, H5P_DEFAULT);
  require(H5Awrite(attribute, H5T_NATIVE_INT64, &value) >= 0);
  H5Aclose(attribute);
  H5Sclose(space);
}

void write_dataset(hid_t file, const char* name, hid_t stored_type, hid_t memory_type, const void* data,
                   const std::vector<hsize_t>& shape) {
  const hid_t space = H5Screate_simple(static_cast<int>(shape.size()), shape.data(), nullptr);
  const hid_t links = H5Pcreate(H5P_LINK_CREATE);
  H5Pset_create_intermediate_group(links, 1);
  const hid_t dataset = H5Dcreate2(file, name, stored_type, space, links, H5P_DEFAULT, H5P_DEFAULT);
  require(dataset >= 0);
  if (data != nullptr) require(H5Dwrite(dataset, memory_type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data) >= 0);
  H5Dclose(dataset);
  H5Pclose(links);
  H5Sclose(space);
}

void write_tokens(hid_t file, const RawTokenFile& raw) {
  std::vector<hsize_t> shape = {raw.tokens.size()};
  if (raw.tokens_in_two_dimensions) shape = {2, raw.tokens.size() / 2};
  if (raw.token_type == RawTokenFile::TokenType::text) {
    const hid_t text = H5Tcopy(H5T_C_S1);
    H5Tset_size(text, 4);
    write_dataset(file, "tokens", text, text, nullptr, shape);
    H5Tclose(text);
    return;
  }
  const bool real = raw.token_type == RawTokenFile::TokenType::float64;
  write_dataset(file, "tokens", real ? H5T_IEEE_F64LE : H5T_STD_U32LE, H5T_NATIVE_UINT32, raw.tokens.data(), shape);
}

}  // namespace

std::string raw_token_file(const RawTokenFile& raw) {
  const TemporaryDirectory directory;
  const std::string path = directory / "raw.h5";
  const hid_t file = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
  require(file >= 0);
  if (raw.with_attributes) {
    write_text_attribute(file, "format", raw.format);
    write_integer_attribute(file, "version", raw.version);
    write_integer_attribute(file, "complete", raw.complete);
    write_integer_attribute(file, "vocab_size", raw.vocab_size);
    write_text_attribute(file, "tokenizer_sha256", std::string(64, '0'));
    write_integer_attribute(file, "num_tokens", static_cast<int64_t>(raw.tokens.size()));
    write_integer_attribute(file, "num_documents", static_cast<int64_t>(raw.offsets.size()) - 1);
  }
  if (raw.with_tokens) write_tokens(file, raw);
  if (raw.with_offsets) {
    write_dataset(file, "documents/offsets", H5T_STD_U64LE, H5T_NATIVE_UINT64, raw.offsets.data(),
                  {raw.offsets.size()});
    const std::vector<uint64_t> lines(raw.offsets.size() - 1, 1);
    write_dataset(file, "documents/source", H5T_STD_U32LE, H5T_NATIVE_UINT64, lines.data(), {lines.size()});
    write_dataset(file, "documents/line", H5T_STD_U64LE, H5T_NATIVE_UINT64, lines.data(), {lines.size()});
  }
  require(H5Fclose(file) >= 0);
  std::ifstream stream(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(stream), {});
}

}  // namespace dms
