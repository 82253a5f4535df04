#include "common/base/file_identity.h"

#include <fcntl.h>
#include <unistd.h>

#include <string>

#include "common/base/unique_fd.h"
#include "gtest/gtest.h"

namespace isotherm {
namespace {

TEST(FileIdentityTest, TellsFilesAndSizesApart) {
  std::string a = testing::TempDir() + "/identity_a_XXXXXX";
  std::string b = testing::TempDir() + "/identity_b_XXXXXX";
  const UniqueFd first(::mkstemp(a.data())), other(::mkstemp(b.data()));
  const UniqueFd again(::open(a.c_str(), O_RDONLY | O_CLOEXEC));
  ASSERT_TRUE(first.valid() && other.valid() && again.valid());
  const FileIdentity identity = *IdentityOf(first.get());
  EXPECT_EQ(identity, *IdentityOf(again.get()));
  EXPECT_FALSE(identity.SameFile(*IdentityOf(other.get())));
  ASSERT_EQ(::ftruncate(first.get(), 100), 0);
  const FileIdentity longer = *IdentityOf(again.get());
  EXPECT_TRUE(longer.SameFile(identity));
  EXPECT_EQ(longer.bytes, 100);
  EXPECT_NE(longer, identity);
  ::unlink(a.c_str());
  ::unlink(b.c_str());
}

TEST(FileIdentityTest, RefusesWhatIsNoFile) {
  const UniqueFd folder(::open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  EXPECT_TRUE(absl::IsFailedPrecondition(IdentityOf(folder.get()).status()));
  EXPECT_TRUE(absl::IsFailedPrecondition(IdentityOf(-1).status()));
}

}  // namespace
}  // namespace isotherm
