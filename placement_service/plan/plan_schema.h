#pragma once

#include <string>

#include "absl/status/status.h"
#include "placement_service/plan/sqlite.h"

namespace isotherm {

// Makes the store's tables, or checks that they are there and whole. A store of an older release is
// brought up to date in one transaction; one of a newer release or of another program is refused
// and not changed (DataLoss, exit code 65).
absl::Status PreparePlanSchema(Sqlite& db, const std::string& path);

}  // namespace isotherm
