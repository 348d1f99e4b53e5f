// How training computes attention beyond the window (model/attention.h): a choice of cost, both ways are exact.
#pragma once

namespace dms {

//   dense      every far key, in two parts
//   sparse     the far keys that are not gone
//   automatic  whichever has less to compute
enum class AttentionPath { automatic, dense, sparse };

}  // namespace dms
