// README.md of an export, from a template of templates/ with @NAME@ where these values go:
//   @MODEL@ @WINDOW@ @ADAPTER@ @TARGET_CR@ @SEQUENCE_LENGTH@, @LICENSE@ the licence lines of the base model's own card,
//   @RESULTS@ a section with the figures of `dms eval --json`, or nothing.
#pragma once

#include <string>
#include <string_view>

#include "checkpoints/export.h"

namespace dms {

// Throws UserError when the evaluation is not one.
std::string make_model_card(std::string_view card_template, const ExportInput& input);

}  // namespace dms
