// Token files for one model: opened only if they were made with its vocabulary and tokenizer.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "data/token_file.h"
#include "model/architecture.h"

namespace dms {

// Throws UserError naming the file: see TokenFile::open, or another vocabulary or tokenizer.json than the model's.
std::vector<std::shared_ptr<TokenFile>> open_token_files(const std::vector<std::string>& paths,
                                                         const std::string& model_dir,
                                                         const Architecture& architecture);

}  // namespace dms
