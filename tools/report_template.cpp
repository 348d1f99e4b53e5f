#include "tools/report_template.h"

#include <algorithm>
#include <set>
#include <stdexcept>

namespace dms {
namespace {

constexpr std::string_view kMarkBegin = "<!-- [";
constexpr std::string_view kMarkEnd = "] -->";

std::string_view without_surrounding_newlines(std::string_view text) {
  while (text.starts_with('\n')) text.remove_prefix(1);
  while (text.ends_with('\n')) text.remove_suffix(1);
  return text;
}

}  // namespace

std::string escape_html(std::string_view text) {
  std::string html;
  html.reserve(text.size());
  for (const char c : text) {
    switch (c) {
      case '&':
        html += "&amp;";
        break;
      case '<':
        html += "&lt;";
        break;
      case '>':
        html += "&gt;";
        break;
      case '"':
        html += "&quot;";
        break;
      case '\'':
        html += "&#39;";
        break;
      default: {
        const bool forbidden = (static_cast<unsigned char>(c) < 0x20 && c != '\n' && c != '\t') || c == 0x7F;
        if (forbidden) {
          html += "\uFFFD";
        } else {
          html.push_back(c);
        }
      }
    }
  }
  return html;
}

ReportTemplate::ReportTemplate(std::string_view source) {
  size_t mark = source.find(kMarkBegin);
  while (mark != std::string_view::npos) {
    const size_t name_begin = mark + kMarkBegin.size();
    const size_t name_end = source.find(kMarkEnd, name_begin);
    if (name_end == std::string_view::npos) throw std::logic_error("report template: unfinished block mark");
    const std::string name(source.substr(name_begin, name_end - name_begin));
    const size_t body_begin = name_end + kMarkEnd.size();
    mark = source.find(kMarkBegin, body_begin);
    const std::string_view body = source.substr(body_begin, mark - body_begin);  // npos - x: to the end
    if (!blocks_.emplace(name, without_surrounding_newlines(body)).second) {
      throw std::logic_error("report template: block '" + name + "' stands there twice");
    }
  }
}

Markup ReportTemplate::fill(std::string_view block, std::initializer_list<Field> fields) const {
  const auto found = blocks_.find(block);
  if (found == blocks_.end()) throw std::logic_error("report template: no block '" + std::string(block) + "'");
  const std::string& body = found->second;
  std::set<std::string_view> used;
  std::string html;
  size_t begin = 0;
  for (size_t open = body.find("{{"); open != std::string::npos; open = body.find("{{", begin)) {
    const size_t close = body.find("}}", open);
    if (close == std::string::npos)
      throw std::logic_error("report template: unfinished placeholder in " + found->first);
    const std::string_view name = std::string_view(body).substr(open + 2, close - open - 2);
    const auto field = std::find_if(fields.begin(), fields.end(), [&](const Field& f) { return f.name == name; });
    if (field == fields.end()) {
      throw std::logic_error("report template: block '" + found->first + "' needs '" + std::string(name) + "'");
    }
    html.append(body, begin, open - begin).append(field->html);
    used.insert(name);
    begin = close + 2;
  }
  html.append(body, begin);
  for (const Field& field : fields) {
    if (!used.contains(field.name)) {
      throw std::logic_error("report template: block '" + found->first + "' has no place for '" +
                             std::string(field.name) + "'");
    }
  }
  return {std::move(html)};
}

}  // namespace dms
