// tpm2-tss's ESAPI in RAII, over a TpmDevice. Hardware thread only.
#pragma once

#include "hwtpm/tcti.hpp"
#include "util/free_by.hpp"
#include "util/secret_bytes.hpp"

#include <memory>
#include <tss2/tss2_esys.h>

namespace vtpmd::hwtpm {

/// The TPM's response code without the number of the parameter, handle or session it is about
/// (TPM 2.0 part 2 section 6.6); codes of the software layers unchanged.
[[nodiscard]] constexpr TSS2_RC base_code(TSS2_RC rc) noexcept {
    if ((rc & ~TSS2_RC{0xFFF}) != 0) {
        return rc;
    }
    return (rc & 0x80) != 0 ? rc & 0xBF : rc;
}

/// Memory that ESAPI hands out.
template <typename T>
using EsysPtr = std::unique_ptr<T, FreeBy<Esys_Free>>;
/// The same for structures that hold secrets.
struct EsysCleanse {
    std::size_t size;
    void operator()(void* p) const noexcept {
        cleanse({static_cast<std::byte*>(p), size});
        Esys_Free(p);
    }
};

class EsysContext {
  public:
    /// Quiet: tpm2-tss writes nothing unless TSS2_LOG is set by the operator.
    static Result<std::unique_ptr<EsysContext>> create(TpmDevice& device);
    EsysContext(const EsysContext&) = delete;
    EsysContext& operator=(const EsysContext&) = delete;
    ~EsysContext();

    [[nodiscard]] ESYS_CONTEXT* get() noexcept { return esys_; }

    /// Success, or what went wrong while `doing`: Errc::tpm with the response code in detail; Errc::unavailable for
    /// codes that mean "later"; the device's own error if no answer came. After the latter unusable() is true.
    Result<void> check(TSS2_RC rc, std::string_view doing);
    [[nodiscard]] bool unusable() const noexcept { return unusable_; }

  private:
    explicit EsysContext(TpmDevice& device)
        : tcti_(device) {}
    DeviceTcti tcti_;
    ESYS_CONTEXT* esys_ = nullptr;
    bool unusable_ = false;
};

/// A transient object or session, flushed when it goes.
class Transient {
  public:
    Transient() noexcept = default;
    Transient(EsysContext& context, ESYS_TR handle) noexcept
        : context_(&context)
        , handle_(handle) {}
    Transient(Transient&& o) noexcept
        : context_(o.context_)
        , handle_(std::exchange(o.handle_, ESYS_TR_NONE)) {}
    Transient& operator=(Transient&& o) noexcept {
        if (this != &o) {
            flush();
            context_ = o.context_;
            handle_ = std::exchange(o.handle_, ESYS_TR_NONE);
        }
        return *this;
    }
    Transient(const Transient&) = delete;
    Transient& operator=(const Transient&) = delete;
    ~Transient() { flush(); }

    [[nodiscard]] ESYS_TR get() const noexcept { return handle_; }
    explicit operator bool() const noexcept { return handle_ != ESYS_TR_NONE; }
    void flush() noexcept;
    /// The TPM or the context is gone, and the handle with it.
    void forget() noexcept { handle_ = ESYS_TR_NONE; }

  private:
    EsysContext* context_ = nullptr;
    ESYS_TR handle_ = ESYS_TR_NONE;
};

/// TPM2B_AUTH and TPM2B_SENSITIVE_CREATE on the stack, cleansed when they go.
template <typename T>
struct Cleansed {
    T value{};
    Cleansed() = default;
    Cleansed(const Cleansed&) = delete;
    Cleansed& operator=(const Cleansed&) = delete;
    ~Cleansed() { cleanse({reinterpret_cast<std::byte*>(&value), sizeof value}); }
};

/// Sets the authorisation value of a handle for the sessions that use it.
Result<void> set_auth(EsysContext& context, ESYS_TR handle, ByteView auth);

} // namespace vtpmd::hwtpm
