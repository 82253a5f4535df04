#include "cli/placement/memory_text.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/ui/share_bar.h"
#include "common/base/units.h"

namespace isotherm::cli {
namespace {

struct Part {
  const char* name;
  const char* key;
  int64_t bytes;
};

// What the driver counts beyond what the worker asked for comes last.
std::vector<Part> PartsOf(const DeviceMemoryUse& memory) {
  std::vector<Part> parts = {{"hot neurons", "hot_pool_bytes", memory.hot_pool},
                             {"KV cache", "kv_bytes", memory.kv},
                             {"dense weights", "dense_bytes", memory.dense},
                             {"output head", "head_bytes", memory.head},
                             {"predictors", "predictor_bytes", memory.predictor},
                             {"workspace", "workspace_bytes", memory.workspace},
                             {"tables", "table_bytes", memory.tables},
                             {"driver context", "context_bytes", memory.context}};
  int64_t known = 0;
  for (const Part& part : parts) known += part.bytes;
  parts.push_back({"modules, graphs", "other_bytes", std::max<int64_t>(0, memory.process - known)});
  return parts;
}

int64_t SumOf(const std::vector<Part>& parts) {
  int64_t sum = 0;
  for (const Part& part : parts) sum += part.bytes;
  return sum;
}

}  // namespace

std::string MemoryText(const MemoryInfo& memory) {
  const std::vector<Part> parts = PartsOf(memory.use);
  const int64_t sum = SumOf(parts);
  if (sum == 0) return "";
  // A backend of CPU threads has no driver that counts, and no budget for all of it.
  std::string out =
      memory.use.process > 0
          ? absl::StrCat("memory of ", memory.device, ": ", FormatBytes(memory.use.process),
                         " as the driver counts it")
          : absl::StrCat("memory that ", memory.device, " keeps apart: ", FormatBytes(sum));
  if (memory.use.budget > 0) {
    absl::StrAppend(&out, ", budget ", FormatBytes(memory.use.budget));
    if (memory.use.process > memory.use.budget) {
      absl::StrAppend(&out, ", EXCEEDED by ", FormatBytes(memory.use.process - memory.use.budget));
    }
  }
  out.push_back('\n');
  for (const Part& part : parts) {
    if (part.bytes == 0) continue;
    const double share = static_cast<double>(part.bytes) / static_cast<double>(sum);
    absl::StrAppendFormat(&out, "  %-15s  %s  %4.0f %%  %10s\n", part.name, ShareBar(share, 28),
                          100 * share, FormatBytes(part.bytes));
  }
  return out;
}

nlohmann::ordered_json MemoryJson(const MemoryInfo& memory) {
  nlohmann::ordered_json json = {{"device", memory.device}};
  for (const Part& part : PartsOf(memory.use)) json[part.key] = part.bytes;
  json["process_bytes"] = memory.use.process;
  json["budget_bytes"] = memory.use.budget;
  return json;
}

}  // namespace isotherm::cli
