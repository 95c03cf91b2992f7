// What the bindings of every CUDA backend share: errors as exceptions, and the current device.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace sff {

inline void expect(cudaError_t error, const std::string& what) {
    if (error == cudaSuccess) return;
    (void)cudaGetLastError();  // told here: it is no error of the next call, of torch's say
    throw std::runtime_error(what + ": " + cudaGetErrorName(error) + " (" + cudaGetErrorString(error) + ")");
}

// Makes a device current for as long as it lives.
class DeviceGuard {
public:
    explicit DeviceGuard(int device) : device_(device) {
        expect(cudaGetDevice(&before_), "cudaGetDevice");
        if (before_ != device_) expect(cudaSetDevice(device_), "cudaSetDevice(" + std::to_string(device_) + ")");
    }
    ~DeviceGuard() {
        if (before_ != device_) (void)cudaSetDevice(before_);
    }
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;

private:
    int device_, before_ = 0;
};

}  // namespace sff
