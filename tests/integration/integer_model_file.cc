#include "tests/integration/integer_model_file.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "common/base/check.h"
#include "common/rpc/channel.h"
#include "gtest/gtest.h"
#include "models/convert/conversion.h"
#include "tests/integration/process_state.h"

namespace isotherm::integration {

IntegerModelFile::IntegerModelFile(uint64_t seed, bool bundle_ordered)
    : model_(reference::IntegerModelOptions{.seed = seed}), seed_(seed) {
  path_ = testing::TempDir() + "/integer-" + std::to_string(::getpid()) + "-" +
          std::to_string(seed) + ".gguf";
  ISOTHERM_CHECK(model_.Write(path_, DType::kQ8_0).ok());
  if (!bundle_ordered) return;
  const std::string plain = path_ + ".plain";
  std::filesystem::rename(path_, plain);
  ISOTHERM_CHECK(
      ConvertModel({.input_path = plain, .output_path = path_, .arena = true, .num_threads = 1})
          .ok());
  std::filesystem::remove(plain);
}

IntegerModelFile::~IntegerModelFile() {
  std::error_code ignored;
  std::filesystem::remove(path_, ignored);
}

std::vector<GoldenRequest> IntegerModelFile::Requests(int count, int num_tokens) const {
  std::vector<GoldenRequest> requests;
  for (std::vector<int32_t>& prompt : model_.Prompts(seed_, count)) {
    requests.push_back({.prompt = prompt, .tokens = model_.Golden(prompt, num_tokens)});
  }
  return requests;
}

void ExpectGolden(const Cluster& cluster, const GoldenRequest& request) {
  const Answer answer =
      cluster.Generate(Cluster::Greedy(request.prompt, static_cast<int>(request.tokens.size())));
  EXPECT_TRUE(answer.status.ok()) << answer.status.error_code() << " "
                                  << answer.status.error_message();
  EXPECT_TRUE(answer.complete);
  EXPECT_EQ(answer.token_ids, request.tokens);
}

bool GoldenWithin(const Cluster& cluster, const GoldenRequest& request,
                  std::chrono::milliseconds timeout) {
  const auto channel = rpc::MakeChannel(cluster.address("gateway"));
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  return Eventually(timeout, [&] {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
        deadline - std::chrono::steady_clock::now());
    OpenStream stream(channel,
                      Cluster::Greedy(request.prompt, static_cast<int>(request.tokens.size())),
                      {.deadline = std::max(left, std::chrono::milliseconds(1))});
    const Answer& answer = stream.Finish();
    return answer.status.ok() && answer.token_ids == request.tokens;
  });
}

}  // namespace isotherm::integration
