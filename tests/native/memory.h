// Memory of exactly the size that a table names: the sanitizer's red zone begins where the last element ends. A lead of
// whole elements moves the data off the alignment that malloc gives.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

class Memory {
public:
    Memory(size_t bytes, size_t lead)
        : bytes_(bytes), lead_(lead), block_(static_cast<char*>(std::malloc(lead + bytes + (lead + bytes == 0)))) {
        std::memset(block_, 0x5a, lead);
    }
    ~Memory() { std::free(block_); }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;

    char* data() const { return block_ + lead_; }
    size_t bytes() const { return bytes_; }
    uint64_t address() const { return reinterpret_cast<uint64_t>(data()); }
    bool lead_is_untouched() const {
        for (size_t i = 0; i < lead_; ++i)
            if (block_[i] != 0x5a) return false;
        return true;
    }

private:
    size_t bytes_, lead_;
    char* block_;
};
