#include "models/gguf/gguf_file.h"

#include <sys/stat.h>

#include <cmath>
#include <limits>

#include "common/base/exit_code.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/models/gguf/gguf_bytes.h"

namespace isotherm {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr uint64_t kBit63 = uint64_t{1} << 63;

// Two tensors and keys of several kinds.
GgufBytes Good(const char* magic = "GGUF") {
  GgufBytes file;
  file.Header(2, 5, 3, magic).Str("general.architecture", "llama");
  file.U32("a.count", 7).F32("a.eps", 0.5f);
  file.Array("a.names", 8, 2).Text("x").Text("yz");
  file.Array("a.ids", 5, 3).Put<int32_t>(1).Put<int32_t>(-2).Put<int32_t>(3);
  file.Tensor("first.weight", {32, 2}, 8, 0).Tensor("second.weight", {8}, 0, 96).Pad();
  return file.Raw(std::string(96, 'a')).Raw(std::string(32, 'b'));
}

size_t HeaderBytes(const std::string& bytes) { return bytes.size() - 128; }

absl::Status OpenBytes(const std::string& bytes) {
  const MemoryFile file(bytes);
  return GgufFile::Open(file.path()).status();
}

void ExpectRefused(const std::string& bytes, const std::string& naming) {
  const absl::Status status = OpenBytes(bytes);
  ASSERT_FALSE(status.ok()) << "wanted an error with: " << naming;
  EXPECT_EQ(ExitCodeOf(status), ExitCode::kBadData) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(naming));
}

TEST(GgufFileTest, ReadsKeysAndTensors) {
  const MemoryFile memory(Good().bytes());
  const auto file = GgufFile::Open(memory.path());
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->GetInt("a.count").value(), 7);
  EXPECT_EQ((*file)->GetFloat("a.eps").value(), 0.5f);
  EXPECT_THAT((*file)->GetStrings("a.names").value(), ElementsAre("x", "yz"));
  EXPECT_THAT((*file)->GetInts("a.ids").value(), ElementsAre(1, -2, 3));
  EXPECT_THAT((*file)->keys(),
              ElementsAre("a.count", "a.eps", "a.ids", "a.names", "general.architecture"));
  EXPECT_EQ((*file)->FindTensor("third.weight"), nullptr);
  const GgufTensor* tensor = (*file)->FindTensor("second.weight");
  ASSERT_NE(tensor, nullptr);
  EXPECT_EQ(tensor->columns(), 8);
  EXPECT_EQ(tensor->rows(), 1);
  std::string bytes(4, '\0');
  ASSERT_TRUE((*file)->Read(*tensor, 28, std::as_writable_bytes(std::span(bytes))).ok());
  EXPECT_EQ(bytes, "bbbb");
  EXPECT_FALSE((*file)->Read(*tensor, 30, std::as_writable_bytes(std::span(bytes))).ok());
  EXPECT_FALSE((*file)->Read(*tensor, -1, std::as_writable_bytes(std::span(bytes))).ok());
}

