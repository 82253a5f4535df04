#include "placement_service/plan/plan_store.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"
#include "placement_service/plan/plan_codec.h"

namespace isotherm {
namespace {

constexpr int64_t kSchemaVersion = 1;
constexpr int64_t kApplicationId = 0x49534f54;  // "ISOT"

constexpr char kSchema[] = R"sql(
CREATE TABLE term (only_row INTEGER PRIMARY KEY CHECK (only_row = 1), term INTEGER NOT NULL) STRICT;
INSERT INTO term VALUES (1, 0);
CREATE TABLE plan (
  epoch INTEGER PRIMARY KEY CHECK (epoch > 0),
  state INTEGER NOT NULL CHECK (state BETWEEN 0 AND 3),
  model_digest TEXT NOT NULL,
  etag TEXT NOT NULL,
  budget_bytes INTEGER NOT NULL,
  used_bytes INTEGER NOT NULL,
  requested_bytes INTEGER NOT NULL,
  cause INTEGER NOT NULL CHECK (cause BETWEEN 0 AND 2),
  created_unix_ms INTEGER NOT NULL,
  profile TEXT NOT NULL,
  solver TEXT NOT NULL,
  objective REAL NOT NULL,
  from_epoch INTEGER NOT NULL,
  moved_neurons INTEGER NOT NULL,
  message TEXT NOT NULL,
  start_options TEXT NOT NULL,
  layers BLOB NOT NULL) STRICT;
CREATE UNIQUE INDEX one_preparing ON plan (state) WHERE state = 0;
CREATE UNIQUE INDEX one_live ON plan (state) WHERE state = 1;
CREATE TABLE request (
  request_id TEXT PRIMARY KEY,
  fingerprint TEXT NOT NULL,
  epoch INTEGER NOT NULL) STRICT;
PRAGMA application_id = 0x49534f54;
PRAGMA user_version = 1;
)sql";

constexpr char kPlanColumns[] =
    "SELECT epoch, state, model_digest, etag, budget_bytes, used_bytes, requested_bytes, cause, "
    "created_unix_ms, profile, solver, objective, from_epoch, moved_neurons, message, "
    "start_options, layers FROM plan ";

absl::Status BadStore(absl::string_view what) {
  return WithExitCode(absl::DataLossError(std::string(what)), ExitCode::kBadData);
}

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
  if (plan.epoch < 1 || row.Int(1) < 0 || row.Int(1) > 3 || row.Int(7) < 0 || row.Int(7) > 2 ||
      plan.budget_bytes < 0 || plan.used_bytes < 0 || record.requested_bytes < kAutoBudget) {
    return BadStore(absl::StrCat("the stored plan of epoch ", plan.epoch, " is out of bounds"));
  }
  ISOTHERM_ASSIGN_OR_RETURN(plan.layers, DecodeLayers(row.Bytes(16), bitmaps));
  return record;
}

absl::Status PrepareSchema(Sqlite& db, const std::string& path) {
  // Looked at before anything is changed: the file may be someone else's.
  ISOTHERM_ASSIGN_OR_RETURN(const int64_t version, db.QueryInt("PRAGMA user_version"));
  ISOTHERM_ASSIGN_OR_RETURN(const int64_t application, db.QueryInt("PRAGMA application_id"));
  ISOTHERM_ASSIGN_OR_RETURN(const int64_t tables,
                            db.QueryInt("SELECT count(*) FROM sqlite_schema"));
  const bool empty = version == 0 && application == 0 && tables == 0;
  if (!empty && application != kApplicationId) {
    return BadStore(absl::StrCat(path,
                                 ": is a database of another program; nothing was changed: "
                                 "choose another --state-dir"));
  }
  if (!empty && version != kSchemaVersion) {
    return BadStore(absl::StrCat(path, ": has schema version ", version, ", this release reads ",
                                 kSchemaVersion,
                                 "; nothing was changed: run the release that wrote it"));
  }
  // Exclusive before the first WAL access: the index lives in our memory and no second process can
  // open the file.
  ISOTHERM_RETURN_IF_ERROR(db.Execute("PRAGMA journal_mode = WAL"));
  ISOTHERM_RETURN_IF_ERROR(db.Execute("PRAGMA synchronous = FULL"));
  if (empty) return db.Transaction([&] { return db.Execute(kSchema); });
  ISOTHERM_ASSIGN_OR_RETURN(SqliteStatement check, db.Prepare("PRAGMA quick_check(1)"));
  ISOTHERM_ASSIGN_OR_RETURN(const bool row, check.Step());
  if (!row || check.Bytes(0) != "ok") {
    return BadStore(absl::StrCat(path, ": is damaged (", row ? check.Bytes(0) : "",
                                 "); nothing was changed: restore it from a backup"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<PlanStore>> PlanStore::Open(const PlanStoreOptions& options) {
  ISOTHERM_ASSIGN_OR_RETURN(Sqlite db, Sqlite::Open(options.path, options.vfs));
  ISOTHERM_RETURN_IF_ERROR(db.Execute("PRAGMA locking_mode = EXCLUSIVE"));
  ISOTHERM_RETURN_IF_ERROR(PrepareSchema(db, options.path));
  std::unique_ptr<PlanStore> store(new PlanStore(std::move(db)));
  // Reads both now, so that a damaged plan is an error of the start.
  ISOTHERM_RETURN_IF_ERROR(store->Live().status());
  ISOTHERM_RETURN_IF_ERROR(store->Preparing().status());
  return store;
}

template <typename Body>
absl::Status PlanStore::Write(const Body& body) {
  absl::MutexLock lock(&mu_);
  if (disk_failed_) {
    return absl::UnavailableError(absl::StrCat("the plan store is read-only: ", read_only_reason_));
  }
  const absl::Status status = db_.Transaction([&]() -> absl::Status {
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
      return BadStore(absl::StrCat("the stored term ", last, " has no successor"));
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
            "moved_neurons, message, start_options, layers) "
            "VALUES (?, 0, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, '', ?, ?)"));
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
    return live.Run();
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
