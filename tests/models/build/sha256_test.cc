#include "models/build/sha256.h"

#include "common/base/exit_code.h"
#include "gtest/gtest.h"
#include "tests/models/gguf/gguf_bytes.h"

namespace isotherm {
namespace {

// FIPS 180-2, appendix B.
TEST(Sha256Test, GivesThePublishedDigests) {
  EXPECT_EQ(Sha256OfFile(MemoryFile("abc").path()).value(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(Sha256OfFile(MemoryFile(std::string(1'000'000, 'a')).path()).value(),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(Sha256Test, NamesAFileThatIsMissing) {
  EXPECT_EQ(ExitCodeOf(Sha256OfFile("/nowhere/base").status()), ExitCode::kBadData);
}

}  // namespace
}  // namespace isotherm
