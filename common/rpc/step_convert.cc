#include "common/rpc/step_convert.h"

#include <bit>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace isotherm::rpc {
namespace {

constexpr int kMaxRows = 8192;
constexpr int kMaxPages = 1 << 20;

v1::SamplingParams ToProto(const SamplingParams& params) {
  v1::SamplingParams out;
  out.set_temperature(params.temperature);
  out.set_top_p(params.top_p);
  out.set_top_k(params.top_k);
  out.set_min_p(params.min_p);
  out.set_repetition_penalty(params.repetition_penalty);
  out.set_presence_penalty(params.presence_penalty);
  out.set_frequency_penalty(params.frequency_penalty);
  out.set_seed(params.seed);
  for (const auto& [id, bias] : params.logit_bias) (*out.mutable_logit_bias())[id] = bias;
  return out;
}

SamplingParams FromProto(const v1::SamplingParams& params) {
  SamplingParams out;
  if (params.has_temperature()) out.temperature = params.temperature();
  if (params.has_top_p()) out.top_p = params.top_p();
  out.top_k = params.top_k();
  out.min_p = params.min_p();
  if (params.has_repetition_penalty()) out.repetition_penalty = params.repetition_penalty();
  out.presence_penalty = params.presence_penalty();
  out.frequency_penalty = params.frequency_penalty();
  out.seed = params.seed();
  for (const auto& [id, bias] : params.logit_bias()) out.logit_bias.emplace_back(id, bias);
  return out;
}

template <typename T>
std::vector<T> ToVector(const google::protobuf::RepeatedField<T>& field) {
  return std::vector<T>(field.begin(), field.end());
}

TokenLogprobs FromProto(const v1::TokenLogprobs& logprobs) {
  TokenLogprobs out;
  out.sampled = {logprobs.sampled().token_id(), logprobs.sampled().logprob()};
  for (const v1::TokenLogprob& top : logprobs.top())
    out.top.push_back({top.token_id(), top.logprob()});
  return out;
}

}  // namespace

v1::TokenLogprobs ToProto(const TokenLogprobs& logprobs) {
  v1::TokenLogprobs out;
  out.mutable_sampled()->set_token_id(logprobs.sampled.token_id);
  out.mutable_sampled()->set_logprob(logprobs.sampled.logprob);
  for (const TokenLogprob& top : logprobs.top) {
    v1::TokenLogprob* entry = out.add_top();
    entry->set_token_id(top.token_id);
    entry->set_logprob(top.logprob);
  }
  return out;
}

v1::StepRequest ToProto(const StepRequest& request) {
  v1::StepRequest out;
  out.set_step_id(request.step_id);
  out.set_epoch(request.epoch);
  out.set_deadline_us(request.deadline_us);
  for (const StepRow& row : request.rows) {
    v1::StepRow* entry = out.add_rows();
    entry->set_sequence(row.sequence);
    if (row.token.has_value()) {
      entry->set_token(*row.token);
      entry->set_position(row.position);
    }
    entry->set_exact(row.exact);
    entry->set_sample(row.sample);
  }
  for (const PageTableChange& change : request.page_table) {
    v1::PageTableChange* entry = out.add_page_table();
    entry->set_sequence(change.sequence);
    entry->mutable_append_pages()->Add(change.append_pages.begin(), change.append_pages.end());
  }
  for (const LayerRange& range : request.layers) {
    v1::LayerRange* entry = out.add_layers();
    entry->set_first(range.first);
    entry->set_last(range.last);
    entry->set_mode(range.mode == LayerMode::kExact     ? v1::LAYER_MODE_EXACT
                    : range.mode == LayerMode::kGpuOnly ? v1::LAYER_MODE_GPU_ONLY
                                                        : v1::LAYER_MODE_HYBRID);
    entry->set_trace(range.trace);
  }
  for (const SequenceSampling& sampling : request.sampling) {
    v1::SequenceSampling* entry = out.add_sampling();
    entry->set_sequence(sampling.sequence);
    *entry->mutable_params() = ToProto(sampling.params);
    entry->mutable_stop_token_ids()->Add(sampling.stop_token_ids.begin(),
                                         sampling.stop_token_ids.end());
    entry->set_top_logprobs(sampling.top_logprobs);
    entry->mutable_penalty_tokens()->Add(sampling.penalty_tokens.begin(),
                                         sampling.penalty_tokens.end());
    entry->set_min_tokens(sampling.min_tokens);
  }
  out.set_grant(request.grant);
  out.mutable_release_sequences()->Add(request.release_sequences.begin(),
                                       request.release_sequences.end());
  return out;
}

