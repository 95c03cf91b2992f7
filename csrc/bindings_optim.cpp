// Python bindings of the optimizer: addresses in, nothing of torch. Arrays are checked here, tables in check_adamw.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "cpu/adamw.h"

namespace py = pybind11;

namespace {

using Bytes = py::array_t<uint8_t, py::array::c_style>;

struct Table {
    const sff::AdamWTask* tasks;
    int64_t count;

    explicit Table(const Bytes& bytes) : tasks(reinterpret_cast<const sff::AdamWTask*>(bytes.data())) {
        constexpr auto size = static_cast<py::ssize_t>(sizeof(sff::AdamWTask));
        if (bytes.ndim() != 1 || bytes.nbytes() % size != 0)
            throw std::invalid_argument("optimizer table: expected a contiguous byte array of a multiple of " +
                                        std::to_string(size) + " bytes");
        count = bytes.nbytes() / size;
    }
};

void check_threads(int threads) {
    if (threads < 1) throw std::invalid_argument("threads: expected at least 1, got " + std::to_string(threads));
}

int adamw(const Bytes& bytes, int threads, const std::string& isa) {
    check_threads(threads);
    const Table table(bytes);
    const sff::AdamWKernel& kernel = sff::select_adamw(isa);
    const py::gil_scoped_release release;
    sff::check_adamw(table.tasks, table.count);
    return sff::adamw(table.tasks, table.count, threads, kernel);
}

double sum_of_squares(const Bytes& bytes, int threads, const std::string& isa) {
    check_threads(threads);
    const Table table(bytes);
    const sff::AdamWKernel& kernel = sff::select_adamw(isa);
    const py::gil_scoped_release release;
    sff::check_adamw(table.tasks, table.count);
    return sff::sum_of_squares(table.tasks, table.count, threads, kernel);
}

}  // namespace

void bind_optim(py::module_& m) {
    m.attr("ADAMW_TASK_BYTES") = sizeof(sff::AdamWTask);
    m.def("adamw", &adamw, py::arg("table"), py::arg("threads"), py::arg("isa") = "");
    m.def("sum_of_squares", &sum_of_squares, py::arg("table"), py::arg("threads"), py::arg("isa") = "");
}
