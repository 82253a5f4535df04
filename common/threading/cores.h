#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace isotherm {

// Cores this process may use at once: the smaller of its affinity mask and its cgroup's CPU quota
// (v1 or v2, every level up to the root) rounded down; at least 1. Read anew at each call.
int AllowedCores();

// Compute threads when the user names none. One core is left to all else from three cores up: with
// every core spinning, one more runnable thread stalls the section. Two cores are both used, since
// there half the machine would be the price and the pool sleeps between sections.
int DefaultThreadCount();
int DefaultThreadCountFor(int allowed_cores);

// CPU numbers in the calling thread's affinity mask and the cgroup's cpuset, ascending.
std::vector<int> AllowedCpus();

// What is wrong with being held to a share of time instead of to CPUs; empty when nothing is.
// quota_cores: CgroupQuotaCores().
std::string QuotaWarning(std::optional<double> quota_cores, int num_cpus);
// The same for this process.
std::string QuotaWarning();

// Binds the calling thread, and the threads that it will start, to these CPUs. False, and nothing
// changed, when none of them is allowed or the list is empty.
bool BindThisThread(const std::vector<int>& cpus);

// The same for every thread that the process has now, and those that they will start.
bool BindProcess(const std::vector<int>& cpus);

// The tightest CPU quota, in cores, of the cgroups listed in `proc_self_cgroup` (the text of
// /proc/self/cgroup) below `cgroup_root` (/sys/fs/cgroup). Nothing when no level sets one.
std::optional<double> CgroupQuotaCores(const std::string& cgroup_root,
                                       absl::string_view proc_self_cgroup);

// The CPUs of the innermost cgroup that has a cpuset (v1 or v2). Nothing when none has.
std::optional<std::vector<int>> CgroupCpus(const std::string& cgroup_root,
                                           absl::string_view proc_self_cgroup);

}  // namespace isotherm
