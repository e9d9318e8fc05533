#include "hwtpm/patient_device.hpp"

#include "util/wire.hpp"

#include <algorithm>
#include <thread>

namespace vtpmd::hwtpm {

bool means_later(std::uint32_t response_code) noexcept {
    switch (response_code) {
    case 0x908: // TPM_RC_YIELDED
    case 0x90A: // TPM_RC_TESTING
    case 0x920: // TPM_RC_NV_RATE
    case 0x921: // TPM_RC_LOCKOUT
    case 0x922: // TPM_RC_RETRY
    case 0x923: // TPM_RC_NV_UNAVAILABLE
    case 0x800: // TPM_RETRY (1.2)
    case 0x802: // TPM_DOING_SELFTEST (1.2)
    case 0x803: // TPM_DEFEND_LOCK_RUNNING (1.2)
        return true;
    default:
        return false;
    }
}

PatientDevice::PatientDevice(std::unique_ptr<TpmDevice> inner, Config config)
    : inner_(std::move(inner))
    , config_(std::move(config)) {
    if (!config_.sleep) {
        config_.sleep = [](std::chrono::milliseconds d) { std::this_thread::sleep_for(d); };
    }
}

Result<Bytes> PatientDevice::transmit(ByteView command, std::chrono::milliseconds limit) {
    std::chrono::milliseconds pause = config_.first_pause;
    std::chrono::milliseconds waited{0};
    for (;;) {
        commands_.fetch_add(1, std::memory_order_relaxed);
        auto answer = inner_->transmit(command, limit);
        if (!answer || answer->size() < tpm_header_size) {
            return answer;
        }
        WireReader header(*answer);
        header.skip(6);
        const std::uint32_t rc = header.be32();
        if (!means_later(rc)) {
            return answer;
        }
        if (waited >= config_.patience) {
            Error e = make_error(Errc::unavailable, "{}: the TPM says 'later' ({:#x}), for {} ms now", description(),
                                 rc, waited.count());
            e.detail = rc;
            return e;
        }
        config_.sleep(pause);
        waited += pause;
        pause = std::min(pause * 2, config_.longest_pause);
        retries_.fetch_add(1, std::memory_order_relaxed);
    }
}

} // namespace vtpmd::hwtpm
