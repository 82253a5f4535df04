// The whole gateway in-process, over real sockets, with fake workers.
#include <gmock/gmock.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <future>
#include <memory>
#include <optional>
#include <thread>

#include "common/base/error_reason.h"
#include "common/rpc/channel.h"
#include "common/rpc/status.h"
#include "gateway/server.h"
#include "isotherm/v1/inference.grpc.pb.h"
#include "tests/fakes/fake_text_model.h"
#include "tests/fakes/fake_worker_process.h"

namespace isotherm {
namespace {

struct Answer {
  grpc::Status status;
  std::vector<v1::GenerateResponse> events;
  std::string text;
  std::map<int, std::vector<int32_t>> tokens;
  std::string trailing_id;
  std::string reason() const {
    return ErrorReasonOf(rpc::FromGrpcStatus(status)).value_or(ErrorReason{}).reason;
  }
  std::string field() const {
    return ErrorReasonOf(rpc::FromGrpcStatus(status)).value_or(ErrorReason{}).field;
  }
};

class InferenceServiceTest : public testing::Test {
 protected:
  explicit InferenceServiceTest(const FakeStepWorkers::Options& workers = {.kv_pages = 256,
                                                                           .context_length = 2048})
      : workers_(workers) {}
  void StartGateway(SchedulerOptions scheduler = {}, bool with_model = true) {
    const auto ready = std::make_shared<std::promise<void>>();
    GatewayOptions options;
    options.listen = "127.0.0.1:0";
    options.gpu_worker = workers_.gpu_address();
    options.cpu_worker = workers_.cpu_address();
    options.model_name = "fake";
    options.alias = "alias";
    options.scheduler = scheduler;
    auto gateway = GatewayServer::Start(options, [ready] { ready->set_value(); });
    ASSERT_TRUE(gateway.ok()) << gateway.status();
    gateway_ = *std::move(gateway);
    stub_ = v1::InferenceService::NewStub(rpc::MakeChannel(gateway_->address()));
    if (!with_model) return;
    gateway_->SetModel(std::make_shared<FakeTextModel>());
    ASSERT_EQ(ready->get_future().wait_for(std::chrono::seconds(10)), std::future_status::ready);
  }

  static v1::GenerateRequest Request(int32_t max_tokens) {
    v1::GenerateRequest request;
    request.set_prompt("hello");
    request.mutable_stop()->set_max_tokens(max_tokens);
    request.mutable_sampling()->set_seed(11);
    request.mutable_output()->set_return_token_ids(true);
    return request;
  }
  std::vector<TokenId> Golden(int32_t max_tokens) {
    return FakeModel().Golden({'h', 'e', 'l', 'l', 'o'}, 11, max_tokens, 0, {FakeTextModel::kEnd});
  }
  Answer Generate(const v1::GenerateRequest& request, grpc::ClientContext& context) {
    Answer answer;
    auto reader = stub_->Generate(&context, request);
    v1::GenerateResponse event;
    while (reader->Read(&event)) {
      answer.text += event.chunk().text();
      for (const int32_t id : event.chunk().token_ids()) {
        answer.tokens[event.chunk().index()].push_back(id);
      }
      answer.events.push_back(event);
    }
    answer.status = reader->Finish();
    const auto& trailing = context.GetServerTrailingMetadata();
    if (const auto it = trailing.find("x-request-id"); it != trailing.end()) {
      answer.trailing_id.assign(it->second.data(), it->second.size());
    }
    return answer;
  }
  Answer Generate(const v1::GenerateRequest& request) {
    grpc::ClientContext context;
    return Generate(request, context);
  }
  bool WorkersAreClean() {
    return workers_.WaitUntil([](const FakeStepWorkers& w) { return w.known_sequences() == 0; });
  }