absl::StatusOr<StepRequest> FromProto(const v1::StepRequest& request) {
  if (request.rows_size() > kMaxRows || request.grant() < 0 || request.grant() > kMaxRows ||
      request.step_id() < 0 || request.epoch() < 0 || request.deadline_us() < 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "step request out of bounds: rows=", request.rows_size(), " grant=", request.grant(),
        " step_id=", request.step_id(), " epoch=", request.epoch()));
  }
  StepRequest out;
  out.step_id = request.step_id();
  out.epoch = request.epoch();
  out.deadline_us = request.deadline_us();
  out.grant = request.grant();
  for (const v1::StepRow& row : request.rows()) {
    StepRow entry{.sequence = row.sequence(), .exact = row.exact(), .sample = row.sample()};
    if (row.has_token()) {
      if (row.position() < 0)
        return absl::InvalidArgumentError("step row with a negative position");
      entry.token = row.token();
      entry.position = row.position();
    }
    out.rows.push_back(entry);
  }
  for (const v1::PageTableChange& change : request.page_table()) {
    if (change.append_pages_size() > kMaxPages) {
      return absl::InvalidArgumentError(absl::StrCat(
          "page table change of ", change.append_pages_size(), " pages; at most ", kMaxPages));
    }
    out.page_table.push_back({change.sequence(), ToVector(change.append_pages())});
  }
  for (const v1::LayerRange& range : request.layers()) {
    LayerRange entry{.first = range.first(), .last = range.last(), .trace = range.trace()};
    switch (range.mode()) {
      case v1::LAYER_MODE_UNSPECIFIED:
      case v1::LAYER_MODE_HYBRID:
        entry.mode = LayerMode::kHybrid;
        break;
      case v1::LAYER_MODE_EXACT:
        entry.mode = LayerMode::kExact;
        break;
      case v1::LAYER_MODE_GPU_ONLY:
        entry.mode = LayerMode::kGpuOnly;
        break;
      default:
        return absl::InvalidArgumentError(absl::StrCat("unknown layer mode ", range.mode()));
    }
    out.layers.push_back(entry);
  }
  for (const v1::SequenceSampling& sampling : request.sampling()) {
    out.sampling.push_back({.sequence = sampling.sequence(),
                            .params = FromProto(sampling.params()),
                            .stop_token_ids = ToVector(sampling.stop_token_ids()),
                            .top_logprobs = sampling.top_logprobs(),
                            .penalty_tokens = ToVector(sampling.penalty_tokens()),
                            .min_tokens = sampling.min_tokens()});
  }
  out.release_sequences = ToVector(request.release_sequences());
  return out;
}

