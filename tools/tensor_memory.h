// Where tensors on the CPU get their memory from, in this program.
#pragma once

namespace dms {

// Replaces LibTorch's CPU allocator.  That one asks glibc for aligned memory, and glibc before 2.38 fits an aligned
// request into no freed block of the same size: activations that come and go in every layer, between others that stay,
// then take up to twice their bytes.  This one asks for the bytes and the alignment together and aligns within, so that
// freed blocks are used again.  Freed memory stays with the process: given back, it would have to be cleared and mapped
// again a moment later.  Call once, before any tensor is made.
void use_reusable_tensor_memory();

}  // namespace dms
