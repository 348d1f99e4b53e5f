#include "tools/report.h"

#include "tools/number_text.h"
#include "tools/report_assets.h"
#include "tools/report_commands.h"
#include "tools/report_inference.h"
#include "tools/report_sections.h"
#include "tools/report_template.h"
#include "tools/report_wording.h"

namespace dms {
namespace {

Markup marked_up(const ReportTemplate& blocks, const Sentence& sentence) {
  Markup all;
  for (const Words& words : sentence) {
    all.html += words.strong ? blocks.fill("strong", {{"text", words.text}}).html : escape_html(words.text);
  }
  return all;
}

// What kind of retrofit it is, above the model's name.
std::string eyebrow(const ReportInput& input) {
  std::string text = input.adapter_kind.empty() ? "retrofit" : input.adapter_kind + " adapter";
  if (input.window > 0) text += " · window of " + count_text(input.window) + " tokens";
  return text;
}

std::string sources(const ReportInput& input) {
  const std::string run = input.run_dir + "/recipe.yaml and " + input.run_dir + "/metrics.jsonl";
  return input.has_eval ? run + ", and " + input.eval_path : run;
}

}  // namespace

std::string report_html(const ReportInput& input) {
  const ReportTemplate blocks(kReportPage);
  const ReportPage page{input, blocks};
  const Markup html = blocks.fill(
      "page", {{"title", input.model_name + " · DMS retrofit"},
               {"style", Markup{std::string(kReportStyle)}},
               {"script", Markup{std::string(kReportScript)}},
               {"eyebrow", eyebrow(input)},
               {"model", input.model_name},
               {"sentence", marked_up(blocks, result_sentence(input))},
               {"verdict", marked_up(blocks, input.has_eval ? verdict(input.eval) : Sentence{})},
               {"tiles", tiles_section(page)},
               {"quality", quality_section(page)},
               {"memory", memory_section(page)},
               {"throughput", throughput_section(page)},
               {"tasks", tasks_section(page)},
               {"heads", heads_section(page)},
               {"sample", sample_section(page)},
               {"training_note", training_note(input)},
               {"training", training_section(page)},
               {"sets", sets_section(page)},
               {"commands", train_command(input) + "\n" + eval_command(input) + "\n" + report_command(input)},
               {"recipe", input.recipe},
               {"sources", sources(input)}});
  return html.html + "\n";
}

}  // namespace dms