TEST(GgufFileTest, ReadsEveryScalarType) {
  GgufBytes bytes;
  bytes.Header(0, 12);
  bytes.Text("u8").Put<uint32_t>(0).Put<uint8_t>(200);
  bytes.Text("i8").Put<uint32_t>(1).Put<int8_t>(-3);
  bytes.Text("u16").Put<uint32_t>(2).Put<uint16_t>(60000);
  bytes.Text("i16").Put<uint32_t>(3).Put<int16_t>(12);
  bytes.U32("u32", 4'000'000'000u);
  bytes.Text("i32").Put<uint32_t>(5).Put<int32_t>(9);
  bytes.F32("f32", 1.5f);
  bytes.Text("bool").Put<uint32_t>(7).Put<uint8_t>(1);
  bytes.Str("string", "text");
  bytes.Text("u64").Put<uint32_t>(10).Put<uint64_t>(kBit63);
  bytes.Text("i64").Put<uint32_t>(11).Put<int64_t>(int64_t{1} << 40);
  bytes.Text("f64").Put<uint32_t>(12).Put<double>(1e300);
  const MemoryFile memory(bytes.bytes());
  const auto file = GgufFile::Open(memory.path());
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->GetInt("u8").value(), 200);
  EXPECT_EQ((*file)->GetInt("u16").value(), 60000);
  EXPECT_EQ((*file)->GetInt("i16").value(), 12);
  EXPECT_EQ((*file)->GetInt("u32").value(), 4'000'000'000);
  EXPECT_EQ((*file)->GetInt("i32").value(), 9);
  EXPECT_EQ((*file)->GetInt("i64").value(), int64_t{1} << 40);
  EXPECT_EQ((*file)->GetFloat("f32").value(), 1.5f);
  EXPECT_TRUE(std::isinf((*file)->GetFloat("f64").value()));
  EXPECT_TRUE((*file)->GetBool("bool").value());
  EXPECT_EQ((*file)->GetString("string").value(), "text");
  EXPECT_THAT(std::string((*file)->GetInt("i8").status().message()), HasSubstr("is -3"));
  EXPECT_THAT(std::string((*file)->GetInt("u64").status().message()),
              HasSubstr("is 9223372036854775808"));
}

TEST(GgufFileTest, NamesKeysThatAreMissingOrOfAnotherType) {
  const MemoryFile memory(Good().bytes());
  const auto file = GgufFile::Open(memory.path());
  ASSERT_TRUE(file.ok());
  EXPECT_THAT(std::string((*file)->GetInt("a.none").status().message()), HasSubstr("a.none"));
  for (const absl::Status& status :
       {(*file)->GetString("a.count").status(), (*file)->GetInt("a.eps").status(),
        (*file)->GetFloat("a.count").status(), (*file)->GetBool("a.count").status(),
        (*file)->GetInt("a.ids").status(), (*file)->GetInts("a.names").status(),
        (*file)->GetFloats("a.ids").status(), (*file)->GetStrings("a.ids").status(),
        (*file)->GetStrings("general.architecture").status()}) {
    EXPECT_THAT(std::string(status.message()), HasSubstr("wrong type"));
    EXPECT_EQ(ExitCodeOf(status), ExitCode::kBadData);
  }
}

TEST(GgufFileTest, ConvertsIntegerArraysOnlyWhenTheyFit) {
  const MemoryFile memory(GgufBytes()
                              .Header(0, 2)
                              .Array("fits", 4, 1)
                              .Put<uint32_t>(5)
                              .Array("large", 4, 1)
                              .Put<uint32_t>(0x80000000u)
                              .bytes());
  const auto file = GgufFile::Open(memory.path());
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_THAT((*file)->GetInts("fits").value(), ElementsAre(5));
  EXPECT_THAT(std::string((*file)->GetInts("large").status().message()), HasSubstr("32 bits"));
}

TEST(GgufFileTest, ShowsHostileTextEscapedAndCut) {
  const MemoryFile memory(GgufBytes()
                              .Header(0, 2)
                              .Str("name", "a\x1b[31m\nb")
                              .Str("long", std::string(1000, 'x'))
                              .bytes());
  const auto file = GgufFile::Open(memory.path());
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->Show("name"), "a\\x1b[31m\\nb");
  EXPECT_THAT((*file)->Show("long"), HasSubstr("xx... (1000 bytes)"));
}

TEST(GgufFileTest, GivesTheSameDigestForTheSameHeader) {
  const MemoryFile one(Good().bytes()), same(Good().bytes()), other(Good("PWRI").bytes());
  EXPECT_EQ(GgufFile::Open(one.path()).value()->header_digest(),
            GgufFile::Open(same.path()).value()->header_digest());
  EXPECT_NE(GgufFile::Open(one.path()).value()->header_digest(),
            GgufFile::Open(other.path()).value()->header_digest());
}

TEST(GgufFileTest, RefusesAFileCutShortAtEveryByte) {
  for (const char* magic : {"GGUF", "PWRI"}) {
    const std::string bytes = Good(magic).bytes();
    MemoryFile file(bytes);
    ASSERT_TRUE(GgufFile::Open(file.path()).ok());
    for (size_t length = bytes.size(); length-- > 0;) {
      file.Truncate(length);
      const absl::Status status = GgufFile::Open(file.path()).status();
      EXPECT_FALSE(status.ok()) << length;
      EXPECT_EQ(ExitCodeOf(status), ExitCode::kBadData) << length;
    }
  }
}

