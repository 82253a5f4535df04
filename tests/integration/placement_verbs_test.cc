// `isotherm placement ...` and `isotherm recompute` against the real processes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "tests/integration/integer_model_file.h"
#include "tests/integration/process_state.h"

namespace isotherm::integration {
namespace {

using std::chrono::seconds;
using testing::HasSubstr;

struct Ran {
  int code = -1;
  std::string out;
  nlohmann::json json() const { return nlohmann::json::parse(out); }
};

class PlacementVerbsTest : public testing::Test {
 protected:
  PlacementVerbsTest()
      : cluster_({.model = model_.path(), .budget = std::to_string(kAllNeuronBytes / 4)}) {}
  void SetUp() override { ASSERT_TRUE(cluster_.WaitReady()); }
  void TearDown() override { EXPECT_TRUE(cluster_.Stop()); }

  // `verb` and flags as in a shell; the address is added.
  Ran Isotherm(const std::string& verb) {
    const std::string command = std::string(ISOTHERM_BINARY_DIR) + "/bin/isotherm " + verb +
                                " --url " + cluster_.address("placement") + " 2>&1";
    Ran run;
    FILE* const pipe = ::popen(command.c_str(), "r");
    char bytes[4096];
    for (size_t got; (got = std::fread(bytes, 1, sizeof(bytes), pipe)) > 0;) {
      run.out.append(bytes, got);
    }
    const int status = ::pclose(pipe);
    run.code = WIFEXITED(status) ? WEXITSTATUS(status) : 1'000;
    return run;
  }
  // Serves requests until so many tokens are counted of the live plan. A report in which the epoch
  // changed is of no plan, and the gateway may hear of the first plan while it serves.
  bool ServeUntilSeen(int64_t tokens) {
    return Eventually(seconds(60), [&] {
      for (const GoldenRequest& request : model_.Requests(2, 100)) ExpectGolden(cluster_, request);
      return Isotherm("placement show --json").json().value("seen_tokens", 0) > tokens;
    });
  }
  std::string File(const std::string& name) const { return cluster_.directory() + "/" + name; }

