// Option tables written out: the resolved recipe and the rows of the documentation table.
#include "recipes/option_value.h"
#include "recipes/schema.h"

namespace dms {
namespace {

class DumpVisitor : public Schema {
 public:
  explicit DumpVisitor(bool with_help) : with_help_(with_help) {}

  std::string yaml;

  void section(std::string_view name, std::string_view help, const std::function<void()>& body) override {
    comment(help);
    yaml += indent() + std::string(name) + ":";
    const size_t after_colon = yaml.size();
    yaml += "\n";
    ++depth_;
    const size_t before_body = yaml.size();
    body();
    --depth_;
    if (yaml.size() == before_body) yaml.insert(after_colon, " {}");
  }
  void integer(std::string_view name, int64_t& value, int64_t, int64_t, std::string_view help) override {
    line(name, format_integer(value), help);
  }
  void real(std::string_view name, double& value, double, double, std::string_view help) override {
    line(name, format_real(value), help);
  }
  void flag(std::string_view name, bool& value, std::string_view help) override {
    line(name, format_flag(value), help);
  }
  void text(std::string_view name, std::string& value, std::string_view help) override {
    line(name, format_text(value), help);
  }
  void path(std::string_view name, std::string& value, std::string_view help) override {
    line(name, format_text(value), help);
  }
  void list(std::string_view name, std::vector<std::string>& value, std::string_view help) override {
    line(name, format_list(value), help);
  }
  void bytes_or_auto(std::string_view name, int64_t& value, std::string_view help) override {
    line(name, format_bytes_or_auto(value), help);
  }

 protected:
  size_t choose(std::string_view name, const std::vector<std::string>& names, size_t current,
                std::string_view help) override {
    line(name, format_text(names[current]), help);
    return current;
  }

 private:
  std::string indent() const { return std::string(2 * depth_, ' '); }
  void comment(std::string_view help) {
    if (with_help_ && !help.empty()) yaml += indent() + "# " + std::string(help) + "\n";
  }
  void line(std::string_view name, const std::string& value, std::string_view help) {
    comment(help);
    yaml += indent() + std::string(name) + ": " + value + "\n";
  }

  bool with_help_;
  size_t depth_ = 0;
};

class RowVisitor : public Schema {
 public:
  std::vector<OptionRow> rows;

  void section(std::string_view name, std::string_view, const std::function<void()>& body) override {
    const std::string outer = prefix_;
    prefix_ += std::string(name) + ".";
    body();
    prefix_ = outer;
  }
  void integer(std::string_view name, int64_t& value, int64_t min, int64_t max, std::string_view help) override {
    row(name, "integer", format_integer(value), integer_range(min, max), help);
  }
  void real(std::string_view name, double& value, double min, double max, std::string_view help) override {
    row(name, "number", format_real(value), real_range(min, max), help);
  }
  void flag(std::string_view name, bool& value, std::string_view help) override {
    row(name, "flag", format_flag(value), "true, false", help);
  }
  void text(std::string_view name, std::string& value, std::string_view help) override {
    row(name, "text", format_text(value), "", help);
  }
  void path(std::string_view name, std::string& value, std::string_view help) override {
    row(name, "path", format_text(value), "", help);
  }
  void list(std::string_view name, std::vector<std::string>& value, std::string_view help) override {
    row(name, "list", format_list(value), "", help);
  }
  void bytes_or_auto(std::string_view name, int64_t& value, std::string_view help) override {
    row(name, "size", format_bytes_or_auto(value), "auto, bytes, 24GiB, 500MB", help);
  }

 protected:
  size_t choose(std::string_view name, const std::vector<std::string>& names, size_t current,
                std::string_view help) override {
    row(name, "choice", names[current], join(names, ", "), help);
    return current;
  }

 private:
  void row(std::string_view name, std::string type, std::string value, std::string range, std::string_view help) {
    rows.push_back(
        {prefix_ + std::string(name), std::move(type), std::move(value), std::move(range), std::string(help)});
  }

  std::string prefix_;
};

}  // namespace

std::string dump_yaml(const Describe& describe, bool with_help) {
  DumpVisitor visitor(with_help);
  describe(visitor);
  return visitor.yaml;
}

std::vector<OptionRow> option_rows(const Describe& describe) {
  RowVisitor visitor;
  describe(visitor);
  return visitor.rows;
}

}  // namespace dms
