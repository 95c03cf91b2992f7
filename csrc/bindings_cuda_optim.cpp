// Python bindings of the optimizer on a GPU: addresses and a stream handle in, nothing of torch. Tables are checked by
// check_adamw, as on the CPU; device memory belongs to the caller.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>

#include "cpu/adamw.h"
#include "cuda/adamw.h"
#include "cuda/adamw_resident.h"
#include "cuda/guard.h"

namespace py = pybind11;

namespace {

using Bytes = py::array_t<uint8_t, py::array::c_style>;

struct View {
    const sff::AdamWTask* tasks;
    int64_t count;

    explicit View(const Bytes& bytes) : tasks(reinterpret_cast<const sff::AdamWTask*>(bytes.data())) {
        constexpr auto size = static_cast<py::ssize_t>(sizeof(sff::AdamWTask));
        if (bytes.ndim() != 1 || bytes.nbytes() % size != 0)
            throw std::invalid_argument("optimizer table: expected a contiguous byte array of a multiple of " +
                                        std::to_string(size) + " bytes");
        count = bytes.nbytes() / size;
    }
};

// The chunks of all tables of the same shapes. `image` is what the device needs of them, chunks first, then the sums' pieces.
struct AdamWPlan {
    sff::AdamWChunks cut;

    explicit AdamWPlan(const Bytes& bytes) {
        const View view(bytes);
        sff::check_adamw(view.tasks, view.count);
        cut = sff::cut_adamw(view.tasks, view.count);
    }

    size_t chunk_bytes() const { return cut.chunks.size() * sizeof(sff::AdamWChunk); }

    Bytes image() const {
        const size_t piece_bytes = cut.pieces.size() * sizeof(sff::AdamWChunk);
        Bytes bytes(static_cast<py::ssize_t>(chunk_bytes() + piece_bytes));
        if (!cut.chunks.empty()) memcpy(bytes.mutable_data(), cut.chunks.data(), chunk_bytes());
        if (!cut.pieces.empty()) memcpy(bytes.mutable_data() + chunk_bytes(), cut.pieces.data(), piece_bytes);
        return bytes;
    }

    // One launch a bucket, in stream order. All addresses are of the device's memory; factor and found_inf may be 0.
    int step(uint64_t tasks, uint64_t image, uint64_t factor, int device, uint64_t stream, uint64_t found_inf) const {
        const sff::DeviceGuard guard(device);
        for (const sff::AdamWBucket& bucket : cut.buckets) {
            sff::Shape shape = {};
            sff::expect(sff::adamw_shape_of(bucket, shape),
                        "occupancy of the optimizer's kernel on device " + std::to_string(device));
            sff::expect(
                sff::launch_adamw(bucket, reinterpret_cast<const sff::AdamWTask*>(tasks),
                                  reinterpret_cast<const sff::AdamWChunk*>(image), reinterpret_cast<const float*>(factor),
                                  reinterpret_cast<const float*>(found_inf), shape, reinterpret_cast<cudaStream_t>(stream)),
                "launch of the optimizer's kernel on device " + std::to_string(device));
        }
        return static_cast<int>(cut.buckets.size());
    }

    // Two launches: sums (a double a piece) and what clipping makes of them (a double and a float). loss_scale may be 0.
    void clip(uint64_t tasks, uint64_t image, uint64_t sums, double grad_scale, double max_norm, uint64_t clipped, int device,
              uint64_t stream, uint64_t loss_scale) const {
        const sff::DeviceGuard guard(device);
        sff::expect(
            sff::launch_clipping(static_cast<int64_t>(cut.pieces.size()), reinterpret_cast<const sff::AdamWTask*>(tasks),
                                 reinterpret_cast<const sff::AdamWChunk*>(image + chunk_bytes()), reinterpret_cast<double*>(sums),
                                 grad_scale, reinterpret_cast<const float*>(loss_scale), max_norm,
                                 reinterpret_cast<sff::Clipped*>(clipped), reinterpret_cast<cudaStream_t>(stream)),
            "launch of the gradient norm's kernels on device " + std::to_string(device));
    }
};

// Writes bytes to an address of the device's memory, in stream order; they travel with the launches.
void write_words(const Bytes& bytes, uint64_t to, int device, uint64_t stream) {
    if (bytes.ndim() != 1 || bytes.nbytes() % 8 != 0 || to % 8 != 0)
        throw std::invalid_argument("write: expected a contiguous byte array and an address of multiples of 8 bytes");
    const sff::DeviceGuard guard(device);
    sff::expect(sff::launch_writing(reinterpret_cast<const uint64_t*>(bytes.data()), bytes.nbytes() / 8,
                                    reinterpret_cast<uint64_t*>(to), reinterpret_cast<cudaStream_t>(stream)),
                "launch of the table's writing on device " + std::to_string(device));
}

// Counts a step of `count` tasks and sets their coefficients, where tables and options lie on the device. Addresses may be 0.
void prepare_step(uint64_t tasks, uint64_t options, int64_t count, uint64_t loss_scale, uint64_t found_inf, int device,
                  uint64_t stream) {
    const sff::DeviceGuard guard(device);
    sff::expect(
        sff::launch_preparing(reinterpret_cast<sff::AdamWTask*>(tasks), reinterpret_cast<const sff::AdamWOptions*>(options),
                              count, reinterpret_cast<const float*>(loss_scale), reinterpret_cast<const float*>(found_inf),
                              reinterpret_cast<cudaStream_t>(stream)),
        "launch of the step's preparation on device " + std::to_string(device));
}

// Refuses a table that would touch memory that is not its own, or an element twice.
void check(const Bytes& bytes) {
    const View view(bytes);
    sff::check_adamw(view.tasks, view.count);
}

}  // namespace

void bind_cuda_optim(py::module_& m) {
    m.attr("ADAMW_TASK_BYTES") = sizeof(sff::AdamWTask);
    m.attr("CLIPPED_BYTES") = sizeof(sff::Clipped);
    m.attr("ADAMW_OPTIONS_BYTES") = sizeof(sff::AdamWOptions);
    m.def("check_adamw", &check, py::arg("table"));
    m.def("write", &write_words, py::arg("bytes"), py::arg("to"), py::arg("device"), py::arg("stream"));
    m.def("prepare", &prepare_step, py::arg("tasks"), py::arg("options"), py::arg("count"), py::arg("loss_scale"),
          py::arg("found_inf"), py::arg("device"), py::arg("stream"));
    py::class_<AdamWPlan>(m, "AdamWPlan")
        .def(py::init<const Bytes&>(), py::arg("table"))
        .def("image", &AdamWPlan::image)
        .def("step", &AdamWPlan::step, py::arg("tasks"), py::arg("image"), py::arg("factor"), py::arg("device"),
             py::arg("stream"), py::arg("found_inf") = 0)
        .def("clip", &AdamWPlan::clip, py::arg("tasks"), py::arg("image"), py::arg("sums"), py::arg("grad_scale"),
             py::arg("max_norm"), py::arg("clipped"), py::arg("device"), py::arg("stream"), py::arg("loss_scale") = 0)
        .def_property_readonly("launches", [](const AdamWPlan& p) { return p.cut.buckets.size(); })
        .def_property_readonly("chunks", [](const AdamWPlan& p) { return p.cut.chunks.size(); })
        .def_property_readonly("pieces", [](const AdamWPlan& p) { return p.cut.pieces.size(); });
}
