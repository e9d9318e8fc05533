// A TpmDevice as tpm2-tss wants it: TSS2_TCTI_CONTEXT, version 2 (TCG TSS 2.0 TPM Command Transmission Interface,
// section 3). transmit() keeps the command; receive() runs it on the device and waits, so a caller's timeout is always
// "block".
#pragma once

#include "hwtpm/device.hpp"

#include <optional>
#include <tss2/tss2_tcti.h>

namespace vtpmd::hwtpm {

class DeviceTcti {
  public:
    /// `device` outlives it.
    explicit DeviceTcti(TpmDevice& device);
    DeviceTcti(const DeviceTcti&) = delete;
    DeviceTcti& operator=(const DeviceTcti&) = delete;

    [[nodiscard]] TSS2_TCTI_CONTEXT* context() noexcept;
    /// Why the last receive() gave TSS2_TCTI_RC_IO_ERROR.
    [[nodiscard]] const std::optional<Error>& failure() const noexcept { return failure_; }

  private:
    struct Context {
        TSS2_TCTI_CONTEXT_COMMON_V2 common;
        DeviceTcti* self;
    };
    static DeviceTcti& of(TSS2_TCTI_CONTEXT* context) noexcept;
    static TSS2_RC transmit(TSS2_TCTI_CONTEXT* context, size_t size, uint8_t const* command);
    static TSS2_RC receive(TSS2_TCTI_CONTEXT* context, size_t* size, uint8_t* response, int32_t timeout);
    static TSS2_RC cancel(TSS2_TCTI_CONTEXT* context);

    TpmDevice& device_;
    Context context_{};

    Bytes command_;
    Bytes response_;
    std::optional<Error> failure_;
};

/// How long a command may take before the TPM counts as hung: key generation and self tests minutes, the rest seconds.
[[nodiscard]] std::chrono::milliseconds time_limit(ByteView command) noexcept;

} // namespace vtpmd::hwtpm
