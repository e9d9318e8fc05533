#include "options.hpp"

#include <cerrno>
#include <cstring>
#include <fmt/format.h>
#include <fstream>
#include <iterator>
#include <sysexits.h>

namespace vtpmctl {

namespace {

constexpr std::size_t file_limit = 1U << 20U;

} // namespace

void fail(int status, std::string message) { throw Failure{status, std::move(message)}; }

std::optional<std::string> Options::one(const std::string& name) const {
    auto it = values.find(name);
    return it == values.end() ? std::nullopt : std::optional(it->second.front());
}

std::string Options::needed(const std::string& name, std::string_view what) const {
    auto value = one(name);
    if (!value) {
        refuse(fmt::format("needs --{}: {}", name, what));
    }
    return *value;
}

std::vector<std::string> Options::all(const std::string& name) const {
    auto it = values.find(name);
    return it == values.end() ? std::vector<std::string>() : it->second;
}

void Options::refuse(std::string_view what) const {
    fail(EX_USAGE, fmt::format("{} {}; see vtpmctl {} --help", command, what, command));
}

std::string read_file(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    if (!in) {
        fail(EX_NOINPUT, fmt::format("{}: {}; name a file that is there", path, std::strerror(errno)));
    }
    std::string content{std::istreambuf_iterator<char>(in), {}};
    if (in.bad() || content.size() > file_limit) {
        fail(EX_DATAERR,
             fmt::format("{}: it cannot be read, or is larger than {} bytes; is it the right file?", path, file_limit));
    }
    return content;
}

void write_file(const std::string& path, vtpmd::ByteView content) {
    std::ofstream out(path, std::ios::binary | std::ios::trunc);
    out.write(reinterpret_cast<const char*>(content.data()), static_cast<std::streamsize>(content.size()));
    out.close();
    if (!out) {
        fail(EX_CANTCREAT, fmt::format("{}: {}; name a file that can be written", path, std::strerror(errno)));
    }
}

} // namespace vtpmctl
