// What every command of the program includes, precompiled once.
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "model/torch_pch.h"
