#include "tpm/driver_patience.hpp"

#include <algorithm>
#include <array>

namespace vtpmd::tpm {

namespace {

/// With a time of their own in Linux, ascending.
constexpr auto impatient_20 = std::to_array<std::uint32_t>({
    0x121, // HierarchyControl: 2 s
    0x129, // HierarchyChangeAuth: 2 s
    0x13E, // SequenceComplete: 0.75 s
    0x143, // SelfTest: 3 s
    0x144, // Startup: 0.75 s
    0x14E, // NV_Read: 2 s
    0x177, // VerifySignature: 2 s
    0x17A, // GetCapability: 0.75 s
    0x17B, // GetRandom: 2 s
    0x182, // PCR_Extend: 0.75 s
    0x185, // EventSequenceComplete: 0.75 s
    0x186, // HashSequenceStart: 0.75 s
});

} // namespace

bool driver_is_patient(TpmVersion version, std::uint32_t code) noexcept {
    return code != 0 && (version == TpmVersion::tpm12 || !std::ranges::binary_search(impatient_20, code));
}

} // namespace vtpmd::tpm