// Whatever survives keeps every extent inside the file, and every key readable.
TEST(GgufFileTest, SurvivesEveryByteOfTheHeaderChanged) {
  const std::string bytes = Good().bytes();
  MemoryFile memory(bytes);
  for (size_t i = 0; i < HeaderBytes(bytes); ++i) {
    for (const unsigned flip : {0x01u, 0x02u, 0x08u, 0x80u, 0xffu}) {
      std::string damaged = bytes;
      damaged[i] = static_cast<char>(static_cast<unsigned char>(damaged[i]) ^ flip);
      memory.Set(damaged);
      const auto file = GgufFile::Open(memory.path());
      if (!file.ok()) {
        EXPECT_EQ(ExitCodeOf(file.status()), ExitCode::kBadData);
        continue;
      }
      for (const GgufTensor& tensor : (*file)->tensors()) {
        EXPECT_LE(tensor.offset + tensor.bytes, (*file)->file_bytes());
      }
      for (const std::string& key : (*file)->keys()) EXPECT_LE((*file)->Show(key).size(), 2000u);
    }
  }
}

TEST(GgufFileTest, RefusesOtherVersionsAndByteOrder) {
  for (const uint32_t version : {0u, 1u, 4u}) {
    ExpectRefused(GgufBytes().Header(0, 0, version).bytes(), "version");
  }
  for (const uint32_t version : {0x02000000u, 0x03000000u}) {
    ExpectRefused(GgufBytes().Header(0, 0, version).bytes(), "big-endian");
  }
  ExpectRefused(GgufBytes().Header(0, 0, 3, "GGML").bytes(), "magic is 'GGML'");
  EXPECT_TRUE(OpenBytes(GgufBytes().Header(0, 0, 2).bytes()).ok());
}

