// What a C interface frees by a function of its own: std::unique_ptr<BIGNUM, FreeBy<BN_free>>, as large as a plain
// pointer.
#pragma once

namespace vtpmd {

template <auto F>
struct FreeBy {
    template <typename T>
    void operator()(T* p) const noexcept {
        F(p);
    }
};

} // namespace vtpmd
