#include "models/gguf/gguf_file.h"

#include <unistd.h>

#include <limits>

#include "common/base/exit_code.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/models/gguf/gguf_bytes.h"

namespace isotherm {
namespace {

using ::testing::HasSubstr;

// Two tensors and one key of every kind.
GgufBytes Good() {
  GgufBytes file;
  file.Header(2, 5).Str("general.architecture", "llama").U32("a.count", 7).F32("a.eps", 0.5f);
  file.Text("a.names").Put<uint32_t>(9).Put<uint32_t>(8).Put<uint64_t>(2).Text("x").Text("yz");
  file.Text("a.ids")
      .Put<uint32_t>(9)
      .Put<uint32_t>(5)
      .Put<uint64_t>(3)
      .Put<int32_t>(1)
      .Put<int32_t>(-2)
      .Put<int32_t>(3);
  file.Tensor("first.weight", {32, 2}, 8, 0).Tensor("second.weight", {8}, 0, 96).Pad();
  return file.Raw(std::string(96, 'a')).Raw(std::string(32, 'b'));
}

absl::Status OpenBytes(const std::string& bytes) {
  return GgufFile::Open(GgufBytes::WriteTemp(bytes)).status();
}

void ExpectRefused(const std::string& bytes, const std::string& naming) {
  const absl::Status status = OpenBytes(bytes);
  EXPECT_FALSE(status.ok());
  EXPECT_EQ(ExitCodeOf(status), ExitCode::kBadData) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(naming));
}

TEST(GgufFileTest, ReadsKeysAndTensors) {
  const auto file = GgufFile::Open(GgufBytes::WriteTemp(Good().bytes()));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->GetInt("a.count").value(), 7);
  EXPECT_EQ((*file)->GetFloat("a.eps").value(), 0.5f);
  EXPECT_THAT((*file)->GetStrings("a.names").value(), testing::ElementsAre("x", "yz"));
  EXPECT_THAT((*file)->GetInts("a.ids").value(), testing::ElementsAre(1, -2, 3));
  const GgufTensor* tensor = (*file)->FindTensor("second.weight");
  ASSERT_NE(tensor, nullptr);
  std::string bytes(4, '\0');
  ASSERT_TRUE((*file)->Read(*tensor, 28, std::as_writable_bytes(std::span(bytes))).ok());
  EXPECT_EQ(bytes, "bbbb");
  EXPECT_FALSE((*file)->Read(*tensor, 30, std::as_writable_bytes(std::span(bytes))).ok());
}

TEST(GgufFileTest, NamesKeysThatAreMissingOrOfAnotherType) {
  const auto file = GgufFile::Open(GgufBytes::WriteTemp(Good().bytes()));
  ASSERT_TRUE(file.ok());
  EXPECT_THAT(std::string((*file)->GetInt("a.none").status().message()), HasSubstr("a.none"));
  EXPECT_THAT(std::string((*file)->GetString("a.count").status().message()),
              HasSubstr("wrong type"));
  EXPECT_FALSE((*file)->GetInt("a.eps").ok());
}

TEST(GgufFileTest, RefusesAFileCutShortAtEveryByte) {
  const std::string bytes = Good().bytes();
  for (size_t length = 0; length + 1 < bytes.size(); ++length) {
    const absl::Status status = OpenBytes(bytes.substr(0, length));
    EXPECT_FALSE(status.ok()) << length;
    EXPECT_EQ(ExitCodeOf(status), ExitCode::kBadData) << length;
  }
}

TEST(GgufFileTest, SurvivesEveryByteOfTheHeaderFlipped) {
  const std::string bytes = Good().bytes();
  for (size_t i = 0; i < bytes.size() - 128; ++i) {
    for (const unsigned flip : {0x01u, 0x80u, 0xffu}) {
      std::string damaged = bytes;
      damaged[i] = static_cast<char>(static_cast<unsigned char>(damaged[i]) ^ flip);
      const auto file = GgufFile::Open(GgufBytes::WriteTemp(damaged));
      if (!file.ok()) continue;
      for (const GgufTensor& tensor : (*file)->tensors()) {
        EXPECT_LE(tensor.offset + tensor.bytes, (*file)->file_bytes());
      }
    }
  }
}

TEST(GgufFileTest, RefusesOtherVersionsAndByteOrder) {
  for (const uint32_t version : {0u, 1u, 4u}) {
    ExpectRefused(GgufBytes().Header(0, 0, version).bytes(), "version");
  }
  ExpectRefused(GgufBytes().Header(0, 0, 0x03000000u).bytes(), "big-endian");
  ExpectRefused(GgufBytes().Header(0, 0, 3, "GGML").bytes(), "magic");
}