  FakeWorkerProcess workers_;
  std::unique_ptr<GatewayServer> gateway_;
  std::unique_ptr<v1::InferenceService::Stub> stub_;
};

TEST_F(InferenceServiceTest, StreamsAnAnswerInTheDocumentedOrder) {
  StartGateway();
  v1::GenerateRequest request = Request(20);
  request.set_request_id("mine-1");
  request.mutable_output()->set_progress(true);
  const Answer answer = Generate(request);
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  const std::vector<TokenId> golden = Golden(20);
  EXPECT_EQ(answer.tokens.at(0), golden);
  ASSERT_GE(answer.events.size(), 4u);
  EXPECT_EQ(answer.events.front().accepted().request_id(), "mine-1");
  EXPECT_EQ(answer.events.front().accepted().model(), "alias");
  EXPECT_EQ(answer.events.front().accepted().prompt_tokens(), 5);
  EXPECT_EQ(answer.events[1].progress().done_tokens(), 5);
  EXPECT_TRUE(answer.events[answer.events.size() - 2].has_choice_end());
  const v1::Complete& complete = answer.events.back().complete();
  EXPECT_EQ(complete.usage().prompt_tokens(), 5);
  EXPECT_EQ(complete.usage().completion_tokens(), static_cast<int>(golden.size()));
  EXPECT_EQ(answer.trailing_id, "mine-1");
}

TEST_F(InferenceServiceTest, ManyStreamsAtOnceAreEachGolden) {
  StartGateway({.max_sequences = 8});
  std::vector<std::future<Answer>> answers;
  for (int i = 0; i < 16; ++i) {
    answers.push_back(std::async(std::launch::async, [this] { return Generate(Request(40)); }));
  }
  for (auto& answer : answers) EXPECT_EQ(answer.get().tokens[0], Golden(40));
  EXPECT_TRUE(WorkersAreClean());
  EXPECT_THAT(workers_.With([](FakeStepWorkers& w) { return w.complaints(); }), testing::IsEmpty());
}

TEST_F(InferenceServiceTest, ChoicesEndOnceEach) {
  StartGateway();
  v1::GenerateRequest request = Request(10);
  request.mutable_sampling()->set_n(3);
  const Answer answer = Generate(request);
  ASSERT_TRUE(answer.status.ok());
  std::map<int, int> ends;
  for (const auto& event : answer.events) {
    if (event.has_choice_end()) ++ends[event.choice_end().index()];
  }
  EXPECT_THAT(ends,
              testing::ElementsAre(testing::Pair(0, 1), testing::Pair(1, 1), testing::Pair(2, 1)));
}

TEST_F(InferenceServiceTest, ErrorsCarryReasonFieldAndId) {
  StartGateway();
  v1::GenerateRequest bad = Request(10);
  bad.mutable_sampling()->set_top_p(1.5f);
  const Answer invalid = Generate(bad);
  EXPECT_EQ(invalid.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(invalid.reason(), "INVALID_VALUE");
  EXPECT_EQ(invalid.field(), "sampling.top_p");
  EXPECT_FALSE(invalid.trailing_id.empty());

  v1::GenerateRequest unknown = Request(10);
  unknown.set_model("nobody");
  EXPECT_EQ(Generate(unknown).reason(), "MODEL_NOT_FOUND");
  EXPECT_EQ(Generate(Request(5000)).reason(), "CONTEXT_LENGTH_EXCEEDED");
  EXPECT_TRUE(Generate(Request(1)).status.ok());
}

TEST_F(InferenceServiceTest, RequestIdComesFromMetadata) {
  StartGateway();
  grpc::ClientContext context;
  context.AddMetadata("x-request-id", "from-metadata");
  const Answer answer = Generate(Request(2), context);
  EXPECT_EQ(answer.trailing_id, "from-metadata");
  EXPECT_EQ(answer.events.front().accepted().request_id(), "from-metadata");
}

TEST_F(InferenceServiceTest, SpelledControlTokensOfUsersStayText) {
  StartGateway();
  v1::TokenizeRequest request;
  auto* message = request.mutable_chat()->add_messages();
  message->set_role("user");
  message->set_content("<turn>x<end>");
  v1::TokenizeResponse response;
  grpc::ClientContext context;
  ASSERT_TRUE(stub_->Tokenize(&context, request, &response).ok());
  const std::vector<int32_t> ids(response.token_ids().begin(), response.token_ids().end());
  EXPECT_EQ(std::count(ids.begin(), ids.end(), FakeTextModel::kTurn), 2);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), FakeTextModel::kEnd), 0);
}

