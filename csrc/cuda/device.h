// What the binding asks the CUDA runtime.
#pragma once
#include <string>

namespace hg::cuda {

int device_count();  // 0 without a driver or a device

// Throws std::runtime_error that says why there is no device to run `kernel` on.
void check_device(const std::string& kernel);

std::string versions();  // of the runtime that is linked in and the driver that is installed, and the devices

}  // namespace hg::cuda
