#pragma once

#include <sqlite3.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace isotherm {

// One prepared statement. Binding counts from 1, columns from 0, as in SQLite. Used by one thread.
class SqliteStatement {
 public:
  SqliteStatement(sqlite3* db, std::string path, sqlite3_stmt* statement)
      : db_(db), path_(std::move(path)), statement_(statement) {}

  SqliteStatement& Bind(int64_t value);
  SqliteStatement& Bind(double value);
  SqliteStatement& Bind(std::optional<double> value);  // nullopt: NULL
  SqliteStatement& Bind(absl::string_view text);
  SqliteStatement& BindBlob(absl::string_view bytes);

  // True while there is a row.
  absl::StatusOr<bool> Step();
  // For statements without rows.
  absl::Status Run();

  int64_t Int(int column) const { return sqlite3_column_int64(statement_.get(), column); }
  double Double(int column) const { return sqlite3_column_double(statement_.get(), column); }
  std::optional<double> OptionalDouble(int column) const {  // nullopt: NULL
    if (sqlite3_column_type(statement_.get(), column) == SQLITE_NULL) return std::nullopt;
    return Double(column);
  }
  std::string Bytes(int column) const;

 private:
  struct Finalize {
    void operator()(sqlite3_stmt* statement) const { sqlite3_finalize(statement); }
  };
  sqlite3* db_;
  std::string path_;
  std::unique_ptr<sqlite3_stmt, Finalize> statement_;
  int next_ = 1;
  int bind_error_ = SQLITE_OK;
};

// One connection. Errors are sorted by cause: in use elsewhere and no space are ResourceExhausted,
// a failing or unwritable disk Unavailable (all exit code 71); not a database or damaged is
// DataLoss (65). Used by one thread at a time.
class Sqlite {
 public:
  // `vfs`: "" or the name of a registered SQLite file layer, for tests that make writes fail.
  static absl::StatusOr<Sqlite> Open(const std::string& path, const std::string& vfs);

  absl::Status Execute(const char* sql);
  absl::StatusOr<SqliteStatement> Prepare(absl::string_view sql);
  absl::StatusOr<int64_t> QueryInt(absl::string_view sql);

  // Runs `body` between BEGIN IMMEDIATE and COMMIT; an error of either leaves nothing changed.
  template <typename Body>
  absl::Status Transaction(const Body& body) {
    absl::Status status = Execute("BEGIN IMMEDIATE");
    if (!status.ok()) return status;
    status = body();
    if (status.ok()) status = Execute("COMMIT");
    if (!status.ok()) sqlite3_exec(db_.get(), "ROLLBACK", nullptr, nullptr, nullptr);
    return status;
  }

 private:
  struct Close {
    void operator()(sqlite3* db) const { sqlite3_close_v2(db); }
  };
  std::string path_;
  std::unique_ptr<sqlite3, Close> db_;
};

}  // namespace isotherm
