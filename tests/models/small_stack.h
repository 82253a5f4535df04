#pragma once

#include <pthread.h>

#include <functional>

#include "gtest/gtest.h"

namespace isotherm::testing_stack {

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define ISOTHERM_LARGE_FRAMES 1
#endif
#endif
#if defined(ISOTHERM_LARGE_FRAMES) || defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
// Sanitizers make frames several times larger, and work slower.
inline constexpr size_t kSmallStack = size_t{2} << 20;
inline constexpr double kSlowdown = 10;
#else
inline constexpr size_t kSmallStack = size_t{256} << 10;
inline constexpr double kSlowdown = 1;
#endif

// Runs `work` on a thread whose stack is small: recursion over input would end the process.
inline void RunOnSmallStack(std::function<void()> work) {
  pthread_attr_t attributes;
  ASSERT_EQ(pthread_attr_init(&attributes), 0);
  ASSERT_EQ(pthread_attr_setstacksize(&attributes, kSmallStack), 0);
  pthread_t thread;
  const auto run = [](void* argument) -> void* {
    (*static_cast<std::function<void()>*>(argument))();
    return nullptr;
  };
  ASSERT_EQ(pthread_create(&thread, &attributes, run, &work), 0);
  pthread_join(thread, nullptr);
  pthread_attr_destroy(&attributes);
}

}  // namespace isotherm::testing_stack
