// `isotherm models convert` as a user types it.
#include <nlohmann/json.hpp>
#include <sstream>
#include <vector>

#include "cli/app.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "models/model_file.h"
#include "tests/models/temp_folder.h"
#include "tests/reference/random_model.h"

namespace isotherm::cli {
namespace {

using ::testing::HasSubstr;

class ModelsConvertTest : public testing::Test {
 protected:
  void SetUp() override {
    const absl::Status status = reference::WriteRandomModel(folder_.File("relu.gguf"), {});
    ASSERT_TRUE(status.ok()) << status;
  }
  int Run(std::vector<std::string> args) {
    args.insert(args.begin(), {"isotherm", "models", "convert"});
    std::vector<const char*> argv;
    for (const std::string& arg : args) argv.push_back(arg.c_str());
    out_.str("");
    err_.str("");
    Console console{.out = out_, .err = err_};
    return RunApp(static_cast<int>(argv.size()), argv.data(), console);
  }

  TempFolder folder_;
  std::ostringstream out_, err_;
};

TEST_F(ModelsConvertTest, WritesTheModelAndTellsWhereAndWhatChanged) {
  const std::string out = folder_.File("plain.gguf");
  ASSERT_EQ(Run({folder_.File("relu.gguf"), out, "--to", "gguf", "--drop-predictors"}), 0)
      << err_.str();
  EXPECT_THAT(out_.str(), HasSubstr(out + "  "));
  EXPECT_THAT(err_.str(), HasSubstr("predictors are left out"));
  EXPECT_THAT(err_.str(), HasSubstr("converting"));
  EXPECT_THAT(err_.str(), HasSubstr("checking"));
  const auto model = ModelFile::Open(out);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_FALSE((*model)->gguf().is_powerinfer());
}

TEST_F(ModelsConvertTest, PutsNeuronsInBundleOrderAndBack) {
  const std::string arena = folder_.File("arena.gguf"), back = folder_.File("back.gguf");
  ASSERT_EQ(Run({folder_.File("relu.gguf"), arena, "--arena", "--type", "f16"}), 0) << err_.str();
  EXPECT_THAT(err_.str(), HasSubstr("PowerInfer and llama.cpp cannot read the file"));
  auto model = ModelFile::Open(arena);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_NE((*model)->bundle_file(), nullptr);
  EXPECT_EQ(Run({arena, back, "--arena"}), 64);
  EXPECT_THAT(err_.str(), HasSubstr("already is a bundle-ordered PowerInfer file"));
  ASSERT_EQ(Run({arena, back}), 0) << err_.str();
  model = ModelFile::Open(back);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ((*model)->bundle_file(), nullptr);
}

TEST_F(ModelsConvertTest, FindsTheModelByNameAndAnswersInJson) {
  const std::string out = folder_.File("small.gguf");
  ASSERT_EQ(Run({"relu", out, "--model-dir", folder_.File(""), "--type", "Q4_0", "--json"}), 0)
      << err_.str();
  const auto json = nlohmann::json::parse(out_.str());
  EXPECT_EQ(json["model"], out);
  EXPECT_EQ(json["bytes"], folder_.Content("small.gguf").size());
  EXPECT_EQ(json["profile_copied"], false);
  EXPECT_TRUE(json["notes"].is_array());
}

TEST_F(ModelsConvertTest, SaysWhatIsWrongAndWhatToTry) {
  const std::string in = folder_.File("relu.gguf"), out = folder_.File("out.gguf");
  const std::vector<std::pair<std::vector<std::string>, std::string>> bad = {
      {{in, out}, "nothing to change"},
      {{in, out, "--to", "onnx"}, "to: got 'onnx', wanted pwri or gguf"},
      {{in, out, "--type", "q4_k"}, "type: got 'q4_k', wanted f16, bf16, q8_0 or q4_0"},
      {{in, out, "--to", "gguf"}, "--drop-predictors"},
      {{in, in, "--type", "q8_0", "--force"}, "is the model itself"},
  };
  for (const auto& [args, saying] : bad) {
    EXPECT_EQ(Run(args), 64) << saying;
    EXPECT_THAT(err_.str(), HasSubstr(saying));
    EXPECT_THAT(err_.str(), HasSubstr("try: isotherm models convert --help"));
    EXPECT_EQ(out_.str(), "");
  }
  EXPECT_THAT(folder_.Names(), testing::ElementsAre("relu.gguf"));
  folder_.Write("damaged.gguf", folder_.Content("relu.gguf").substr(0, 2000));
  EXPECT_EQ(Run({folder_.File("damaged.gguf"), out, "--type", "q8_0"}), 65);
  EXPECT_THAT(err_.str(), HasSubstr("try: isotherm models verify "));
}

TEST_F(ModelsConvertTest, HelpExplainsBothLayouts) {
  EXPECT_EQ(Run({"--help"}), 0);
  for (const char* part : {"--to", "--type", "--relu", "--drop-predictors", "--force", "--arena",
                           "PowerInfer's layout", "what llama.cpp writes"}) {
    EXPECT_THAT(out_.str(), HasSubstr(part));
  }
}

}  // namespace
}  // namespace isotherm::cli
