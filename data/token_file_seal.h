// The seal: 84 bytes after the end of the HDF5 data, "\ndms-tokens sha256 <64 digits>\n", over all bytes before it.
// HDF5 ignores what follows its end.  Its own tables carry no checksums in the format version that old libraries read,
// and HDF5 1.10.8 crashes on a flipped byte in some of them; a sealed file is checked before HDF5 sees it.
#pragma once

#include <string>

namespace dms {

// The seal for the file as it is now.
std::string seal_of(const std::string& path);

// Throws UserError when the file has a seal that does not fit.  No seal is no error: other programs write none.
void check_seal(const std::string& path);

}  // namespace dms
