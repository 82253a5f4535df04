#pragma once

#include <grpcpp/support/server_callback.h>

#include <memory>
#include <mutex>

#include "isotherm/v1/placement.pb.h"
#include "placement_service/plan/plan_feed.h"

namespace isotherm {

v1::PlanState ToProto(PlanState state);

// One Watch stream: the live plan, then each event. A watcher that reads too slowly is cut off with
// RESOURCE_EXHAUSTED and starts anew with a snapshot.
class WatchReactor final : public grpc::ServerWriteReactor<v1::WatchResponse> {
 public:
  explicit WatchReactor(PlanFeed& feed);
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  void Write(const PlanEvent& event);
  void WriteNextOrWait();
  void End(const grpc::Status& status);

  PlanFeed& feed_;
  std::shared_ptr<PlanFeed::Subscription> subscription_;
  v1::WatchResponse response_;
  std::mutex mu_;
  bool ended_ = false;
  bool writing_ = false;
};

}  // namespace isotherm
