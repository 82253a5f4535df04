#pragma once

#include "absl/status/statusor.h"
#include "common/step/device_memory_use.h"
#include "common/step/placement_plan.h"
#include "common/step/step.h"
#include "isotherm/v1/worker.pb.h"

// Wire form of a step, a hello and a plan. FromProto refuses what no sender of ours writes
// (InvalidArgument); it does not know the model, so ids are checked by the engine.
namespace isotherm::rpc {

v1::StepRequest ToProto(const StepRequest& request);
absl::StatusOr<StepRequest> FromProto(const v1::StepRequest& request);

v1::StepResult ToProto(const StepResult& result);
absl::StatusOr<StepResult> FromProto(const v1::StepResult& result);

v1::WorkerHello ToProto(const WorkerHello& hello);
WorkerHello FromProto(const v1::WorkerHello& hello);
v1::KvDemand ToProto(const KvDemand& demand);
absl::StatusOr<KvDemand> FromProto(const v1::KvDemand& demand);

v1::TokenLogprobs ToProto(const TokenLogprobs& logprobs);

v1::DeviceMemory ToProto(const DeviceMemoryUse& use);
DeviceMemoryUse FromProto(const v1::DeviceMemory& memory);

v1::PlacementPlan ToProto(const PlacementPlan& plan, bool include_bitmaps);
absl::StatusOr<PlacementPlan> FromProto(const v1::PlacementPlan& plan);

}  // namespace isotherm::rpc