  const IntegerModelFile model_{44};
  Cluster cluster_;
};

TEST_F(PlacementVerbsTest, HelpTeaches) {
  for (const char* verb :
       {"recompute", "placement", "placement show", "placement diff", "placement pin",
        "placement unpin", "placement history", "placement rollback", "placement budget"}) {
    const Ran run = Isotherm(std::string(verb) + " --help");
    EXPECT_EQ(run.code, 0) << verb;
    EXPECT_THAT(run.out, HasSubstr("Usage:")) << verb;
  }
  EXPECT_THAT(Isotherm("recompute --help").out, HasSubstr("nothing is done twice"));
  EXPECT_THAT(Isotherm("placement --help").out, HasSubstr("never changes a token"));
  const Ran wrong = Isotherm("placement rollback");
  EXPECT_EQ(wrong.code, 64);
  EXPECT_THAT(wrong.out, HasSubstr("EPOCH"));
}

TEST_F(PlacementVerbsTest, AnOperatorsDay) {
  Ran run = Isotherm("placement show");
  EXPECT_EQ(run.code, 0) << run.out;
  EXPECT_THAT(run.out, HasSubstr("epoch 1, initial"));
  // The worker is asked about once a second, so it tells of the plan's neurons in a moment.
  nlohmann::json memory;
  EXPECT_TRUE(Eventually(seconds(30), [&] {
    memory = Isotherm("placement show --json").json()["memory"];
    return memory["hot_pool_bytes"] > 0;
  })) << memory;
  EXPECT_GT(memory["kv_bytes"], 0);
  run = Isotherm("placement show");
  EXPECT_THAT(run.out, HasSubstr("\n  hot neurons "));
  EXPECT_THAT(run.out, HasSubstr("\n  KV cache "));
  ASSERT_TRUE(ServeUntilSeen(300));
  EXPECT_THAT(Isotherm("placement show").out, HasSubstr("hits seen"));

  run = Isotherm("recompute --dry-run --json --wait");
  EXPECT_EQ(run.code, 0) << run.out;
  EXPECT_EQ(run.json()["state"], "proposed");
  EXPECT_GT(run.json()["moved_neurons"], 0);
  run = Isotherm("recompute --id nightly --wait --json");
  EXPECT_EQ(run.code, 0) << run.out;
  EXPECT_EQ(run.json()["state"], "applied");
  EXPECT_EQ(run.json()["proposal"]["epoch"], 2);
  run = Isotherm("recompute --id nightly --wait --json");  // done once
  EXPECT_EQ(run.json()["proposal"]["epoch"], 2);
  // Once the last counts have come nothing more is to be gained.
  EXPECT_TRUE(Eventually(seconds(30), [&] {
    run = Isotherm("recompute --wait");
    return run.code == 0 && run.out.find("unchanged: ") == 0;
  })) << run.out;

  run = Isotherm("placement diff 1 2");
  EXPECT_EQ(run.code, 0) << run.out;
  EXPECT_THAT(run.out, HasSubstr("neurons come"));
  EXPECT_GT(Isotherm("placement diff 1 2 --json").json()["come"], 0);
  EXPECT_EQ(Isotherm("placement diff 1 99").code, 69);

  run = Isotherm("recompute --budget 48KiB --wait --json");
  EXPECT_EQ(run.json()["state"], "applied") << run.out;
  EXPECT_EQ(Isotherm("placement show --json").json()["budget_bytes"], 49'152);

  EXPECT_EQ(Isotherm("placement pin").code, 0);
  EXPECT_THAT(Isotherm("placement show").out, HasSubstr(", pinned"));
  run = Isotherm("placement budget 32KiB");
  EXPECT_EQ(run.code, 69);
  EXPECT_THAT(run.out, HasSubstr("unpin"));
  EXPECT_EQ(Isotherm("placement unpin").code, 0);
  run = Isotherm("placement rollback 1 --pin");
  EXPECT_EQ(run.code, 0) << run.out;
  EXPECT_EQ(Isotherm("placement show --json").json()["pinned"], true);
  EXPECT_EQ(Isotherm("placement unpin").code, 0);

  run = Isotherm("placement history --json");
  ASSERT_GE(run.json().size(), 4u);
  EXPECT_EQ(run.json()[0]["cause"], "rollback");
  EXPECT_EQ(run.json()[2]["cause"], "recompute");
  EXPECT_THAT(run.json()[2]["reason"].get<std::string>(), HasSubstr("hit share"));

  run = Isotherm("placement watch --events 1 --json");
  EXPECT_EQ(run.code, 0) << run.out;
  EXPECT_EQ(run.json()["state"], "live");
}

TEST_F(PlacementVerbsTest, FilesGoOutAndComeBack) {
  ASSERT_TRUE(ServeUntilSeen(200));
  const std::string profile = File("seen.gguf"), split = File("m.generated.gpuidx");
  Ran run = Isotherm("placement export " + profile + " --name seen --json");
  EXPECT_EQ(run.code, 0) << run.out;
  EXPECT_GT(run.json()["tokens"], 200);
  EXPECT_EQ(Isotherm("placement export " + split).code, 0);
  EXPECT_EQ(Isotherm("recompute --wait --json").json()["state"], "applied");
  const std::string learnt = Isotherm("placement show --json").json()["etag"];

  run = Isotherm("placement import " + split + " --dry-run --json");
  EXPECT_EQ(run.json()["state"], "proposed") << run.out;
  EXPECT_LT(run.json()["predicted_gain"], 0);
  run = Isotherm("placement import " + split + " --json");
  EXPECT_EQ(run.json()["state"], "applied") << run.out;
  EXPECT_NE(Isotherm("placement show --json").json()["etag"], learnt);

  run = Isotherm("placement import " + profile + " --tokens 100000");
  EXPECT_EQ(run.code, 0) << run.out;
  run = Isotherm("recompute --budget " + std::to_string(kAllNeuronBytes / 4) + " --wait --json");
  EXPECT_EQ(run.json()["state"], "applied") << run.out;
  EXPECT_THAT(Isotherm("placement show --json").json()["profile"].get<std::string>(),
              testing::StartsWith("seen"));

  EXPECT_EQ(Isotherm("placement import " + model_.path()).code, 65);
  EXPECT_EQ(Isotherm("placement import " + File("missing")).code, 65);
}

}  // namespace
}  // namespace isotherm::integration
