// The freshness counter: an NV index of type counter. By TPM 2.0 part 1 section 37.2.4 a new one starts above every
// counter that the TPM ever had, so that deleting and making it again gains nothing.
#include "hwtpm/tpm20/tpm20.hpp"

#include "util/wire.hpp"

#include <algorithm>
#include <openssl/rand.h>

namespace vtpmd::hwtpm {

namespace {

constexpr std::size_t counter_auth_size = 32;

TPM2B_NV_PUBLIC counter_template(std::uint32_t handle) {
    TPM2B_NV_PUBLIC out{};
    out.nvPublic.nvIndex = handle;
    out.nvPublic.nameAlg = TPM2_ALG_SHA256;
    out.nvPublic.attributes = (static_cast<TPMA_NV>(TPM2_NT_COUNTER) << TPMA_NV_TPM2_NT_SHIFT) | TPMA_NV_AUTHREAD |
                              TPMA_NV_AUTHWRITE | TPMA_NV_OWNERREAD | TPMA_NV_NO_DA;
    out.nvPublic.dataSize = 8;
    return out;
}

Result<Bytes> new_auth() {
    Bytes auth(counter_auth_size);
    do {
        if (RAND_priv_bytes(uchar_ptr(MutByteView(auth)), static_cast<int>(auth.size())) != 1) {
            return make_error(Errc::unavailable, "no random numbers from OpenSSL");
        }
    } while (auth.back() == std::byte{0}); // the TPM drops trailing zeros
    return auth;
}

} // namespace

void Tpm20::forget_counter(std::uint32_t handle) noexcept {
    if (auto it = counters_.find(handle); it != counters_.end()) {
        if (esys_) {
            (void)Esys_TR_Close(esys_->get(), &it->second);
        }
        counters_.erase(it);
    }
}

Result<ESYS_TR> Tpm20::counter_handle(const CounterRef& counter) {
    auto it = counters_.find(counter.handle);
    if (it == counters_.end()) {
        ESYS_TR handle = ESYS_TR_NONE;
        TSS2_RC rc =
            Esys_TR_FromTPMPublic(esys_->get(), counter.handle, ESYS_TR_NONE, ESYS_TR_NONE, ESYS_TR_NONE, &handle);
        if (auto r = esys_->check(rc, "looking for the counter"); !r) {
            return counter_error(r.error(), counter);
        }
        it = counters_.emplace(counter.handle, handle).first;
    }
    if (auto r = set_auth(*esys_, it->second, counter.auth); !r) {
        return r.error();
    }
    return it->second;
}

Error Tpm20::counter_error(Error e, const CounterRef& counter) {
    const TSS2_RC base = base_code(e.detail);
    if (e.code == Errc::tpm && (base == TPM2_RC_HANDLE || base == TPM2_RC_VALUE || base == TPM2_RC_NV_UNINITIALIZED)) {
        forget_counter(counter.handle);
        Error gone = make_error(Errc::not_found,
                                "{}: the freshness counter {:#010x} is not in this TPM: cleared, or another TPM",
                                device_.description(), counter.handle);
        gone.detail = base;
        return gone;
    }
    if (e.code == Errc::permission || (e.code == Errc::tpm && base == TPM2_RC_ATTRIBUTES)) {
        forget_counter(counter.handle);
        return make_error(Errc::mismatch, "{}: the NV index {:#010x} is not our freshness counter ({})",
                          device_.description(), counter.handle, e.message);
    }
    return e;
}

Result<std::uint32_t> Tpm20::free_counter_handle() {
    auto taken = handles(counter_first);
    if (!taken) {
        return taken.error();
    }
    for (std::uint32_t handle = counter_first; handle <= counter_last; ++handle) {
        if (std::find(taken->begin(), taken->end(), handle) == taken->end()) {
            return handle;
        }
    }
    return make_error(Errc::no_space, "{}: the NV indices {:#010x} to {:#010x} are all taken", device_.description(),
                      counter_first, counter_last);
}

Result<CounterRef> Tpm20::counter_reserve() {
    return attempt(Repeat::always, [&]() -> Result<CounterRef> {
        auto handle = free_counter_handle();
        if (!handle) {
            return handle.error();
        }
        auto auth = new_auth();
        if (!auth) {
            return auth.error();
        }
        return CounterRef{.handle = *handle, .auth = std::move(*auth)};
    });
}

/// True if the counter of this reservation is there: the index looks like one of ours, and the authorisation value
/// opens it. (An index that is protected against guessing is not tried: that would count as an attack.) A power cut may
/// have left it without its first step.
Result<bool> Tpm20::take_reserved(const CounterRef& reserved) {
    auto handle = counter_handle(reserved);
    if (!handle) {
        return handle.error().code == Errc::not_found ? Result<bool>(false) : Result<bool>(handle.error());
    }
    TPM2B_NV_PUBLIC* raw = nullptr;
    TSS2_RC rc = Esys_NV_ReadPublic(esys_->get(), *handle, ESYS_TR_NONE, ESYS_TR_NONE, ESYS_TR_NONE, &raw, nullptr);
    EsysPtr<TPM2B_NV_PUBLIC> area(raw);
    if (auto r = esys_->check(rc, "looking at an NV index"); !r) {
        return r.error();
    }
    const TPMA_NV attributes = area->nvPublic.attributes & ~static_cast<TPMA_NV>(TPMA_NV_WRITTEN);
    if (attributes != counter_template(reserved.handle).nvPublic.attributes) {
        forget_counter(reserved.handle);
        return false;
    }
    auto value = counter_read_once(reserved);
    if (!value && value.error().detail == TPM2_RC_NV_UNINITIALIZED) {
        auto stepped = counter_step_once(reserved);
        return stepped ? Result<bool>(true) : Result<bool>(stepped.error());
    }
    if (!value && value.error().code == Errc::mismatch) {
        return false;
    }
    return value ? Result<bool>(true) : Result<bool>(value.error());
}

Result<CounterRef> Tpm20::counter_create(const CounterRef& reserved) {
    return attempt(Repeat::always, [&]() -> Result<CounterRef> {
        auto there = take_reserved(reserved);
        if (!there) {
            return there.error();
        }
        CounterRef counter = reserved;
        if (*there) {
            return counter;
        }
        auto taken = handles(reserved.handle);
        if (!taken) {
            return taken.error();
        }
        if (std::find(taken->begin(), taken->end(), reserved.handle) != taken->end()) {
            auto other = free_counter_handle(); // somebody took the place meanwhile
            if (!other) {
                return other.error();
            }
            counter.handle = *other;
        }
        if (auto r = define_counter(counter); !r) {
            return r.error();
        }
        // A counter has no value before its first step.
        if (auto r = counter_step_once(counter); !r) {
            (void)counter_delete(counter);
            return r.error();
        }
        return counter;
    });
}

Result<void> Tpm20::define_counter(const CounterRef& counter) {
    Cleansed<TPM2B_AUTH> value;
    value.value.size = static_cast<UINT16>(counter.auth.size());
    std::copy(counter.auth.begin(), counter.auth.end(), reinterpret_cast<std::byte*>(value.value.buffer));
    const TPM2B_NV_PUBLIC wanted = counter_template(counter.handle);
    auto session = bus_session(TPMA_SESSION_DECRYPT);
    if (!session) {
        return session.error();
    }
    ESYS_TR handle = ESYS_TR_NONE;
    TSS2_RC rc = Esys_NV_DefineSpace(esys_->get(), ESYS_TR_RH_OWNER, *session, ESYS_TR_NONE, ESYS_TR_NONE, &value.value,
                                     &wanted, &handle);
    if (base_code(rc) == TPM2_RC_NV_SPACE) {
        return make_error(Errc::no_space, "{}: no room for a freshness counter in the TPM's NV", device_.description());
    }
    auto defined = esys_->check(rc, "making the freshness counter");
    if (!defined && defined.error().code == Errc::permission) {
        return in_context(defined.error(), "the owner's authorisation is refused: give the right --owner-auth");
    }
    if (!defined) {
        return defined;
    }
    counters_.emplace(counter.handle, handle);
    return {};
}

Result<void> Tpm20::counter_step_once(const CounterRef& counter) {
    auto handle = counter_handle(counter);
    if (!handle) {
        return handle.error();
    }
    auto session = bus_session(0);
    if (!session) {
        return session.error();
    }
    TSS2_RC rc = Esys_NV_Increment(esys_->get(), *handle, *handle, *session, ESYS_TR_NONE, ESYS_TR_NONE);
    if (auto r = esys_->check(rc, "the counter's step"); !r) {
        return counter_error(r.error(), counter);
    }
    return {};
}

Result<std::uint64_t> Tpm20::counter_read_once(const CounterRef& counter) {
    auto handle = counter_handle(counter);
    if (!handle) {
        return handle.error();
    }
    auto session = bus_session(TPMA_SESSION_ENCRYPT);
    if (!session) {
        return session.error();
    }
    TPM2B_MAX_NV_BUFFER* raw = nullptr;
    TSS2_RC rc = Esys_NV_Read(esys_->get(), *handle, *handle, *session, ESYS_TR_NONE, ESYS_TR_NONE, 8, 0, &raw);
    EsysPtr<TPM2B_MAX_NV_BUFFER> data(raw);
    if (auto r = esys_->check(rc, "reading the counter"); !r) {
        return counter_error(r.error(), counter);
    }
    WireReader reader(view_of(data->buffer, data->size));
    const std::uint64_t value = reader.be64();
    if (!reader.expect_end()) {
        return make_error(Errc::protocol, "the counter {:#010x} has {} bytes, expected 8", counter.handle, data->size);
    }
    return value;
}

Result<std::uint64_t> Tpm20::counter_read(const CounterRef& counter) {
    return attempt(Repeat::always, [&] { return counter_read_once(counter); });
}

Result<std::uint64_t> Tpm20::counter_increment(const CounterRef& counter) {
    auto stepped = attempt(Repeat::if_not_executed, [&] { return counter_step_once(counter); });
    if (!stepped) {
        return stepped.error();
    }
    return counter_read(counter);
}

Result<void> Tpm20::counter_delete(const CounterRef& counter) {
    return attempt(Repeat::if_not_executed, [&]() -> Result<void> {
        auto handle = counter_handle(counter);
        if (!handle) {
            return handle.error();
        }
        auto session = bus_session(0);
        if (!session) {
            return session.error();
        }
        TSS2_RC rc =
            Esys_NV_UndefineSpace(esys_->get(), ESYS_TR_RH_OWNER, *handle, *session, ESYS_TR_NONE, ESYS_TR_NONE);
        if (auto r = esys_->check(rc, "deleting the counter"); !r) {
            return r;
        }
        counters_.erase(counter.handle); // ESAPI has closed the handle
        return {};
    });
}

} // namespace vtpmd::hwtpm
