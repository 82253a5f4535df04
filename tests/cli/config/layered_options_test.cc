#include "cli/config/layered_options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "cli/config/nearest_match.h"
#include "cli/config/serve_options.h"
#include "cli/ui/remedy.h"
#include "common/base/exit_code.h"
#include "tests/cli/fakes/fake_programs.h"

namespace isotherm::cli {
namespace {

using ::testing::HasSubstr;

class LayeredOptionsTest : public ::testing::Test {
 protected:
  absl::StatusOr<LayeredOptions> Resolve(const std::map<std::string, std::string>& flags = {}) {
    std::optional<std::filesystem::path> file;
    if (!yaml_.empty()) {
      file = temp_.dir() / "isotherm.yaml";
      std::ofstream(*file) << yaml_;
    }
    return LayeredOptions::Resolve(
        ServeOptionSpecs(), flags,
        [this](const std::string& name) -> std::optional<std::string> {
          const auto it = env_.find(name);
          return it == env_.end() ? std::nullopt : std::optional<std::string>(it->second);
        },
        file);
  }
  absl::StatusOr<ServeOptions> Parse(const std::map<std::string, std::string>& flags) {
    const auto values = Resolve(flags);
    if (!values.ok()) return values.status();
    return ParseServeOptions(*values);
  }

  FakePrograms temp_;
  std::string yaml_;
  std::map<std::string, std::string> env_;
};

TEST_F(LayeredOptionsTest, FlagBeatsEnvironmentBeatsFileBeatsDefault) {
  EXPECT_EQ(Resolve()->at("parallel").text, "4");
  yaml_ = "parallel: 5\nmax_queue: 9\n";
  EXPECT_EQ(Resolve()->at("parallel").text, "5");
  EXPECT_EQ(Resolve()->at("max-queue").text, "9");
  env_["ISOTHERM_PARALLEL"] = "6";
  EXPECT_EQ(Resolve()->at("parallel").text, "6");
  EXPECT_EQ(Resolve({{"parallel", "7"}})->at("parallel").text, "7");
  EXPECT_EQ(Resolve()->at("parallel").origin, "ISOTHERM_PARALLEL");
}

TEST_F(LayeredOptionsTest, AnUnknownKeyNamesTheNearestOne) {
  yaml_ = "context: 4K\ngrpc-listne: x\n";
  const auto options = Resolve();
  EXPECT_EQ(ExitCodeOf(options.status()), ExitCode::kUsage);
  EXPECT_THAT(std::string(options.status().message()), HasSubstr("line 2"));
  EXPECT_EQ(TryOf(options.status()), "grpc-listen: ...");
}

TEST_F(LayeredOptionsTest, RefusesWhatIsNotAFlatMap) {
  for (const char* text : {"- a\n", "parallel: [1]\n", "parallel: 1\nparallel: 2\n", "a: b: c\n",
                           "\"unclosed", "parallel: {a: 1}\n", "hello\n"}) {
    yaml_ = text;
    EXPECT_EQ(ExitCodeOf(Resolve().status()), ExitCode::kUsage) << text;
  }
}

TEST_F(LayeredOptionsTest, AMissingFileIsAnError) {
  EXPECT_FALSE(LayeredOptions::Resolve(ServeOptionSpecs(), {}, RealEnv, "/nowhere.yaml").ok());
}

TEST_F(LayeredOptionsTest, UnderstandsUnits) {
  const auto options = Parse(
      {{"context", "32K"}, {"vram-budget", "512MiB"}, {"drain-timeout", "2m"}, {"threads", "3"}});
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->context, 32768);
  EXPECT_EQ(options->vram_budget, 512 << 20);
  EXPECT_EQ(options->drain_timeout, std::chrono::minutes(2));
  EXPECT_EQ(Parse({{"vram-budget", "1.5"}})->vram_budget, 3 * (int64_t{1} << 29));
  EXPECT_EQ(Parse({{"vram-budget", "auto"}})->vram_budget, -1);
}

TEST_F(LayeredOptionsTest, ABadValueNamesOptionOriginAndWhatIsWanted) {
  env_["ISOTHERM_PARALLEL"] = "many";
  const auto options = Parse({});
  EXPECT_EQ(ExitCodeOf(options.status()), ExitCode::kUsage);
  EXPECT_THAT(std::string(options.status().message()),
              HasSubstr("parallel: got 'many' (from ISOTHERM_PARALLEL), wanted"));
  EXPECT_FALSE(TryOf(options.status()).empty());
}

TEST_F(LayeredOptionsTest, RefusesEachBadValue) {
  const std::vector<std::pair<std::string, std::string>> bad = {
      {"parallel", "0"},       {"parallel", "-1"},        {"parallel", "257"},
      {"max-queue", "x"},      {"context", "1e30"},       {"device", "tpu"},
      {"transport", "tcp"},    {"arena", "file"},         {"vram-budget", "-3"},
      {"vram-budget", "nan"},  {"drain-timeout", "soon"}, {"log-level", "loud"},
      {"grpc-listen", "8001"}, {"grpc-listen", "a:b"},    {"grpc-listen", "0.0.0.0:8001"},
      {"activation", "tanh"},  {"sparse-threshold", "?"}, {"follow", "maybe"},
      {"kv-floor", "some"}};
  for (const auto& [key, value] : bad) {
    EXPECT_EQ(ExitCodeOf(Parse({{key, value}}).status()), ExitCode::kUsage) << key << " " << value;
  }
}

TEST(NearestMatchTest, FindsTyposAndNothingForOtherWords) {
  const std::vector<std::string> words = {"--temperature", "--top-p", "--seed"};
  EXPECT_EQ(NearestMatch("--temprature", words), "--temperature");
  EXPECT_EQ(NearestMatch("--sede", words), "--seed");
  EXPECT_EQ(NearestMatch("--completely-other", words), "");
  EXPECT_EQ(NearestMatch(std::string(100'000, 'x'), words), "");
}

}  // namespace
}  // namespace isotherm::cli
