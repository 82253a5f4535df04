#include "gpu_worker/engine/step_engine.h"

#include <pthread.h>

#include <algorithm>
#include <iterator>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "gpu_worker/engine/move_pacer.h"

namespace isotherm::gpu {
namespace {

// How long a retired epoch is kept for what the gateway sent before it heard: while nothing names
// it (that is on its way), and while something does.
constexpr std::chrono::milliseconds kRetiredStepsCome{50}, kRetiredStepsRun{500};

}  // namespace

StepEngine::StepEngine(Device& device, const StepEngineOptions& options)
    : device_(device), options_(options), sequences_(device.Describe().kv_pages) {
  if (options_.kv_lease.has_value()) {
    lease_.emplace(*options_.kv_lease);
    device_.SetShares(lease_->hot_capacity_bytes(), lease_->pages_taken());
  }
  thread_ = std::thread([this] {
    ::pthread_setname_np(::pthread_self(), "step-engine");
    Loop();
  });
}

StepEngine::~StepEngine() {
  {
    std::lock_guard lock(mu_);
    stop_ = true;
    abort_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

WorkerHello StepEngine::HelloLocked() const {
  const DeviceInfo info = device_.Describe();
  std::vector<int64_t> epochs;
  std::set_difference(committed_.begin(), committed_.end(), retiring_.begin(), retiring_.end(),
                      std::back_inserter(epochs));
  return {.instance_id = options_.instance_id,
          .epochs = std::move(epochs),
          .kv_pages = lease_.has_value() ? lease_->pages() : info.kv_pages,
          .page_size = kPageSize,
          .max_rows = info.max_rows,
          .context_length = options_.context_length,
          .peer_attached = PeerAliveLocked(),
          .model_digest = options_.model_digest,
          .kv_pages_most = lease_.has_value() ? lease_->most_pages() : 0};
}

WorkerHello StepEngine::Hello() const {
  std::lock_guard lock(mu_);
  return HelloLocked();
}

bool StepEngine::PeerAliveLocked() const {
  return cold_.attachment != nullptr && cold_.attachment->link().alive();
}

bool StepEngine::UsableLocked() const {
  return PeerAliveLocked() || (cold_.attachment != nullptr && cold_.attachment->arena() != nullptr);
}

void StepEngine::AnnounceLocked() {
  if (sink_ == nullptr) return;
  if (!UsableLocked()) {
    if (!greeted_) return;  // the hello comes with the cpu_worker
    sink_->OnUnavailable(absl::UnavailableError("the cpu_worker is lost and its neurons with it"));
    sink_ = nullptr;
    ++connection_;
    queue_.clear();
    return;
  }
  const WorkerHello hello = HelloLocked();
  greeted_ = true;
  peer_announced_ = hello.peer_attached;
  sink_->OnHello(hello);
}

bool StepEngine::idle() const {
  std::lock_guard lock(mu_);
  return !running_ && queue_.empty();
}

int64_t StepEngine::Connect(std::shared_ptr<StepSink> sink) {
  std::lock_guard lock(mu_);
  ++connection_;
  queue_.clear();
  newest_epoch_ = kBuiltInEpoch;
  DropDemandLocked();
  abort_ = running_;
  sink_ = std::move(sink);
  greeted_ = false;
  AnnounceLocked();
  return connection_;
}

void StepEngine::Disconnect(int64_t connection) {
  std::lock_guard lock(mu_);
  if (connection != connection_) return;
  ++connection_;
  sink_ = nullptr;
  queue_.clear();
  DropDemandLocked();
  abort_ = running_;
  changed_.notify_all();
}

absl::Status StepEngine::Submit(int64_t connection, StepRequest request) {
  constexpr size_t kMaxQueued = 2;
  std::lock_guard lock(mu_);
  if (connection != connection_) return absl::AbortedError("another gateway has connected");
  if (queue_.size() >= kMaxQueued) {
    return absl::ResourceExhaustedError(absl::StrCat(kMaxQueued, " step requests wait already"));
  }
  newest_epoch_ = request.epoch;
  queue_.push_back({connection, std::move(request)});
  changed_.notify_all();
  return absl::OkStatus();
}

void StepEngine::Abort(int64_t connection) {
  std::lock_guard lock(mu_);
  if (connection != connection_) return;
  queue_.clear();
  demand_after_ = std::min<size_t>(demand_after_, running_ ? 1 : 0);
  abort_ = running_;
  changed_.notify_all();
}

void StepEngine::SetKvDemand(int64_t connection, const KvDemand& demand) {
  std::lock_guard lock(mu_);
  if (connection != connection_ || !lease_.has_value()) return;
  demand_ = demand;
  demand_after_ = queue_.size() + (running_ ? 1 : 0);
  changed_.notify_all();
}

// The gateway is another one, or none: it names no page yet.
void StepEngine::DropDemandLocked() {
  demand_ = KvDemand();
  demand_after_ = running_ ? 1 : 0;
}

void StepEngine::UpdateLeaseLocked() {
  if (!lease_.has_value()) return;
  const auto shares = [this] {
    return std::pair(lease_->hot_capacity_bytes(), lease_->pages_taken());
  };
  const std::pair<int64_t, int32_t> before = shares();
  const int32_t pages = lease_->pages();
  if (demand_.has_value() && demand_after_ == 0) {
    lease_->OnDemand(demand_->wanted, demand_->top);
    demand_.reset();
  }
  lease_->Update(device_.Describe().hot_used_bytes, std::chrono::steady_clock::now());
  if (shares() != before) device_.SetShares(lease_->hot_capacity_bytes(), lease_->pages_taken());
  if (lease_->pages() != pages) AnnounceLocked();
}

absl::Status StepEngine::SetCold(std::shared_ptr<ColdAttachment> cold) {
  Cold fresh{.attachment = std::move(cold)};
  if (fresh.attachment != nullptr) {
    ISOTHERM_ASSIGN_OR_RETURN(fresh.mapping, device_.Map({.link = &fresh.attachment->link(),
                                                          .arena = fresh.attachment->arena()}));
  }
  std::unique_lock lock(mu_);
  std::swap(cold_, fresh);
  AnnounceLocked();
  lock.unlock();
  return absl::OkStatus();  // the old one goes here, unlocked, unless a step still has it
}

absl::Status StepEngine::Prepare(const PlacementPlan& plan,
                                 const std::function<void(int64_t, int64_t)>& progress) {
  // The arena stays mapped while this holds the attachment.
  Cold cold;
  bool none_hot = false;
  {
    std::lock_guard lock(mu_);
    cold = cold_;
    none_hot = committed_.size() == 1;  // the built-in epoch
  }
  // The first hot neurons are worth more to the steps than the copies cost them.
  MovePacer pacer(none_hot ? 0 : options_.move_bytes_per_second, Clock::Real());
  const auto paced = [&](int64_t done, int64_t total) {
    if (progress) progress(done, total);
    std::unique_lock lock(mu_);
    const std::chrono::nanoseconds delay = pacer.Delay(done, running_ || !queue_.empty());
    if (delay.count() > 0) changed_.wait_for(lock, delay, [this] { return stop_; });
  };
  return Judged(device_.Prepare(
      plan, cold.attachment != nullptr ? cold.attachment->arena() : nullptr, paced));
}

absl::Status StepEngine::Judged(absl::Status status) {
  if (!status.ok() && device_.Lost() && options_.on_device_lost) options_.on_device_lost();
  return status;
}

absl::Status StepEngine::Commit(int64_t epoch) {
  if (!device_.Has(epoch))
    return absl::FailedPreconditionError(absl::StrCat("epoch ", epoch, " is not prepared"));
  std::lock_guard lock(mu_);
  if (retiring_.contains(epoch))
    return absl::UnavailableError(absl::StrCat("epoch ", epoch, " is being retired"));
  if (committed_.insert(epoch).second) AnnounceLocked();
  return absl::OkStatus();
}

absl::Status StepEngine::Retire(int64_t epoch) {
  if (epoch == kBuiltInEpoch) return absl::InvalidArgumentError("epoch 0 is built in and stays");
  {
    std::unique_lock lock(mu_);
    const auto is_named = [&] {
      return (running_ && running_epoch_ == epoch) ||
             std::any_of(queue_.begin(), queue_.end(),
                         [&](const Pending& pending) { return pending.request.epoch == epoch; });
    };
    if (retiring_.contains(epoch)) {
      changed_.wait(lock, [&] { return stop_ || !retiring_.contains(epoch); });
    } else if (committed_.contains(epoch)) {
      retiring_.insert(epoch);
      AnnounceLocked();
      const TimePoint begin = std::chrono::steady_clock::now();
      while (!stop_) {
        const bool named = is_named();
        // What the gateway sent before it heard is still on its way.
        if (!named && newest_epoch_ != epoch) break;
        const TimePoint end = begin + (named ? kRetiredStepsRun : kRetiredStepsCome);
        if (std::chrono::steady_clock::now() >= end) break;
        changed_.wait_until(lock, end);
      }
      retiring_.erase(epoch);
      committed_.erase(epoch);
      changed_.notify_all();
    }
    changed_.wait(lock, [&] { return stop_ || !is_named(); });
  }
  return device_.Has(epoch) ? Judged(device_.Retire(epoch)) : absl::OkStatus();
}

absl::Status StepEngine::AbortPlan(int64_t epoch) {
  {
    std::lock_guard lock(mu_);
    if (committed_.contains(epoch)) {
      return absl::FailedPreconditionError(
          absl::StrCat("epoch ", epoch, " is committed; retire it instead"));
    }
  }
  return device_.Has(epoch) ? Judged(device_.Retire(epoch)) : absl::OkStatus();
}

void StepEngine::Loop() {
  std::unique_lock lock(mu_);
  while (true) {
    // Wakes now and then to notice a peer that has gone.
    changed_.wait_for(lock, std::chrono::milliseconds(100),
                      [this] { return stop_ || !queue_.empty(); });
    if (stop_) return;
    if (sink_ != nullptr && peer_announced_ != PeerAliveLocked()) AnnounceLocked();
    UpdateLeaseLocked();
    if (queue_.empty()) continue;
    Pending pending = std::move(queue_.front());
    queue_.pop_front();
    running_ = true;
    running_epoch_ = pending.request.epoch;
    abort_ = false;
    Run(std::move(pending), lock);
    running_ = false;
    if (demand_after_ > 0) --demand_after_;
    changed_.notify_all();
  }
}

// Called and returns with the lock held; steps run without it.
void StepEngine::Run(Pending pending, std::unique_lock<std::mutex>& lock) {
  const StepRequest& request = pending.request;
  if (cleared_connection_ != pending.connection) {
    sequences_.Clear();
    cleared_connection_ = pending.connection;
  }
  absl::Status applied = sequences_.Apply(request);
  if (applied.ok() && !committed_.contains(request.epoch)) {
    applied = absl::AbortedError(absl::StrCat("epoch ", request.epoch, " is not committed here"));
  }
  std::vector<StepRow> rows = request.rows;
  Cold before;  // a step that was begun early still uses it
  const auto go_on_after = [&] {
    return !abort_ && pending.connection == connection_ && committed_.contains(request.epoch) &&
           !retiring_.contains(request.epoch);
  };
  for (int64_t i = 0; i <= request.grant; ++i) {
    const Cold cold = cold_;
    std::vector<StepRow> next;
    StepResult result;
    bool begun = false;
    if (applied.ok()) {
      const bool ahead = i < request.grant && queue_.empty() && go_on_after();
      lock.unlock();
      result = RunOne(request, request.step_id + i, rows, cold, ahead, &next, &begun);
      before = cold;
      lock.lock();
    } else {
      result.step_id = request.step_id;
      result.epoch = request.epoch;
      result.error_code = static_cast<int32_t>(applied.code());
      result.error_message = std::string(applied.message());
    }
    const bool stopped =
        std::any_of(result.rows.begin(), result.rows.end(),
                    [](const RowResult& row) { return row.status != RowStatus::kOk; });
    const bool go_on = i < request.grant && result.error_code == 0 && !stopped && !next.empty() &&
                       (begun || queue_.empty()) && go_on_after();
    result.grant_ended = !go_on;
    if (pending.connection == connection_ && greeted_ && peer_announced_ != PeerAliveLocked()) {
      AnnounceLocked();
    }
    if (result.error_code != 0 && device_.Lost() && options_.on_device_lost) {
      // The answer is the end of this process. Who got an error would try once more, here.
      options_.on_device_lost();
      return;
    }
    if (sink_ != nullptr && pending.connection == connection_) sink_->OnResult(result);
    if (!go_on) break;
    rows = std::move(next);
  }
  lock.unlock();
  device_.Settle();
  lock.lock();
}

std::vector<DeviceRow> StepEngine::RowsBehind(std::span<const DeviceRow> rows) const {
  std::vector<DeviceRow> out;
  for (const DeviceRow& row : rows) {
    const int32_t position = row.position + 1;
    if (row.sampling == nullptr || position >= options_.context_length ||
        static_cast<size_t>(position / kPageSize) >= row.pages.size()) {
      return {};
    }
    out.push_back(row);
    out.back().token = kSampledToken;
    out.back().position = position;
  }
  return out;
}

// What a step may do to one sequence: positions ascend by one, and only the last row samples.
absl::StatusOr<Sequence*> StepEngine::CheckRow(const StepRow& row, StepRowOrder* order) {
  const auto bad = [&](auto... what) {
    return absl::InvalidArgumentError(absl::StrCat("sequence ", row.sequence, what...));
  };
  Sequence* const sequence = sequences_.Find(row.sequence);
  if (sequence == nullptr) return bad(" is not known here");
  if (row.sample && sequence->sampling == nullptr) return bad(" has no sampling parameters");
  if (!row.token.has_value() && sequence->last_token < 0) return bad(" has sampled no token yet");
  const int32_t position = row.token.has_value() ? row.position : sequence->next_position;
  if (position < 0 || position >= options_.context_length) {
    return bad(" has a row at position ", position, "; the context has ", options_.context_length);
  }
  if (order->last_position >= 0 && position != order->last_position + 1) {
    return bad(" has a row at position ", position, " behind one at ", order->last_position);
  }
  if (order->sampled) return bad(" has a row behind the one that samples");
  order->last_position = position;
  order->sampled = row.sample;
  return sequence;
}

StepResult StepEngine::RunOne(const StepRequest& request, int64_t step_id,
                              const std::vector<StepRow>& rows, const Cold& cold, bool ahead,
                              std::vector<StepRow>* next, bool* begun) {
  const TimePoint start = std::chrono::steady_clock::now();
  StepResult result{.step_id = step_id, .epoch = request.epoch};
  const auto fail = [&](const absl::Status& status) {
    result.rows.clear();
    result.error_code = static_cast<int32_t>(status.code());
    result.error_message = std::string(status.message());
    return result;
  };
  std::vector<DeviceRow> device_rows;
  std::vector<Sequence*> sources;
  std::vector<const StepRow*> source_rows;
  absl::flat_hash_map<SequenceId, StepRowOrder> orders;
  for (const StepRow& row : rows) {
    const absl::StatusOr<Sequence*> found = CheckRow(row, &orders[row.sequence]);
    if (!found.ok()) return fail(found.status());
    Sequence* const sequence = *found;
    const TokenId token = row.token.value_or(sequence->last_token);
    const int32_t position = row.token.has_value() ? row.position : sequence->next_position;
    if (static_cast<size_t>(position / kPageSize) >= sequence->pages.size()) {
      result.rows.push_back(
          {.sequence = row.sequence, .position = position, .status = RowStatus::kNoPage});
      continue;
    }
    if (row.token.has_value() && sequence->sampling != nullptr)
      sequence->sampling->Observe(position, token);
    device_rows.push_back({.token = token,
                           .position = position,
                           .pages = sequence->pages,
                           .exact = row.exact,
                           .sampling = row.sample ? sequence->sampling.get() : nullptr});
    sources.push_back(sequence);
    source_rows.push_back(&row);
  }
  DeviceBatch batch{
      .step_id = step_id,
      .epoch = request.epoch,
      .deadline = start + (request.deadline_us > 0 ? std::chrono::microseconds(request.deadline_us)
                                                   : options_.default_deadline),
      .layers = request.layers,
      .rows = device_rows};
  const ColdSide side{.link = cold.attachment != nullptr ? &cold.attachment->link() : nullptr,
                      .arena = cold.attachment != nullptr ? cold.attachment->arena() : nullptr};
  const std::vector<DeviceRow> rows_behind =
      ahead ? RowsBehind(device_rows) : std::vector<DeviceRow>();
  DeviceBatch behind = batch;
  behind.step_id = step_id + 1;
  behind.rows = rows_behind;
  if (!rows_behind.empty()) batch.next = &behind;
  DeviceOutput output;
  if (const absl::Status status = device_.RunStep(batch, side, &output); !status.ok())
    return fail(status);
  *begun = output.next_begun;

  size_t next_sample = 0;
  for (size_t i = 0; i < device_rows.size(); ++i) {
    if (device_rows[i].sampling == nullptr) continue;
    DeviceSample& sample = output.samples[next_sample++];
    Sequence& sequence = *sources[i];
    const StepRow& row = *source_rows[i];
    sequence.last_token = sample.token;
    sequence.next_position = device_rows[i].position + 1;
    const bool stop = sequence.sampling->IsStop(sample.token);
    result.rows.push_back({.sequence = row.sequence,
                           .position = device_rows[i].position,
                           .token_id = sample.token,
                           .logprobs = std::move(sample.logprobs),
                           .status = stop ? RowStatus::kStopped : RowStatus::kOk});
    if (static_cast<size_t>(sequence.next_position / kPageSize) < sequence.pages.size() &&
        sequence.next_position < options_.context_length) {
      next->push_back({.sequence = row.sequence, .exact = row.exact, .sample = true});
    }
  }
  // All or none: a grant whose rows do not all have a page ends, and the gateway decides.
  if (next->size() != output.samples.size()) next->clear();
  result.work_hash = output.work_hash;
  result.owed_hash = output.owed_hash;
  result.active_neurons = output.active_neurons;
  result.hot_neurons = output.hot_neurons;
  result.cpu_recomputed = output.cpu_recomputed;
  result.timings = std::move(output.timings);
  result.step_us =
      std::chrono::duration<float, std::micro>(std::chrono::steady_clock::now() - start).count();
  return result;
}

}  // namespace isotherm::gpu
