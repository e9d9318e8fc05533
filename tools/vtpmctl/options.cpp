#include "options.hpp"

#include "made_file.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fmt/format.h>
#include <fstream>
#include <iterator>
#include <sys/stat.h>
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

namespace {

/// What is the same kind of file: it begins alike, or it is a signature or digest and has about as many bytes.
bool alike(vtpmd::ByteView head, std::uint64_t size, vtpmd::ByteView content) {
    constexpr std::size_t mark = 8;
    constexpr std::size_t begin = 4;
    constexpr std::uint64_t slack = 8;
    constexpr std::string_view ours = "vtpmd";
    if (content.size() >= mark && std::ranges::equal(content.first(ours.size()), vtpmd::as_bytes(ours))) {
        return head.size() >= mark && std::ranges::equal(head.first(mark), content.first(mark));
    }
    const bool begins_alike =
        content.size() >= begin && head.size() >= begin && std::ranges::equal(head.first(begin), content.first(begin));
    return begins_alike || (size <= content.size() + slack && size + slack >= content.size());
}

} // namespace

void write_file(const std::string& path, vtpmd::ByteView content) {
    struct stat st {};
    if (::stat(path.c_str(), &st) == 0 && (S_ISCHR(st.st_mode) || S_ISFIFO(st.st_mode))) { // a terminal, a pipe
        std::ofstream out(path, std::ios::binary);
        out.write(reinterpret_cast<const char*>(content.data()), static_cast<std::streamsize>(content.size()));
        out.close();
        if (!out) {
            fail(EX_CANTCREAT, fmt::format("{}: {}; name a file that can be written", path, std::strerror(errno)));
        }
        return;
    }
    make_file({.path = path,
               .what = "a file of the kind that is to be written",
               .is_one = [content](vtpmd::ByteView head, std::uint64_t size) { return alike(head, size, content); },
               .replace = true,
               .asked = {},
               .live = {},
               .mode = 0666},
              content);
}

} // namespace vtpmctl
