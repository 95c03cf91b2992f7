// The CUDA backend as a plain C library: the unmodified kernels and host code on the CPU, through cuda_runtime.h beside this.
#define SHIM_WARPS
#include "../../csrc/cuda/chunks.cpp"
#include "../../csrc/cuda/smooth.cu"

extern "C" {

// Runs a table with a given launch shape (grid 0: what shape_of says) and chunk size; returns the number of launches.
int sff_shim_smooth(const sff::Task* tasks, int64_t count, int32_t largest, unsigned grid, unsigned block) {
    const sff::Chunks chunks = sff::cut_into_chunks(tasks, count, largest);
    for (const sff::Bucket& bucket : chunks.buckets) {
        sff::Shape shape = {grid, block};
        if (grid == 0 && sff::shape_of(bucket, shape) != cudaSuccess) return -1;
        if (sff::launch(bucket, tasks, chunks.chunks.data(), shape, nullptr) != cudaSuccess) return -1;
    }
    return static_cast<int>(chunks.buckets.size());
}

// The chunks of a table, at most `room` of them into `out`; returns how many there are.
int64_t sff_shim_chunks(const sff::Task* tasks, int64_t count, int32_t largest, sff::Chunk* out, int64_t room) {
    const sff::Chunks chunks = sff::cut_into_chunks(tasks, count, largest);
    for (int64_t i = 0; i < room && i < static_cast<int64_t>(chunks.chunks.size()); ++i) out[i] = chunks.chunks[static_cast<size_t>(i)];
    return static_cast<int64_t>(chunks.chunks.size());
}

// The variant of the kernel that bucket `index` takes.
int sff_shim_variant(const sff::Task* tasks, int64_t count, int32_t largest, int index) {
    return sff::cut_into_chunks(tasks, count, largest).buckets.at(static_cast<size_t>(index)).variant;
}

// What launch() hands to the kernel of bucket `index`, for tables that lie at the given addresses.
int64_t sff_shim_arguments(const sff::Task* tasks, int64_t count, int32_t largest, int index, const sff::Chunk* chunks, void* out) {
    const sff::Bucket bucket = sff::cut_into_chunks(tasks, count, largest).buckets.at(static_cast<size_t>(index));
    const sff::Launch arguments = sff::arguments_of(bucket, tasks, chunks);
    memcpy(out, &arguments, sizeof arguments);
    return static_cast<int64_t>(sizeof arguments);
}
}
