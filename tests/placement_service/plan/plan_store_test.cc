#include "placement_service/plan/plan_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sqlite3.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>

#include "common/base/exit_code.h"
#include "placement_service/plan/plan_codec.h"
#include "tests/fakes/faulty_vfs.h"

namespace isotherm {
namespace {

using ::testing::HasSubstr;

PlanRecord Record(int64_t epoch, uint64_t bits) {
  PlanRecord record;
  PlacementPlan& plan = record.plan;
  plan.epoch = epoch;
  plan.model_digest = "digest";
  plan.budget_bytes = 1000;
  plan.used_bytes = 640;
  plan.cause = PlacementCause::kBudget;
  plan.created_unix_ms = 123;
  plan.layers = {{.hot = {bits, 1}, .num_neurons = 70, .predicted_hit_share = 0.5},
                 {.hot = {0}, .num_neurons = 64, .predicted_hit_share = 0}};
  plan.layers[0].num_hot = std::popcount(bits) + 1;
  plan.profile = "chat";
  plan.solver = "threshold";
  plan.objective = 0.25;
  plan.from_epoch = 3;
  plan.etag = PlanEtag(plan);
  record.moved_neurons = 9;
  record.requested_bytes = 2000;
  record.start_options = "budget=2000";
  return record;
}

class PlanStoreTest : public ::testing::Test {
 protected:
  PlanStoreTest() {
    std::string pattern = ::testing::TempDir() + "/plan_store_XXXXXX";
    directory_ = ::mkdtemp(pattern.data());
    path_ = directory_ + "/plans.sqlite";
  }
  ~PlanStoreTest() override { std::filesystem::remove_all(directory_); }

