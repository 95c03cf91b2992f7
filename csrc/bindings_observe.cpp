// Whether the parameters of a module are what they were: the modules' dicts are walked as sff_fast/names.py does, and tensors are
// read through the C functions of DLPack that torch hands out, so that nothing of torch is compiled in.
//
// All of it holds the interpreter's lock. What is borrowed is not used after code of Python may have run.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <iterator>
#include <unordered_set>
#include <vector>

#include "dlpack.h"

namespace py = pybind11;

namespace {

namespace dlpack = sff::dlpack;

constexpr size_t kAhead = 16;      // objects that are fetched from memory before they are looked at
constexpr intptr_t kLine = 64;     // bytes
constexpr intptr_t kBefore = 128;  // bytes of a tensor's own fields that are fetched in front of its shape, and from there on

using Reader = int (*)(void*, dlpack::Tensor*);

// The function that reads a tensor, as the tensor's type offers it; null where this torch has none that is known here.
Reader reader_of(py::handle tensor_type) {
    const py::object capsule = py::getattr(tensor_type, dlpack::kAttribute, py::none());
    if (PyCapsule_IsValid(capsule.ptr(), dlpack::kCapsule) == 0) return nullptr;
    const auto* api = static_cast<const dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), dlpack::kCapsule));
    while (api != nullptr && api->major > dlpack::kMajor) api = api->older;
    return api != nullptr && api->major == dlpack::kMajor ? api->tensor_from_py_object_no_sync : nullptr;
}

