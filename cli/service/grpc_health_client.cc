#include "cli/service/grpc_health_client.h"

#include <google/protobuf/io/coded_stream.h>
#include <grpcpp/completion_queue.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/support/byte_buffer.h>

#include <vector>

#include "cli/service/client_status.h"
#include "common/base/status_macros.h"
#include "common/rpc/channel.h"

namespace isotherm::cli {
namespace {

constexpr uint32_t kServiceTag = 10;  // HealthCheckRequest.service = 1, length-delimited
constexpr uint32_t kStatusTag = 8;    // HealthCheckResponse.status = 1, varint

// The two messages of grpc.health.v1 have one field each; the library keeps its generated code to
// itself.
grpc::ByteBuffer EncodeRequest(absl::string_view service) {
  std::string bytes;
  if (!service.empty()) {
    bytes.push_back(static_cast<char>(kServiceTag));
    bytes.push_back(static_cast<char>(service.size()));  // names are under 128 bytes
    bytes.append(service.data(), service.size());
  }
  const grpc::Slice slice(bytes);
  return grpc::ByteBuffer(&slice, 1);
}

std::string DecodeStatus(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  std::string bytes;
  if (!buffer.Dump(&slices).ok()) return "UNKNOWN";
  for (const grpc::Slice& slice : slices) {
    bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  google::protobuf::io::CodedInputStream in(reinterpret_cast<const uint8_t*>(bytes.data()),
                                            static_cast<int>(bytes.size()));
  uint32_t value = 0;
  if (in.ReadTag() != kStatusTag || !in.ReadVarint32(&value)) return "UNKNOWN";
  return value == 1 ? "SERVING" : value == 2 ? "NOT_SERVING" : "UNKNOWN";
}

}  // namespace

absl::StatusOr<std::string> CheckHealth(absl::string_view address, absl::string_view service,
                                        std::chrono::milliseconds timeout) {
  grpc::GenericStub stub(rpc::MakeChannel(address));
  grpc::ClientContext context;
  SetDeadline(context, timeout);
  grpc::CompletionQueue queue;
  const auto call = stub.PrepareUnaryCall(&context, "/grpc.health.v1.Health/Check",
                                          EncodeRequest(service.substr(0, 127)), &queue);
  grpc::ByteBuffer response;
  grpc::Status status;
  call->StartCall();
  call->Finish(&response, &status, &queue);
  void* tag = nullptr;
  bool ok = false;
  queue.Next(&tag, &ok);
  queue.Shutdown();
  ISOTHERM_RETURN_IF_ERROR(ClientStatus(status, address));
  return DecodeStatus(response);
}

}  // namespace isotherm::cli