TEST(GgufFileTest, RefusesHugeCounts) {
  constexpr uint64_t kHuge[] = {~uint64_t{0}, uint64_t{1} << 32, kBit63, 65'537};
  for (const uint64_t count : kHuge) {
    ExpectRefused(GgufBytes().Header(count, 0).bytes(), "tensor count");
    ExpectRefused(GgufBytes().Header(0, count).bytes(), "key count");
    ExpectRefused(GgufBytes().Header(0, 1).Put<uint64_t>(count).bytes(), "a key has");
    ExpectRefused(GgufBytes().Header(1, 0).Put<uint64_t>(count).bytes(), "a tensor name has");
    ExpectRefused(GgufBytes().Header(0, 1).Text("k").Put<uint32_t>(8).Put<uint64_t>(count).bytes(),
                  "k");
    for (const uint32_t type : {0u, 4u, 6u, 7u, 8u, 10u, 12u}) {
      ExpectRefused(GgufBytes().Header(0, 1).Array("k", type, count).bytes(), "key k");
    }
  }
}

TEST(GgufFileTest, RefusesCountsOfOneMoreThanTheBytesLeft) {
  constexpr size_t kSizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
  for (uint32_t type = 0; type < std::size(kSizes); ++type) {
    if (kSizes[type] == 0) continue;
    EXPECT_TRUE(
        OpenBytes(GgufBytes().Header(0, 1).Array("k", type, 5, 5 * kSizes[type]).bytes()).ok());
    ExpectRefused(GgufBytes().Header(0, 1).Array("k", type, 6, 5 * kSizes[type]).bytes(), "key k");
  }
  ExpectRefused(
      GgufBytes().Header(0, 1).Text("k").Put<uint32_t>(8).Put<uint64_t>(3).Raw("ab").bytes(),
      "inside k");
  ExpectRefused(GgufBytes().Header(0, 1).Array("k", 8, 2).Text("ab").Put<uint64_t>(1).bytes(),
                "inside k");
}

TEST(GgufFileTest, RefusesLongAndStrangeNames) {
  EXPECT_TRUE(OpenBytes(GgufBytes().Header(0, 1).U32(std::string(1024, 'k'), 1).bytes()).ok());
  ExpectRefused(GgufBytes().Header(0, 1).U32(std::string(1025, 'k'), 1).bytes(), "at most 1024");
  ExpectRefused(GgufBytes().Header(0, 1).U32("", 1).bytes(), "a key is ''");
  ExpectRefused(GgufBytes().Header(0, 1).U32("k\n", 1).bytes(), "k\\n");
  ExpectRefused(GgufBytes().Header(0, 1).U32("\xc3\xa4", 1).bytes(), "ASCII");
  const auto tensor = [](const std::string& name) {
    return GgufBytes().Header(1, 0).Tensor(name, {8}, 0, 0).Pad().Raw(std::string(32, 0)).bytes();
  };
  EXPECT_TRUE(OpenBytes(tensor(std::string(63, 't'))).ok());
  ExpectRefused(tensor(std::string(64, 't')), "at most 63");
  ExpectRefused(tensor(""), "a tensor name");
  ExpectRefused(tensor(std::string("t\0", 2)), "a tensor name");
}

TEST(GgufFileTest, RefusesNestedArraysAndUnknownTypes) {
  ExpectRefused(GgufBytes().Header(0, 1).Array("k", 9, 1, 64).bytes(), "nested");
  ExpectRefused(GgufBytes().Header(0, 1).Array("k", 13, 1, 64).bytes(), "array of type 13");
  ExpectRefused(
      GgufBytes().Header(0, 1).Text("k").Put<uint32_t>(13).Raw(std::string(64, 0)).bytes(),
      "value type 13");
  ExpectRefused(GgufBytes().Header(0, 1).Text("k").Put<uint32_t>(7).Put<uint8_t>(2).bytes(),
                "bool of value 2");
  ExpectRefused(GgufBytes().Header(0, 1).Array("k", 7, 2).Put<uint8_t>(1).Put<uint8_t>(3).bytes(),
                "neither 0 nor 1");
}

TEST(GgufFileTest, RefusesSizesThatWrap) {
  for (const auto& shape : std::initializer_list<std::initializer_list<uint64_t>>{
           {0},
           {uint64_t{1} << 32, uint64_t{1} << 32},
           {kBit63 - 32, 2},
           {kBit63 - 3},
           {kBit63},
           {~uint64_t{0}},
           {32, 0},
           {32, uint64_t{1} << 62},
           {32, uint64_t{1} << 21, uint64_t{1} << 21, uint64_t{1} << 21}}) {
    for (const uint32_t type : {0u, 1u, 8u, 24u}) {
      ExpectRefused(GgufBytes().Header(1, 0).Tensor("t", shape, type, 0).Pad().bytes(), "tensor t");
    }
  }
  for (const uint32_t num_dims : {0u, 5u, 0x80000000u, ~0u}) {
    ExpectRefused(
        GgufBytes().Header(1, 0).Text("t").Put<uint32_t>(num_dims).Raw(std::string(128, 1)).bytes(),
        "dimensions");
  }
}

TEST(GgufFileTest, RefusesAlignmentsThatAreNoPowerOfTwoInRange) {
  for (const uint32_t alignment : {0u, 3u, 4u, 24u, 1u << 17, 1u << 31, ~0u}) {
    ExpectRefused(GgufBytes().Header(0, 1).U32("general.alignment", alignment).bytes(),
                  "general.alignment");
  }
  ExpectRefused(GgufBytes().Header(0, 1).Str("general.alignment", "32").bytes(),
                "general.alignment");
  for (const uint32_t alignment : {8u, 64u, 65536u}) {
    const std::string bytes = GgufBytes()
                                  .Header(1, 1)
                                  .U32("general.alignment", alignment)
                                  .Tensor("t", {1}, 0, 0)
                                  .Pad(alignment)
                                  .Put<float>(2.5f)
                                  .bytes();
    const MemoryFile memory(bytes);
    const auto file = GgufFile::Open(memory.path());
    ASSERT_TRUE(file.ok()) << file.status();
    float value = 0;
    ASSERT_TRUE(
        (*file)->Read((*file)->tensors()[0], 0, std::as_writable_bytes(std::span(&value, 1))).ok());
    EXPECT_EQ(value, 2.5f);
  }
}

TEST(GgufFileTest, RefusesBadExtents) {
  const auto two = [](uint64_t second_offset) {
    return GgufBytes()
        .Header(2, 0)
        .Tensor("t", {16}, 0, 0)
        .Tensor("u", {16}, 0, second_offset)
        .Pad()
        .Raw(std::string(128, 0))
        .bytes();
  };
  EXPECT_TRUE(OpenBytes(two(64)).ok());
  ExpectRefused(two(0), "overlap");
  ExpectRefused(two(32), "overlap");
  ExpectRefused(two(65), "multiple");
  ExpectRefused(two(96), "incomplete");
  ExpectRefused(two(~uint64_t{31}), "past");
  ExpectRefused(two(kBit63), "past");
  ExpectRefused(GgufBytes()
                    .Header(2, 0)
                    .Tensor("t", {8}, 0, 0)
                    .Tensor("t", {8}, 0, 32)
                    .Pad()
                    .Raw(std::string(64, 0))
                    .bytes(),
                "tensor t appears twice");
  ExpectRefused(GgufBytes().Header(0, 2).U32("k", 1).U32("k", 2).bytes(), "key k appears twice");
}

TEST(GgufFileTest, RefusesUnknownTensorTypesAndShards) {
  const auto tensor = [](const char* magic, uint32_t type, uint64_t columns) {
    return GgufBytes()
        .Header(1, 0, 3, magic)
        .Tensor("t", {columns}, type, 0)
        .Pad()
        .Raw(std::string(2048, 0))
        .bytes();
  };
  for (const uint32_t type : {4u, 5u, 9u, 16u, 23u, 27u, 31u, 99u, 0x80000000u, ~0u}) {
    ExpectRefused(tensor("GGUF", type, 256), "has type");
  }
  for (uint32_t type = 16; type <= 23; ++type) {
    ExpectRefused(tensor("PWRI", type, 256), "no PowerInfer model uses");
  }
  for (const uint32_t type : {2u, 3u, 8u})
    ExpectRefused(tensor("GGUF", type, 31), "multiple of 32");
  for (const uint32_t type : {12u, 14u})
    ExpectRefused(tensor("GGUF", type, 576), "multiple of 256");
  ExpectRefused(GgufBytes().Header(0, 1).U32("split.count", 2).bytes(), "shards");
  EXPECT_TRUE(OpenBytes(GgufBytes().Header(0, 1).U32("split.count", 1).bytes()).ok());
  ExpectRefused(GgufBytes().Header(0, 1).U32("general.quantization_version", 3).bytes(),
                "quantization_version");
}

TEST(GgufFileTest, ReadsPowerInfersSplitFileWithAnEmptyBucket) {
  const auto split = [](const char* magic, const std::string& bucket) {
    return GgufBytes()
        .Header(3, 1, 3, magic)
        .Str("general.architecture", "generic.gpu_index")
        .Tensor("blk.0.gpu_idx", {8}, 18, 0)
        .Tensor(bucket, {0}, 18, 32)
        .Tensor("blk.1.gpu_idx", {8}, 18, 32)
        .Pad()
        .Raw(std::string(64, 0))
        .bytes();
  };
  const MemoryFile memory(split("PWRI", "blk.0.gpu_bucket"));
  const auto file = GgufFile::Open(memory.path());
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->FindTensor("blk.0.gpu_bucket")->bytes, 0);
  ExpectRefused(split("PWRI", "blk.0.gpu_idx2"), "dimension 0 is 0");
  ExpectRefused(split("GGUF", "blk.0.gpu_bucket"), "has type 18");
}