py::object checked(PyObject* made) {
    if (made == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(made);
}

// A plain dict that an object has in its own dict, or null; borrowed.
PyObject* own_dict(PyObject* object, const py::str& name) {
    const auto own = py::reinterpret_steal<py::object>(PyObject_GenericGetDict(object, nullptr));
    if (!own && PyErr_ExceptionMatches(PyExc_AttributeError) != 0) {
        PyErr_Clear();
        return nullptr;
    }
    if (!own) throw py::error_already_set();
    PyObject* found = PyDict_GetItemWithError(own.ptr(), name.ptr());
    if (found == nullptr && PyErr_Occurred() != nullptr) throw py::error_already_set();
    return found != nullptr && PyDict_CheckExact(found) ? found : nullptr;
}

// What a module, its parameters and its children are, by identity.
struct Walk {
    std::vector<PyObject*> nodes;       // of each module: itself, its type, its parameters, null, its children, null
    std::vector<PyObject*> names;       // of its parameters and its children
    std::vector<PyObject*> types;       // of the modules
    std::vector<PyObject*> parameters;  // in order; one of several names as often
};

// Runs no code of Python: dicts are read, and nothing else of the modules.
class Walker {
public:
    Walk found;

    // False where parameters or children are kept in anything else than a plain dict.
    bool run(PyObject* model) {
        std::vector<PyObject*> next = {model};
        while (!next.empty()) {
            PyObject* module = next.back();
            next.pop_back();
            if (!visited_.insert(module).second) continue;
            PyObject* parameters = own_dict(module, parameters_);
            PyObject* modules = own_dict(module, modules_);
            if (parameters == nullptr || modules == nullptr) return false;
            found.types.push_back(reinterpret_cast<PyObject*>(Py_TYPE(module)));
            found.nodes.push_back(module);
            found.nodes.push_back(found.types.back());
            const auto parameter = append(parameters);
            std::copy_if(parameter, found.nodes.end() - 1, std::back_inserter(found.parameters), is_there);
            const auto child = append(modules);
            std::copy_if(std::make_reverse_iterator(found.nodes.end() - 1), std::make_reverse_iterator(child),
                         std::back_inserter(next), is_there);
        }
        return true;
    }

private:
    static bool is_there(PyObject* value) { return value != Py_None; }

    std::vector<PyObject*>::iterator append(PyObject* dict) {
        const auto first = static_cast<std::ptrdiff_t>(found.nodes.size());
        PyObject *name, *value;
        for (Py_ssize_t i = 0; PyDict_Next(dict, &i, &name, &value) != 0;) {
            found.names.push_back(name);
            found.nodes.push_back(value);
        }
        found.nodes.push_back(nullptr);
        return found.nodes.begin() + first;
    }

    const py::str parameters_{"_parameters"}, modules_{"_modules"};
    std::unordered_set<PyObject*> visited_;
};

// A model whose parameters are plain dense tensors that have a version counter, as it was. Keeps nothing of it alive but names.
class Observed {
public:
    Observed(const py::type& tensor_type, py::object is_inference, const py::tuple& attributes, py::handle model)
        : read_(reader_of(tensor_type)), tensor_type_(tensor_type), is_inference_(std::move(is_inference)) {
        for (py::handle name : attributes) attributes_.push_back(py::reinterpret_borrow<py::object>(name));
        Walker walker;
        if (read_ == nullptr || !walker.run(model.ptr())) throw py::value_error("observe: the model cannot be observed");
        const Walk& walk = walker.found;
        nodes_ = walk.nodes;
        for (PyObject* name : walk.names) {
            if (PyUnicode_CheckExact(name) == 0) throw py::value_error("observe: expected names that are plain strings");
            names_.push_back(py::reinterpret_borrow<py::object>(name));
        }
        std::unordered_set<PyObject*> seen;
        for (PyObject* type : walk.types)
            if (seen.insert(type).second) types_.emplace_back(type, checked(PyWeakref_NewRef(type, nullptr)));
        for (PyObject* p : walk.parameters) first_.push_back(seen.insert(p).second);
        const py::list parameters = distinct(walk);
        for (py::handle p : parameters) {
            dlpack::Tensor t{};
            if (!is_plain(p.ptr()) || !read(p.ptr(), t)) throw py::value_error("observe: a parameter is no plain dense tensor");
            states_.push_back({t, sizes_.size()});
            sizes_.insert(sizes_.end(), t.shape, t.shape + t.ndim);
            sizes_.insert(sizes_.end(), t.strides, t.strides + t.ndim);
        }
    }

    // The model's parameters, those of several names once, or None where anything is not as it was.
    py::object parameters(py::handle model) const {
        Walker walker;
        if (!types_live() || !walker.run(model.ptr()) || !is_same(walker.found)) return py::none();
        py::list parameters = distinct(walker.found);
        for (size_t i = 0; i < states_.size(); ++i) {
            PyObject* p = PyList_GET_ITEM(parameters.ptr(), static_cast<Py_ssize_t>(i));
            if (!is_plain(p) || !is_same(p, states_[i])) return py::none();
        }
        return std::move(parameters);
    }

private:
    struct State {
        dlpack::Tensor tensor;  // its shape and strides lie in the tensor: fetched from there, never read
        size_t sizes;           // where they are kept in sizes_
    };

    // Types may be compared by address as long as none of them is gone.
    bool types_live() const {
        return std::all_of(types_.begin(), types_.end(), [](const auto& type) { return type.second().ptr() == type.first; });
    }

    bool is_same(const Walk& walk) const {
        return walk.nodes == nodes_ && std::equal(names_.begin(), names_.end(), walk.names.begin(), walk.names.end(),
                                                  [](const py::object& before, PyObject* name) {
                                                      return before.ptr() == name || (PyUnicode_CheckExact(name) != 0 &&
                                                                                      PyUnicode_Compare(before.ptr(), name) == 0);
                                                  });
    }

    // The parameters of a walk, each once. Their own fields, which lie all over memory, are on their way before they are needed.
    py::list distinct(const Walk& walk) const {
        const auto& all = walk.parameters;
        py::list parameters(static_cast<size_t>(std::count(first_.begin(), first_.end(), true)));
        size_t next = 0;
        for (size_t i = 0; i < all.size(); ++i) {
            if (i + kAhead < all.size()) __builtin_prefetch(all[i + kAhead], 1);
            if (!first_[i]) continue;
            if (next < states_.size()) {
                const auto* shape = reinterpret_cast<const char*>(states_[next].tensor.shape);
                for (intptr_t at = -kBefore; at <= kBefore; at += kLine) __builtin_prefetch(shape + at);
            }
            PyList_SET_ITEM(parameters.ptr(), static_cast<Py_ssize_t>(next++), py::handle(all[i]).inc_ref().ptr());
        }
        return parameters;
    }

    // Of the plain type, with a version counter, and without an attribute that says it is more than a tensor.
    bool is_plain(PyObject* p) const {
        if (reinterpret_cast<PyObject*>(Py_TYPE(p)) != tensor_type_.ptr()) return false;
        const py::object own = checked(PyObject_GenericGetDict(p, nullptr));
        if (PyDict_GET_SIZE(own.ptr()) != 0)
            for (const py::object& name : attributes_) {
                const int has = PyDict_Contains(own.ptr(), name.ptr());
                if (has < 0) throw py::error_already_set();
                if (has != 0) return false;
            }
        return checked(PyObject_Vectorcall(is_inference_.ptr(), &p, 1, nullptr)).ptr() == Py_False;
    }

    // Whoever asks next about a tensor that cannot be read will say what is wrong with it.
    bool read(PyObject* p, dlpack::Tensor& t) const {
        if (read_(p, &t) == 0) return true;
        PyErr_Clear();
        return false;
    }

    bool is_same(PyObject* p, const State& before) const {
        dlpack::Tensor t{};
        if (!read(p, t)) return false;
        const dlpack::Tensor& b = before.tensor;
        const auto sizes = sizes_.begin() + static_cast<std::ptrdiff_t>(before.sizes);
        return t.data == b.data && t.byte_offset == b.byte_offset && t.device_type == b.device_type &&
               t.device_id == b.device_id && t.dtype.code == b.dtype.code && t.dtype.bits == b.dtype.bits &&
               t.dtype.lanes == b.dtype.lanes && t.ndim == b.ndim && std::equal(t.shape, t.shape + t.ndim, sizes) &&
               std::equal(t.strides, t.strides + t.ndim, sizes + t.ndim);
    }

    Reader read_;
    py::object tensor_type_, is_inference_;
    std::vector<py::object> attributes_, names_;
    std::vector<PyObject*> nodes_;                         // addresses only: of what is gone by now, too
    std::vector<std::pair<PyObject*, py::object>> types_;  // and a weak reference to each
    std::vector<bool> first_;                              // of each name's parameter, whether no name before it has it
    std::vector<State> states_;
    std::vector<int64_t> sizes_;
};

}  // namespace

void bind_observe(py::module_& m) {
    py::class_<Observed>(m, "Observed", py::module_local())
        .def(py::init<const py::type&, py::object, const py::tuple&, py::handle>(), py::arg("tensor_type"),
             py::arg("is_inference"), py::arg("attributes"), py::arg("model"))
        .def("parameters", &Observed::parameters, py::arg("model"));
}
