#include "instance/screen.hpp"

#include "tpm/cost.hpp"
#include "util/wire.hpp"

namespace vtpmd::instance {

namespace {

constexpr std::uint8_t highest_locality = 4; // PC Client TIS section 4

/// TPM_ExecuteTransport carries a command whose header is in clear: u32 size, then the command.
/// TPM Main part 3 section 24.2.
std::uint32_t wrapped_ordinal(ByteView command) {
    WireReader in(command);
    in.skip(tpm::header_size);
    (void)in.be32();
    const tpm::Header inner = tpm::peek_header(in.rest());
    return inner.code;
}

bool is_maintenance(ByteView command) {
    const std::uint32_t ordinal = tpm::peek_header(command).code;
    return tpm::is_maintenance_ordinal(ordinal) ||
           (ordinal == tpm::ord::execute_transport && tpm::is_maintenance_ordinal(wrapped_ordinal(command)));
}

} // namespace

std::optional<tpm::Refusal> screen(const ScreenPolicy& policy, ByteView command, std::uint8_t locality) {
    if (command.size() < tpm::header_size || command.size() > tpm::packet_limit ||
        tpm::peek_header(command).size != command.size()) {
        return tpm::Refusal::bad_size;
    }
    if (locality > highest_locality) {
        return tpm::Refusal::bad_locality;
    }
    if (policy.version == TpmVersion::tpm12 && !policy.maintenance_commands && is_maintenance(command)) {
        return tpm::Refusal::disabled;
    }
    return std::nullopt;
}

} // namespace vtpmd::instance
