// Python bindings of the CUDA backend: addresses and a stream handle in, nothing of torch. Tables are checked by
// check_tasks, as on the CPU; device memory belongs to the caller.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "cpu/smooth.h"
#include "cuda/guard.h"
#include "cuda/smooth.h"

namespace py = pybind11;

namespace {

using Bytes = py::array_t<uint8_t, py::array::c_style>;

using sff::DeviceGuard;
using sff::expect;

// A checked table cut into chunks. `image` is what the device needs of it, tasks first; the same bytes serve every launch.
struct Table {
    std::vector<sff::Task> tasks;
    sff::Chunks cut;
    std::vector<sff::Shape> shapes;  // of every bucket's launch

    explicit Table(const Bytes& bytes) {
        if (bytes.ndim() != 1 || bytes.nbytes() % static_cast<py::ssize_t>(sizeof(sff::Task)) != 0)
            throw std::invalid_argument("kernel table: expected a contiguous byte array of a multiple of " +
                                        std::to_string(sizeof(sff::Task)) + " bytes");
        tasks.resize(static_cast<size_t>(bytes.nbytes()) / sizeof(sff::Task));
        if (!tasks.empty()) memcpy(static_cast<void*>(tasks.data()), bytes.data(), static_cast<size_t>(bytes.nbytes()));
        const py::gil_scoped_release release;
        const int64_t count = static_cast<int64_t>(tasks.size());
        sff::check_tasks(tasks.data(), count);
        cut = sff::cut_into_chunks(tasks.data(), count);
    }

    size_t task_bytes() const { return tasks.size() * sizeof(sff::Task); }

    Bytes image() const {
        const size_t chunk_bytes = cut.chunks.size() * sizeof(sff::Chunk);
        Bytes bytes(static_cast<py::ssize_t>(task_bytes() + chunk_bytes));
        if (!tasks.empty()) memcpy(bytes.mutable_data(), tasks.data(), task_bytes());
        if (!cut.chunks.empty()) memcpy(bytes.mutable_data() + task_bytes(), cut.chunks.data(), chunk_bytes);
        return bytes;
    }

    // Loads the kernels into the device's context and takes their launch shapes, so that run() only launches.
    void load(int device) {
        const DeviceGuard guard(device);
        std::vector<sff::Shape> found(cut.buckets.size());
        for (size_t i = 0; i < found.size(); ++i)
            expect(sff::shape_of(cut.buckets[i], found[i]),
                   "occupancy of the smoothing kernel on device " + std::to_string(device));
        shapes = std::move(found);
    }

    // One launch a bucket, in stream order, on the device of load(). `image` is the address of image() in its memory.
    int launch(uint64_t image, int device, uint64_t stream) const {
        if (shapes.size() != cut.buckets.size()) throw std::runtime_error("launch of the smoothing kernel: load() comes first");
        const DeviceGuard guard(device);
        const auto* on_device = reinterpret_cast<const sff::Task*>(image);
        const auto* chunks = reinterpret_cast<const sff::Chunk*>(image + task_bytes());
        for (size_t i = 0; i < cut.buckets.size(); ++i)
            expect(sff::launch(cut.buckets[i], on_device, chunks, shapes[i], reinterpret_cast<cudaStream_t>(stream)),
                   "launch of the smoothing kernel on device " + std::to_string(device));
        return static_cast<int>(cut.buckets.size());
    }
};

// Number of devices, and why there are none: the name of the CUDA error, or empty.
py::tuple devices() {
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error == cudaSuccess) return py::make_tuple(count, "");
    (void)cudaGetLastError();  // it is no error of the next call
    return py::make_tuple(0, std::string(cudaGetErrorName(error)) + ": " + cudaGetErrorString(error));
}

// Why a device cannot run the kernels: the name of the CUDA error, or empty.
std::string why_not(int device) {
    const DeviceGuard guard(device);
    const cudaError_t error = sff::has_kernel(sff::Bucket{});
    if (error == cudaSuccess) return "";
    (void)cudaGetLastError();
    return std::string(cudaGetErrorName(error)) + ": " + cudaGetErrorString(error);
}

}  // namespace

void bind_cuda_optim(py::module_& m);

PYBIND11_MODULE(_cuda, m) {
    bind_cuda_optim(m);
    m.doc() = "CUDA kernels of sff_fast. See sff_fast/backends/cuda.py for their use.";
    m.attr("TASK_BYTES") = sizeof(sff::Task);
    m.attr("ARCHITECTURES") = SFF_CUDA_ARCHITECTURES;
    m.attr("CUDA_VERSION") = CUDART_VERSION;
    m.def("devices", &devices);
    m.def("why_not", &why_not, py::arg("device"));
    py::class_<Table>(m, "Table")
        .def(py::init<const Bytes&>(), py::arg("table"))
        .def("image", &Table::image)
        .def("load", &Table::load, py::arg("device"))
        .def("launch", &Table::launch, py::arg("image"), py::arg("device"), py::arg("stream"))
        .def_property_readonly("launches", [](const Table& t) { return t.cut.buckets.size(); })
        .def_property_readonly("chunks", [](const Table& t) { return t.cut.chunks.size(); });
}
