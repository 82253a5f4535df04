#include "common/threading/cpu_list.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace isotherm {
namespace {

using testing::ElementsAre;
using testing::Optional;

TEST(CpuListTest, ReadsWhatTheKernelAndTasksetWrite) {
  EXPECT_THAT(ParseCpuList("0-3,8\n"), Optional(ElementsAre(0, 1, 2, 3, 8)));
  EXPECT_THAT(ParseCpuList("7"), Optional(ElementsAre(7)));
  EXPECT_THAT(ParseCpuList("5,1-2,2"), Optional(ElementsAre(1, 2, 5)));
  EXPECT_THAT(ParseCpuList(" \n"), Optional(ElementsAre()));
}

TEST(CpuListTest, RefusesOtherText) {
  for (const char* text : {"-1", "a", "3-1", "1,,2", "1-", "+1", "0x2", "1 2", "8192",
                           "99999999999999999999", "0-99999999999"}) {
    EXPECT_EQ(ParseCpuList(text), std::nullopt) << text;
  }
}

TEST(CpuListTest, WritesTheShortestText) {
  EXPECT_EQ(FormatCpuList({}), "");
  EXPECT_EQ(FormatCpuList({4}), "4");
  EXPECT_EQ(FormatCpuList({0, 1, 2, 4, 6, 7}), "0-2,4,6-7");
  EXPECT_THAT(ParseCpuList(FormatCpuList({1, 2, 3, 15})), Optional(ElementsAre(1, 2, 3, 15)));
}

}  // namespace
}  // namespace isotherm
