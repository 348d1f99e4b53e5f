// What every LibTorch file of this project includes, precompiled once.  Kept to what nearly all of them use: GCC
// instantiates a header's pending templates anew in every file, precompiled or not, and custom_function.h alone costs
// each of them 1.5 s.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>
