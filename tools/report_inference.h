// The parts of the report that `dms bench decode --json` and `dms eval-tasks --out` feed: throughput, and accuracy against
// what it costs.
#pragma once

#include <string>
#include <vector>

#include "tools/report_input.h"
#include "tools/report_sections.h"

namespace dms {

std::vector<DecodePoint> read_decode_points(const std::string& path);  // throws UserError
std::vector<TaskPoint> read_task_points(const std::string& path);      // throws UserError

// The best accuracy at no more than each cost: points of one evictor that no cheaper one of it equals, by rising cost.
std::vector<std::pair<double, double>> pareto_frontier(std::vector<std::pair<double, double>> cost_and_accuracy);
// The best accuracy of a frontier at no more than `cost`; kUnknown when even its cheapest point costs more.
double accuracy_at(const std::vector<std::pair<double, double>>& frontier, double cost);

Markup throughput_section(const ReportPage& page);
Markup tasks_section(const ReportPage& page);

}  // namespace dms