  std::unique_ptr<PlanStore> Open(const std::string& vfs = "") {
    auto store = PlanStore::Open({path_, vfs});
    EXPECT_TRUE(store.ok()) << store.status();
    return store.ok() ? *std::move(store) : nullptr;
  }
  // Runs SQL on the file itself, which no store may hold.
  void Execute(const std::string& sql) {
    sqlite3* db = nullptr;
    ASSERT_EQ(sqlite3_open(path_.c_str(), &db), SQLITE_OK);
    EXPECT_EQ(sqlite3_exec(db, sql.c_str(), nullptr, nullptr, nullptr), SQLITE_OK)
        << sqlite3_errmsg(db);
    sqlite3_close(db);
  }
  std::string Contents() const {
    std::ifstream file(path_, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }

  std::string directory_;
  std::string path_;
};

TEST_F(PlanStoreTest, KeepsEveryFieldAcrossAReopen) {
  const PlanRecord written = Record(1, 0b1011);
  {
    auto store = Open();
    ASSERT_TRUE(store->InsertPreparing(written, ControlRequest{"id", "budget 2000", 1}).ok());
  }
  auto store = Open();
  const auto read = store->Preparing();
  ASSERT_TRUE(read.ok() && read->has_value()) << read.status();
  const PlacementPlan& plan = (*read)->plan;
  EXPECT_EQ(plan.epoch, 1);
  EXPECT_EQ(plan.etag, written.plan.etag);
  EXPECT_EQ(plan.model_digest, "digest");
  EXPECT_EQ(plan.budget_bytes, 1000);
  EXPECT_EQ(plan.used_bytes, 640);
  EXPECT_EQ(plan.cause, PlacementCause::kBudget);
  EXPECT_EQ(plan.created_unix_ms, 123);
  EXPECT_EQ(plan.layers[0].hot, written.plan.layers[0].hot);
  EXPECT_EQ(plan.layers[0].num_hot, 4);
  EXPECT_EQ(plan.layers[0].predicted_hit_share, 0.5);
  EXPECT_EQ(plan.profile, "chat");
  EXPECT_EQ(plan.solver, "threshold");
  EXPECT_EQ(plan.objective, 0.25);
  EXPECT_EQ(plan.from_epoch, 3);
  EXPECT_EQ((*read)->moved_neurons, 9);
  EXPECT_EQ((*read)->requested_bytes, 2000);
  EXPECT_EQ((*read)->start_options, "budget=2000");
  const auto request = store->FindRequest("id");
  ASSERT_TRUE(request.ok() && request->has_value());
  EXPECT_EQ((*request)->fingerprint, "budget 2000");
  EXPECT_EQ((*request)->epoch, 1);
  EXPECT_FALSE(store->FindRequest("other")->has_value());
  EXPECT_TRUE(store->Get(1, /*bitmaps=*/false)->plan.layers[0].hot.empty());
  EXPECT_EQ(store->Get(2, false).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(PlanStoreTest, HasOneLivePlanAndRetiresTheOneBefore) {
  auto store = Open();
  EXPECT_FALSE(store->Live()->has_value());
  ASSERT_TRUE(store->InsertPreparing(Record(1, 1), {}).ok());
  EXPECT_EQ(store->InsertPreparing(Record(2, 1), {}).code(),
            absl::StatusCode::kFailedPrecondition);  // one at a time
  ASSERT_TRUE(store->MarkLive(1).ok());
  EXPECT_FALSE(store->MarkLive(1).ok());
  EXPECT_EQ(store->Live()->value().plan.epoch, 1);  // the refused call changed nothing
  ASSERT_TRUE(store->InsertPreparing(Record(2, 2), {}).ok());
  ASSERT_TRUE(store->MarkLive(2).ok());
  EXPECT_EQ(store->Live()->value().plan.epoch, 2);
  EXPECT_EQ(store->Get(1, false)->state, PlanState::kRetired);
  ASSERT_TRUE(store->InsertPreparing(Record(5, 3), {}).ok());
  ASSERT_TRUE(store->MarkFailed(5, "no room").ok());
  EXPECT_EQ(store->Get(5, false)->message, "no room");
  EXPECT_EQ(store->InsertPreparing(Record(4, 1), {}).code(),
            absl::StatusCode::kFailedPrecondition);  // epochs only grow
  EXPECT_EQ(*store->NewestEpoch(), 5);
  const auto history = store->History(/*before=*/6, /*limit=*/2);
  ASSERT_EQ(history->size(), 2u);
  EXPECT_EQ((*history)[0].plan.epoch, 5);
  EXPECT_EQ((*history)[1].plan.epoch, 2);
  EXPECT_EQ(store->History(2, 10)->size(), 1u);
}

TEST_F(PlanStoreTest, TermsGrowOverRestartsAndClocks) {
  EXPECT_EQ(*Open()->ClaimTerm(0), 1);
  EXPECT_EQ(*Open()->ClaimTerm(100), 100);
  EXPECT_EQ(*Open()->ClaimTerm(50), 101);  // the clock went back
  EXPECT_EQ(*Open()->LastTerm(), 101);
}

TEST_F(PlanStoreTest, IsHeldByOneProcessAtATime) {
  auto store = Open();
  const auto second = PlanStore::Open({path_, ""});
  EXPECT_EQ(ExitCodeOf(second.status()), ExitCode::kShortage) << second.status();
  EXPECT_THAT(std::string(second.status().message()), HasSubstr("another placement_service"));
}

TEST_F(PlanStoreTest, RefusesGarbageAndLeavesItAlone) {
  std::string garbage(9000, 'x');
  std::ofstream(path_, std::ios::binary) << garbage;
  const auto store = PlanStore::Open({path_, ""});
  EXPECT_EQ(ExitCodeOf(store.status()), ExitCode::kBadData) << store.status();
  EXPECT_EQ(Contents(), garbage);
}

TEST_F(PlanStoreTest, RefusesANewerSchemaAndOtherProgramsFiles) {
  Open();
  for (const char* change : {"PRAGMA user_version = 3", "PRAGMA application_id = 7"}) {
    Execute(change);
    const std::string before = Contents();
    const auto store = PlanStore::Open({path_, ""});
    EXPECT_EQ(ExitCodeOf(store.status()), ExitCode::kBadData) << store.status();
    EXPECT_EQ(Contents(), before);
  }
}

// As the release before wrote it: without reasons, gains, settings, recomputations and profile.
constexpr char kVersion1[] = R"sql(
CREATE TABLE term (only_row INTEGER PRIMARY KEY CHECK (only_row = 1), term INTEGER NOT NULL) STRICT;
INSERT INTO term VALUES (1, 41);
CREATE TABLE plan (
  epoch INTEGER PRIMARY KEY CHECK (epoch > 0),
  state INTEGER NOT NULL CHECK (state BETWEEN 0 AND 3),
  model_digest TEXT NOT NULL, etag TEXT NOT NULL, budget_bytes INTEGER NOT NULL,
  used_bytes INTEGER NOT NULL, requested_bytes INTEGER NOT NULL,
  cause INTEGER NOT NULL CHECK (cause BETWEEN 0 AND 2),
  created_unix_ms INTEGER NOT NULL, profile TEXT NOT NULL, solver TEXT NOT NULL,
  objective REAL NOT NULL, from_epoch INTEGER NOT NULL, moved_neurons INTEGER NOT NULL,
  message TEXT NOT NULL, start_options TEXT NOT NULL, layers BLOB NOT NULL) STRICT;
CREATE UNIQUE INDEX one_preparing ON plan (state) WHERE state = 0;
CREATE UNIQUE INDEX one_live ON plan (state) WHERE state = 1;
CREATE TABLE request (
  request_id TEXT PRIMARY KEY, fingerprint TEXT NOT NULL, epoch INTEGER NOT NULL) STRICT;
INSERT INTO request VALUES ('old', 'budget 1', 2);
PRAGMA application_id = 0x49534f54;
PRAGMA user_version = 1;
)sql";

TEST_F(PlanStoreTest, BringsAnOlderStoreUpToDate) {
  Execute(kVersion1);
  sqlite3* db = nullptr;
  ASSERT_EQ(sqlite3_open(path_.c_str(), &db), SQLITE_OK);
  sqlite3_stmt* insert = nullptr;
  ASSERT_EQ(sqlite3_prepare_v2(db,
                               "INSERT INTO plan VALUES (?, ?, 'digest', 'etag', 1000, 640, 2000, "
                               "1, 5, 'chat', 'threshold', 0.5, 0, 9, '', 'o', ?)",
                               -1, &insert, nullptr),
            SQLITE_OK);
  const std::string layers = EncodeLayers(Record(1, 0b1011).plan);
  for (const auto& [epoch, state] : {std::pair(1, 2), std::pair(2, 1)}) {
    sqlite3_bind_int(insert, 1, epoch);
    sqlite3_bind_int(insert, 2, state);
    sqlite3_bind_blob(insert, 3, layers.data(), static_cast<int>(layers.size()), SQLITE_STATIC);
    ASSERT_EQ(sqlite3_step(insert), SQLITE_DONE);
    sqlite3_reset(insert);
  }
  sqlite3_finalize(insert);
  sqlite3_close(db);
  for (int open = 0; open < 2; ++open) {  // upgraded once, then as any other
    auto store = Open();
    ASSERT_NE(store, nullptr);
    EXPECT_EQ(*store->LastTerm(), 41);
    const auto live = store->Live();
    ASSERT_TRUE(live.ok() && live->has_value()) << live.status();
    EXPECT_EQ((*live)->plan.epoch, 2);
    EXPECT_EQ((*live)->reason, "");
    EXPECT_FALSE((*live)->measured_gain.has_value());
    EXPECT_EQ(store->Get(1, true)->plan.layers[0].hot[0], 0b1011u);
    EXPECT_EQ((*store->FindRequest("old"))->epoch, 2);
  }
  auto store = Open();
  PlanRecord next = Record(3, 1);
  next.plan.cause = PlacementCause::kImport;  // the first release knew none of these
  next.reason = "because";
  ASSERT_TRUE(store->InsertPreparing(next, std::nullopt).ok());
  ASSERT_TRUE(store->MarkLive(3).ok());
  EXPECT_EQ(store->Get(2, false)->state, PlanState::kRetired);
  EXPECT_EQ((*store->Live())->reason, "because");
}

TEST_F(PlanStoreTest, AnUpgradeThatFailsChangesNothing) {
  Execute(kVersion1);
  FaultyVfs vfs;
  int failures = 0;
  for (int n = 0; n < 200; ++n) {
    vfs.Heal();
    vfs.FailAfter(n, SQLITE_FULL);
    const bool opened = PlanStore::Open({path_, vfs.name()}).ok();
    vfs.Heal();
    if (opened && n > 0) break;
    ++failures;
    // The old store is whole still: another try gets further.
    Execute("SELECT 1 FROM request WHERE request_id = 'old'");
  }
  EXPECT_GT(failures, 2);
  EXPECT_NE(Open(), nullptr);
}

TEST_F(PlanStoreTest, KeepsReasonsGainsAndSettings) {
  {
    auto store = Open();
    PlanRecord record = Record(1, 0b1011);
    record.reason = "the traffic changed";
    record.predicted_gain = 0.125;
    record.plan.predicted_ns = 1e6;
    record.plan.bound_ns = 9e5;
    ASSERT_TRUE(store->InsertPreparing(record, std::nullopt).ok());
    ASSERT_TRUE(store->MarkLive(1).ok());
    ASSERT_TRUE(store->RecordMeasured(1, 0.5, std::nullopt).ok());
    ASSERT_TRUE(store->PutSetting("a", "1").ok());
    ASSERT_TRUE(store->PutSetting("a", "2").ok());
  }
  auto store = Open();
  PlanRecord read = *store->Get(1, false);
  EXPECT_EQ(read.reason, "the traffic changed");
  EXPECT_EQ(read.predicted_gain, 0.125);
  EXPECT_EQ(read.plan.predicted_ns, 1e6);
  EXPECT_EQ(read.plan.bound_ns, 9e5);
  EXPECT_EQ(read.measured_hit_share, 0.5);
  EXPECT_FALSE(read.measured_gain.has_value());
  ASSERT_TRUE(store->RecordMeasured(1, 0.5, -0.25).ok());
  EXPECT_EQ(store->Get(1, false)->measured_gain, -0.25);
  EXPECT_EQ(*store->GetSetting("a"), "2");
  EXPECT_FALSE(store->GetSetting("b")->has_value());
}

TEST_F(PlanStoreTest, KeepsTheProfile) {
  StoredProfile profile{.model_digest = "digest", .name = "chat", .total_tokens = 12.5};
  profile.layers = {{.tokens = 3, .fired_tokens = 4, .predicted = {0, 0.5f}, .fired = {1, 0.25f}},
                    {.tokens = 5, .fired_tokens = 6, .predicted = {1, 1}, .fired = {0, 0}}};
  profile.last_sequence = {{"gpu", 7}, {"cpu", 9}};
  {
    auto store = Open();
    EXPECT_FALSE(store->GetProfile()->has_value());
    ASSERT_TRUE(store->PutProfile(profile).ok());
    profile.total_tokens = 13;
    ASSERT_TRUE(store->PutProfile(profile).ok());
  }
  {
    auto store = Open();
    const auto read = store->GetProfile();
    ASSERT_TRUE(read.ok() && read->has_value()) << read.status();
    EXPECT_EQ((*read)->model_digest, "digest");
    EXPECT_EQ((*read)->name, "chat");
    EXPECT_EQ((*read)->total_tokens, 13);
    EXPECT_EQ((*read)->last_sequence, profile.last_sequence);
    ASSERT_EQ((*read)->layers.size(), 2u);
    EXPECT_EQ((*read)->layers[0].predicted, profile.layers[0].predicted);
    EXPECT_EQ((*read)->layers[0].fired, profile.layers[0].fired);
    EXPECT_EQ((*read)->layers[1].fired_tokens, 6);
  }
  // Bytes that are no shares are refused, and the plans beside them serve on.
  Execute("UPDATE profile_layer SET fired = x'0000c0ff'");
  auto store = Open();
  EXPECT_EQ(store->GetProfile().status().code(), absl::StatusCode::kDataLoss);
  ASSERT_TRUE(store->PutProfile(profile).ok());
  EXPECT_TRUE(store->GetProfile()->has_value());
}

TEST_F(PlanStoreTest, KeepsEndedRecomputationsUpToABound) {
  auto store = Open();
  RecomputationRecord record{.id = "first",
                             .fingerprint = "recompute",
                             .state = RecomputationState::kProposed,
                             .moved_neurons = 3,
                             .moved_bytes = 90,
                             .predicted_gain = 0.5,
                             .reason = "in words"};
  record.proposal = Record(0, 0b1011).plan;
  ASSERT_TRUE(store->PutRecomputation(record).ok());
  const auto read = store->GetRecomputation("first");
  ASSERT_TRUE(read.ok() && read->has_value()) << read.status();
  EXPECT_EQ((*read)->fingerprint, "recompute");
  EXPECT_EQ((*read)->state, RecomputationState::kProposed);
  EXPECT_EQ((*read)->moved_neurons, 3);
  EXPECT_EQ((*read)->moved_bytes, 90);
  EXPECT_EQ((*read)->predicted_gain, 0.5);
  EXPECT_EQ((*read)->reason, "in words");
  EXPECT_EQ(PlanChecksum((*read)->proposal), PlanChecksum(record.proposal));
  record.proposal.layers.clear();
  for (int64_t i = 0; i < PlanStore::kMaxRecomputations; ++i) {
    record.id = std::to_string(i);
    ASSERT_TRUE(store->PutRecomputation(record).ok());
  }
  EXPECT_FALSE(store->GetRecomputation("first")->has_value());
  EXPECT_TRUE(store->GetRecomputation("0")->has_value());
}

TEST_F(PlanStoreTest, OldAutomaticPlansLoseTheirContentsAlone) {
  auto store = Open();
  for (int64_t epoch = 1; epoch <= 530; ++epoch) {
    PlanRecord record = Record(epoch, 0b1011);
    record.plan.cause = epoch == 3 ? PlacementCause::kRecompute : PlacementCause::kTraffic;
    ASSERT_TRUE(store->InsertPreparing(record, std::nullopt).ok());
    ASSERT_TRUE(store->MarkLive(epoch).ok());
  }
  EXPECT_FALSE(store->Get(1, true)->contents_kept);
  EXPECT_EQ(store->Get(1, true)->plan.used_bytes, 640);  // its line is there
  EXPECT_TRUE(store->Get(3, true)->contents_kept);       // someone asked for it
  EXPECT_TRUE(store->Get(100, true)->contents_kept);
  EXPECT_EQ(store->History(1'000, 1'000)->size(), 530u);
}

TEST_F(PlanStoreTest, RefusesADamagedPlan) {
  {
    auto store = Open();
    ASSERT_TRUE(store->InsertPreparing(Record(1, 1), {}).ok());
  }
  Execute("UPDATE plan SET layers = x'0100000002000000'");
  EXPECT_EQ(ExitCodeOf(PlanStore::Open({path_, ""}).status()), ExitCode::kBadData);
}

TEST_F(PlanStoreTest, SaysWhatToDoWithoutADirectory) {
  const auto store = PlanStore::Open({directory_ + "/none/plans.sqlite", ""});
  EXPECT_EQ(ExitCodeOf(store.status()), ExitCode::kShortage);
  EXPECT_THAT(std::string(store.status().message()), HasSubstr("--state-dir"));
}

// Fails the n-th write or sync, for all n: every call either took effect whole or not at all, and
// what was acknowledged is there after a restart.
class PlanStoreFaultTest : public PlanStoreTest, public ::testing::WithParamInterface<int> {};

TEST_P(PlanStoreFaultTest, EveryWriteIsAllOrNothing) {
  FaultyVfs vfs;
  bool fired = true;
  int n = 0;
  for (; fired && n < 500; ++n) {
    std::filesystem::remove_all(directory_);
    std::filesystem::create_directory(directory_);
    vfs.Heal();
    {
      auto store = Open(vfs.name());
      ASSERT_TRUE(store->InsertPreparing(Record(1, 1), {}).ok());
      ASSERT_TRUE(store->MarkLive(1).ok());
    }
    bool inserted = false, live = false;
    {
      auto store = Open(vfs.name());
      vfs.FailAfter(n, GetParam());
      inserted = store->InsertPreparing(Record(2, 2), ControlRequest{"id", "x", 2}).ok();
      live = inserted && store->MarkLive(2).ok();
      fired = vfs.fired();
      EXPECT_EQ(store->read_only_reason().empty(), inserted && live);
      EXPECT_EQ(store->Live()->value().plan.epoch, live ? 2 : 1);  // reads go on
      if (fired && GetParam() != SQLITE_FULL) {
        vfs.Heal();
        EXPECT_EQ(store->ClaimTerm(0).status().code(), absl::StatusCode::kUnavailable);
      } else if (fired) {
        vfs.Heal();
        EXPECT_TRUE(store->ClaimTerm(0).ok());  // there is space again
        EXPECT_EQ(store->read_only_reason(), "");
      }
    }
    vfs.Heal();
    auto store = Open();
    const int64_t newest = *store->NewestEpoch();
    const int64_t live_epoch = store->Live()->value().plan.epoch;
    // A failed sync may leave the bytes in place: unacknowledged is either way, acknowledged is
    // not.
    EXPECT_TRUE(!inserted || newest == 2) << n;
    EXPECT_TRUE(!live || live_epoch == 2) << n;
    EXPECT_EQ(store->FindRequest("id")->has_value(), newest == 2) << n;
    EXPECT_EQ(store->Get(1, true)->state, live_epoch == 2 ? PlanState::kRetired : PlanState::kLive);
  }
  EXPECT_GT(n, 5);    // the fault was met at several points
  EXPECT_LT(n, 500);  // and past the last one the run was clean
}

INSTANTIATE_TEST_SUITE_P(Faults, PlanStoreFaultTest,
                         ::testing::Values(SQLITE_FULL, SQLITE_IOERR_WRITE, SQLITE_IOERR_FSYNC));

}  // namespace
}  // namespace isotherm
