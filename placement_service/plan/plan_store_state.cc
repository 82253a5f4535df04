// What PlanStore keeps beside plans: settings, ended recomputations, the profile.
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/exit_code.h"
#include "common/base/status_macros.h"
#include "placement_service/plan/plan_codec.h"
#include "placement_service/plan/plan_store.h"

namespace isotherm {
namespace {

constexpr size_t kMaxProfileLayers = 1'024;
constexpr size_t kMaxProfileNeurons = size_t{1} << 24;

absl::Status BadProfile(absl::string_view what) {
  return WithExitCode(absl::DataLossError(absl::StrCat("the stored profile is damaged: ", what)),
                      ExitCode::kBadData);
}

absl::string_view BytesOf(const std::vector<float>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

// Shares: of float's size, each within 0 to 1.
absl::StatusOr<std::vector<float>> SharesOf(const std::string& bytes) {
  if (bytes.size() % sizeof(float) != 0 || bytes.size() / sizeof(float) > kMaxProfileNeurons) {
    return BadProfile(absl::StrCat("a layer has ", bytes.size(), " bytes"));
  }
  std::vector<float> out(bytes.size() / sizeof(float));
  if (!out.empty()) std::memcpy(out.data(), bytes.data(), bytes.size());
  for (const float value : out) {
    if (!(value >= 0 && value <= 1)) return BadProfile("a share is not within 0 to 1");
  }
  return out;
}

bool IsCount(double tokens) { return tokens >= 0 && tokens < 1e18; }

}  // namespace

absl::Status PlanStore::RecordMeasured(int64_t epoch, double hit_share,
                                       std::optional<double> gain) {
  return Write([&](Sqlite& db) -> absl::Status {
    ISOTHERM_ASSIGN_OR_RETURN(
        SqliteStatement update,
        db.Prepare("UPDATE plan SET measured_hit_share = ?, measured_gain = ? WHERE epoch = ?"));
    return update.Bind(hit_share).Bind(gain).Bind(epoch).Run();
  });
}

absl::Status PlanStore::PutSetting(absl::string_view key, absl::string_view value) {
  return Write([&](Sqlite& db) -> absl::Status {
    ISOTHERM_ASSIGN_OR_RETURN(SqliteStatement put,
                              db.Prepare("INSERT OR REPLACE INTO setting VALUES (?, ?)"));
    return put.Bind(key).Bind(value).Run();
  });
}

absl::StatusOr<std::optional<std::string>> PlanStore::GetSetting(absl::string_view key) {
  absl::MutexLock lock(&mu_);
  ISOTHERM_ASSIGN_OR_RETURN(SqliteStatement select,
                            db_.Prepare("SELECT value FROM setting WHERE key = ?"));
  ISOTHERM_ASSIGN_OR_RETURN(const bool row, select.Bind(key).Step());
  if (!row) return std::optional<std::string>();
  return std::optional<std::string>(select.Bytes(0));
}

absl::Status PlanStore::PutRecomputation(const RecomputationRecord& record) {
  return Write([&](Sqlite& db) -> absl::Status {
    ISOTHERM_ASSIGN_OR_RETURN(
        SqliteStatement put,
        db.Prepare("INSERT OR REPLACE INTO recomputation (id, fingerprint, state, epoch, "
                   "moved_neurons, moved_bytes, predicted_gain, reason, budget_bytes, used_bytes, "
                   "objective, layers) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"));
    ISOTHERM_RETURN_IF_ERROR(put.Bind(record.id)
                                 .Bind(record.fingerprint)
                                 .Bind(static_cast<int64_t>(record.state))
                                 .Bind(record.proposal.epoch)
                                 .Bind(record.moved_neurons)
                                 .Bind(record.moved_bytes)
                                 .Bind(record.predicted_gain)
                                 .Bind(record.reason)
                                 .Bind(record.proposal.budget_bytes)
                                 .Bind(record.proposal.used_bytes)
                                 .Bind(record.proposal.objective)
                                 .BindBlob(EncodeLayers(record.proposal))
                                 .Run());
    ISOTHERM_ASSIGN_OR_RETURN(
        SqliteStatement prune,
        db.Prepare("DELETE FROM recomputation WHERE number <= (SELECT number FROM recomputation "
                   "ORDER BY number DESC LIMIT 1 OFFSET ?)"));
    return prune.Bind(kMaxRecomputations).Run();
  });
}

absl::StatusOr<std::optional<RecomputationRecord>> PlanStore::GetRecomputation(
    absl::string_view id) {
  absl::MutexLock lock(&mu_);
  ISOTHERM_ASSIGN_OR_RETURN(
      SqliteStatement row,
      db_.Prepare("SELECT id, fingerprint, state, epoch, moved_neurons, moved_bytes, "
                  "predicted_gain, reason, budget_bytes, used_bytes, objective, layers FROM "
                  "recomputation WHERE id = ?"));
  ISOTHERM_ASSIGN_OR_RETURN(const bool found, row.Bind(id).Step());
  if (!found) return std::optional<RecomputationRecord>();
  RecomputationRecord record{.id = row.Bytes(0), .fingerprint = row.Bytes(1), .progress = 1};
  const int64_t state = row.Int(2);
  if (state < 0 || state > static_cast<int64_t>(RecomputationState::kFailed)) {
    return WithExitCode(absl::DataLossError(absl::StrCat("recomputation ", record.id,
                                                         " is stored in state ", state)),
                        ExitCode::kBadData);
  }
  record.state = static_cast<RecomputationState>(state);
  record.proposal.epoch = row.Int(3);
  record.moved_neurons = row.Int(4);
  record.moved_bytes = row.Int(5);
  record.predicted_gain = row.Double(6);
  record.reason = row.Bytes(7);
  record.proposal.budget_bytes = row.Int(8);
  record.proposal.used_bytes = row.Int(9);
  record.proposal.objective = row.Double(10);
  ISOTHERM_ASSIGN_OR_RETURN(record.proposal.layers, DecodeLayers(row.Bytes(11), true));
  return std::optional<RecomputationRecord>(std::move(record));
}

absl::Status PlanStore::PutProfile(const StoredProfile& profile) {
  return Write([&](Sqlite& db) -> absl::Status {
    for (const char* table : {"profile", "profile_layer", "profile_instance"}) {
      ISOTHERM_RETURN_IF_ERROR(db.Execute(absl::StrCat("DELETE FROM ", table).c_str()));
    }
    ISOTHERM_ASSIGN_OR_RETURN(SqliteStatement head,
                              db.Prepare("INSERT INTO profile VALUES (1, ?, ?, ?)"));
    ISOTHERM_RETURN_IF_ERROR(
        head.Bind(profile.model_digest).Bind(profile.name).Bind(profile.total_tokens).Run());
    for (size_t l = 0; l < profile.layers.size(); ++l) {
      const LiveProfile::Layer& layer = profile.layers[l];
      ISOTHERM_ASSIGN_OR_RETURN(SqliteStatement insert,
                                db.Prepare("INSERT INTO profile_layer VALUES (?, ?, ?, ?, ?)"));
      ISOTHERM_RETURN_IF_ERROR(insert.Bind(static_cast<int64_t>(l))
                                   .Bind(layer.tokens)
                                   .Bind(layer.fired_tokens)
                                   .BindBlob(BytesOf(layer.predicted))
                                   .BindBlob(BytesOf(layer.fired))
                                   .Run());
    }
    for (const auto& [id, sequence] : profile.last_sequence) {
      ISOTHERM_ASSIGN_OR_RETURN(SqliteStatement insert,
                                db.Prepare("INSERT INTO profile_instance VALUES (?, ?)"));
      ISOTHERM_RETURN_IF_ERROR(insert.Bind(id).Bind(sequence).Run());
    }
    return absl::OkStatus();
  });
}

absl::StatusOr<std::optional<StoredProfile>> PlanStore::GetProfile() {
  absl::MutexLock lock(&mu_);
  StoredProfile profile;
  {
    ISOTHERM_ASSIGN_OR_RETURN(SqliteStatement head,
                              db_.Prepare("SELECT model_digest, name, total_tokens FROM profile"));
    ISOTHERM_ASSIGN_OR_RETURN(const bool found, head.Step());
    if (!found) return std::optional<StoredProfile>();
    profile.model_digest = head.Bytes(0);
    profile.name = head.Bytes(1);
    profile.total_tokens = head.Double(2);
    if (!IsCount(profile.total_tokens)) return BadProfile("its number of tokens");
  }
  {
    ISOTHERM_ASSIGN_OR_RETURN(
        SqliteStatement rows,
        db_.Prepare("SELECT layer, tokens, fired_tokens, predicted, fired FROM profile_layer "
                    "ORDER BY layer"));
    while (true) {
      ISOTHERM_ASSIGN_OR_RETURN(const bool row, rows.Step());
      if (!row) break;
      LiveProfile::Layer layer{.tokens = rows.Double(1), .fired_tokens = rows.Double(2)};
      if (rows.Int(0) != static_cast<int64_t>(profile.layers.size()) ||
          profile.layers.size() >= kMaxProfileLayers || !IsCount(layer.tokens) ||
          !IsCount(layer.fired_tokens)) {
        return BadProfile(absl::StrCat("layer ", rows.Int(0), " is out of bounds"));
      }
      ISOTHERM_ASSIGN_OR_RETURN(layer.predicted, SharesOf(rows.Bytes(3)));
      ISOTHERM_ASSIGN_OR_RETURN(layer.fired, SharesOf(rows.Bytes(4)));
      profile.layers.push_back(std::move(layer));
    }
  }
  ISOTHERM_ASSIGN_OR_RETURN(SqliteStatement instances,
                            db_.Prepare("SELECT id, last_sequence FROM profile_instance"));
  while (true) {
    ISOTHERM_ASSIGN_OR_RETURN(const bool row, instances.Step());
    if (!row) break;
    if (instances.Int(1) < 0) return BadProfile("a sequence is negative");
    profile.last_sequence[instances.Bytes(0)] = instances.Int(1);
  }
  return std::optional<StoredProfile>(std::move(profile));
}

}  // namespace isotherm