TEST_F(InferenceServiceTest, TokenizeAndDetokenizeAgree) {
  StartGateway();
  v1::TokenizeRequest request;
  request.set_text("hi");
  request.set_with_pieces(true);
  v1::TokenizeResponse tokens;
  grpc::ClientContext context;
  ASSERT_TRUE(stub_->Tokenize(&context, request, &tokens).ok());
  EXPECT_EQ(tokens.pieces(1), "i");
  v1::DetokenizeRequest back;
  *back.mutable_token_ids() = tokens.token_ids();
  v1::DetokenizeResponse text;
  grpc::ClientContext second;
  ASSERT_TRUE(stub_->Detokenize(&second, back, &text).ok());
  EXPECT_EQ(text.text(), "hi");
  back.add_token_ids(500);
  grpc::ClientContext third;
  EXPECT_EQ(stub_->Detokenize(&third, back, &text).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(InferenceServiceTest, ModelInfoAnswersWhileLoading) {
  StartGateway({}, false);
  v1::ModelInfoResponse response;
  grpc::ClientContext context;
  ASSERT_TRUE(stub_->ModelInfo(&context, {}, &response).ok());
  EXPECT_EQ(response.models(0).state(), v1::MODEL_STATE_LOADING);
  EXPECT_EQ(Generate(Request(1)).reason(), "MODEL_LOADING");
}

TEST_F(InferenceServiceTest, CancelFreesEverything) {
  StartGateway();
  workers_.AllowSteps(3);
  grpc::ClientContext context;
  auto reader = stub_->Generate(&context, Request(1000));
  v1::GenerateResponse event;
  ASSERT_TRUE(reader->Read(&event));
  ASSERT_TRUE(reader->Read(&event));
  context.TryCancel();
  while (reader->Read(&event)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  workers_.AllowSteps(-1);
  EXPECT_TRUE(WorkersAreClean());
  EXPECT_EQ(Generate(Request(5)).tokens[0], Golden(5));
}

TEST_F(InferenceServiceTest, DeadlineEndsTheRequestAndFreesEverything) {
  StartGateway();
  workers_.AllowSteps(2);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(100));
  EXPECT_EQ(Generate(Request(1000), context).status.error_code(),
            grpc::StatusCode::DEADLINE_EXCEEDED);
  workers_.AllowSteps(-1);
  EXPECT_TRUE(WorkersAreClean());
}

TEST_F(InferenceServiceTest, AbortEndsByIdAndNamesUnknownOnes) {
  StartGateway();
  workers_.AllowSteps(2);
  v1::GenerateRequest request = Request(1000);
  request.set_request_id("victim");
  grpc::ClientContext context;
  auto reader = stub_->Generate(&context, request);
  v1::GenerateResponse event;
  ASSERT_TRUE(reader->Read(&event));
  v1::AbortRequest abort;
  abort.add_request_ids("victim");
  abort.add_request_ids("nobody");
  v1::AbortResponse response;
  grpc::ClientContext abort_context;
  ASSERT_TRUE(stub_->Abort(&abort_context, abort, &response).ok());
  EXPECT_THAT(response.aborted_ids(), testing::ElementsAre("victim"));
  EXPECT_THAT(response.unknown_ids(), testing::ElementsAre("nobody"));
  while (reader->Read(&event)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

TEST_F(InferenceServiceTest, WorkerDeathEndsBegunAnswersAndServiceComesBack) {
  StartGateway();
  workers_.AllowSteps(3);
  grpc::ClientContext context;
  auto reader = stub_->Generate(&context, Request(1000));
  v1::GenerateResponse event;
  while (!event.has_chunk()) ASSERT_TRUE(reader->Read(&event));
  workers_.KillGpu();
  while (reader->Read(&event)) {
  }
  const grpc::Status status = reader->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::ABORTED);
  EXPECT_EQ(ErrorReasonOf(rpc::FromGrpcStatus(status))->reason, "STEP_FAILED");
  EXPECT_THAT(status.error_message(), testing::Not(testing::HasSubstr("127.0.0.1")));
  workers_.AllowSteps(-1);
  ASSERT_TRUE(workers_.WaitUntil([](const FakeStepWorkers& w) { return w.gpu_up(); }));
  // The hello may still be on its way: the client's retry rule for UNAVAILABLE.
  Answer answer;
  for (int i = 0; i < 1000 && (!answer.status.ok() || answer.events.empty()); ++i) {
    answer = Generate(Request(5));
    if (!answer.status.ok()) {
      ASSERT_EQ(answer.reason(), "NO_WORKER");
    }
  }
  EXPECT_EQ(answer.tokens[0], Golden(5));
}

// A context so long that the echo of one prompt is more than gRPC's windows swallow.
class SlowReaderTest : public InferenceServiceTest {
 protected:
  SlowReaderTest()
      : InferenceServiceTest({.kv_pages = 40'000, .max_rows = 4096, .context_length = 600'000}) {}
};

TEST_F(SlowReaderTest, IsCutAndItsMateGoesOn) {
  StartGateway({.max_sequences = 4, .reader_timeout = std::chrono::milliseconds(200)});
  v1::GenerateRequest big = Request(1000);
  big.set_request_id("slow");
  big.mutable_stop()->set_ignore_eos(true);
  big.mutable_output()->set_echo(true);
  big.set_prompt(std::string(500'000, 'x'));
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);  // the windows stay at 64 KiB
  const auto slow_stub = v1::InferenceService::NewStub(grpc::CreateCustomChannel(
      gateway_->address(), grpc::InsecureChannelCredentials(), arguments));
  grpc::ClientContext context;
  auto reader = slow_stub->Generate(&context, big);  // and nobody reads
  ASSERT_TRUE(workers_.WaitUntil([](const FakeStepWorkers& w) { return w.known_sequences() > 0; }));
  const Answer mate = Generate(Request(100));
  EXPECT_EQ(mate.tokens.at(0), Golden(100));
  EXPECT_TRUE(WorkersAreClean());
  ASSERT_EQ(gateway_->state().num_running, 0);
  v1::GenerateResponse event;
  bool complete = false;
  while (reader->Read(&event)) complete |= event.has_complete();
  EXPECT_FALSE(complete);
  // One that reads too slowly to get as far as its status finds the stream cancelled.
  EXPECT_THAT(reader->Finish().error_code(),
              testing::AnyOf(grpc::StatusCode::DEADLINE_EXCEEDED, grpc::StatusCode::CANCELLED));
}

TEST_F(SlowReaderTest, IsCutAfterACompleteAnswerToo) {
  StartGateway({.max_sequences = 4, .reader_timeout = std::chrono::milliseconds(200)});
  v1::GenerateRequest big = Request(1);
  big.mutable_output()->set_echo(true);
  big.set_prompt(std::string(500'000, 'x'));
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  const auto slow_stub = v1::InferenceService::NewStub(grpc::CreateCustomChannel(
      gateway_->address(), grpc::InsecureChannelCredentials(), arguments));
  grpc::ClientContext context;
  auto reader = slow_stub->Generate(&context, big);
  // Others are served meanwhile, until the reader's time is over: the call is gone.
  while (gateway_->open_answers() == 0) std::this_thread::yield();
  while (gateway_->open_answers() > 0) {
    ASSERT_EQ(Generate(Request(20)).tokens.at(0), Golden(20));
  }
  v1::GenerateResponse event;
  bool complete = false;
  while (reader->Read(&event)) complete |= event.has_complete();
  EXPECT_FALSE(complete);
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

grpc::ByteBuffer Bytes(const std::string& bytes) {
  const grpc::Slice slice(bytes);
  return grpc::ByteBuffer(&slice, 1);
}

std::string Text(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(buffer.Dump(&slices).ok());
  std::string out;
  for (const grpc::Slice& slice : slices) {
    out.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return out;
}

// grpc.health.v1 by hand (the library keeps its proto to itself): HealthCheckRequest is one string,
// HealthCheckResponse one enum, 1 = SERVING.
bool IsServing(grpc::GenericStub& stub, const std::string& service) {
  const grpc::ByteBuffer request =
      Bytes(std::string("\x0a") + static_cast<char>(service.size()) + service);
  grpc::ByteBuffer response;
  grpc::ClientContext context;
  std::promise<grpc::Status> done;
  stub.UnaryCall(&context, "/grpc.health.v1.Health/Check", grpc::StubOptions(), &request, &response,
                 [&done](grpc::Status status) { done.set_value(std::move(status)); });
  EXPECT_TRUE(done.get_future().get().ok());
  return Text(response) == "\x08\x01";
}

TEST_F(InferenceServiceTest, HealthFollowsModelAndWorker) {
  StartGateway({}, false);
  grpc::GenericStub stub(rpc::MakeChannel(gateway_->address()));
  const std::vector<std::string> names = {"", "isotherm.v1.InferenceService"};
  const auto becomes = [&](bool serving) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    for (const std::string& name : names) {
      while (IsServing(stub, name) != serving) {
        if (std::chrono::steady_clock::now() > end) return false;
      }
    }
    return true;
  };
  EXPECT_FALSE(IsServing(stub, ""));
  gateway_->SetModel(std::make_shared<FakeTextModel>());
  EXPECT_TRUE(becomes(true));
  // The worker's next stream waits for the lock, so that it cannot come back unseen.
  workers_.With([&](FakeStepWorkers& workers) {
    workers.KillGpu();
    EXPECT_TRUE(becomes(false));
  });
  EXPECT_TRUE(becomes(true));
}

// Messages that no generated client would send, to any method of the service.
TEST_F(InferenceServiceTest, BadMessagesAreErrorsAndTheServiceGoesOn) {
  StartGateway();
  grpc::ChannelArguments arguments;
  arguments.SetMaxSendMessageSize(-1);
  grpc::GenericStub stub(grpc::CreateCustomChannel(gateway_->address(),
                                                   grpc::InsecureChannelCredentials(), arguments));
  const auto status_of = [&](const std::string& method, const std::string& bytes) {
    grpc::ClientContext context;
    grpc::CompletionQueue queue;
    const auto await = [&queue] {
      void* tag = nullptr;
      bool ok = false;
      return queue.Next(&tag, &ok) && ok;
    };
    const auto call = stub.PrepareCall(&context, "/isotherm.v1.InferenceService/" + method, &queue);
    call->StartCall(nullptr);
    await();
    call->Write(Bytes(bytes), nullptr);
    await();
    call->WritesDone(nullptr);
    await();
    grpc::Status status;
    call->Finish(&status, nullptr);
    await();
    return status.error_code();
  };
  const std::string garbage("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x0a", 11);
  const std::string too_long((size_t{4} << 20) + 1, '\0');
  // 100,000 chat messages without a byte in them.
  v1::GenerateRequest empty_children;
  for (int i = 0; i < 100'000; ++i) empty_children.mutable_chat()->add_messages();
  for (const char* method : {"Generate", "Abort", "Tokenize", "Detokenize", "ModelInfo"}) {
    // The library's callback handlers say UNIMPLEMENTED where its others say INTERNAL.
    EXPECT_THAT(status_of(method, garbage),
                testing::AnyOf(grpc::StatusCode::UNIMPLEMENTED, grpc::StatusCode::INTERNAL))
        << method;
    EXPECT_EQ(status_of(method, too_long), grpc::StatusCode::RESOURCE_EXHAUSTED) << method;
  }
  EXPECT_EQ(status_of("Generate", empty_children.SerializeAsString()),
            grpc::StatusCode::INVALID_ARGUMENT);
  const Answer answer = Generate(Request(3));
  EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
}

// A stream of questions to the reflection service of that version.
class ReflectionStream {
 public:
  ReflectionStream(const std::string& address, const std::string& version)
      : stub_(rpc::MakeChannel(address)),
        call_(stub_.PrepareCall(
            &context_, "/grpc.reflection." + version + ".ServerReflection/ServerReflectionInfo",
            &queue_)) {
    call_->StartCall(nullptr);
    EXPECT_TRUE(Await());
  }
  void Write(const std::string& question) {
    call_->Write(Bytes(question), nullptr);
    EXPECT_TRUE(Await());
  }
  // Nothing once the stream has ended.
  std::optional<std::string> Read() {
    grpc::ByteBuffer answer;
    call_->Read(&answer, nullptr);
    if (!Await()) return std::nullopt;
    return Text(answer);
  }
  std::string Ask(const std::string& question) {
    Write(question);
    const auto answer = Read();
    EXPECT_TRUE(answer.has_value());
    return answer.value_or("");
  }
  void WritesDone() {
    call_->WritesDone(nullptr);
    EXPECT_TRUE(Await());
  }
  grpc::Status Finish() {
    grpc::Status status;
    call_->Finish(&status, nullptr);
    EXPECT_TRUE(Await());
    return status;
  }

 private:
  bool Await() {
    void* tag = nullptr;
    bool ok = false;
    return queue_.Next(&tag, &ok) && ok;
  }

  grpc::GenericStub stub_;
  grpc::ClientContext context_;
  grpc::CompletionQueue queue_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> call_;
};

// Both names of the service: tools of today ask for v1 first, older ones know v1alpha only.
class ReflectionTest : public InferenceServiceTest,
                       public testing::WithParamInterface<const char*> {};
INSTANTIATE_TEST_SUITE_P(Names, ReflectionTest, testing::Values("v1", "v1alpha"));

TEST_P(ReflectionTest, NamesAndDescribesTheService) {
  StartGateway();
  ReflectionStream stream(gateway_->address(), GetParam());
  EXPECT_THAT(stream.Ask("\x3a\x01*"),
              testing::HasSubstr("isotherm.v1.InferenceService"));  // list_services
  // file_containing_symbol; the descriptor has the messages' names.
  EXPECT_THAT(stream.Ask("\x22\x1cisotherm.v1.InferenceService"),
              testing::HasSubstr("GenerateRequest"));
  EXPECT_THAT(stream.Ask("\x22\x04none"), testing::HasSubstr("not found"));
  stream.WritesDone();
  const grpc::Status status = stream.Finish();
  EXPECT_TRUE(status.ok()) << status.error_message();
}

TEST_F(InferenceServiceTest, AnOpenReflectionStreamDoesNotOutliveTheServer) {
  StartGateway();
  ReflectionStream stream(gateway_->address(), "v1");
  stream.Write("\x3a\x01*");
  gateway_.reset();
  // An answer may have come meanwhile; the status is told only after all of them.
  while (stream.Read().has_value()) continue;
  EXPECT_FALSE(stream.Finish().ok());
}

TEST_F(InferenceServiceTest, UnknownMethodsAreUnimplemented) {
  StartGateway();
  grpc::GenericStub stub(rpc::MakeChannel(gateway_->address()));
  for (const char* method : {"/isotherm.v1.InferenceService/Invent", "/other.Service/Do"}) {
    grpc::ClientContext context;
    grpc::CompletionQueue queue;
    grpc::Status status;
    grpc::ByteBuffer answer;
    const auto call = stub.PrepareUnaryCall(&context, method, Bytes(""), &queue);
    call->StartCall();
    call->Finish(&answer, &status, nullptr);
    void* tag = nullptr;
    bool ok = false;
    ASSERT_TRUE(queue.Next(&tag, &ok));
    EXPECT_EQ(status.error_code(), grpc::StatusCode::UNIMPLEMENTED) << method;
  }
}

TEST_F(InferenceServiceTest, DrainLetsAdmittedWorkFinish) {
  StartGateway();
  workers_.AllowSteps(1);
  grpc::ClientContext context;
  auto reader = stub_->Generate(&context, Request(50));
  v1::GenerateResponse event;
  ASSERT_TRUE(reader->Read(&event));
  auto drained =
      std::async(std::launch::async, [this] { return gateway_->Drain(std::chrono::seconds(10)); });
  // A request before that would be admitted, and wait for steps that are not allowed.
  while (!gateway_->state().draining) std::this_thread::yield();
  EXPECT_EQ(Generate(Request(1)).status.error_code(), grpc::StatusCode::UNAVAILABLE);
  workers_.AllowSteps(-1);
  bool complete = false;
  while (reader->Read(&event)) complete |= event.has_complete();
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_TRUE(complete);
  EXPECT_TRUE(drained.get());
}

TEST_F(InferenceServiceTest, DrainCutsWhatTakesTooLong) {
  StartGateway();
  workers_.AllowSteps(1);
  grpc::ClientContext context;
  auto reader = stub_->Generate(&context, Request(50));
  v1::GenerateResponse event;
  ASSERT_TRUE(reader->Read(&event));
  EXPECT_FALSE(gateway_->Drain(std::chrono::milliseconds(50)));
  while (reader->Read(&event)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

}  // namespace
}  // namespace isotherm
