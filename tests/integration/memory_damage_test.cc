// A bit of the neurons flips in the cpu_worker's memory while an answer is computed: it is found,
// the weights are mended from the model's file, and nobody takes the answer for a sound one.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "common/base/unique_fd.h"
#include "common/rpc/channel.h"
#include "tests/integration/integer_model_file.h"

namespace isotherm::integration {
namespace {

// The arena among the descriptors of a process, open for writing.
UniqueFd OpenArena(pid_t pid) {
  for (const auto& entry :
       std::filesystem::directory_iterator("/proc/" + std::to_string(pid) + "/fd")) {
    std::error_code gone;
    const std::string target = std::filesystem::read_symlink(entry.path(), gone);
    if (target.find("memfd:the arena") != std::string::npos)
      return UniqueFd(::open(entry.path().c_str(), O_RDWR | O_CLOEXEC));
  }
  return UniqueFd();
}

class MemoryDamageTest : public testing::TestWithParam<const char*> {
 protected:
  const IntegerModelFile model_{91};
};

INSTANTIATE_TEST_SUITE_P(Transports, MemoryDamageTest, testing::Values("shm", "grpc"));

TEST_P(MemoryDamageTest, IsFoundMendedAndReported) {
  Cluster cluster({.model = model_.path(),
                   .transport = GetParam(),
                   .budget = "64KiB",
                   .cpu_flags = {"--scrub-mib-per-second", "4096"}});
  ASSERT_TRUE(cluster.WaitReady());
  const std::vector<GoldenRequest> requests = model_.Requests(2, 400);
  ExpectGolden(cluster, requests[0]);
  const UniqueFd arena = OpenArena(cluster.process("cpu-worker").pid());
  ASSERT_TRUE(arena.valid());
  // The first page is the header, which no one reads again.
  const off_t at = 4096 + 100;
  const auto byte = [&] {
    uint8_t value = 0;
    EXPECT_EQ(::pread(arena.get(), &value, 1, at), 1);
    return value;
  };
  const uint8_t sound = byte();
  // An answer may end before the scrub comes by: then the next one is tried.
  grpc::Status status;
  for (int round = 0; round < 50 && status.ok(); ++round) {
    OpenStream stream(rpc::MakeChannel(cluster.address("gateway")),
                      Cluster::Greedy(requests[1].prompt, 400), {});
    ASSERT_TRUE(stream.ReadTokens(1));
    const auto damaged = static_cast<uint8_t>(sound ^ 4);
    ASSERT_EQ(::pwrite(arena.get(), &damaged, 1, at), 1);
    status = stream.Finish().status;
    while (byte() != sound) {
    }
  }
  EXPECT_EQ(status.error_code(), grpc::StatusCode::DATA_LOSS) << status.error_message();
  EXPECT_THAT(cluster.process("cpu-worker").Log(),
              testing::AllOf(testing::HasSubstr("of layer 0 changed in memory"),
                             testing::HasSubstr("1 bytes of it were written anew")));
  ExpectGolden(cluster, requests[1]);
  EXPECT_TRUE(cluster.Stop());
}

}  // namespace
}  // namespace isotherm::integration