v1::StepResult ToProto(const StepResult& result) {
  v1::StepResult out;
  out.set_step_id(result.step_id);
  out.set_epoch(result.epoch);
  for (const RowResult& row : result.rows) {
    v1::RowResult* entry = out.add_rows();
    entry->set_sequence(row.sequence);
    entry->set_position(row.position);
    entry->set_token_id(row.token_id);
    if (row.logprobs.has_value()) *entry->mutable_logprobs() = ToProto(*row.logprobs);
    entry->set_status(row.status == RowStatus::kStopped  ? v1::ROW_STATUS_STOPPED
                      : row.status == RowStatus::kNoPage ? v1::ROW_STATUS_NO_PAGE
                                                         : v1::ROW_STATUS_OK);
  }
  out.set_work_hash(result.work_hash);
  out.set_owed_hash(result.owed_hash);
  for (const LayerTiming& timing : result.timings) {
    v1::LayerTiming* entry = out.add_timings();
    entry->set_layer(timing.layer);
    entry->set_attention_us(timing.attention_us);
    entry->set_predict_us(timing.predict_us);
    entry->set_gpu_us(timing.gpu_us);
    entry->set_cpu_us(timing.cpu_us);
    entry->set_wait_us(timing.wait_us);
    entry->set_merge_us(timing.merge_us);
    entry->set_active_neurons(timing.active_neurons);
    entry->set_hot_neurons(timing.hot_neurons);
    entry->set_post_us(timing.post_us);
    entry->set_streamed_us(timing.streamed_us);
  }
  out.set_active_neurons(result.active_neurons);
  out.set_hot_neurons(result.hot_neurons);
  out.set_step_us(result.step_us);
  out.set_grant_ended(result.grant_ended);
  out.set_error_code(result.error_code);
  out.set_error_message(result.error_message);
  out.set_attempt(result.attempt);
  out.set_cpu_recomputed(result.cpu_recomputed);
  return out;
}

absl::StatusOr<StepResult> FromProto(const v1::StepResult& result) {
  StepResult out;
  out.step_id = result.step_id();
  out.epoch = result.epoch();
  for (const v1::RowResult& row : result.rows()) {
    RowResult entry{
        .sequence = row.sequence(), .position = row.position(), .token_id = row.token_id()};
    if (row.has_logprobs()) entry.logprobs = FromProto(row.logprobs());
    switch (row.status()) {
      case v1::ROW_STATUS_OK:
        break;
      case v1::ROW_STATUS_STOPPED:
        entry.status = RowStatus::kStopped;
        break;
      case v1::ROW_STATUS_NO_PAGE:
        entry.status = RowStatus::kNoPage;
        break;
      default:
        return absl::InvalidArgumentError(absl::StrCat("unknown row status ", row.status()));
    }
    out.rows.push_back(std::move(entry));
  }
  out.work_hash = result.work_hash();
  out.owed_hash = result.owed_hash();
  for (const v1::LayerTiming& timing : result.timings()) {
    out.timings.push_back({.layer = timing.layer(),
                           .attention_us = timing.attention_us(),
                           .predict_us = timing.predict_us(),
                           .gpu_us = timing.gpu_us(),
                           .cpu_us = timing.cpu_us(),
                           .wait_us = timing.wait_us(),
                           .merge_us = timing.merge_us(),
                           .streamed_us = timing.streamed_us(),
                           .active_neurons = timing.active_neurons(),
                           .hot_neurons = timing.hot_neurons(),
                           .post_us = timing.post_us()});
  }
  out.active_neurons = result.active_neurons();
  out.hot_neurons = result.hot_neurons();
  out.step_us = result.step_us();
  out.grant_ended = result.grant_ended();
  out.error_code = result.error_code();
  out.error_message = result.error_message();
  out.attempt = result.attempt();
  out.cpu_recomputed = result.cpu_recomputed();
  return out;
}

v1::WorkerHello ToProto(const WorkerHello& hello) {
  v1::WorkerHello out;
  out.set_instance_id(hello.instance_id);
  for (const int64_t epoch : hello.epochs) out.add_epochs(epoch);
  out.set_kv_pages(hello.kv_pages);
  out.set_page_size(hello.page_size);
  out.set_max_rows(hello.max_rows);
  out.set_context_length(hello.context_length);
  out.set_peer_attached(hello.peer_attached);
  out.set_model_digest(hello.model_digest);
  out.set_kv_pages_most(hello.kv_pages_most);
  return out;
}

