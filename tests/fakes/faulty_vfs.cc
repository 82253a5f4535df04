#include "tests/fakes/faulty_vfs.h"

#include <sqlite3.h>

#include <atomic>

#include "common/base/check.h"

namespace isotherm {
namespace {

sqlite3_vfs* g_real = nullptr;
sqlite3_vfs g_vfs;
std::atomic<int> g_calls_left{-1};  // -1: healthy
std::atomic<int> g_code{SQLITE_OK};
std::atomic<bool> g_fired{false};

bool Fails() {
  int left = g_calls_left.load();
  if (left < 0) return false;
  if (left > 0) {
    g_calls_left.store(left - 1);
    return false;
  }
  g_fired.store(true);
  return true;
}

// The real file follows this head in the same allocation.
struct File {
  sqlite3_file base;
};
sqlite3_file* Real(sqlite3_file* file) {
  return reinterpret_cast<sqlite3_file*>(reinterpret_cast<File*>(file) + 1);
}

int Close(sqlite3_file* f) { return Real(f)->pMethods->xClose(Real(f)); }
int Read(sqlite3_file* f, void* p, int n, sqlite3_int64 o) {
  return Real(f)->pMethods->xRead(Real(f), p, n, o);
}
int Write(sqlite3_file* f, const void* p, int n, sqlite3_int64 o) {
  return Fails() ? g_code.load() : Real(f)->pMethods->xWrite(Real(f), p, n, o);
}
int Truncate(sqlite3_file* f, sqlite3_int64 n) {
  return Fails() ? g_code.load() : Real(f)->pMethods->xTruncate(Real(f), n);
}
int Sync(sqlite3_file* f, int flags) {
  return Fails() ? g_code.load() : Real(f)->pMethods->xSync(Real(f), flags);
}
int FileSize(sqlite3_file* f, sqlite3_int64* n) { return Real(f)->pMethods->xFileSize(Real(f), n); }
int Lock(sqlite3_file* f, int l) { return Real(f)->pMethods->xLock(Real(f), l); }
int Unlock(sqlite3_file* f, int l) { return Real(f)->pMethods->xUnlock(Real(f), l); }
int CheckLock(sqlite3_file* f, int* out) {
  return Real(f)->pMethods->xCheckReservedLock(Real(f), out);
}
int Control(sqlite3_file* f, int op, void* arg) {
  return Real(f)->pMethods->xFileControl(Real(f), op, arg);
}
int SectorSize(sqlite3_file* f) { return Real(f)->pMethods->xSectorSize(Real(f)); }
int Traits(sqlite3_file* f) { return Real(f)->pMethods->xDeviceCharacteristics(Real(f)); }

// Version 1: no shared memory and no mapping, which an exclusive store needs neither of.
const sqlite3_io_methods kMethods = {1,    Close,  Read,      Write,   Truncate,   Sync,  FileSize,
                                     Lock, Unlock, CheckLock, Control, SectorSize, Traits};

int Open(sqlite3_vfs*, const char* path, sqlite3_file* file, int flags, int* out_flags) {
  const int code = g_real->xOpen(g_real, path, Real(file), flags, out_flags);
  file->pMethods = Real(file)->pMethods != nullptr ? &kMethods : nullptr;
  return code;
}

}  // namespace

FaultyVfs::FaultyVfs() {
  g_real = sqlite3_vfs_find(nullptr);
  g_vfs = *g_real;
  g_vfs.zName = "faulty";
  g_vfs.pNext = nullptr;
  g_vfs.szOsFile = static_cast<int>(sizeof(File)) + g_real->szOsFile;
  g_vfs.xOpen = Open;
  Heal();
  ISOTHERM_CHECK(sqlite3_vfs_register(&g_vfs, 0) == SQLITE_OK);
}

FaultyVfs::~FaultyVfs() { sqlite3_vfs_unregister(&g_vfs); }

void FaultyVfs::FailAfter(int calls, int code) {
  g_fired.store(false);
  g_code.store(code);
  g_calls_left.store(calls);
}

void FaultyVfs::Heal() {
  g_calls_left.store(-1);
  g_fired.store(false);
}

bool FaultyVfs::fired() const { return g_fired.load(); }

}  // namespace isotherm
