#include "cli/supervise/run_dir.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <system_error>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "cli/ui/remedy.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"
#include "common/process/service_process.h"

namespace isotherm::cli {
namespace fs = std::filesystem;
namespace {

// sun_path holds 108 bytes; services name their sockets with up to 44 of them.
constexpr size_t kMaxSocketDirBytes = 60;
constexpr char kShortPrefix[] = "/tmp/isotherm-";

absl::Status PathError(const fs::path& path, absl::string_view what, int error) {
  return WithTry(WithExitCode(absl::ResourceExhaustedError(absl::StrCat(
                                  "cannot ", what, " ", path.string(), ": ", std::strerror(error))),
                              ExitCode::kShortage),
                 "isotherm serve --state-dir DIR with a folder you can write to");
}

absl::Status MakePrivateDir(const fs::path& path) {
  std::error_code error;
  fs::create_directories(path.parent_path(), error);
  if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) return PathError(path, "make", errno);
  return absl::OkStatus();
}

// The lock is released by the kernel when its holder ends, however it ends.
bool LockIsHeld(const fs::path& lock_file) {
  UniqueFd fd(::open(lock_file.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  if (!fd.valid()) return false;
  return ::flock(fd.get(), LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK;
}

void RemoveRunDir(const fs::path& path) {
  std::error_code error;
  const fs::path target = fs::read_symlink(path / "sockets", error);
  if (!error && absl::StartsWith(target.string(), kShortPrefix) &&
      !absl::StrContains(target.string().substr(sizeof(kShortPrefix) - 1), '/')) {
    fs::remove_all(target, error);
  }
  fs::remove_all(path, error);
}

// A folder younger than its lock looks dead: it is left alone for a while.
bool IsFresh(const fs::path& path) {
  struct stat info {};
  return ::stat(path.c_str(), &info) == 0 && ::time(nullptr) - info.st_mtime < 2 &&
         !fs::exists(path / "lock");
}

void RemoveDeadRunDirs(const fs::path& run_root) {
  std::error_code error;
  for (fs::directory_iterator it(run_root, error), end; !error && it != end; it.increment(error)) {
    if (!RunDir::IsAlive(it->path()) && !IsFresh(it->path())) RemoveRunDir(it->path());
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<RunDir>> RunDir::Create(const fs::path& state_dir) {
  std::error_code error;
  const fs::path root = fs::absolute(state_dir, error) / "run";
  ISOTHERM_RETURN_IF_ERROR(MakePrivateDir(root.parent_path()));
  ISOTHERM_RETURN_IF_ERROR(MakePrivateDir(root));
  RemoveDeadRunDirs(root);

  std::unique_ptr<RunDir> dir(new RunDir());
  dir->path_ = root / RandomId().substr(0, 8);
  if (::mkdir(dir->path_.c_str(), 0700) != 0) return PathError(dir->path_, "make", errno);
  const fs::path lock_file = dir->path_ / "lock";
  dir->lock_.Reset(::open(lock_file.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (!dir->lock_.valid() || ::flock(dir->lock_.get(), LOCK_EX | LOCK_NB) != 0) {
    return PathError(lock_file, "lock", errno);
  }
  dir->socket_dir_ = dir->path_;
  if (dir->path_.string().size() > kMaxSocketDirBytes) {
    std::string name = absl::StrCat(kShortPrefix, "XXXXXX");
    if (::mkdtemp(name.data()) == nullptr) return PathError(name, "make", errno);
    dir->socket_dir_ = name;
    if (::symlink(name.c_str(), (dir->path_ / "sockets").c_str()) != 0) {
      const int cause = errno;
      fs::remove_all(dir->socket_dir_, error);
      return PathError(dir->path_ / "sockets", "link", cause);
    }
  }
  return dir;
}

RunDir::~RunDir() {
  if (!path_.empty()) RemoveRunDir(path_);
}

std::string RunDir::SocketAddress(absl::string_view name) const {
  return absl::StrCat("unix:", socket_dir_.string(), "/", name, ".sock");
}

bool RunDir::IsAlive(const fs::path& path) { return LockIsHeld(path / "lock"); }

}  // namespace isotherm::cli
