#include "xen/store_wire.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace vtpmd::xen {

namespace {

struct Name {
    int err;
    std::string_view name;
};
constexpr std::array names{
    Name{EINVAL, "EINVAL"},       Name{EACCES, "EACCES"},   Name{EEXIST, "EEXIST"}, Name{EISDIR, "EISDIR"},
    Name{ENOENT, "ENOENT"},       Name{ENOMEM, "ENOMEM"},   Name{ENOSPC, "ENOSPC"}, Name{EIO, "EIO"},
    Name{ENOTEMPTY, "ENOTEMPTY"}, Name{ENOSYS, "ENOSYS"},   Name{EROFS, "EROFS"},   Name{EBUSY, "EBUSY"},
    Name{EAGAIN, "EAGAIN"},       Name{EISCONN, "EISCONN"}, Name{E2BIG, "E2BIG"},   Name{EPERM, "EPERM"},
};

Errc code_of(int err) {
    switch (err) {
    case ENOENT:
        return Errc::not_found;
    case EACCES:
    case EPERM:
    case EROFS:
        return Errc::permission;
    case EEXIST:
        return Errc::exists;
    case EAGAIN:
    case EBUSY:
        return Errc::busy;
    case ENOSPC:
        return Errc::no_space;
    case E2BIG:
        return Errc::too_large;
    case EINVAL:
        return Errc::usage;
    case ENOSYS:
        return Errc::unsupported;
    default:
        return Errc::io;
    }
}

} // namespace

void append_header(std::string& out, const StoreHeader& header) {
    const std::array<std::uint32_t, 4> fields{static_cast<std::uint32_t>(header.op), header.request, header.transaction,
                                              header.length};
    std::array<char, store_header_size> raw{};
    std::memcpy(raw.data(), fields.data(), raw.size());
    out.append(raw.data(), raw.size());
}

StoreHeader parse_header(const std::array<char, store_header_size>& raw) noexcept {
    std::array<std::uint32_t, 4> fields{};
    std::memcpy(fields.data(), raw.data(), raw.size());
    return {static_cast<StoreOp>(fields[0]), fields[1], fields[2], fields[3]};
}

std::vector<std::string> split_strings(std::string_view payload) {
    std::vector<std::string> out;
    while (!payload.empty()) {
        auto end = payload.find('\0');
        out.emplace_back(payload.substr(0, end));
        if (end == std::string_view::npos) {
            break;
        }
        payload.remove_prefix(end + 1);
    }
    return out;
}

Error store_error(std::string_view name, std::string_view what) {
    const auto* it = std::find_if(names.begin(), names.end(), [&](const Name& n) { return n.name == name; });
    int err = it == names.end() ? EIO : it->err;
    Error e = make_error(code_of(err), "xenstore: {}: {}", what, name);
    e.detail = static_cast<unsigned>(err);
    return e;
}

std::string_view store_error_name(int err) noexcept {
    const auto* it = std::find_if(names.begin(), names.end(), [&](const Name& n) { return n.err == err; });
    return it == names.end() ? "EIO" : it->name;
}

std::optional<DirectoryPart> parse_directory_part(std::string_view payload) {
    auto end = payload.find('\0');
    if (end == std::string_view::npos) {
        return std::nullopt;
    }
    DirectoryPart part;
    part.generation = payload.substr(0, end);
    payload.remove_prefix(end + 1);
    part.bytes = payload.size();
    for (std::string& name : split_strings(payload)) {
        if (name.empty()) {
            part.last = true;
            break;
        }
        part.names.push_back(std::move(name));
    }
    return part;
}

} // namespace vtpmd::xen
