#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "placement_service/plan/plan_record.h"
#include "placement_service/plan/recomputation.h"
#include "placement_service/plan/sqlite.h"
#include "placement_service/telemetry/traffic_model.h"

namespace isotherm {

// Key of PutSetting: "1" while the live plan is pinned.
inline constexpr char kPinnedSetting[] = "pinned";

struct PlanStoreOptions {
  std::string path;  // the directory exists
  std::string vfs;   // tests only, see Sqlite::Open
};

// Every plan ever published and what request ids stand for, on SQLite (WAL, full synchronous): what
// a call that returned OK wrote survives a crash, and a call that failed wrote nothing. The file is
// held exclusively while the store is open. No plan's line is ever deleted; the hot sets of old
// automatic plans are.
//
// A write that fails for lack of space or a failing disk puts the store in read-only mode: reads go
// on, read_only_reason() says why. No space ends when a write succeeds again; after an I/O error
// what the disk holds is not known, so writes stay refused until a restart.
//
// Thread-safe. Calls block on the disk for milliseconds.
class PlanStore {
 public:
  // Exit code 71 when the file is in use, cannot be made or written; 65 when it is not a plan
  // store, is damaged, or was written by a newer release (then nothing is changed).
  static absl::StatusOr<std::unique_ptr<PlanStore>> Open(const PlanStoreOptions& options);

  // A term above every term claimed before, and at least `at_least`.
  absl::StatusOr<int64_t> ClaimTerm(int64_t at_least);
  absl::StatusOr<int64_t> LastTerm();

  // The intent: `record` in state preparing, with the request it answers. FailedPrecondition when a
  // plan is being prepared already or the epoch is not above all others.
  absl::Status InsertPreparing(const PlanRecord& record,
                               const std::optional<ControlRequest>& request);
  // The commit: preparing -> live, and the live one -> retired, in one transaction.
  absl::Status MarkLive(int64_t epoch);
  absl::Status MarkFailed(int64_t epoch, absl::string_view message);
  // A request that the plan of an existing epoch answers.
  absl::Status InsertRequest(const ControlRequest& request);

  // With bitmaps; nullopt when there is none.
  absl::StatusOr<std::optional<PlanRecord>> Live();
  absl::StatusOr<std::optional<PlanRecord>> Preparing();
  // NotFound for an epoch that was never planned.
  absl::StatusOr<PlanRecord> Get(int64_t epoch, bool bitmaps);
  // Newest first, epochs below `before`, without bitmaps.
  absl::StatusOr<std::vector<PlanRecord>> History(int64_t before, int64_t limit);
  absl::StatusOr<int64_t> NewestEpoch();
  absl::StatusOr<std::optional<ControlRequest>> FindRequest(absl::string_view request_id);

  // What a plan was seen to do once it was live.
  absl::Status RecordMeasured(int64_t epoch, double hit_share, std::optional<double> gain);

  // Small facts that outlive a restart, such as whether the live plan is pinned.
  absl::Status PutSetting(absl::string_view key, absl::string_view value);
  absl::StatusOr<std::optional<std::string>> GetSetting(absl::string_view key);

  // Recomputations that ended, by request id, the newest kMaxRecomputations of them.
  static constexpr int64_t kMaxRecomputations = 1'000;
  absl::Status PutRecomputation(const RecomputationRecord& record);
  absl::StatusOr<std::optional<RecomputationRecord>> GetRecomputation(absl::string_view id);

  // What was learnt of the traffic; replaces what was there. DataLoss (65) for one that was
  // damaged.
  absl::Status PutProfile(const StoredProfile& profile);
  absl::StatusOr<std::optional<StoredProfile>> GetProfile();

  std::string read_only_reason() const;

 private:
  explicit PlanStore(Sqlite db) : db_(std::move(db)) {}
  absl::Status Write(absl::FunctionRef<absl::Status(Sqlite&)> body) ABSL_LOCKS_EXCLUDED(mu_);
  absl::StatusOr<std::optional<PlanRecord>> InStateLocked(PlanState state)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  mutable absl::Mutex mu_;
  Sqlite db_ ABSL_GUARDED_BY(mu_);
  std::string read_only_reason_ ABSL_GUARDED_BY(mu_);
  bool disk_failed_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace isotherm
