#include "placement_service/plan/plan_schema.h"

#include "absl/strings/str_cat.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"

namespace isotherm {
namespace {

constexpr int64_t kSchemaVersion = 2;
constexpr int64_t kApplicationId = 0x49534f54;  // "ISOT"

// Version 1, and the tables of it that stayed.
constexpr char kTerm[] = R"sql(
CREATE TABLE term (only_row INTEGER PRIMARY KEY CHECK (only_row = 1), term INTEGER NOT NULL) STRICT;
INSERT INTO term VALUES (1, 0);
CREATE TABLE request (
  request_id TEXT PRIMARY KEY,
  fingerprint TEXT NOT NULL,
  epoch INTEGER NOT NULL) STRICT;
PRAGMA application_id = 0x49534f54;
)sql";

// Version 2.
constexpr char kPlan[] = R"sql(
CREATE TABLE plan (
  epoch INTEGER PRIMARY KEY CHECK (epoch > 0),
  state INTEGER NOT NULL CHECK (state BETWEEN 0 AND 3),
  model_digest TEXT NOT NULL,
  etag TEXT NOT NULL,
  budget_bytes INTEGER NOT NULL,
  used_bytes INTEGER NOT NULL,
  requested_bytes INTEGER NOT NULL,
  cause INTEGER NOT NULL CHECK (cause BETWEEN 0 AND 5),
  created_unix_ms INTEGER NOT NULL,
  profile TEXT NOT NULL,
  solver TEXT NOT NULL,
  objective REAL NOT NULL,
  from_epoch INTEGER NOT NULL,
  moved_neurons INTEGER NOT NULL,
  message TEXT NOT NULL,
  start_options TEXT NOT NULL,
  layers BLOB NOT NULL,
  reason TEXT NOT NULL DEFAULT '',
  predicted_gain REAL NOT NULL DEFAULT 0,
  predicted_ns REAL NOT NULL DEFAULT 0,
  bound_ns REAL NOT NULL DEFAULT 0,
  measured_hit_share REAL,
  measured_gain REAL) STRICT;
CREATE UNIQUE INDEX one_preparing ON plan (state) WHERE state = 0;
CREATE UNIQUE INDEX one_live ON plan (state) WHERE state = 1;
CREATE TABLE setting (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE recomputation (
  number INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  fingerprint TEXT NOT NULL,
  state INTEGER NOT NULL,
  epoch INTEGER NOT NULL,
  moved_neurons INTEGER NOT NULL,
  moved_bytes INTEGER NOT NULL,
  predicted_gain REAL NOT NULL,
  reason TEXT NOT NULL,
  budget_bytes INTEGER NOT NULL,
  used_bytes INTEGER NOT NULL,
  objective REAL NOT NULL,
  layers BLOB NOT NULL) STRICT;
CREATE TABLE profile (
  only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
  model_digest TEXT NOT NULL,
  name TEXT NOT NULL,
  total_tokens REAL NOT NULL) STRICT;
CREATE TABLE profile_layer (
  layer INTEGER PRIMARY KEY,
  tokens REAL NOT NULL,
  fired_tokens REAL NOT NULL,
  predicted BLOB NOT NULL,
  fired BLOB NOT NULL) STRICT;
CREATE TABLE profile_instance (id TEXT PRIMARY KEY, last_sequence INTEGER NOT NULL) STRICT;
PRAGMA user_version = 2;
)sql";

// Indexes go with the table they are on, so the names are free again.
constexpr char kFromVersion1[] = R"sql(
INSERT INTO plan (epoch, state, model_digest, etag, budget_bytes, used_bytes, requested_bytes,
    cause, created_unix_ms, profile, solver, objective, from_epoch, moved_neurons, message,
    start_options, layers)
  SELECT epoch, state, model_digest, etag, budget_bytes, used_bytes, requested_bytes, cause,
    created_unix_ms, profile, solver, objective, from_epoch, moved_neurons, message,
    start_options, layers FROM plan_1;
DROP TABLE plan_1;
)sql";

absl::Status BadStore(absl::string_view what) {
  return WithExitCode(absl::DataLossError(std::string(what)), ExitCode::kBadData);
}

absl::Status Upgrade(Sqlite& db) {
  return db.Transaction([&]() -> absl::Status {
    ISOTHERM_RETURN_IF_ERROR(db.Execute("DROP INDEX one_preparing"));
    ISOTHERM_RETURN_IF_ERROR(db.Execute("DROP INDEX one_live"));
    ISOTHERM_RETURN_IF_ERROR(db.Execute("ALTER TABLE plan RENAME TO plan_1"));
    ISOTHERM_RETURN_IF_ERROR(db.Execute(kPlan));
    return db.Execute(kFromVersion1);
  });
}

}  // namespace

absl::Status PreparePlanSchema(Sqlite& db, const std::string& path) {
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
  if (!empty && (version < 1 || version > kSchemaVersion)) {
    return BadStore(absl::StrCat(path, ": has schema version ", version,
                                 ", this release reads 1 to ", kSchemaVersion,
                                 "; nothing was changed: run the release that wrote it"));
  }
  // Exclusive before the first WAL access: the index lives in our memory and no second process can
  // open the file.
  ISOTHERM_RETURN_IF_ERROR(db.Execute("PRAGMA journal_mode = WAL"));
  ISOTHERM_RETURN_IF_ERROR(db.Execute("PRAGMA synchronous = FULL"));
  if (empty) {
    return db.Transaction([&]() -> absl::Status {
      ISOTHERM_RETURN_IF_ERROR(db.Execute(kTerm));
      return db.Execute(kPlan);
    });
  }
  {
    ISOTHERM_ASSIGN_OR_RETURN(SqliteStatement check, db.Prepare("PRAGMA quick_check(1)"));
    ISOTHERM_ASSIGN_OR_RETURN(const bool row, check.Step());
    if (!row || check.Bytes(0) != "ok") {
      return BadStore(absl::StrCat(path, ": is damaged (", row ? check.Bytes(0) : "",
                                   "); nothing was changed: restore it from a backup"));
    }
  }
  return version == kSchemaVersion ? absl::OkStatus() : Upgrade(db);
}

}  // namespace isotherm
