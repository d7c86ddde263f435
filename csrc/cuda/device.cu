#include "device.h"

#include <cuda_runtime.h>

#include <map>
#include <mutex>
#include <stdexcept>

#include "mma.h"

namespace hg::cuda {
namespace {

// A kernel to ask which of the compiled architectures a device runs: code for sm_75 lacks tf32 on every GPU.
__global__ void probe() {}

// The number of devices, or 0 and why.
int count_devices(std::string& why) {
  int n = 0;
  const cudaError_t error = cudaGetDeviceCount(&n);
  if (error != cudaSuccess) {
    cudaGetLastError();  // cleared, or the next launch would report it
    why = std::string(cudaGetErrorString(error)) + " (" + cudaGetErrorName(error) + ")";
    return 0;
  }
  if (n == 0) why = "the driver reports none";
  return n;
}

std::string version_text(int version) {
  return version == 0 ? "none" : std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

}  // namespace

int device_count() {
  std::string why;
  return count_devices(why);
}

void check_device(const std::string& kernel) {
  static const bool known = device_count() > 0;  // devices do not come and go while a process runs
  if (known) return;
  std::string why;
  count_devices(why);
  throw std::runtime_error(kernel + ": there is no CUDA device, expected one because this is a CUDA kernel: " + why +
                           "; check nvidia-smi, or keep the arrays in host memory");
}

bool has_tf32() {
  static std::mutex mutex;
  static std::map<int, bool> known;
  int device = 0;
  cudaFuncAttributes probed{};
  if (cudaGetDevice(&device) == cudaSuccess) {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = known.find(device);
    if (found != known.end()) return found->second;
    if (cudaFuncGetAttributes(&probed, probe) == cudaSuccess) return known[device] = probed.ptxVersion >= 80;
  }
  cudaGetLastError();  // cleared: a missing device is reported when kernels are launched
  return false;
}

std::string versions() {
  int runtime = 0, driver = 0;
  cudaRuntimeGetVersion(&runtime);
  cudaDriverGetVersion(&driver);
  std::string text = "runtime " + version_text(runtime) + ", driver " + version_text(driver);
  const int n = device_count();
  for (int i = 0; i < n; ++i) {
    cudaDeviceProp properties{};
    if (cudaGetDeviceProperties(&properties, i) != cudaSuccess) continue;
    text += std::string(", ") + properties.name + " (sm_" + std::to_string(properties.major) + std::to_string(properties.minor) + ")";
  }
  return text + (n == 0 ? ", no device" : "");
}

}  // namespace hg::cuda
