#pragma once

#include "gateway/request/generate_params.h"
#include "gateway/request/output_queue.h"
#include "isotherm/v1/inference.pb.h"

// Wire form of the public messages. Nothing is checked here: the bounds are the domain's.
namespace isotherm {

GenerateParams FromProto(const v1::GenerateRequest& request);
ChatInput FromProto(const v1::ChatInput& chat);

// `model` and `request_id` are what accepted events tell.
v1::GenerateResponse ToProto(const OutputEvent& event, const std::string& request_id,
                             const std::string& model);

}  // namespace isotherm
