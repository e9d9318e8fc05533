// The text after --tpm=, taken apart. Pure.
#pragma once

#include "util/result.hpp"

#include <cstdint>
#include <string>
#include <string_view>

namespace vtpmd::hwtpm {

enum class DriverKind { automatic, device, tis, swtpm_unix, swtpm_tcp, embedded, xen };

struct DriverSpec {
    DriverKind kind = DriverKind::automatic;
    std::string path;          ///< device node, socket or directory; the host name of swtpm:tcp
    std::uint16_t port = 0;    ///< swtpm:tcp
    std::uint64_t address = 0; ///< tis: physical base address; xen: the vtpm device's handle
    friend bool operator==(const DriverSpec&, const DriverSpec&) = default;
};

/// auto, device[:PATH], tis[:0xADDR], swtpm:unix:PATH, swtpm:tcp:HOST:PORT, embedded:DIR, xen[:HANDLE]. Errc::usage
/// says what is expected.
[[nodiscard]] Result<DriverSpec> parse_driver(std::string_view text);
[[nodiscard]] std::string to_string(const DriverSpec& spec);

/// True if what goes to the TPM leaves the machine, or may: swtpm:tcp with another host than a loopback address.
[[nodiscard]] bool crosses_network(const DriverSpec& spec);

} // namespace vtpmd::hwtpm
