#include "hwtpm/drivers/driver_spec.hpp"

#include "util/text.hpp"

#include <arpa/inet.h>
#include <netinet/in.h>

namespace vtpmd::hwtpm {

namespace {

constexpr std::uint64_t default_tis_address = 0xFED40000; // PC Client Platform TPM Profile, section 6.3
constexpr std::uint64_t page_mask = 0xFFF;

Error bad(std::string_view text, std::string_view why) {
    return make_error(
        Errc::usage,
        "--tpm={}: {} (one of auto, device[:/dev/tpm0], tis[:0xADDR], swtpm:unix:PATH, swtpm:tcp:HOST:PORT, "
        "embedded:DIR, xen[:HANDLE])",
        printable(text), why);
}

Result<DriverSpec> parse_tcp(std::string_view text, std::string_view rest) {
    auto colon = rest.rfind(':');
    if (colon == std::string_view::npos || colon == 0) {
        return bad(text, "swtpm:tcp: needs HOST:PORT");
    }
    auto port = parse_number(rest.substr(colon + 1), 65534); // the control channel is at PORT + 1
    if (!port || *port == 0) {
        return bad(text, "the port is a number from 1 to 65534");
    }
    std::string_view host = rest.substr(0, colon);
    if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
        host = host.substr(1, host.size() - 2);
    }
    return DriverSpec{
        .kind = DriverKind::swtpm_tcp, .path = std::string(host), .port = static_cast<std::uint16_t>(*port)};
}

} // namespace

Result<DriverSpec> parse_driver(std::string_view text) {
    auto colon = text.find(':');
    std::string_view name = text.substr(0, colon);
    const bool has_rest = colon != std::string_view::npos;
    std::string_view rest = has_rest ? text.substr(colon + 1) : std::string_view{};
    if (has_rest && rest.empty()) {
        return bad(text, "nothing after the colon");
    }
    if (name == "auto" && !has_rest) {
        return DriverSpec{};
    }
    if (name == "device") {
        return DriverSpec{.kind = DriverKind::device, .path = has_rest ? std::string(rest) : "/dev/tpm0"};
    }
    if (name == "tis") {
        DriverSpec spec{.kind = DriverKind::tis, .address = default_tis_address};
        if (has_rest) {
            auto address = parse_number(rest, UINT64_MAX >> 1);
            if (!address || (*address & page_mask) != 0) {
                return bad(text, "the address is a number, a multiple of 4096");
            }
            spec.address = *address;
        }
        return spec;
    }
    if (name == "xen") {
        DriverSpec spec{.kind = DriverKind::xen};
        if (has_rest) {
            auto handle = parse_number(rest, UINT32_MAX);
            if (!handle) {
                return bad(text, "the handle is a number");
            }
            spec.address = *handle;
        }
        return spec;
    }
    if (name == "embedded" && has_rest) {
        return DriverSpec{.kind = DriverKind::embedded, .path = std::string(rest)};
    }
    if (name == "swtpm" && rest.starts_with("unix:") && rest.size() > 5) {
        return DriverSpec{.kind = DriverKind::swtpm_unix, .path = std::string(rest.substr(5))};
    }
    if (name == "swtpm" && rest.starts_with("tcp:")) {
        return parse_tcp(text, rest.substr(4));
    }
    return bad(text, "no such driver");
}

std::string to_string(const DriverSpec& spec) {
    switch (spec.kind) {
    case DriverKind::automatic:
        return "auto";
    case DriverKind::device:
        return "device:" + spec.path;
    case DriverKind::tis:
        return fmt::format("tis:{:#x}", spec.address);
    case DriverKind::swtpm_unix:
        return "swtpm:unix:" + spec.path;
    case DriverKind::swtpm_tcp:
        return spec.path.find(':') == std::string::npos ? fmt::format("swtpm:tcp:{}:{}", spec.path, spec.port)
                                                        : fmt::format("swtpm:tcp:[{}]:{}", spec.path, spec.port);
    case DriverKind::embedded:
        return "embedded:" + spec.path;
    case DriverKind::xen:
        return fmt::format("xen:{}", spec.address);
    }
    return "?";
}

bool crosses_network(const DriverSpec& spec) {
    if (spec.kind != DriverKind::swtpm_tcp) {
        return false;
    }
    const std::string& host = spec.path;
    in_addr v4{};
    if (::inet_pton(AF_INET, host.c_str(), &v4) == 1) {
        return (ntohl(v4.s_addr) >> 24) != IN_LOOPBACKNET; // 127.0.0.0/8
    }
    in6_addr v6{};
    if (::inet_pton(AF_INET6, host.c_str(), &v6) == 1) {
        return !IN6_IS_ADDR_LOOPBACK(&v6);
    }
    return host != "localhost";
}

} // namespace vtpmd::hwtpm
