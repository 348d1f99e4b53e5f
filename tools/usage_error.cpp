#include "tools/usage_error.h"

#include <CLI/CLI.hpp>

#include <vector>

namespace dms {
namespace {

// The program, its command, that command's command: as far as CLI11 recognised them.
std::vector<const CLI::App*> commands_in_use(const CLI::App& program) {
  std::vector<const CLI::App*> chain = {&program};
  while (true) {
    const std::vector<CLI::App*> used = chain.back()->get_subcommands();
    if (used.empty()) return chain;
    chain.push_back(used.front());
  }
}

std::vector<std::string> flag_names(const CLI::App& command) {
  std::vector<std::string> names;
  for (const CLI::Option* option : command.get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  }
  return names;
}

std::vector<std::string> command_names(const CLI::App& parent) {
  std::vector<std::string> names;
  for (const CLI::App* command : parent.get_subcommands([](const CLI::App*) { return true; })) {
    names.push_back(command->get_name());
  }
  return names;
}

std::string list_of(const std::vector<std::string>& names) {
  std::string list;
  for (const std::string& name : names) list += (list.empty() ? "" : ", ") + name;
  return list;
}

UserError unknown(const std::string& kind, const std::string& name, const std::string& list_title,
                  const std::vector<std::string>& known, const std::string& invocation) {
  std::vector<std::string> details = {list_title + ": " + list_of(known)};
  const std::string hint = did_you_mean(name, known);
  if (!hint.empty()) details.push_back(hint);
  details.push_back("'" + invocation + " --help' explains them");
  return UserError("", "unknown " + kind + " '" + name + "'", details);
}

}  // namespace

std::string invocation_name(const CLI::App& program) {
  std::string name;
  for (const CLI::App* command : commands_in_use(program)) name += (name.empty() ? "" : " ") + command->get_name();
  return name;
}

UserError usage_error(const CLI::App& program, const CLI::ParseError& error) {
  const CLI::App& command = *commands_in_use(program).back();
  const std::string invocation = invocation_name(program);
  // CLI11 may complain about what is missing first; what nobody understood is the likelier cause.
  const std::vector<std::string> strays = command.remaining();
  for (const std::string& stray : strays) {
    if (!stray.starts_with("-")) continue;
    return unknown("flag", stray.substr(0, stray.find('=')), "flags", flag_names(command), invocation);
  }
  const std::vector<std::string> commands = command_names(command);
  if (!commands.empty()) {
    if (!strays.empty()) return unknown("command", strays.front(), "commands", commands, invocation);
    return UserError("", "no command given",
                     {"commands: " + list_of(commands), "'" + invocation + " --help' explains them"});
  }
  const std::string help = "'" + invocation + " --help' shows what is expected";
  if (!strays.empty()) return UserError("", "unexpected argument '" + strays.front() + "'", {help});
  return UserError("", error.what(), {help});
}

}  // namespace dms
