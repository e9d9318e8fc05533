// Figures of the key service, for metrics: plain numbers that only ever grow.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace vtpmd::manager {

enum class Request : std::uint8_t {
    hello,
    save,
    load,
    boot_hash,
    tpm_command,
    handed_over,
    quote,
    management,
    invite,
    certify
};
inline constexpr std::array<std::string_view, 10> request_names{
    "hello", "save", "load", "boot_hash", "tpm_command", "handed_over", "quote", "management", "invite", "certify"};

struct ServiceCounters {
    struct Outcomes {
        std::uint64_t done = 0;
        std::uint64_t refused = 0; ///< the peer asked for what it may not have
        std::uint64_t failed = 0;  ///< we could not do it
    };
    std::array<Outcomes, request_names.size()> requests{};
    std::uint64_t connections = 0;         ///< accepted
    std::uint64_t connections_refused = 0; ///< by credentials, or over the limit
    std::uint64_t links_broken = 0;        ///< ended by malformed frames or a deadline
    std::uint64_t registered = 0;          ///< vTPMs since start
    std::uint64_t over_bounds = 0;         ///< changes, hand-overs and certificates: more than a vTPM may ask for

    [[nodiscard]] Outcomes& of(Request r) noexcept { return requests[static_cast<std::size_t>(r)]; }
};

} // namespace vtpmd::manager
