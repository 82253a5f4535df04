// A bundle-ordered model file that both workers map in place of an arena: the tokens must be the
// oracle's all the same, through migrations, deaths and a file that is replaced.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <filesystem>
#include <random>
#include <string>
#include <tuple>

#include "tests/integration/integer_model_file.h"
#include "tests/integration/process_state.h"

namespace isotherm::integration {
namespace {

using std::chrono::seconds;
using testing::HasSubstr;

constexpr char kMapped[] = "arena in the mapped model file of ";
// 6 blocks of 34 bytes, padded to 32 blocks.
constexpr int64_t kAllBundleBytes = 4 * 256 * 1088;

class BundleOrderedClusterTest : public testing::TestWithParam<const char*> {
 protected:
  ClusterOptions Options(const char* transport) const {
    return {.model = model_.path(),
            .transport = transport,
            .budget = std::to_string(kAllBundleBytes / 2),
            .cpu_flags = {"--arena", "map"}};
  }

  const IntegerModelFile model_{23, /*bundle_ordered=*/true};
};

INSTANTIATE_TEST_SUITE_P(Transports, BundleOrderedClusterTest, testing::Values("shm", "grpc"));

TEST_P(BundleOrderedClusterTest, MigrationsUnderLoadChangeNoToken) {
  Cluster cluster(Options(GetParam()));
  ASSERT_TRUE(cluster.WaitReady());
  EXPECT_THAT(cluster.Logs(), HasSubstr(kMapped));
  ClientLoad load(cluster, model_.Requests(6, 200), 3);
  const auto placement = cluster.Placement();
  std::mt19937_64 rng(17);
  for (int i = 0; i < 8; ++i) {
    ASSERT_TRUE(load.WaitForTokens(static_cast<int64_t>(1 + rng() % 100))) << cluster.Logs();
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + seconds(20));
    v1::SetBudgetRequest request;
    request.set_bytes(static_cast<int64_t>(rng() % (kAllBundleBytes / 2 + 1)));
    v1::SetBudgetResponse response;
    const grpc::Status status = placement->SetBudget(&context, request, &response);
    ASSERT_TRUE(status.ok()) << status.error_message() << "\n" << cluster.Logs();
  }
  ASSERT_TRUE(load.WaitForTokens(300)) << cluster.Logs();
  const ClientLoad::Counts counts = load.Stop();
  EXPECT_EQ(counts.failed, 0) << counts.first_error;
  EXPECT_GT(counts.finished, 0);
  EXPECT_TRUE(cluster.Stop());
}

TEST_P(BundleOrderedClusterTest, EveryRequestEndsOnceWhenAWorkerDies) {
  for (const std::string worker : {"cpu-worker", "gpu-worker"}) {
    Cluster cluster(Options(GetParam()));
    ASSERT_TRUE(cluster.WaitReady());
    const std::vector<GoldenRequest> requests = model_.Requests(6, 60);
    ClientLoad load(cluster, requests, 3);
    std::mt19937_64 rng(5);
    for (int death = 0; death < 5; ++death) {
      ASSERT_TRUE(load.WaitForTokens(static_cast<int64_t>(1 + rng() % 200))) << cluster.Logs();
      cluster.Kill(worker, SIGKILL);
      cluster.Start(worker);
      ASSERT_TRUE(cluster.process(worker).WaitForLine("ready", seconds(20)).has_value())
          << cluster.Logs();
      ASSERT_TRUE(GoldenWithin(cluster, requests[0], seconds(10))) << cluster.Logs();
    }
    const ClientLoad::Counts counts = load.Stop();
    EXPECT_GT(counts.finished, 0);
    if (worker == "cpu-worker" && std::string(GetParam()) == "shm") {
      // The gpu_worker has the file mapped still and computes what is lost.
      EXPECT_EQ(counts.failed, 0) << counts.first_error;
    }
    ExpectGolden(cluster, requests[1]);
    EXPECT_TRUE(cluster.Stop());
  }
}

using BundleOrderedFileTest = BundleOrderedClusterTest;
INSTANTIATE_TEST_SUITE_P(Shm, BundleOrderedFileTest, testing::Values("shm"));

TEST_P(BundleOrderedFileTest, AWorkerWithAnotherFileIsNotTaken) {
  Cluster cluster(Options(GetParam()));
  ASSERT_TRUE(cluster.WaitReady());
  const GoldenRequest request = model_.Requests(1, 40)[0];
  ExpectGolden(cluster, request);
  // The same bytes under the same name, but not the file that the gpu_worker has.
  const std::string copy = model_.path() + ".copy";
  std::filesystem::copy_file(model_.path(), copy);
  std::filesystem::rename(copy, model_.path());
  cluster.Kill("cpu-worker", SIGKILL);
  cluster.Start("cpu-worker");
  ASSERT_TRUE(cluster.process("cpu-worker").WaitForLine("ready", seconds(20)).has_value());
  EXPECT_TRUE(Eventually(seconds(20), [&] {
    return cluster.Logs().find("the model file is another file") != std::string::npos;
  })) << cluster.Logs();
  // It computes from its own mapping until it is started again as well.
  ExpectGolden(cluster, request);
  cluster.Kill("gpu-worker", SIGTERM);
  cluster.Start("gpu-worker");
  ASSERT_TRUE(cluster.process("gpu-worker").WaitForLine("ready", seconds(20)).has_value());
  ASSERT_TRUE(GoldenWithin(cluster, request, seconds(20))) << cluster.Logs();
  EXPECT_TRUE(cluster.Stop());
}

TEST_P(BundleOrderedFileTest, CopyingItIsTheUsersChoice) {
  ClusterOptions options = Options(GetParam());
  options.cpu_flags = {"--arena", "copy"};
  Cluster cluster(options);
  ASSERT_TRUE(cluster.WaitReady());
  EXPECT_THAT(cluster.Logs(), HasSubstr("arena, a copy, of "));
  ExpectGolden(cluster, model_.Requests(1, 60)[0]);
  EXPECT_TRUE(cluster.Stop());
}

TEST_P(BundleOrderedFileTest, MappingAPlainFileIsRefusedWithTheRemedy) {
  const IntegerModelFile plain{24};
  ClusterOptions options = Options(GetParam());
  options.model = plain.path();
  options.with_placement = false;
  Cluster cluster(options);
  EXPECT_EQ(cluster.process("cpu-worker").WaitForExit(seconds(20)), 64) << cluster.Logs();
  EXPECT_THAT(cluster.Logs(), HasSubstr("isotherm models convert --arena"));
}

}  // namespace
}  // namespace isotherm::integration