TEST(GgufFileTest, RefusesHugeCountsBeforeReservingForThem) {
  constexpr uint64_t kHuge[] = {~uint64_t{0}, uint64_t{1} << 32, uint64_t{1} << 63, 65'537};
  for (const uint64_t count : kHuge) {
    ExpectRefused(GgufBytes().Header(count, 0).bytes(), "tensor count");
    ExpectRefused(GgufBytes().Header(0, count).bytes(), "key count");
    ExpectRefused(GgufBytes().Header(0, 1).Put<uint64_t>(count).bytes(), "key");
    ExpectRefused(GgufBytes().Header(0, 1).Text("k").Put<uint32_t>(8).Put<uint64_t>(count).bytes(),
                  "k");
    for (const uint32_t type : {0u, 4u, 6u, 8u, 10u}) {
      ExpectRefused(GgufBytes()
                        .Header(0, 1)
                        .Text("k")
                        .Put<uint32_t>(9)
                        .Put<uint32_t>(type)
                        .Put<uint64_t>(count)
                        .bytes(),
                    "k");
    }
  }
}

TEST(GgufFileTest, RefusesNestedArraysAndUnknownTypes) {
  ExpectRefused(GgufBytes()
                    .Header(0, 1)
                    .Text("k")
                    .Put<uint32_t>(9)
                    .Put<uint32_t>(9)
                    .Put<uint64_t>(1)
                    .Raw(std::string(64, 0))
                    .bytes(),
                "not allowed");
  ExpectRefused(
      GgufBytes().Header(0, 1).Text("k").Put<uint32_t>(13).Raw(std::string(64, 0)).bytes(),
      "value type 13");
  ExpectRefused(GgufBytes().Header(0, 1).Text("k").Put<uint32_t>(7).Put<uint8_t>(2).bytes(),
                "bool");
}

TEST(GgufFileTest, RefusesSizesThatWrap) {
  constexpr uint64_t k63 = uint64_t{1} << 63;
  for (const auto& shape : std::initializer_list<std::initializer_list<uint64_t>>{
           {0},
           {uint64_t{1} << 32, uint64_t{1} << 32},
           {k63 - 32, 2},
           {k63},
           {32, 0},
           {32, uint64_t{1} << 62}}) {
    ExpectRefused(GgufBytes().Header(1, 0).Tensor("t", shape, 0, 0).Pad().bytes(), "tensor t");
  }
  for (const uint32_t alignment : {0u, 3u, 4u, 1u << 31, 131072u}) {
    ExpectRefused(GgufBytes().Header(0, 1).U32("general.alignment", alignment).bytes(),
                  "alignment");
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
  ExpectRefused(two(32), "overlap");
  ExpectRefused(two(65), "multiple");
  ExpectRefused(two(96), "incomplete");
  ExpectRefused(two(~uint64_t{31}), "past");
  ExpectRefused(GgufBytes()
                    .Header(2, 0)
                    .Tensor("t", {8}, 0, 0)
                    .Tensor("t", {8}, 0, 32)
                    .Pad()
                    .Raw(std::string(64, 0))
                    .bytes(),
                "twice");
  ExpectRefused(GgufBytes().Header(0, 2).U32("k", 1).U32("k", 2).bytes(), "twice");
}

TEST(GgufFileTest, RefusesUnknownTensorTypesAndShards) {
  ExpectRefused(
      GgufBytes().Header(1, 0).Tensor("t", {256}, 99, 0).Pad().Raw(std::string(512, 0)).bytes(),
      "type 99");
  ExpectRefused(GgufBytes()
                    .Header(1, 0, 3, "PWRI")
                    .Tensor("t", {32}, 18, 0)
                    .Pad()
                    .Raw(std::string(512, 0))
                    .bytes(),
                "type 18");
  ExpectRefused(
      GgufBytes().Header(1, 0).Tensor("t", {31}, 8, 0).Pad().Raw(std::string(64, 0)).bytes(),
      "multiple of 32");
  ExpectRefused(GgufBytes().Header(0, 1).U32("split.count", 2).bytes(), "shards");
  ExpectRefused(GgufBytes().Header(0, 1).U32("general.quantization_version", 3).bytes(),
                "quantization_version");
}

TEST(GgufFileTest, ReportsAFileThatShrinksWhileItIsRead) {
  const std::string path = GgufBytes::WriteTemp(Good().bytes());
  const auto file = GgufFile::Open(path);
  ASSERT_TRUE(file.ok());
  ASSERT_EQ(::truncate(path.c_str(), static_cast<off_t>(Good().bytes().size() - 64)), 0);
  std::string bytes(32, '\0');
  const absl::Status status = (*file)->Read(*(*file)->FindTensor("second.weight"), 0,
                                            std::as_writable_bytes(std::span(bytes)));
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("shorter"));
}

TEST(GgufFileTest, SaysWhichFileIsMissing) {
  const absl::Status status = GgufFile::Open("/nowhere/model.gguf").status();
  EXPECT_EQ(ExitCodeOf(status), ExitCode::kBadData);
  EXPECT_THAT(std::string(status.message()), HasSubstr("/nowhere/model.gguf"));
}

}  // namespace
}  // namespace isotherm
