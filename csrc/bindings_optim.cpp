// Python bindings of the optimizer: addresses in, nothing of torch. Arrays are checked here, tables in check_adamw.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "cpu/adamw.h"

namespace py = pybind11;

namespace {

using Bytes = py::array_t<uint8_t, py::array::c_style>;

// Runs one of the optimizer's functions on a checked table, without the interpreter's lock.
template <class Result>
Result run(Result (*function)(const sff::AdamWTask*, int64_t, int, const sff::AdamWKernel&), const Bytes& bytes, int threads,
           const std::string& isa) {
    constexpr auto size = static_cast<py::ssize_t>(sizeof(sff::AdamWTask));
    if (threads < 1) throw std::invalid_argument("threads: expected at least 1, got " + std::to_string(threads));
    if (bytes.ndim() != 1 || bytes.nbytes() % size != 0)
        throw std::invalid_argument("optimizer table: expected a contiguous byte array of a multiple of " + std::to_string(size) +
                                    " bytes");
    const auto* tasks = reinterpret_cast<const sff::AdamWTask*>(bytes.data());
    const int64_t count = bytes.nbytes() / size;
    const sff::AdamWKernel& kernel = sff::select_adamw(isa);
    const py::gil_scoped_release release;
    sff::check_adamw(tasks, count);
    return function(tasks, count, threads, kernel);
}

int adamw(const Bytes& table, int threads, const std::string& isa) { return run(sff::adamw, table, threads, isa); }

double sum_of_squares(const Bytes& table, int threads, const std::string& isa) {
    return run(sff::sum_of_squares, table, threads, isa);
}

}  // namespace

void bind_optim(py::module_& m) {
    m.attr("ADAMW_TASK_BYTES") = sizeof(sff::AdamWTask);
    m.def("adamw", &adamw, py::arg("table"), py::arg("threads"), py::arg("isa") = "");
    m.def("sum_of_squares", &sum_of_squares, py::arg("table"), py::arg("threads"), py::arg("isa") = "");
}
