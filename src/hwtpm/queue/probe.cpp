#include "hwtpm/queue/probe.hpp"

#include "util/wire.hpp"

namespace vtpmd::hwtpm {

Result<TpmVersion> probe_family(TpmDevice& device) {
    using namespace std::chrono_literals;
    if (auto r = device.claim(); !r) {
        return r.error();
    }
    WireWriter question; // TPM2_GetCapability(TPM_CAP_TPM_PROPERTIES, TPM_PT_FAMILY_INDICATOR, 1)
    question.be16(0x8001).be32(22).be32(0x17A).be32(6).be32(0x100).be32(1);
    auto answer = device.transmit(question.view(), 30s);
    device.release();
    if (!answer) {
        return answer.error();
    }
    WireReader r(*answer);
    const std::uint16_t tag = r.be16();
    const std::uint32_t size = r.be32();
    const std::uint32_t code = r.be32();
    if (r.ok() && size == answer->size()) {
        if (tag == 0x8001) { // TPM_ST_NO_SESSIONS
            return TpmVersion::tpm20;
        }
        // TPM_BADTAG, by the book; TPM_BAD_ORDINAL from some. TPM_FAIL would be a part that does not run.
        constexpr std::uint32_t tpm_fail = 0x09;
        if (tag == 0x00C4 && code != 0 && code != tpm_fail) {
            return TpmVersion::tpm12;
        }
    }
    return make_error(Errc::protocol, "{}: answers neither as a TPM 1.2 nor as a TPM 2.0 (tag {:#06x}, code {:#x})",
                      device.description(), tag, code);
}

} // namespace vtpmd::hwtpm
