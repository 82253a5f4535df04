// libnvidia-ml.so.1 with one device, "0000:01:00.0", that says what the environment tells it:
//   FAKE_NVML_ACTION     its recovery action; unset: a driver that does not know of such
//   FAKE_NVML_PROCESSES  "pid:bytes,pid:bytes", on it
#include <cstdlib>
#include <cstring>

extern "C" {

struct FakeProcess {
  unsigned int pid;
  unsigned long long used_bytes;
  unsigned int gpu_instance, compute_instance;
};
struct FakeField {
  unsigned int field, scope;
  long long timestamp, latency_us;
  int type, result;
  unsigned long long value;
};

int nvmlInit_v2() { return 0; }

int nvmlDeviceGetHandleByPciBusId_v2(const char* bus_id, void** device) {
  static int one;
  *device = &one;
  return std::strcmp(bus_id, "0000:01:00.0") == 0 ? 0 : 6;  // not found
}

int nvmlDeviceGetComputeRunningProcesses_v3(void*, unsigned int* count, FakeProcess* out) {
  const char* text = std::getenv("FAKE_NVML_PROCESSES");
  if (text == nullptr) return 3;  // not supported
  unsigned int found = 0;
  while (*text != '\0' && found < *count) {
    char* end = nullptr;
    FakeProcess process = {};
    process.pid = static_cast<unsigned int>(std::strtoul(text, &end, 10));
    process.used_bytes = std::strtoull(end + 1, &end, 10);
    out[found++] = process;
    text = *end == ',' ? end + 1 : end;
  }
  *count = found;
  return 0;
}

int nvmlDeviceGetFieldValues(void*, int count, FakeField* fields) {
  const char* text = std::getenv("FAKE_NVML_ACTION");
  for (int i = 0; i < count; ++i) {
    fields[i].result = text != nullptr && fields[i].field == 230 ? 0 : 3;
    if (fields[i].result == 0) fields[i].value = std::strtoull(text, nullptr, 10);
  }
  return 0;
}

}  // extern "C"
