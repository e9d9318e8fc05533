#include "guest/tpm12_questions.hpp"

#include "tpm/header.hpp"
#include "util/wire.hpp"

#include <array>
#include <span>

namespace vtpmd::guest {

namespace {

constexpr std::uint32_t cap_property = 5;             // TPM_CAP_PROPERTY, Main part 2 section 21.1
constexpr std::uint32_t cap_prop_tis_timeout = 0x115; // section 21.2
constexpr std::uint32_t cap_prop_duration = 0x120;
constexpr std::uint32_t subcap_size = 4;

/// TIS timeouts A to D, and the durations of short, medium and long commands; microseconds.
constexpr std::array<std::uint32_t, 4> timeouts = {750'000, 2'000'000, 750'000, 750'000};
constexpr std::array<std::uint32_t, 3> durations = {3'000'000, 3'000'000, 600'000'000};

Bytes capability(std::span<const std::uint32_t> values) {
    const auto body = static_cast<std::uint32_t>(4 * values.size());
    WireWriter w;
    w.be16(tpm::tag_rsp_command).be32(static_cast<std::uint32_t>(tpm::header_size) + 4 + body).be32(0).be32(body);
    for (std::uint32_t v : values) {
        w.be32(v);
    }
    return w.take();
}

} // namespace

std::optional<Bytes> answer_tpm12_question(ByteView command) {
    if (command.size() < tpm::header_size || !tpm::is_command_tag(TpmVersion::tpm12, tpm::peek_header(command).tag)) {
        return std::nullopt;
    }
    WireReader in(command);
    const std::uint16_t tag = in.be16();
    const bool whole = in.be32() == command.size();
    const bool question =
        in.be32() == tpm::ord::get_capability && in.be32() == cap_property && in.be32() == subcap_size;
    const std::uint32_t property = in.be32();
    if (!whole) {
        return tpm::error_response(TpmVersion::tpm12, tpm::Refusal::bad_size);
    }
    if (tag == tpm::tag_rqu_command && question && in.expect_end()) {
        if (property == cap_prop_tis_timeout) {
            return capability(timeouts);
        }
        if (property == cap_prop_duration) {
            return capability(durations);
        }
    }
    return tpm::error_response(TpmVersion::tpm12, tpm::Refusal::bad_ordinal);
}

} // namespace vtpmd::guest
