// Filling the report's markup, which lives in tools/report/page.html as named blocks with {{placeholders}}: text is
// escaped on its way in, so that a token, a file name or a recipe cannot become markup; only what was itself made from
// blocks passes unchanged.
#pragma once

#include <initializer_list>
#include <map>
#include <string>
#include <string_view>

namespace dms {

// Safe in element content and in quoted attributes.  Characters that HTML forbids become U+FFFD.
std::string escape_html(std::string_view text);

struct Markup {  // escaped already
  std::string html;
};

struct Field {
  Field(std::string_view field_name, const Markup& markup) : name(field_name), html(markup.html) {}
  Field(std::string_view field_name, std::string_view text) : name(field_name), html(escape_html(text)) {}
  Field(std::string_view field_name, const std::string& text) : Field(field_name, std::string_view(text)) {}
  Field(std::string_view field_name, const char* text) : Field(field_name, std::string_view(text)) {}

  std::string_view name;
  std::string html;
};

class ReportTemplate {
 public:
  // A block runs from a line `<!-- [name] -->` to the next such line; blank lines around it do not count.
  explicit ReportTemplate(std::string_view source);

  // Throws std::logic_error when the block is unknown, a placeholder has no field or a field no placeholder.
  Markup fill(std::string_view block, std::initializer_list<Field> fields) const;

 private:
  std::map<std::string, std::string, std::less<>> blocks_;
};

}  // namespace dms
