// The part of DLPack that reads a tensor without owning it: a plain C interface whose layout holds within a major version.
// Source: github.com/dmlc/dlpack, version 1.3, include/dlpack/dlpack.h, under its names there without the DL.
#pragma once

#include <cstdint>

namespace sff::dlpack {

constexpr uint32_t kMajor = 1;
constexpr char kCapsule[] = "dlpack_exchange_api";          // name of the capsule ...
constexpr char kAttribute[] = "__dlpack_c_exchange_api__";  // ... which is this attribute of a tensor's type

struct DataType {
    uint8_t code, bits;
    uint16_t lanes;
};

struct Tensor {
    void* data;
    int32_t device_type, device_id;
    int32_t ndim;
    DataType dtype;
    int64_t* shape;    // of the tensor itself, valid as long as it stays as it is
    int64_t* strides;  // in elements
    uint64_t byte_offset;
};

struct ExchangeApi {
    uint32_t major, minor;
    ExchangeApi* older;  // the table of an older major version, or null
    void* managed_tensor_allocator;
    void* managed_tensor_from_py_object_no_sync;
    void* managed_tensor_to_py_object_no_sync;
    int (*tensor_from_py_object_no_sync)(void* object, Tensor* out);  // 0, or -1 with an exception set; may be null
    void* current_work_stream;
};

}  // namespace sff::dlpack