TEST(GgufFileTest, ReportsAFileThatShrinksWhileItIsRead) {
  MemoryFile memory(Good().bytes());
  const auto file = GgufFile::Open(memory.path());
  ASSERT_TRUE(file.ok());
  memory.Truncate(Good().bytes().size() - 16);
  std::string bytes(32, '\0');
  const absl::Status status = (*file)->Read(*(*file)->FindTensor("second.weight"), 0,
                                            std::as_writable_bytes(std::span(bytes)));
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(ExitCodeOf(status), ExitCode::kBadData);
  EXPECT_THAT(std::string(status.message()), HasSubstr("shorter"));
}

TEST(GgufFileTest, SaysWhichFileIsMissingOrNoFile) {
  const absl::Status status = GgufFile::Open("/nowhere/model.gguf").status();
  EXPECT_EQ(ExitCodeOf(status), ExitCode::kBadData);
  EXPECT_THAT(std::string(status.message()), HasSubstr("/nowhere/model.gguf"));
  EXPECT_THAT(std::string(GgufFile::Open("/").status().message()), HasSubstr("regular file"));
  const std::string pipe = testing::TempDir() + "/isotherm_gguf_pipe";
  ::unlink(pipe.c_str());
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_THAT(std::string(GgufFile::Open(pipe).status().message()), HasSubstr("regular file"));
  ::unlink(pipe.c_str());
}

}  // namespace
}  // namespace isotherm
