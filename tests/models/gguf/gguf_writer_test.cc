#include "models/gguf/gguf_writer.h"

#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstdlib>

#include "common/base/exit_code.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "models/gguf/gguf_file.h"
#include "tests/models/temp_folder.h"

namespace isotherm {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(GgufWriterTest, ReservedFileIsWrittenInAnyOrder) {
  const TempFolder folder;
  const auto write = [&](const std::string& name, bool reserve) {
    auto writer = GgufWriter::Create(folder.File(name), /*powerinfer=*/false, 64).value();
    writer->AddUint32("general.alignment", 64);
    ASSERT_TRUE(writer->DeclareTensor("t", DType::kF32, std::array<int64_t, 2>{3, 2}).ok());
    ASSERT_TRUE(writer->DeclareTensor("u", DType::kQ8_0, std::array<int64_t, 1>{32}).ok());
    const std::string bytes = std::string(24, 'a') + std::string(34, 'b');
    const auto piece = [&](size_t at, size_t count) {
      return std::as_bytes(std::span(bytes.data() + at, count));
    };
    if (reserve) {
      ASSERT_TRUE(writer->Reserve().ok());
      EXPECT_EQ(writer->TensorOffset(1), writer->TensorOffset(0) + 64);
      EXPECT_EQ(writer->file_bytes(), writer->TensorOffset(1) + 64);
      ASSERT_TRUE(writer->WriteAt(1, 10, piece(34, 24)).ok());
      ASSERT_TRUE(writer->WriteAt(0, 0, piece(0, 24)).ok());
      ASSERT_TRUE(writer->WriteAt(1, 0, piece(24, 10)).ok());
    } else {
      ASSERT_TRUE(writer->Write(piece(0, bytes.size())).ok());
    }
    ASSERT_TRUE(writer->Finish().ok());
  };
  write("in_order.gguf", false);
  write("reserved.gguf", true);
  EXPECT_EQ(folder.Content("reserved.gguf"), folder.Content("in_order.gguf"));
}

TEST(GgufWriterTest, ReservingMoreThanIsFreeSaysBothNumbers) {
  const TempFolder folder;
  auto writer = GgufWriter::Create(folder.File("a.gguf"), /*powerinfer=*/false).value();
  constexpr int64_t kPetabyte = int64_t{1} << 50;
  ASSERT_TRUE(writer->DeclareTensor("t", DType::kF16, std::array<int64_t, 1>{kPetabyte / 2}).ok());
  const absl::Status status = writer->Reserve();
  EXPECT_EQ(ExitCodeOf(status), ExitCode::kShortage);
  EXPECT_THAT(std::string(status.message()),
              testing::ContainsRegex("needs [0-9]+ bytes, its file system has [0-9]+ free"));
  writer.reset();
  EXPECT_THAT(folder.Names(), IsEmpty());
}

TEST(GgufWriterTest, WritesWhatTheReaderReads) {
  const TempFolder folder;
  for (const uint32_t alignment : {32u, 4096u}) {
    auto writer = GgufWriter::Create(folder.File("a.gguf"), /*powerinfer=*/true, alignment).value();
    writer->AddString("s", "text");
    writer->AddUint32("u32", 7);
    writer->AddUint64("u64", uint64_t{1} << 40);
    writer->AddFloat("f32", 0.5f);
    writer->AddBool("yes", true);
    writer->AddStrings("strings", std::array<std::string, 2>{"a", ""});
    writer->AddFloats("floats", std::array<float, 2>{1, 2});
    writer->AddInts("ints", std::array<int32_t, 2>{-1, 3});
    if (alignment != 32) writer->AddUint32("general.alignment", alignment);
    ASSERT_TRUE(writer->DeclareTensor("t", DType::kF32, std::array<int64_t, 2>{3, 2}).ok());
    ASSERT_TRUE(writer->DeclareTensor("u", DType::kQ8_0, std::array<int64_t, 1>{32}).ok());
    EXPECT_FALSE(writer->DeclareTensor("v", DType::kQ8_0, std::array<int64_t, 1>{33}).ok());
    const std::string bytes = std::string(24, 'a') + std::string(34, 'b');
    // In pieces that cross the tensors' border.
    for (size_t at = 0; at < bytes.size(); at += 7) {
      ASSERT_TRUE(writer
                      ->Write(std::as_bytes(std::span(bytes))
                                  .subspan(at, std::min<size_t>(7, bytes.size() - at)))
                      .ok());
    }
    ASSERT_EQ(writer->Finish(), absl::OkStatus());

    const auto file = GgufFile::Open(folder.File("a.gguf"));
    ASSERT_TRUE(file.ok()) << file.status();
    EXPECT_TRUE((*file)->is_powerinfer());
    EXPECT_EQ((*file)->GetString("s").value(), "text");
    EXPECT_EQ((*file)->GetInt("u32").value(), 7);
    EXPECT_EQ((*file)->GetInt("u64").value(), int64_t{1} << 40);
    EXPECT_EQ((*file)->GetFloat("f32").value(), 0.5f);
    EXPECT_TRUE((*file)->GetBool("yes").value());
    EXPECT_THAT((*file)->GetStrings("strings").value(), ElementsAre("a", ""));
    EXPECT_THAT((*file)->GetFloats("floats").value(), ElementsAre(1, 2));
    EXPECT_THAT((*file)->GetInts("ints").value(), ElementsAre(-1, 3));
    std::string read(34, '\0');
    const GgufTensor* tensor = (*file)->FindTensor("u");
    ASSERT_NE(tensor, nullptr);
    EXPECT_EQ(tensor->offset % alignment, 0);
    ASSERT_TRUE((*file)->Read(*tensor, 0, std::as_writable_bytes(std::span(read))).ok());
    EXPECT_EQ(read, std::string(34, 'b'));
  }
}

TEST(GgufWriterTest, ShowsNothingUnderTheNameUntilFinished) {
  const TempFolder folder;
  {
    auto writer = GgufWriter::Create(folder.File("a.gguf"), /*powerinfer=*/false).value();
    ASSERT_TRUE(writer->DeclareTensor("t", DType::kF32, std::array<int64_t, 1>{8}).ok());
    const std::string half(16, 'a');
    ASSERT_TRUE(writer->Write(std::as_bytes(std::span(half))).ok());
    EXPECT_EQ(folder.Names().count("a.gguf"), 0u);
  }
  EXPECT_THAT(folder.Names(), IsEmpty());  // the destructor removes what was begun
}

TEST(GgufWriterTest, KeepsTheOldFileUntilTheNewOneIsWhole) {
  const TempFolder folder;
  folder.Write("a.gguf", "old");
  {
    auto writer = GgufWriter::Create(folder.File("a.gguf"), /*powerinfer=*/false).value();
    EXPECT_EQ(folder.Content("a.gguf"), "old");
    ASSERT_EQ(writer->Finish(), absl::OkStatus());
  }
  EXPECT_EQ(folder.Content("a.gguf").substr(0, 4), "GGUF");
  EXPECT_THAT(folder.Names(), ElementsAre("a.gguf"));
}

TEST(GgufWriterTest, NamesAFolderThatIsMissing) {
  const absl::Status status = GgufWriter::Create("/nowhere/a.gguf", false).status();
  EXPECT_EQ(ExitCodeOf(status), ExitCode::kShortage);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("/nowhere/a.gguf"));
}

// A limit on the file's size stands in for the disk.
[[noreturn]] void WriteBeyondTheLimit(const std::string& path) {
  std::signal(SIGXFSZ, SIG_IGN);
  const rlimit limit{4096, 4096};
  ::setrlimit(RLIMIT_FSIZE, &limit);
  auto writer = GgufWriter::Create(path, /*powerinfer=*/false).value();
  const std::array<int64_t, 1> shape = {4096};
  absl::Status status = writer->DeclareTensor("t", DType::kF32, shape);
  const std::string bytes(4 * 4096, 'a');
  status.Update(writer->Write(std::as_bytes(std::span(bytes))));
  writer.reset();
  std::_Exit(static_cast<int>(ExitCodeOf(status)));
}

TEST(GgufWriterTest, ReportsAFullDisk) {
  const TempFolder folder;
  EXPECT_EXIT(WriteBeyondTheLimit(folder.File("a.gguf")),
              testing::ExitedWithCode(static_cast<int>(ExitCode::kShortage)), "");
  EXPECT_THAT(folder.Names(), IsEmpty());
}

}  // namespace
}  // namespace isotherm
