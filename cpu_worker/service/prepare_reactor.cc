#include "cpu_worker/service/prepare_reactor.h"

#include <grpcpp/alarm.h>

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/rpc/status.h"
#include "common/rpc/step_convert.h"

namespace isotherm::cpu {
namespace {

constexpr std::chrono::milliseconds kRetryEvery{200};

}  // namespace

PrepareReactor::PrepareReactor(CpuWorker& worker)
    : worker_(worker), retry_(std::make_unique<grpc::Alarm>()) {
  StartRead(&request_);
}

PrepareReactor::~PrepareReactor() = default;

void PrepareReactor::FinishOnce(const absl::Status& status) {
  if (!finished_.exchange(true)) Finish(rpc::ToGrpcStatus(status));
}

void PrepareReactor::OnReadDone(bool ok) {
  if (!ok) return FinishOnce(absl::OkStatus());
  Handle();
}

void PrepareReactor::OnWriteDone(bool ok) {
  if (!ok) return FinishOnce(absl::CancelledError("the stream broke"));
  if (response_.ready()) return StartRead(&request_);
  retry_->Set(std::chrono::system_clock::now() + kRetryEvery, [this](bool expired) {
    expired ? Handle() : FinishOnce(absl::CancelledError("the stream was cancelled"));
  });
}

void PrepareReactor::OnCancel() {
  // Wakes a RETIRE that waits; a read or write under way fails by itself.
  retry_->Cancel();
}

void PrepareReactor::OnDone() { delete this; }

void PrepareReactor::Handle() {
  // Asked once, so that what is answered is what was done.
  const bool in_use =
      request_.phase() == v1::PREPARE_PHASE_RETIRE && worker_.ledger().Uses(request_.epoch());
  const absl::StatusOr<uint64_t> checksum = in_use ? uint64_t{0} : Apply();
  if (!checksum.ok()) return FinishOnce(checksum.status());
  const bool plan = request_.phase() == v1::PREPARE_PHASE_PLAN;
  response_.Clear();
  response_.set_op_id(request_.op_id());
  response_.set_epoch(plan ? request_.plan().epoch() : request_.epoch());
  response_.set_phase(request_.phase());
  response_.set_checksum(*checksum);
  response_.set_ready(!in_use);
  StartWrite(&response_);
}

absl::StatusOr<uint64_t> PrepareReactor::Apply() {
  ISOTHERM_ASSIGN_OR_RETURN(CpuWorker::Parts * parts, worker_.parts());
  EpochTables& epochs = *parts->epochs;
  const int64_t term = request_.term();
  switch (request_.phase()) {
    case v1::PREPARE_PHASE_PLAN: {
      ISOTHERM_ASSIGN_OR_RETURN(const PlacementPlan plan, rpc::FromProto(request_.plan()));
      return epochs.Plan(plan, term);
    }
    case v1::PREPARE_PHASE_COMMIT:
      ISOTHERM_RETURN_IF_ERROR(epochs.Commit(request_.epoch(), term));
      worker_.events().StateChanged();
      return 0;
    case v1::PREPARE_PHASE_ABORT:
      ISOTHERM_RETURN_IF_ERROR(epochs.Abort(request_.epoch(), term));
      return 0;
    case v1::PREPARE_PHASE_RETIRE:
      ISOTHERM_RETURN_IF_ERROR(epochs.Retire(request_.epoch(), term));
      worker_.events().StateChanged();
      return 0;
    default:
      return absl::InvalidArgumentError(absl::StrCat("prepare phase ",
                                                     static_cast<int>(request_.phase()),
                                                     "; want PLAN, COMMIT, ABORT or RETIRE"));
  }
}

}  // namespace isotherm::cpu
