// The optimizer's CUDA kernels as a plain C library: unmodified kernels and host code on the CPU.
#define SHIM_WARPS
#include "../../csrc/cuda/adamw_chunks.cpp"
#include "../../csrc/cuda/adamw.cu"

extern "C" {

// One step with a given launch shape (grid 0: what adamw_shape_of says) and chunk size; returns the number of launches.
int sff_shim_adamw(const sff::AdamWTask* tasks, int64_t count, int32_t largest, unsigned grid, unsigned block, const float* factor) {
    const sff::AdamWChunks chunks = sff::cut_adamw(tasks, count, largest);
    for (const sff::AdamWBucket& bucket : chunks.buckets) {
        sff::Shape shape = {grid, block};
        if (grid == 0 && sff::adamw_shape_of(bucket, shape) != cudaSuccess) return -1;
        if (sff::launch_adamw(bucket, tasks, chunks.chunks.data(), factor, nullptr, shape, nullptr) != cudaSuccess) return -1;
    }
    return static_cast<int>(chunks.buckets.size());
}

// The norm and the factor of clipping; returns the sum of squares.
double sff_shim_clip(const sff::AdamWTask* tasks, int64_t count, double grad_scale, double max_norm, sff::Clipped* clipped) {
    const sff::AdamWChunks chunks = sff::cut_adamw(tasks, count);
    const int64_t pieces = static_cast<int64_t>(chunks.pieces.size());
    std::unique_ptr<double[]> sums(new double[chunks.pieces.size() + 1]());
    if (sff::launch_clipping(pieces, tasks, chunks.pieces.data(), sums.get(), grad_scale, nullptr, max_norm, clipped, nullptr) != cudaSuccess)
        std::abort();
    double total = 0;
    for (int64_t i = 0; i < pieces; ++i) total += sums[static_cast<size_t>(i)];
    return total;
}

// The chunks (pieces: of sums) of a table, at most `room` of them into `out`; returns how many there are.
int64_t sff_shim_adamw_chunks(const sff::AdamWTask* tasks, int64_t count, int32_t largest, int pieces, sff::AdamWChunk* out, int64_t room) {
    const sff::AdamWChunks cut = sff::cut_adamw(tasks, count, largest);
    const auto& chunks = pieces != 0 ? cut.pieces : cut.chunks;
    for (size_t i = 0; i < chunks.size() && static_cast<int64_t>(i) < room; ++i) out[i] = chunks[i];
    return static_cast<int64_t>(chunks.size());
}

// What a launch hands to the kernel of the first bucket, or of the sums, for tables that lie at the given addresses.
int64_t sff_shim_adamw_arguments(const sff::AdamWTask* tasks, int64_t count, int32_t largest, const sff::AdamWChunk* chunks,
                                 const float* factor, double* sums, void* out) {
    const sff::AdamWChunks cut = sff::cut_adamw(tasks, count, largest);
    if (sums != nullptr) {
        const sff::SumLaunch arguments = sff::sum_arguments(static_cast<int64_t>(cut.pieces.size()), tasks, chunks, sums);
        memcpy(out, &arguments, sizeof arguments);
        return static_cast<int64_t>(sizeof arguments);
    }
    const sff::AdamWLaunch arguments = sff::arguments_of(cut.buckets.at(0), tasks, chunks, factor, nullptr);
    memcpy(out, &arguments, sizeof arguments);
    return static_cast<int64_t>(sizeof arguments);
}
}
