#pragma once

#include <cstdint>

namespace isotherm {

// Where rows that are wanted soon are fetched to meanwhile.
enum class FetchInto : uint8_t { kNone, kL1, kL2, kNonTemporal };

// How the cold kernel walks memory. Results do not depend on it. The defaults are for a server core
// that has 10 GB/s of its own; sparse_ffn_benchmark --sweep tries the others.
struct SparseFfnTuning {
  // Bundles whose rows are read side by side: 1, 2 or 4. That many DRAM streams, x loaded once.
  int pass = 4;
  // Bundles that go through gate, up and down together, 1 to kMaxChunk: only then is it known for
  // most of them, when it is time to fetch their further rows, whether their gate is open.
  int phase = 8;
  // Of many rows of z: a phase whose bundles have on average at most so many that ask for them is
  // computed pair after pair, another one block of columns after block. Below 0: by type and ISA.
  double stream_pairs = -1;
  // Bundles that a thread claims at a time, 1 to kMaxChunk. Towards the end of a layer it claims
  // half of that, at last `tail`, so that threads end together.
  int chunk = 8;
  int tail = 2;
  FetchInto fetch = FetchInto::kL2;
  // Of each 4 KiB page that many lines are fetched, from its start; the hardware's prefetcher goes
  // on from there. 64: all.
  int fetch_lines = 64;

  static constexpr int kMaxChunk = 16;
};

}  // namespace isotherm
