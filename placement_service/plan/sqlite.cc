#include "placement_service/plan/sqlite.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"

namespace isotherm {
namespace {

absl::Status FromSqlite(sqlite3* db, int code, const std::string& path) {
  const std::string what = absl::StrCat(path, ": ", db != nullptr ? sqlite3_errmsg(db) : "", " (",
                                        sqlite3_errstr(code), ")");
  switch (code & 0xff) {
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
      return WithExitCode(
          absl::ResourceExhaustedError(
              absl::StrCat(what,
                           "; another placement_service uses it: stop that one or choose another "
                           "--state-dir")),
          ExitCode::kShortage);
    case SQLITE_FULL:
      return WithExitCode(absl::ResourceExhaustedError(
                              absl::StrCat(what, "; free space on the file system of --state-dir")),
                          ExitCode::kShortage);
    case SQLITE_NOTADB:
    case SQLITE_CORRUPT:
      return WithExitCode(
          absl::DataLossError(absl::StrCat(
              what,
              "; nothing was changed: restore it from a backup, or move it away to start "
              "with an empty one")),
          ExitCode::kBadData);
    case SQLITE_IOERR:
    case SQLITE_CANTOPEN:
    case SQLITE_READONLY:
    case SQLITE_PERM:
      return WithExitCode(
          absl::UnavailableError(absl::StrCat(
              what, "; check that --state-dir exists, may be written and its disk is sound")),
          ExitCode::kShortage);
    case SQLITE_NOMEM:
      return WithExitCode(absl::ResourceExhaustedError(what), ExitCode::kShortage);
    default:
      return absl::InternalError(what);
  }
}

}  // namespace

SqliteStatement& SqliteStatement::Bind(int64_t value) {
  bind_error_ |= sqlite3_bind_int64(statement_.get(), next_++, value);
  return *this;
}

SqliteStatement& SqliteStatement::Bind(double value) {
  bind_error_ |= sqlite3_bind_double(statement_.get(), next_++, value);
  return *this;
}

SqliteStatement& SqliteStatement::Bind(std::optional<double> value) {
  if (value.has_value()) return Bind(*value);
  bind_error_ |= sqlite3_bind_null(statement_.get(), next_++);
  return *this;
}

SqliteStatement& SqliteStatement::Bind(absl::string_view text) {
  bind_error_ |= sqlite3_bind_text64(statement_.get(), next_++, text.data(), text.size(),
                                     SQLITE_TRANSIENT, SQLITE_UTF8);
  return *this;
}

SqliteStatement& SqliteStatement::BindBlob(absl::string_view bytes) {
  bind_error_ |=
      sqlite3_bind_blob64(statement_.get(), next_++, bytes.data(), bytes.size(), SQLITE_TRANSIENT);
  return *this;
}

absl::StatusOr<bool> SqliteStatement::Step() {
  if (bind_error_ != SQLITE_OK) return absl::InternalError("a value was not bound");
  const int code = sqlite3_step(statement_.get());
  if (code == SQLITE_ROW) return true;
  if (code == SQLITE_DONE) return false;
  return FromSqlite(db_, code, path_);
}

absl::Status SqliteStatement::Run() { return Step().status(); }

std::string SqliteStatement::Bytes(int column) const {
  const void* data = sqlite3_column_blob(statement_.get(), column);
  const int size = sqlite3_column_bytes(statement_.get(), column);
  return data == nullptr ? std::string()
                         : std::string(static_cast<const char*>(data), static_cast<size_t>(size));
}

absl::StatusOr<Sqlite> Sqlite::Open(const std::string& path, const std::string& vfs) {
  Sqlite out;
  out.path_ = path;
  sqlite3* db = nullptr;
  // One connection behind the store's own lock, so SQLite needs none.
  constexpr int kFlags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX;
  const int code = sqlite3_open_v2(path.c_str(), &db, kFlags, vfs.empty() ? nullptr : vfs.c_str());
  out.db_.reset(db);
  if (code != SQLITE_OK) return FromSqlite(db, code, path);
  // Never trust a stored schema with functions or triggers of a hostile file.
  sqlite3_db_config(db, SQLITE_DBCONFIG_DEFENSIVE, 1, nullptr);
  sqlite3_db_config(db, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, nullptr);
  sqlite3_db_config(db, SQLITE_DBCONFIG_ENABLE_TRIGGER, 0, nullptr);
  sqlite3_db_config(db, SQLITE_DBCONFIG_ENABLE_VIEW, 0, nullptr);
  return out;
}

absl::Status Sqlite::Execute(const char* sql) {
  const int code = sqlite3_exec(db_.get(), sql, nullptr, nullptr, nullptr);
  return code == SQLITE_OK ? absl::OkStatus() : FromSqlite(db_.get(), code, path_);
}

absl::StatusOr<SqliteStatement> Sqlite::Prepare(absl::string_view sql) {
  sqlite3_stmt* statement = nullptr;
  const int code =
      sqlite3_prepare_v2(db_.get(), sql.data(), static_cast<int>(sql.size()), &statement, nullptr);
  if (code != SQLITE_OK) return FromSqlite(db_.get(), code, path_);
  return SqliteStatement(db_.get(), path_, statement);
}

absl::StatusOr<int64_t> Sqlite::QueryInt(absl::string_view sql) {
  ISOTHERM_ASSIGN_OR_RETURN(SqliteStatement statement, Prepare(sql));
  ISOTHERM_ASSIGN_OR_RETURN(const bool row, statement.Step());
  return row ? statement.Int(0) : 0;
}

}  // namespace isotherm
