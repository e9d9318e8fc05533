#include "manager/recovery_file.hpp"

#include "manager/crypto.hpp"
#include "util/fd.hpp"
#include "util/text.hpp"

#include <cerrno>
#include <fcntl.h>
#include <filesystem>
#include <sys/stat.h>

namespace vtpmd::manager {

namespace {
/// The text goes through a buffer that is cleansed; 64 digits and a newline.
constexpr std::size_t text_size = 2 * key_size + 1;

Result<void> sync_directory_of(const std::string& path) {
    std::string parent = std::filesystem::path(path).parent_path();
    UniqueFd dir(::open(parent.empty() ? "." : parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!dir || ::fsync(dir.get()) != 0) {
        return errno_error(errno, path);
    }
    return {};
}
} // namespace

Result<void> write_recovery_file(const std::string& path, const SecretBytes& key) {
    UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!fd) {
        return errno_error(errno, path);
    }
    std::string text = to_hex(key.view()) + "\n";
    auto written = ::write(fd.get(), text.data(), text.size());
    int err = errno;
    cleanse(std::as_writable_bytes(std::span(text)));
    if (written != static_cast<ssize_t>(text_size)) {
        return errno_error(written < 0 ? err : EIO, path);
    }
    if (::fsync(fd.get()) != 0) {
        return errno_error(errno, path);
    }
    return sync_directory_of(path);
}

Result<SecretBytes> read_recovery_file(const std::string& path) {
    UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!fd) {
        return errno_error(errno, path);
    }
    SecretBytes text(text_size + 1);
    auto got = ::read(fd.get(), text.data(), text.size());
    if (got < 0) {
        return errno_error(errno, path);
    }
    std::string_view all(reinterpret_cast<const char*>(text.data()), static_cast<std::size_t>(got));
    if (all.ends_with('\n')) {
        all.remove_suffix(1);
    }
    auto key = all.size() == 2 * key_size ? from_hex(all) : Result<Bytes>(make_error(Errc::corrupt, "length"));
    if (!key) {
        return make_error(Errc::corrupt, "{}: not a recovery file ({} hexadecimal digits expected)", path,
                          2 * key_size);
    }
    SecretBytes out{ByteView(*key)};
    cleanse(*key);
    return out;
}

void discard_recovery_file(const std::string& path) {
    if (read_recovery_file(path)) {
        (void)::unlink(path.c_str());
    }
}

} // namespace vtpmd::manager
