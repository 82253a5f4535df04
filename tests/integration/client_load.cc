#include "tests/integration/client_load.h"

#include <algorithm>
#include <utility>

#include "common/rpc/channel.h"
#include "gtest/gtest.h"

namespace isotherm::integration {
namespace {

bool IsAllowed(const Answer& answer, bool gateway_stops) {
  switch (answer.status.error_code()) {
    case grpc::StatusCode::ABORTED:
      return true;
    case grpc::StatusCode::UNAVAILABLE:  // no worker, or the drain's or a dead gateway's
      return true;
    case grpc::StatusCode::INTERNAL:  // two workers died on it
      return answer.token_ids.empty();
    case grpc::StatusCode::CANCELLED:
      return gateway_stops && !answer.accepted;
    default:
      return false;
  }
}

}  // namespace

ClientLoad::ClientLoad(const Cluster& cluster, std::vector<GoldenRequest> requests, int num_clients)
    : cluster_(cluster), requests_(std::move(requests)) {
  for (int i = 0; i < num_clients; ++i) {
    clients_.emplace_back([this, i] { Run(static_cast<size_t>(i)); });
  }
}

ClientLoad::~ClientLoad() { Stop(); }

void ClientLoad::Run(size_t client) {
  const auto channel = rpc::MakeChannel(cluster_.address("gateway"));
  for (size_t i = client; !stop_; i += clients_.size() + 1) {
    const GoldenRequest& request = requests_[i % requests_.size()];
    OpenStream stream(channel,
                      Cluster::Greedy(request.prompt, static_cast<int>(request.tokens.size())),
                      {.wait_for_ready = false});
    size_t seen = 0;
    while (stream.ReadEvent()) {
      const size_t now = stream.answer().token_ids.size();
      {
        std::lock_guard lock(mu_);
        counts_.tokens += static_cast<int64_t>(now - seen);
      }
      seen = now;
      changed_.notify_all();
    }
    Judge(request, stream.answer());
    if (stream.answer().status.ok() || stop_) continue;
    // Refused at once: asking again without a pause would only keep the processors from the
    // restart.
    channel->WaitForConnected(std::chrono::system_clock::now() + std::chrono::seconds(1));
    cluster_.WaitServing(std::chrono::seconds(1));
  }
}

void ClientLoad::Judge(const GoldenRequest& request, const Answer& answer) {
  const bool is_prefix =
      answer.token_ids.size() <= request.tokens.size() &&
      std::equal(answer.token_ids.begin(), answer.token_ids.end(), request.tokens.begin());
  EXPECT_TRUE(is_prefix) << "wrong tokens in an answer that ended with "
                         << answer.status.error_code() << " " << answer.status.error_message();
  EXPECT_EQ(answer.status.ok(), answer.complete);
  std::lock_guard lock(mu_);
  if (answer.status.ok()) {
    EXPECT_EQ(answer.token_ids.size(), request.tokens.size());
    ++counts_.finished;
    return;
  }
  EXPECT_TRUE(IsAllowed(answer, gateway_stops_))
      << answer.status.error_code() << " " << answer.status.error_message() << " after "
      << answer.token_ids.size() << " tokens";
  if (counts_.failed++ == 0) {
    counts_.first_error =
        std::to_string(answer.status.error_code()) + " " + answer.status.error_message();
  }
}

ClientLoad::Counts ClientLoad::counts() const {
  std::lock_guard lock(mu_);
  return counts_;
}

bool ClientLoad::WaitForTokens(int64_t count, std::chrono::milliseconds timeout) {
  std::unique_lock lock(mu_);
  const int64_t wanted = counts_.tokens + count;
  return changed_.wait_for(lock, timeout, [&] { return counts_.tokens >= wanted; });
}

ClientLoad::Counts ClientLoad::Stop() {
  stop_ = true;
  for (std::thread& client : clients_) {
    if (client.joinable()) client.join();
  }
  return counts();
}

}  // namespace isotherm::integration
