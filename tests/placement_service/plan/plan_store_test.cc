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
  for (const char* change : {"PRAGMA user_version = 2", "PRAGMA application_id = 7"}) {
    sqlite3* db = nullptr;
    ASSERT_EQ(sqlite3_open(path_.c_str(), &db), SQLITE_OK);
    ASSERT_EQ(sqlite3_exec(db, change, nullptr, nullptr, nullptr), SQLITE_OK);
    sqlite3_close(db);
    const std::string before = Contents();
    const auto store = PlanStore::Open({path_, ""});
    EXPECT_EQ(ExitCodeOf(store.status()), ExitCode::kBadData) << store.status();
    EXPECT_EQ(Contents(), before);
  }
}

TEST_F(PlanStoreTest, RefusesADamagedPlan) {
  {
    auto store = Open();
    ASSERT_TRUE(store->InsertPreparing(Record(1, 1), {}).ok());
  }
  sqlite3* db = nullptr;
  ASSERT_EQ(sqlite3_open(path_.c_str(), &db), SQLITE_OK);
  ASSERT_EQ(
      sqlite3_exec(db, "UPDATE plan SET layers = x'0100000002000000'", nullptr, nullptr, nullptr),
      SQLITE_OK);
  sqlite3_close(db);
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