WorkerHello FromProto(const v1::WorkerHello& hello) {
  return {.instance_id = hello.instance_id(),
          .epochs = std::vector<int64_t>(hello.epochs().begin(), hello.epochs().end()),
          .kv_pages = hello.kv_pages(),
          .page_size = hello.page_size(),
          .max_rows = hello.max_rows(),
          .context_length = hello.context_length(),
          .peer_attached = hello.peer_attached(),
          .model_digest = hello.model_digest(),
          .kv_pages_most = hello.kv_pages_most()};
}

v1::KvDemand ToProto(const KvDemand& demand) {
  v1::KvDemand out;
  out.set_wanted(demand.wanted);
  out.set_top(demand.top);
  return out;
}

absl::StatusOr<KvDemand> FromProto(const v1::KvDemand& demand) {
  if (demand.wanted() < 0 || demand.top() < 0) {
    return absl::InvalidArgumentError(absl::StrCat("KV demand of ", demand.wanted(),
                                                   " pages below ", demand.top(), "; 0 or more"));
  }
  return KvDemand{.wanted = demand.wanted(), .top = demand.top()};
}

namespace {

constexpr std::pair<PlacementCause, v1::PlacementCause> kCauses[] = {
    {PlacementCause::kInitial, v1::PLACEMENT_CAUSE_INITIAL},
    {PlacementCause::kBudget, v1::PLACEMENT_CAUSE_BUDGET},
    {PlacementCause::kRollback, v1::PLACEMENT_CAUSE_ROLLBACK},
    {PlacementCause::kTraffic, v1::PLACEMENT_CAUSE_TRAFFIC},
    {PlacementCause::kRecompute, v1::PLACEMENT_CAUSE_RECOMPUTE},
    {PlacementCause::kImport, v1::PLACEMENT_CAUSE_IMPORT}};

v1::PlacementCause CauseToProto(PlacementCause cause) {
  for (const auto& [domain, wire] : kCauses) {
    if (domain == cause) return wire;
  }
  return v1::PLACEMENT_CAUSE_UNSPECIFIED;
}

PlacementCause CauseFromProto(v1::PlacementCause cause) {
  for (const auto& [domain, wire] : kCauses) {
    if (wire == cause) return domain;
  }
  return PlacementCause::kInitial;
}

}  // namespace

v1::DeviceMemory ToProto(const DeviceMemoryUse& use) {
  v1::DeviceMemory out;
  out.set_context_bytes(use.context);
  out.set_dense_bytes(use.dense);
  out.set_head_bytes(use.head);
  out.set_predictor_bytes(use.predictor);
  out.set_kv_bytes(use.kv);
  out.set_workspace_bytes(use.workspace);
  out.set_table_bytes(use.tables);
  out.set_hot_pool_bytes(use.hot_pool);
  out.set_process_bytes(use.process);
  out.set_budget_bytes(use.budget);
  return out;
}

DeviceMemoryUse FromProto(const v1::DeviceMemory& memory) {
  return {.context = memory.context_bytes(),
          .dense = memory.dense_bytes(),
          .head = memory.head_bytes(),
          .predictor = memory.predictor_bytes(),
          .kv = memory.kv_bytes(),
          .workspace = memory.workspace_bytes(),
          .tables = memory.table_bytes(),
          .hot_pool = memory.hot_pool_bytes(),
          .process = memory.process_bytes(),
          .budget = memory.budget_bytes()};
}

