// Tpm12::attempt, for the files of its implementation.
#pragma once

#include "hwtpm/tpm12/codes.hpp"
#include "hwtpm/tpm12/tpm12.hpp"

namespace vtpmd::hwtpm {

/// ready(), then f(); once more if the TPM was reset before (and so did nothing), or, for what may be asked twice, if
/// no answer came. A transport error makes the next call start the TPM anew.
template <typename F>
auto Tpm12::attempt(Repeat repeat, F f) -> std::invoke_result_t<F&> {
    if (auto r = ready(); !r) {
        return r.error();
    }
    auto result = f();
    if (result) {
        return result;
    }
    const Error& e = result.error();
    const bool not_executed =
        e.code == Errc::tpm && (e.detail == v12::rc_invalid_postinit || e.detail == v12::rc_invalid_auth_handle);
    const bool lost = e.code == Errc::closed || e.code == Errc::timed_out || e.code == Errc::io;
    if (not_executed || lost) {
        started_ = false;
    }
    if (!not_executed && !(repeat == Repeat::always && e.code == Errc::closed)) {
        return result;
    }
    if (auto r = ready(); !r) {
        return r.error();
    }
    return f();
}

} // namespace vtpmd::hwtpm
