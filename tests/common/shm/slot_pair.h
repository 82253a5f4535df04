#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <memory>

#include "common/shm/control_region.h"
#include "common/shm/slot_client.h"
#include "common/shm/slot_server.h"

namespace isotherm::shm {

inline constexpr ControlShape kTestShape{
    .max_rows = 3, .model_dim = 40, .num_neurons = 130, .num_layers = 4, .num_slots = 4};
inline constexpr uint64_t kTestLayoutHash = 0x1234;

inline TimePoint In(std::chrono::milliseconds time) {
  return std::chrono::steady_clock::now() + time;
}

inline ControlRegion::Expected ExpectedOf(const ControlRegion& region) {
  const ControlShape& shape = region.geometry().shape;
  return {.region_bytes = region.bytes(),
          .nonce = region.nonce(),
          .layout_hash = kTestLayoutHash,
          .model_dim = shape.model_dim,
          .num_neurons = shape.num_neurons,
          .num_layers = shape.num_layers};
}

// Both sides of one attachment over one mapping.
struct RegionPair {
  std::unique_ptr<ControlRegion> cpu;
  std::unique_ptr<ControlRegion> gpu;

  explicit RegionPair(uint64_t first_sequence = 1, const ControlShape& shape = kTestShape) {
    auto created = ControlRegion::Create({.shape = shape,
                                          .layout_hash = kTestLayoutHash,
                                          .nonce = RandomNonce(),
                                          .first_sequence = first_sequence},
                                         MemoryLimits{});
    EXPECT_TRUE(created.ok()) << created.status();
    cpu = *std::move(created);
    gpu = cpu->GpuViewOfSameMapping();
  }
};

// A layer both sides can compute without weights, so that a test sees any mix-up of posts.
inline float ExpectedPartial(const ColdLayerHeader& header, int64_t row, int64_t i) {
  return static_cast<float>(header.step_id % 4096) + static_cast<float>(header.layer) * 0.25f +
         static_cast<float>(row * 64 + i);
}

inline void FillPost(const PostBuffers& buffers, const ControlGeometry& geometry,
                     const ColdLayerHeader& header) {
  for (int64_t row = 0; row < header.num_rows; ++row) {
    for (int64_t i = 0; i < geometry.shape.model_dim; ++i) {
      buffers.z[row * geometry.shape.model_dim + i] =
          static_cast<uint16_t>(header.step_id * 7 + header.layer * 131 + row * 17 + i);
    }
    for (int64_t word = 0; word < geometry.words_per_row; ++word) {
      buffers.active[row * geometry.words_per_row + word] = ~uint64_t{0};
    }
    buffers.row_keys[row] = static_cast<int32_t>(row * 10 + header.layer);
  }
}

// Checks the payload FillPost made and answers; the work hash counts what was wrong.
inline absl::Status ServePost(SlotServer& server, const ColdLayerWork& work) {
  ColdLayerOutcome outcome;
  if (work.header.layer == kEndOfStep) return server.Finish(work, outcome);
  const ControlGeometry& geometry = server.geometry();
  const int64_t dim = geometry.shape.model_dim;
  for (int64_t row = 0; row < work.header.num_rows; ++row) {
    for (int64_t i = 0; i < dim; ++i) {
      const auto want =
          static_cast<uint16_t>(work.header.step_id * 7 + work.header.layer * 131 + row * 17 + i);
      outcome.work_hash += work.z[row * dim + i] != want;
      work.partial[row * dim + i] = ExpectedPartial(work.header, row, i);
    }
    outcome.work_hash += work.row_keys[row] != row * 10 + work.header.layer;
    for (int64_t n = 0; n < geometry.words_per_row * 64; ++n) {
      const uint64_t bit = work.active[row * geometry.words_per_row + n / 64] >> (n % 64) & 1;
      outcome.work_hash += bit != (n < geometry.shape.num_neurons ? 1u : 0u);
    }
  }
  outcome.neurons = work.header.num_rows;
  return server.Finish(work, outcome);
}

// One layer from BeginPost to a checked result; the first failure otherwise.
inline absl::Status RoundTrip(SlotClient& client, const ColdLayerHeader& header) {
  auto buffers = client.BeginPost(header.num_rows, header.deadline);
  if (!buffers.ok()) return buffers.status();
  FillPost(*buffers, client.geometry(), header);
  if (absl::Status status = client.Commit(header); !status.ok()) return status;
  auto result = client.Wait(header.deadline);
  if (!result.ok()) return result.status();
  if (result->work_hash != 0) return absl::DataLossError("the payload arrived changed");
  const int64_t dim = client.geometry().shape.model_dim;
  for (int64_t row = 0; row < header.num_rows; ++row) {
    for (int64_t i = 0; i < dim; ++i) {
      if (result->partial[row * dim + i] != ExpectedPartial(header, row, i)) {
        return absl::DataLossError("a partial sum of another post");
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace isotherm::shm
