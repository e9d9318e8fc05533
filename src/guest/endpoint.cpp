#include "guest/endpoint.hpp"

#include "util/text.hpp"

#include <fmt/format.h>
#include <sys/un.h>

namespace vtpmd::guest {

namespace {

constexpr std::string_view kinds = "socket:unix:PATH, socket:tcp:PORT, qemu:PATH, xen:DOMID[/HANDLE], vtpmx, "
                                   "fd:[commands=N][,control=N][,remove]";
constexpr std::size_t path_limit = sizeof(sockaddr_un::sun_path) - 1;
constexpr std::uint16_t domid_limit = 0x7FEF; // DOMID_FIRST_RESERVED - 1, xen/xen.h

Result<Endpoint> parse_unix(std::string_view path) {
    UnixEndpoint e{std::string(path)};
    if (path.empty() || path.front() != '/') {
        return make_error(Errc::usage, "--guest=socket:unix:{}: an absolute path is needed", path);
    }
    if (e.control_path().size() > path_limit) {
        return make_error(Errc::usage,
                          "--guest=socket:unix:{}: with '.ctrl' this is over the {} characters of a socket's path",
                          path, path_limit);
    }
    return Endpoint(std::move(e));
}

Result<Endpoint> parse_qemu(std::string_view path) {
    if (path.empty() || path.front() != '/') {
        return make_error(Errc::usage, "--guest=qemu:{}: an absolute path is needed", path);
    }
    if (path.size() > path_limit) {
        return make_error(Errc::usage, "--guest=qemu:{}: this is over the {} characters of a socket's path", path,
                          path_limit);
    }
    return Endpoint(QemuEndpoint{std::string(path)});
}

Result<Endpoint> parse_tcp(std::string_view rest) {
    std::string_view port = rest;
    if (const auto colon = rest.rfind(':'); colon != std::string_view::npos) {
        const std::string_view host = rest.substr(0, colon);
        port = rest.substr(colon + 1);
        if (host != "127.0.0.1" && host != "localhost") {
            return make_error(
                Errc::usage,
                "--guest=socket:tcp:{}: only the loopback address 127.0.0.1 is served, since the connection is "
                "not authenticated",
                rest);
        }
    }
    auto number = parse_number(port, 65534);
    if (!number || *number == 0) {
        return make_error(Errc::usage,
                          "--guest=socket:tcp:{}: a port from 1 to 65534 is needed (control is at the next one)", rest);
    }
    return Endpoint(TcpEndpoint{static_cast<std::uint16_t>(*number)});
}

Result<Endpoint> parse_xen(std::string_view rest) {
    const auto slash = rest.find('/');
    auto domid = parse_number(rest.substr(0, slash), domid_limit);
    auto handle =
        slash == std::string_view::npos ? Result<std::uint64_t>(0) : parse_number(rest.substr(slash + 1), 0xFFFFFFFF);
    if (!domid || !handle) {
        return make_error(Errc::usage, "--guest=xen:{}: DOMID or DOMID/HANDLE is needed, both numbers", rest);
    }
    return Endpoint(XenEndpoint{static_cast<std::uint16_t>(*domid), static_cast<std::uint32_t>(*handle)});
}

Result<Endpoint> parse_passed(std::string_view rest) {
    constexpr std::uint64_t highest = 1U << 20;
    PassedEndpoint e;
    for (std::string_view part : split(rest, ',')) {
        const auto equals = part.find('=');
        const std::string_view name = part.substr(0, equals);
        auto& place = name == "control" ? e.control : e.commands;
        if (part == "remove" && !e.remove) {
            e.remove = true;
            continue;
        }
        auto number = parse_number(equals == std::string_view::npos ? "" : part.substr(equals + 1), highest);
        if ((name != "commands" && name != "control") || place || !number || *number < 3) {
            return make_error(Errc::usage,
                              "--guest=fd:{}: commands=N, control=N or both are needed, descriptors from 3, and remove "
                              "if their files are to be removed at the end",
                              printable(rest));
        }
        place = static_cast<int>(*number);
    }
    if (!e.commands && !e.control) {
        return make_error(Errc::usage, "--guest=fd:{}: commands=N or control=N is needed", printable(rest));
    }
    return Endpoint(e);
}

} // namespace

Result<Endpoint> parse_endpoint(std::string_view text) {
    auto after = [&](std::string_view prefix) -> std::optional<std::string_view> {
        if (text.starts_with(prefix)) {
            return text.substr(prefix.size());
        }
        return std::nullopt;
    };
    if (auto rest = after("socket:unix:")) {
        return parse_unix(*rest);
    }
    if (auto rest = after("socket:tcp:")) {
        return parse_tcp(*rest);
    }
    if (auto rest = after("xen:")) {
        return parse_xen(*rest);
    }
    if (auto rest = after("qemu:")) {
        return parse_qemu(*rest);
    }
    if (auto rest = after("fd:")) {
        return parse_passed(*rest);
    }
    if (text == "vtpmx") {
        return Endpoint(VtpmxEndpoint{});
    }
    return make_error(Errc::usage, "--guest={}: not an endpoint; possible are {}", text, kinds);
}

std::string to_string(const Endpoint& endpoint) {
    if (const auto* u = std::get_if<UnixEndpoint>(&endpoint)) {
        return "socket:unix:" + u->path;
    }
    if (const auto* t = std::get_if<TcpEndpoint>(&endpoint)) {
        return fmt::format("socket:tcp:127.0.0.1:{}", t->port);
    }
    if (const auto* q = std::get_if<QemuEndpoint>(&endpoint)) {
        return "qemu:" + q->path;
    }
    if (std::holds_alternative<VtpmxEndpoint>(endpoint)) {
        return "vtpmx";
    }
    if (const auto* p = std::get_if<PassedEndpoint>(&endpoint)) {
        return fmt::format("fd:{}{}{}{}", p->commands ? fmt::format("commands={}", *p->commands) : "",
                           p->commands && p->control ? "," : "",
                           p->control ? fmt::format("control={}", *p->control) : "", p->remove ? ",remove" : "");
    }
    const auto& x = std::get<XenEndpoint>(endpoint);
    return fmt::format("xen:{}/{}", x.domid, x.handle);
}

} // namespace vtpmd::guest
