#pragma once

#include <string>

namespace isotherm {

// An SQLite file layer over the default one whose n-th write, sync or truncation fails, then all
// that follow: a disk that is full or broken from one moment on. Registered under name() while it
// lives; one at a time.
class FaultyVfs {
 public:
  FaultyVfs();
  ~FaultyVfs();
  FaultyVfs(const FaultyVfs&) = delete;
  FaultyVfs& operator=(const FaultyVfs&) = delete;

  std::string name() const { return "faulty"; }
  // `calls` more succeed, then each returns `code` (SQLITE_FULL, SQLITE_IOERR_FSYNC, ...).
  void FailAfter(int calls, int code);
  void Heal();
  bool fired() const;
};

}  // namespace isotherm
