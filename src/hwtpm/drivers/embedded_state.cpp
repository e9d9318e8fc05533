#include "hwtpm/drivers/embedded_state.hpp"

#include "util/wire.hpp"

#include <algorithm>
#include <cerrno>
#include <fcntl.h>
#include <openssl/evp.h>
#include <sys/file.h>
#include <sys/stat.h>

namespace vtpmd::hwtpm {

namespace {

constexpr std::string_view magic = "vtpmdTPM";
constexpr std::uint32_t format_version = 1;
constexpr std::size_t header_size = 8 + 4 + 4 + 4;
constexpr std::size_t digest_size_sha256 = 32;
constexpr std::size_t file_limit = 1 << 20;
constexpr const char* state_name = "tpm20.state";
constexpr const char* next_name = "tpm20.state.new";
constexpr const char* lock_name = "lock";

std::array<std::byte, digest_size_sha256> digest_of_file(ByteView data) {
    std::array<std::byte, digest_size_sha256> out{};
    EVP_Digest(data.data(), data.size(), uchar_ptr(MutByteView(out)), nullptr, EVP_sha256(), nullptr);
    return out;
}

Result<void> write_whole(int fd, ByteView data, const std::string& what) {
    while (!data.empty()) {
        ssize_t n = ::write(fd, data.data(), data.size());
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return errno_error(errno, what);
        }
        data = data.subspan(static_cast<std::size_t>(n));
    }
    return {};
}

} // namespace

SecretBytes encode_embedded_state(const EngineState& state) {
    SecretBytes out(header_size + state.permanent.size() + state.save_state.size() + digest_size_sha256);
    WireWriter head(header_size);
    head.bytes(as_bytes(magic)).be32(format_version);
    head.be32(static_cast<std::uint32_t>(state.permanent.size()))
        .be32(static_cast<std::uint32_t>(state.save_state.size()));
    std::byte* at = out.data();
    for (ByteView part : {head.view(), state.permanent.view(), state.save_state.view()}) {
        at = std::copy(part.begin(), part.end(), at);
    }
    const auto digest = digest_of_file(out.view().first(out.size() - digest_size_sha256));
    std::copy(digest.begin(), digest.end(), at);
    return out;
}

Result<EngineState> decode_embedded_state(ByteView file) {
    WireReader r(file);
    ByteView found_magic = r.bytes(magic.size());
    if (!std::equal(found_magic.begin(), found_magic.end(), as_bytes(magic).begin(), as_bytes(magic).end())) {
        return make_error(Errc::not_ours, "not the state of an embedded TPM");
    }
    if (std::uint32_t v = r.be32(); r.ok() && v != format_version) {
        return make_error(Errc::version, "a state of version {}; this program knows version {}", v, format_version);
    }
    const std::uint32_t permanent = r.be32();
    const std::uint32_t saved = r.be32();
    EngineState out;
    out.permanent = SecretBytes(r.bytes(permanent));
    out.save_state = SecretBytes(r.bytes(saved));
    const std::size_t covered = r.position();
    const auto digest = r.array<digest_size_sha256>();
    if (!r.expect_end() || digest != digest_of_file(file.first(covered)) || out.permanent.empty()) {
        return make_error(Errc::corrupt, "the state of the embedded TPM is damaged ({} bytes)", file.size());
    }
    return out;
}

Result<EmbeddedState> EmbeddedState::open(const std::filesystem::path& dir, bool create) {
    if (create && ::mkdir(dir.c_str(), 0700) != 0 && errno != EEXIST) {
        return errno_error(errno, dir.string());
    }
    UniqueFd dir_fd(::open(dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!dir_fd) {
        return errno_error(errno, dir.string());
    }
    const std::string lock_path = (dir / lock_name).string();
    UniqueFd lock(::openat(dir_fd.get(), lock_name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!lock) {
        return errno_error(errno, lock_path);
    }
    if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
        return errno == EWOULDBLOCK
                   ? Result<EmbeddedState>(make_error(Errc::busy, "{}: another process runs this TPM", dir.string()))
                   : Result<EmbeddedState>(errno_error(errno, lock_path));
    }
    return EmbeddedState(dir, std::move(dir_fd), std::move(lock));
}

Result<std::optional<EngineState>> EmbeddedState::load() const {
    const std::string path = (dir_ / state_name).string();
    UniqueFd fd(::openat(dir_fd_.get(), state_name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
    if (!fd) {
        if (errno == ENOENT) {
            return std::optional<EngineState>{};
        }
        return errno_error(errno, path);
    }
    struct stat st {};
    if (::fstat(fd.get(), &st) != 0) {
        return errno_error(errno, path);
    }
    if (st.st_size < 0 || static_cast<std::size_t>(st.st_size) > file_limit) {
        return make_error(Errc::corrupt, "{}: {} bytes, over the limit of {}", path, st.st_size, file_limit);
    }
    SecretBytes file(static_cast<std::size_t>(st.st_size));
    for (std::size_t at = 0; at < file.size();) {
        ssize_t n = ::pread(fd.get(), file.data() + at, file.size() - at, static_cast<off_t>(at));
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return n < 0 ? errno_error(errno, path) : make_error(Errc::io, "{}: shrank while it was read", path);
        }
        at += static_cast<std::size_t>(n);
    }
    auto state = decode_embedded_state(file.view());
    if (!state) {
        return in_context(state.error(), path);
    }
    return std::optional<EngineState>(std::move(*state));
}

Result<void> EmbeddedState::replace(const EngineState& state) const {
    const std::string path = (dir_ / next_name).string();
    UniqueFd fd(::openat(dir_fd_.get(), next_name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!fd) {
        return errno_error(errno, path);
    }
    const SecretBytes file = encode_embedded_state(state);
    if (auto r = write_whole(fd.get(), file.view(), path); !r) {
        return r;
    }
    if (::fsync(fd.get()) != 0) {
        return errno_error(errno, path + ": fsync");
    }
    if (::renameat(dir_fd_.get(), next_name, dir_fd_.get(), state_name) != 0) {
        return errno_error(errno, path + ": rename");
    }
    if (::fsync(dir_fd_.get()) != 0) {
        return errno_error(errno, dir_.string() + ": fsync");
    }
    return {};
}

} // namespace vtpmd::hwtpm