v1::PlacementPlan ToProto(const PlacementPlan& plan, bool include_bitmaps) {
  v1::PlacementPlan out;
  out.set_epoch(plan.epoch);
  out.set_etag(plan.etag);
  out.set_model_digest(plan.model_digest);
  out.set_budget_bytes(plan.budget_bytes);
  out.set_used_bytes(plan.used_bytes);
  out.set_cause(CauseToProto(plan.cause));
  out.set_created_unix_ms(plan.created_unix_ms);
  for (const LayerPlacement& layer : plan.layers) {
    v1::LayerPlacement* entry = out.add_layers();
    if (include_bitmaps) {
      // Words are little-endian in memory on every platform the build accepts.
      static_assert(std::endian::native == std::endian::little);
      std::string bytes(static_cast<size_t>((layer.num_neurons + 7) / 8), '\0');
      std::memcpy(bytes.data(), layer.hot.data(), bytes.size());
      entry->set_gpu_bitmap(std::move(bytes));
    }
    entry->set_gpu_neurons(layer.num_hot);
    entry->set_total_neurons(layer.num_neurons);
    entry->set_predicted_hit_share(layer.predicted_hit_share);
  }
  out.set_profile(plan.profile);
  out.set_solver(plan.solver);
  out.set_objective(plan.objective);
  out.set_from_epoch(plan.from_epoch);
  out.set_predicted_ns(plan.predicted_ns);
  out.set_bound_ns(plan.bound_ns);
  return out;
}

absl::StatusOr<PlacementPlan> FromProto(const v1::PlacementPlan& plan) {
  constexpr int64_t kMaxNeurons = int64_t{1} << 24;
  constexpr int kMaxLayers = 1024;
  if (plan.layers_size() > kMaxLayers || plan.epoch() < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("plan out of bounds: layers=", plan.layers_size(), " (at most ", kMaxLayers,
                     "), epoch=", plan.epoch()));
  }
  PlacementPlan out;
  out.epoch = plan.epoch();
  out.etag = plan.etag();
  out.model_digest = plan.model_digest();
  out.budget_bytes = plan.budget_bytes();
  out.used_bytes = plan.used_bytes();
  out.cause = CauseFromProto(plan.cause());
  out.created_unix_ms = plan.created_unix_ms();
  for (const v1::LayerPlacement& layer : plan.layers()) {
    const int64_t total = layer.total_neurons();
    if (total < 0 || total > kMaxNeurons || layer.gpu_neurons() < 0 ||
        layer.gpu_neurons() > total) {
      return absl::InvalidArgumentError(absl::StrCat(
          "plan layer out of bounds: ", layer.gpu_neurons(), " of ", total, " neurons"));
    }
    LayerPlacement entry{.num_neurons = total,
                         .num_hot = layer.gpu_neurons(),
                         .predicted_hit_share = layer.predicted_hit_share()};
    if (!layer.gpu_bitmap().empty()) {
      if (static_cast<int64_t>(layer.gpu_bitmap().size()) != (total + 7) / 8) {
        return absl::InvalidArgumentError(absl::StrCat("plan bitmap has ",
                                                       layer.gpu_bitmap().size(), " bytes; ", total,
                                                       " neurons need ", (total + 7) / 8));
      }
      entry.hot.assign(static_cast<size_t>((total + 63) / 64), 0);
      std::memcpy(entry.hot.data(), layer.gpu_bitmap().data(), layer.gpu_bitmap().size());
      int64_t count = 0;
      for (const uint64_t word : entry.hot) count += std::popcount(word);
      const bool bits_past_end =
          total % 64 != 0 && (entry.hot.back() >> (static_cast<uint64_t>(total) % 64)) != 0;
      if (count != layer.gpu_neurons() || bits_past_end) {
        return absl::InvalidArgumentError(
            absl::StrCat("plan bitmap has ", count, " bits, the plan says ", layer.gpu_neurons()));
      }
    }
    out.layers.push_back(std::move(entry));
  }
  out.profile = plan.profile();
  out.solver = plan.solver();
  out.objective = plan.objective();
  out.from_epoch = plan.from_epoch();
  out.predicted_ns = plan.predicted_ns();
  out.bound_ns = plan.bound_ns();
  return out;
}

}  // namespace isotherm::rpc
