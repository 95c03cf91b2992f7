// Refuses an optimizer's table that would touch memory that is not its own, or an element twice.
#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "../core/task.h"
#include "adamw.h"

namespace sff {
namespace {

[[noreturn]] void refuse(int64_t index, const std::string& what) {
    throw std::invalid_argument("optimizer table, task " + std::to_string(index) + ": " + what);
}

struct Range {
    uint64_t begin, end;
    int64_t task;
};

class TaskCheck {
public:
    TaskCheck(const AdamWTask& task, int64_t index, std::vector<Range>& written)
        : task_(task), index_(index), written_(written) {}

    void run() {
        if (task_.param_dtype != kFloat32 && task_.param_dtype != kBFloat16 && task_.param_dtype != kFloat16)
            refuse(index_, "unknown dtype code " + std::to_string(task_.param_dtype));
        if (task_.state_type < kStateFloat32 || task_.state_type > kStateInt8)
            refuse(index_, "unknown state type " + std::to_string(task_.state_type));
        if (task_.storing < kStoreNearest || task_.storing > kStoreCompensated)
            refuse(index_, "unknown storing code " + std::to_string(task_.storing));
        if (task_.storing == kStoreStochastic && task_.param_dtype != kBFloat16)
            refuse(index_, "stochastic rounding of a dtype other than bfloat16");
        if (task_.storing == kStoreCompensated && task_.param_dtype == kFloat32)
            refuse(index_, "compensation of a float32 parameter");
        if (task_.elements < 0 || task_.elements > (int64_t{1} << 60))
            refuse(index_, "expected 0 to 2^60 elements, got " + std::to_string(task_.elements));
        if (task_.elements == 0) return;

        const bool int8 = task_.state_type == kStateInt8, amsgrad = task_.max_exp_avg_sq != 0;
        const uint64_t param = task_.param_dtype == kFloat32 ? 4 : 2;
        const uint64_t state = int8 ? 1 : task_.state_type == kStateBFloat16 ? 2 : 4;
        const uint64_t n = static_cast<uint64_t>(task_.elements);
        const uint64_t blocks = (n + kQuantizedBlock - 1) / kQuantizedBlock;
        array("param", task_.param, n, param, true);
        array("grad", task_.grad, n, param, false);
        array("exp_avg", task_.exp_avg, n, state, true);
        array("exp_avg_sq", task_.exp_avg_sq, n, state, true);
        if (amsgrad) array("max_exp_avg_sq", task_.max_exp_avg_sq, n, state, true);
        if (task_.storing == kStoreCompensated) array("compensation", task_.compensation, n, param, true);
        if (int8) {
            array("exp_avg_scale", task_.exp_avg_scale, blocks, 4, true);
            array("exp_avg_sq_scale", task_.exp_avg_sq_scale, blocks, 4, true);
            if (amsgrad) array("max_exp_avg_sq_scale", task_.max_exp_avg_sq_scale, blocks, 4, true);
        }
    }

private:
    void array(const char* name, uint64_t address, uint64_t count, uint64_t width, bool writes) {
        if (address == 0 || address % width != 0) refuse(index_, std::string(name) + " is null or not aligned to its dtype");
        if (address > UINT64_MAX - count * width) refuse(index_, std::string(name) + " ends behind the address space");
        if (writes) written_.push_back({address, address + count * width, index_});
    }

    const AdamWTask& task_;
    int64_t index_;
    std::vector<Range>& written_;
};

}  // namespace

void check_adamw(const AdamWTask* tasks, int64_t count) {
    std::vector<Range> written;
    for (int64_t i = 0; i < count; ++i) TaskCheck(tasks[i], i, written).run();
    std::sort(written.begin(), written.end(), [](const Range& a, const Range& b) { return a.begin < b.begin; });
    for (size_t i = 1; i < written.size(); ++i)
        if (written[i].begin < written[i - 1].end)
            refuse(written[i].task, "writes memory that task " + std::to_string(written[i - 1].task) + " writes too");
}

}  // namespace sff
