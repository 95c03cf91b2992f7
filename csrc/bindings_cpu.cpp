// Python bindings of the CPU backend: addresses in, nothing of torch. Arrays are checked here, tables in check_tasks.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <vector>

#include "cpu/float_environment.h"
#include "cpu/smooth.h"

namespace py = pybind11;

void bind_optim(py::module_& m);    // bindings_optim.cpp
void bind_observe(py::module_& m);  // bindings_observe.cpp

namespace {

using Bytes = py::array_t<uint8_t, py::array::c_style>;

const sff::Task* tasks_of(const Bytes& table, int64_t& count) {
    if (table.ndim() != 1 || table.nbytes() % static_cast<py::ssize_t>(sizeof(sff::Task)) != 0)
        throw std::invalid_argument("kernel table: expected a contiguous byte array of a multiple of " +
                                    std::to_string(sizeof(sff::Task)) + " bytes");
    count = table.nbytes() / static_cast<py::ssize_t>(sizeof(sff::Task));
    return reinterpret_cast<const sff::Task*>(table.data());
}

void check_threads(int threads) {
    if (threads < 1) throw std::invalid_argument("threads: expected at least 1, got " + std::to_string(threads));
}

int smooth(const Bytes& table, int threads, const std::string& isa) {
    check_threads(threads);
    int64_t count = 0;
    const sff::Task* tasks = tasks_of(table, count);
    const sff::Kernel& kernel = sff::select_kernel(isa);
    const py::gil_scoped_release release;
    sff::check_tasks(tasks, count);
    return sff::smooth(tasks, count, threads, kernel);
}

// A copy of a kernel table, checked once, that runs with any seed.
class Table {
public:
    explicit Table(const Bytes& table) {
        int64_t count = 0;
        const sff::Task* tasks = tasks_of(table, count);
        sff::check_tasks(tasks, count);
        tasks_.assign(tasks, tasks + count);
    }

    int smooth(uint64_t seed, uint64_t round_seed, int threads, const std::string& isa) const {
        check_threads(threads);
        const sff::Kernel& kernel = sff::select_kernel(isa);
        const sff::Seeds seeds = {seed, round_seed};
        const py::gil_scoped_release release;
        return sff::smooth(tasks_.data(), static_cast<int64_t>(tasks_.size()), threads, kernel, &seeds);
    }

private:
    std::vector<sff::Task> tasks_;
};

void check(const Bytes& table) {
    int64_t count = 0;
    const sff::Task* tasks = tasks_of(table, count);
    sff::check_tasks(tasks, count);
}

py::array_t<uint32_t> philox(uint64_t seed, uint64_t stream, uint64_t block, int64_t count, const std::string& isa) {
    if (count < 0) throw std::invalid_argument("count: expected at least 0, got " + std::to_string(count));
    py::array_t<uint32_t> words({count, static_cast<int64_t>(4)});
    sff::select_kernel(isa).philox_words(seed, stream, block, count, words.mutable_data());
    return words;
}

py::array_t<float> transform(const Bytes& table, const py::array_t<uint32_t, py::array::c_style>& words, const std::string& isa) {
    int64_t count = 0;
    const sff::Task* tasks = tasks_of(table, count);
    if (count != 1) throw std::invalid_argument("transform: expected one task, got " + std::to_string(count));
    const int32_t kind = tasks->distribution;
    if (kind != sff::kUniform && kind != sff::kNormal && kind != sff::kTruncNormal)
        throw std::invalid_argument("transform: expected a random distribution");
    if (kind == sff::kNormal && words.size() % 2 != 0) throw std::invalid_argument("transform: normal draws take pairs of words");
    py::array_t<float> draws(words.size());
    const sff::FloatEnvironment environment;
    sff::select_kernel(isa).transform(*tasks, words.data(), words.size(), draws.mutable_data());
    return draws;
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
    m.doc() = "CPU kernels of sff_fast. See sff_fast/backends/cpu.py for their use.";
    m.attr("TASK_BYTES") = sizeof(sff::Task);
    bind_optim(m);
    bind_observe(m);
    py::class_<Table>(m, "Table", py::module_local())
        .def(py::init<const Bytes&>(), py::arg("table"))
        .def("smooth", &Table::smooth, py::arg("seed"), py::arg("round_seed"), py::arg("threads"), py::arg("isa") = "");
    m.def("smooth", &smooth, py::arg("table"), py::arg("threads"), py::arg("isa") = "");
    m.def("check", &check, py::arg("table"));
    m.def("isa", [](const std::string& isa) { return std::string(sff::select_kernel(isa).name); }, py::arg("isa") = "");
    m.def("philox", &philox, py::arg("seed"), py::arg("stream"), py::arg("block"), py::arg("count"), py::arg("isa") = "");
    m.def("transform", &transform, py::arg("table"), py::arg("words"), py::arg("isa") = "");
}
