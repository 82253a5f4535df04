#pragma once

#include <grpcpp/support/server_callback.h>

#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "isotherm/v1/placement.pb.h"
#include "placement_service/plan/plan_feed.h"

namespace isotherm {

// One Watch stream: passes the feed's events on until the client goes or falls too far behind
// (RESOURCE_EXHAUSTED: watch again). Owns itself; `feed` outlives it.
class WatchReactor final : public grpc::ServerWriteReactor<v1::WatchResponse> {
 public:
  explicit WatchReactor(PlanFeed& feed);

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  void Next();
  void Send(const PlanEvent& event) ABSL_LOCKS_EXCLUDED(mu_);
  void End(const grpc::Status& status) ABSL_LOCKS_EXCLUDED(mu_);

  PlanFeed& feed_;
  std::shared_ptr<PlanFeed::Subscription> subscription_;
  v1::WatchResponse response_;  // of the one write under way
  absl::Mutex mu_;
  bool ended_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace isotherm
