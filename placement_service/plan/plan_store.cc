#include "placement_service/plan/plan_store.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"
#include "placement_service/plan/plan_codec.h"
#include "placement_service/plan/plan_schema.h"

namespace isotherm {
namespace {

constexpr char kPlanColumns[] =
    "SELECT epoch, state, model_digest, etag, budget_bytes, used_bytes, requested_bytes, cause, "
    "created_unix_ms, profile, solver, objective, from_epoch, moved_neurons, message, "
    "start_options, layers, reason, predicted_gain, predicted_ns, bound_ns, measured_hit_share, "
    "measured_gain FROM plan ";
constexpr int64_t kLastCause = static_cast<int64_t>(PlacementCause::kImport);
// Automatic plans whose contents are kept; older ones keep their line in the history only, as a
// service that follows its traffic makes hundreds a day.
constexpr int64_t kKeptContents = 512;

absl::StatusOr<PlanRecord> ReadPlan(const SqliteStatement& row, bool bitmaps) {
  PlanRecord record;
  PlacementPlan& plan = record.plan;
  plan.epoch = row.Int(0);
  record.state = static_cast<PlanState>(row.Int(1));
  plan.model_digest = row.Bytes(2);
  plan.etag = row.Bytes(3);
  plan.budget_bytes = row.Int(4);
  plan.used_bytes = row.Int(5);
  record.requested_bytes = row.Int(6);
  plan.cause = static_cast<PlacementCause>(row.Int(7));
  plan.created_unix_ms = row.Int(8);
  plan.profile = row.Bytes(9);
  plan.solver = row.Bytes(10);
  plan.objective = row.Double(11);
  plan.from_epoch = row.Int(12);
  record.moved_neurons = row.Int(13);
  record.message = row.Bytes(14);
  record.start_options = row.Bytes(15);
  // The file may have been written by hands other than ours, whatever the schema checks.
  if (plan.epoch < 1 || row.Int(1) < 0 || row.Int(1) > 3 || row.Int(7) < 0 ||
      row.Int(7) > kLastCause || plan.budget_bytes < 0 || plan.used_bytes < 0 ||
      record.requested_bytes < kAutoBudget) {
    return BadDataError("plan store",
                        absl::StrCat("the stored plan of epoch ", plan.epoch, " is out of bounds"));
  }
  record.reason = row.Bytes(17);
  record.predicted_gain = row.Double(18);
  plan.predicted_ns = row.Double(19);
  plan.bound_ns = row.Double(20);
  record.measured_hit_share = row.OptionalDouble(21);
  record.measured_gain = row.OptionalDouble(22);
  const std::string layers = row.Bytes(16);
  record.contents_kept = !layers.empty();
  if (!record.contents_kept &&
      (record.state == PlanState::kLive || record.state == PlanState::kPreparing)) {
    return BadDataError("plan store",
                        absl::StrCat("the stored plan of epoch ", plan.epoch, " has no contents"));
  }
  if (record.contents_kept) {
    ISOTHERM_ASSIGN_OR_RETURN(plan.layers, DecodeLayers(layers, bitmaps));
  }
  return record;
}

}  // namespace

absl::StatusOr<std::unique_ptr<PlanStore>> PlanStore::Open(const PlanStoreOptions& options) {
  ISOTHERM_ASSIGN_OR_RETURN(Sqlite db, Sqlite::Open(options.path, options.vfs));
  ISOTHERM_RETURN_IF_ERROR(db.Execute("PRAGMA locking_mode = EXCLUSIVE"));
  ISOTHERM_RETURN_IF_ERROR(PreparePlanSchema(db, options.path));
  std::unique_ptr<PlanStore> store(new PlanStore(std::move(db)));
  // Reads both now, so that a damaged plan is an error of the start.
  ISOTHERM_RETURN_IF_ERROR(store->Live().status());
  ISOTHERM_RETURN_IF_ERROR(store->Preparing().status());
  return store;
}

absl::Status PlanStore::Write(absl::FunctionRef<absl::Status(Sqlite&)> body) {
  absl::MutexLock lock(&mu_);
  if (disk_failed_) {
    return absl::UnavailableError(absl::StrCat("the plan store is read-only: ", read_only_reason_));
  }
  absl::Status status = db_.Transaction([&]() -> absl::Status {
    mu_.AssertHeld();
    return body(db_);
  });
  if (status.ok()) {
    read_only_reason_.clear();
  } else if (ExitCodeOf(status) == ExitCode::kShortage) {
    read_only_reason_ = std::string(status.message());
    disk_failed_ = status.code() == absl::StatusCode::kUnavailable;
  }
  return status;
}

absl::StatusOr<int64_t> PlanStore::ClaimTerm(int64_t at_least) {
  int64_t term = 0;
  ISOTHERM_RETURN_IF_ERROR(Write([&](Sqlite& db) -> absl::Status {
    ISOTHERM_ASSIGN_OR_RETURN(const int64_t last, db.QueryInt("SELECT term FROM term"));
    if (last < 0 || last == std::numeric_limits<int64_t>::max()) {
      return BadDataError("plan store",
                          absl::StrCat("the stored term ", last, " has no successor"));
    }
    term = std::max(last + 1, at_least);
    ISOTHERM_ASSIGN_OR_RETURN(SqliteStatement update, db.Prepare("UPDATE term SET term = ?"));
    return update.Bind(term).Run();
  }));
  return term;
}

absl::StatusOr<int64_t> PlanStore::LastTerm() {
  absl::MutexLock lock(&mu_);
  return db_.QueryInt("SELECT term FROM term");
}

absl::Status PlanStore::InsertPreparing(const PlanRecord& record,
                                        const std::optional<ControlRequest>& request) {
  return Write([&](Sqlite& db) -> absl::Status {
    ISOTHERM_ASSIGN_OR_RETURN(const int64_t newest, db.QueryInt("SELECT max(epoch) FROM plan"));
    ISOTHERM_ASSIGN_OR_RETURN(const int64_t preparing,
                              db.QueryInt("SELECT count(*) FROM plan WHERE state = 0"));
    const PlacementPlan& plan = record.plan;
    if (plan.epoch <= newest || preparing != 0) {
      return absl::FailedPreconditionError(absl::StrCat("cannot plan epoch ", plan.epoch,
                                                        ": the newest is ", newest, ", ", preparing,
                                                        " being prepared"));
    }
    ISOTHERM_ASSIGN_OR_RETURN(
        SqliteStatement insert,
        db.Prepare(
            "INSERT INTO plan (epoch, state, model_digest, etag, budget_bytes, used_bytes, "
            "requested_bytes, cause, created_unix_ms, profile, solver, objective, from_epoch, "
            "moved_neurons, message, start_options, layers, reason, predicted_gain, predicted_ns, "
            "bound_ns) VALUES (?, 0, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, '', ?, ?, ?, ?, ?, ?)"));
    ISOTHERM_RETURN_IF_ERROR(insert.Bind(plan.epoch)
                                 .Bind(plan.model_digest)
                                 .Bind(plan.etag)
                                 .Bind(plan.budget_bytes)
                                 .Bind(plan.used_bytes)
                                 .Bind(record.requested_bytes)
                                 .Bind(static_cast<int64_t>(plan.cause))
                                 .Bind(plan.created_unix_ms)
                                 .Bind(plan.profile)
                                 .Bind(plan.solver)
                                 .Bind(plan.objective)
                                 .Bind(plan.from_epoch)
                                 .Bind(record.moved_neurons)
                                 .Bind(record.start_options)
                                 .BindBlob(EncodeLayers(plan))
                                 .Bind(record.reason)
                                 .Bind(record.predicted_gain)
                                 .Bind(plan.predicted_ns)
                                 .Bind(plan.bound_ns)
                                 .Run());
    if (!request.has_value()) return absl::OkStatus();
    ISOTHERM_ASSIGN_OR_RETURN(SqliteStatement remember,
                              db.Prepare("INSERT INTO request VALUES (?, ?, ?)"));
    return remember.Bind(request->request_id).Bind(request->fingerprint).Bind(plan.epoch).Run();
  });
}

absl::Status PlanStore::MarkLive(int64_t epoch) {
  return Write([&](Sqlite& db) -> absl::Status {
    ISOTHERM_ASSIGN_OR_RETURN(SqliteStatement retire,
                              db.Prepare("UPDATE plan SET state = 2 WHERE state = 1"));
    ISOTHERM_RETURN_IF_ERROR(retire.Run());
    ISOTHERM_ASSIGN_OR_RETURN(
        SqliteStatement live,
        db.Prepare("UPDATE plan SET state = 1 WHERE epoch = ? AND state = 0 RETURNING epoch"));
    ISOTHERM_ASSIGN_OR_RETURN(const bool found, live.Bind(epoch).Step());
    if (!found) {
      return absl::FailedPreconditionError(absl::StrCat("epoch ", epoch, " is not being prepared"));
    }
    ISOTHERM_RETURN_IF_ERROR(live.Run());
    ISOTHERM_ASSIGN_OR_RETURN(
        SqliteStatement prune,
        db.Prepare("UPDATE plan SET layers = x'' WHERE state = 2 AND cause = ? AND layers != x'' "
                   "AND epoch <= (SELECT epoch FROM plan WHERE state = 2 AND cause = ? AND "
                   "layers != x'' ORDER BY epoch DESC LIMIT 1 OFFSET ?)"));
    const auto traffic = static_cast<int64_t>(PlacementCause::kTraffic);
    return prune.Bind(traffic).Bind(traffic).Bind(kKeptContents).Run();
  });
}

absl::Status PlanStore::MarkFailed(int64_t epoch, absl::string_view message) {
  return Write([&](Sqlite& db) -> absl::Status {
    ISOTHERM_ASSIGN_OR_RETURN(
        SqliteStatement update,
        db.Prepare("UPDATE plan SET state = 3, message = ? WHERE epoch = ? AND state = 0"));
    return update.Bind(message).Bind(epoch).Run();
  });
}

absl::Status PlanStore::InsertRequest(const ControlRequest& request) {
  return Write([&](Sqlite& db) -> absl::Status {
    ISOTHERM_ASSIGN_OR_RETURN(SqliteStatement insert,
                              db.Prepare("INSERT INTO request VALUES (?, ?, ?)"));
    return insert.Bind(request.request_id).Bind(request.fingerprint).Bind(request.epoch).Run();
  });
}

absl::StatusOr<std::optional<PlanRecord>> PlanStore::InStateLocked(PlanState state) {
  ISOTHERM_ASSIGN_OR_RETURN(SqliteStatement select,
                            db_.Prepare(absl::StrCat(kPlanColumns, "WHERE state = ?")));
  ISOTHERM_ASSIGN_OR_RETURN(const bool row, select.Bind(static_cast<int64_t>(state)).Step());
  if (!row) return std::optional<PlanRecord>();
  ISOTHERM_ASSIGN_OR_RETURN(PlanRecord record, ReadPlan(select, /*bitmaps=*/true));
  return std::optional<PlanRecord>(std::move(record));
}

absl::StatusOr<std::optional<PlanRecord>> PlanStore::Live() {
  absl::MutexLock lock(&mu_);
  return InStateLocked(PlanState::kLive);
}

absl::StatusOr<std::optional<PlanRecord>> PlanStore::Preparing() {
  absl::MutexLock lock(&mu_);
  return InStateLocked(PlanState::kPreparing);
}

absl::StatusOr<PlanRecord> PlanStore::Get(int64_t epoch, bool bitmaps) {
  absl::MutexLock lock(&mu_);
  ISOTHERM_ASSIGN_OR_RETURN(SqliteStatement select,
                            db_.Prepare(absl::StrCat(kPlanColumns, "WHERE epoch = ?")));
  ISOTHERM_ASSIGN_OR_RETURN(const bool row, select.Bind(epoch).Step());
  if (!row) {
    return absl::NotFoundError(
        absl::StrCat("epoch ", epoch, " was never planned; History lists those that were"));
  }
  return ReadPlan(select, bitmaps);
}

absl::StatusOr<std::vector<PlanRecord>> PlanStore::History(int64_t before, int64_t limit) {
  absl::MutexLock lock(&mu_);
  ISOTHERM_ASSIGN_OR_RETURN(
      SqliteStatement select,
      db_.Prepare(absl::StrCat(kPlanColumns, "WHERE epoch < ? ORDER BY epoch DESC LIMIT ?")));
  select.Bind(before).Bind(limit);
  std::vector<PlanRecord> records;
  while (true) {
    ISOTHERM_ASSIGN_OR_RETURN(const bool row, select.Step());
    if (!row) return records;
    ISOTHERM_ASSIGN_OR_RETURN(PlanRecord record, ReadPlan(select, /*bitmaps=*/false));
    records.push_back(std::move(record));
  }
}

absl::StatusOr<int64_t> PlanStore::NewestEpoch() {
  absl::MutexLock lock(&mu_);
  return db_.QueryInt("SELECT max(epoch) FROM plan");
}

absl::StatusOr<std::optional<ControlRequest>> PlanStore::FindRequest(absl::string_view request_id) {
  absl::MutexLock lock(&mu_);
  ISOTHERM_ASSIGN_OR_RETURN(
      SqliteStatement select,
      db_.Prepare("SELECT request_id, fingerprint, epoch FROM request WHERE request_id = ?"));
  ISOTHERM_ASSIGN_OR_RETURN(const bool row, select.Bind(request_id).Step());
  if (!row) return std::optional<ControlRequest>();
  return std::optional<ControlRequest>(
      ControlRequest{select.Bytes(0), select.Bytes(1), select.Int(2)});
}

std::string PlanStore::read_only_reason() const {
  absl::MutexLock lock(&mu_);
  return read_only_reason_;
}

}  // namespace isotherm
