#include "hwtpm/tpm20/esys.hpp"

#include "hwtpm/patient_device.hpp"

#include <algorithm>
#include <cstdlib>
#include <tss2/tss2_rc.h>
#include <tss2/tss2_tpm2_types.h>

namespace vtpmd::hwtpm {

Result<std::unique_ptr<EsysContext>> EsysContext::create(TpmDevice& device) {
    ::setenv("TSS2_LOG", "all+none", 0);
    std::unique_ptr<EsysContext> out(new EsysContext(device));
    if (TSS2_RC rc = Esys_Initialize(&out->esys_, out->tcti_.context(), nullptr); rc != TSS2_RC_SUCCESS) {
        return make_error(Errc::tpm, "{}: ESAPI does not start: {}", device.description(), Tss2_RC_Decode(rc));
    }
    return out;
}

EsysContext::~EsysContext() {
    if (esys_ != nullptr) {
        Esys_Finalize(&esys_);
    }
}

Result<void> EsysContext::check(TSS2_RC rc, std::string_view doing) {
    if (rc == TSS2_RC_SUCCESS) {
        return {};
    }
    if (tcti_.failure()) {
        unusable_ = true;
        return in_context(*tcti_.failure(), doing);
    }
    const bool from_tpm = (rc & ~TSS2_RC{0xFFF}) == 0;
    if (!from_tpm) {
        // ESAPI's own refusals leave its state machine in doubt (a response whose HMAC is wrong, among them).
        unusable_ = true;
    }
    Errc code = Errc::tpm;
    if (from_tpm && means_later(rc)) {
        code = Errc::unavailable;
    } else if (base_code(rc) == TPM2_RC_AUTH_FAIL || base_code(rc) == TPM2_RC_BAD_AUTH) {
        code = Errc::permission;
    }
    Error e = make_error(code, "{}: {} ({:#x})", doing, Tss2_RC_Decode(rc), rc);
    e.detail = rc;
    return e;
}

void Transient::flush() noexcept {
    if (handle_ == ESYS_TR_NONE || context_ == nullptr) {
        return;
    }
    if (!context_->unusable()) {
        // A handle that the TPM has lost already is as good as flushed; a device that is lost forgets it by itself.
        (void)Esys_FlushContext(context_->get(), handle_);
    }
    handle_ = ESYS_TR_NONE;
}

Result<void> set_auth(EsysContext& context, ESYS_TR handle, ByteView auth) {
    Cleansed<TPM2B_AUTH> value;
    if (auth.size() > sizeof value.value.buffer) {
        return make_error(Errc::too_large, "an authorisation value of {} bytes", auth.size());
    }
    value.value.size = static_cast<UINT16>(auth.size());
    std::copy(auth.begin(), auth.end(), reinterpret_cast<std::byte*>(value.value.buffer));
    return context.check(Esys_TR_SetAuth(context.get(), handle, &value.value), "setting an authorisation value");
}

} // namespace vtpmd::hwtpm
