#pragma once

#include <sys/types.h>

#include <chrono>
#include <functional>
#include <string>
#include <vector>

namespace isotherm::integration {

// Open descriptors, and threads, of a process of this user; -1 when it is gone.
int NumFds(pid_t pid);
int NumThreads(pid_t pid);

// Names in `directory`, sorted; of sockets only if `sockets_only`.
std::vector<std::string> Names(const std::string& directory, bool sockets_only = false);

// Asks `condition` again and again until it holds; false when `timeout` is over before.
bool Eventually(std::chrono::milliseconds timeout, const std::function<bool()>& condition);

}  // namespace isotherm::integration
