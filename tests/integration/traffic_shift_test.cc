// The shipped model with a fifth of its neurons hot, traffic that switches from chat to book text:
// a static plan for chat against one that follows. With ISOTHERM_TRAFFIC_SHIFT_CSV the hit share
// over time is written there; docs/placement.md shows it.
#include <gtest/gtest.h>
#include <stdlib.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <optional>
#include <sstream>
#include <vector>

#include "tests/integration/cluster.h"
#include "tests/integration/process_state.h"
#include "tests/reference/real_model.h"

namespace isotherm::integration {
namespace {

using std::chrono::seconds;

constexpr int64_t kBundles = int64_t{30} * 1536;
constexpr int64_t kBudget = kBundles / 5 * 1856;
constexpr int kGenerated = 64;

std::string ReadFile(const std::string& name) {
  std::ifstream file(std::string(ISOTHERM_SOURCE_DIR) + "/tests/data/traffic/" + name);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

// One point of the curve: tokens served so far and the hot share of the last request's activations.
struct Point {
  std::string traffic;
  int64_t tokens = 0;
  double hit_share = 0;
  int64_t request_tokens = 0;
};

// Chat questions, answered; or paragraphs of books, gone on with.
class Traffic {
 public:
  Traffic() {
    std::istringstream chat(ReadFile("chat.txt"));
    for (std::string line; std::getline(chat, line);) questions_.push_back(line);
    std::istringstream book(ReadFile("book.txt"));
    for (std::string line; std::getline(book, line);) {
      if (!line.empty()) paragraphs_.push_back(line);
    }
  }
  v1::GenerateRequest Chat(size_t n) const {
    v1::GenerateRequest request = Base();
    v1::ChatMessage* message = request.mutable_chat()->add_messages();
    message->set_role("user");
    message->set_content(questions_[n % questions_.size()]);
    return request;
  }
  v1::GenerateRequest Book(size_t n) const {
    v1::GenerateRequest request = Base();
    request.set_prompt(paragraphs_[n % paragraphs_.size()].substr(0, 500));
    return request;
  }
  size_t num_paragraphs() const { return paragraphs_.size(); }

 private:
  static v1::GenerateRequest Base() {
    v1::GenerateRequest request;
    request.mutable_sampling()->set_temperature(0);
    request.mutable_stop()->set_max_tokens(kGenerated);
    request.mutable_stop()->set_ignore_eos(true);
    return request;
  }
  std::vector<std::string> questions_, paragraphs_;
};

class TrafficShiftTest : public testing::Test {
 protected:
  void SetUp() override { ASSERT_NE(reference::RealModelPath(), "") << reference::kNoRealModel; }
  std::unique_ptr<Cluster> Start(bool follow,
                                 const std::string& model = reference::RealModelPath()) {
    auto cluster = std::make_unique<Cluster>(ClusterOptions{.model = model,
                                                            .budget = std::to_string(kBudget),
                                                            .cpu_threads = 1,
                                                            .gpu_threads = 2,
                                                            .follow = follow});
    EXPECT_TRUE(cluster->WaitReady(seconds(120)));
    return cluster;
  }
  // Serves about `tokens` tokens.
  void Serve(Cluster& cluster, const std::string& traffic, int64_t tokens,
             std::vector<Point>* curve) {
    const int64_t end = served_ + tokens;
    for (size_t n = 0; served_ < end; ++n) {
      const v1::GenerateRequest request = traffic == "chat" ? traffic_.Chat(n) : traffic_.Book(n);
      const Answer answer = cluster.Generate(request, seconds(120));
      ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
      const int64_t count =
          answer.summary.usage().prompt_tokens() + answer.summary.usage().completion_tokens();
      served_ += count;
      curve->push_back({traffic, served_, answer.summary.timings().gpu_hit_share(), count});
    }
  }
  static double Mean(const std::vector<Point>& curve, size_t first, size_t last) {
    double hits = 0, tokens = 0;
    for (size_t i = first; i < last; ++i) {
      hits += curve[i].hit_share * static_cast<double>(curve[i].request_tokens);
      tokens += static_cast<double>(curve[i].request_tokens);
    }
    return hits / tokens;
  }
  static v1::Recomputation Recompute(Cluster& cluster, const std::string& id) {
    const auto stub = cluster.Placement();
    v1::RecomputeResponse response;
    EXPECT_TRUE(Eventually(seconds(60), [&] {
      grpc::ClientContext context;
      context.set_deadline(std::chrono::system_clock::now() + seconds(10));
      v1::RecomputeRequest request;
      request.set_request_id(id);
      return stub->Recompute(&context, request, &response).ok() &&
             response.recomputation().state() >= v1::RECOMPUTATION_STATE_APPLIED;
    }));
    return response.recomputation();
  }

  const Traffic traffic_;
  int64_t served_ = 0;
};

TEST_F(TrafficShiftTest, TheLivePlanRegainsTheBestStaticOnesHits) {
  constexpr int64_t kChat = 1'500, kBook = 4'000;
  std::vector<Point> still, live, best;
  {
    const auto cluster = Start(/*follow=*/false);
    Serve(*cluster, "chat", kChat, &still);
    Serve(*cluster, "book", kBook, &still);
    // The best plan that this traffic can have: made from itself, judged on itself.
    ASSERT_EQ(Recompute(*cluster, "best").state(), v1::RECOMPUTATION_STATE_APPLIED);
    served_ = kChat;
    Serve(*cluster, "book", kBook / 2, &best);
    EXPECT_TRUE(cluster->Stop());
  }
  served_ = 0;
  {
    const auto cluster = Start(/*follow=*/true);
    Serve(*cluster, "chat", kChat, &live);
    Serve(*cluster, "book", kBook, &live);
    EXPECT_TRUE(cluster->Stop());
    if (HasFailure()) std::cerr << cluster->Logs();
  }
  if (const char* path = std::getenv("ISOTHERM_TRAFFIC_SHIFT_CSV"); path != nullptr) {
    std::ofstream csv(path);
    csv << "plan,traffic,tokens,hit_share\n";
    for (const auto& [name, curve] :
         {std::pair("static", &still), std::pair("live", &live), std::pair("best", &best)}) {
      for (const Point& point : *curve) {
        csv << name << "," << point.traffic << "," << point.tokens << "," << point.hit_share
            << "\n";
      }
    }
  }
  // Requests that began at least 2,000 tokens after the switch, of the same kind in each curve.
  const auto after = [&](const std::vector<Point>& curve) {
    const auto first = std::find_if(curve.begin(), curve.end(), [&](const Point& point) {
      return point.traffic == "book" && point.tokens - point.request_tokens >= kChat + 2'000;
    });
    return Mean(curve, static_cast<size_t>(first - curve.begin()), curve.size());
  };
  const double best_share = Mean(best, 0, best.size());
  RecordProperty("static", std::to_string(after(still)));
  RecordProperty("live", std::to_string(after(live)));
  RecordProperty("best", std::to_string(best_share));
  std::cerr << "hit share on book text: static " << after(still) << ", live " << after(live)
            << ", best static " << best_share << "\n";
  EXPECT_GT(after(live), after(still));
  EXPECT_GE(after(live), 0.95 * best_share);
}

// Without a profile beside the model the first plan is even and knows nothing.
TEST_F(TrafficShiftTest, LearnsTheTrafficWithoutAProfile) {
  std::vector<Point> profiled, cold;
  {
    const auto cluster = Start(/*follow=*/false);
    Serve(*cluster, "chat", 1'000, &profiled);
    EXPECT_TRUE(cluster->Stop());
  }
  served_ = 0;
  {
    std::string folder = testing::TempDir() + "/no-profile-XXXXXX";
    ASSERT_NE(::mkdtemp(folder.data()), nullptr);
    const std::string model = folder + "/model.gguf";
    std::filesystem::create_symlink(std::filesystem::absolute(reference::RealModelPath()), model);
    const auto cluster = Start(/*follow=*/true, model);
    Serve(*cluster, "chat", 3'000, &cold);
    EXPECT_TRUE(cluster->Stop());
    std::filesystem::remove_all(folder);
    if (HasFailure()) std::cerr << cluster->Logs();
  }
  const double want = Mean(profiled, 0, profiled.size());
  // Means of some 300 tokens: requests differ.
  constexpr size_t kWindow = 3;
  int64_t reached = -1;
  for (size_t i = kWindow; i <= cold.size() && reached < 0; ++i) {
    if (Mean(cold, i - kWindow, i) >= 0.95 * want) reached = cold[i - kWindow].tokens;
  }
  std::cerr << "hit share on chat: profiled " << want << ", without a profile "
            << cold.front().hit_share << " at first, 95 % after " << reached << " tokens\n";
  RecordProperty("profiled", std::to_string(want));
  RecordProperty("tokens", std::to_string(reached));
  EXPECT_LT(cold.front().hit_share, 0.9 * want);
  EXPECT_GE(reached, 0);
  EXPECT_LE(reached, 1'000);
}

}  // namespace
}  // namespace isotherm::integration
