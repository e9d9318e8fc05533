#include "manager/vault/recovery_file.hpp"

#include "manager/vault/crypto.hpp"
#include "util/fd.hpp"
#include "util/text.hpp"

#include <algorithm>
#include <cerrno>
#include <ctime>
#include <fcntl.h>
#include <filesystem>
#include <fmt/chrono.h>
#include <sys/stat.h>
#include <sys/utsname.h>

namespace vtpmd::manager {

namespace {
constexpr std::size_t text_limit = 4096;

std::string date_text(std::uint64_t seconds) {
    return fmt::format("{:%Y-%m-%d %H:%M} UTC", fmt::gmtime(static_cast<std::time_t>(seconds)));
}

Result<void> sync_directory_of(const std::string& path) {
    std::string parent = std::filesystem::path(path).parent_path();
    UniqueFd dir(::open(parent.empty() ? "." : parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!dir || ::fsync(dir.get()) != 0) {
        return errno_error(errno, path);
    }
    return {};
}
} // namespace

std::string host_name() {
    utsname name{};
    return ::uname(&name) == 0 ? std::string(name.nodename) : "unknown";
}

SecretBytes recovery_file_text(const SecretBytes& key, const RecoveryFileWords& words) {
    const std::string head =
        fmt::format("# vtpmd recovery key {}{}{}\n"
                    "# store:   {} ({})\n"
                    "# host:    {}\n"
                    "# made:    {}\n"
                    "# Opens that store where the TPM that sealed it is gone or was cleared, or the host's PCRs\n"
                    "# have changed: vtpmd --mode=manager --recovery-file=THIS-FILE (after a replaced TPM with\n"
                    "# --accept-counter=none, once), see RECOVERY in vtpmd(8).\n"
                    "# Whoever has it and a copy of the store has all of its vTPMs. Keep it off the host.\n",
                    words.id, words.label.empty() ? "" : ": ", words.label, words.image, printable(words.store, 300),
                    printable(words.host), date_text(words.created));
    SecretBytes out(head.size() + 2 * key_size + 1);
    std::string digits = to_hex(key.view());
    std::ranges::copy(as_bytes(head), out.mut().begin());
    std::ranges::copy(as_bytes(digits), out.mut().begin() + static_cast<std::ptrdiff_t>(head.size()));
    out.mut().back() = std::byte{'\n'};
    cleanse(std::as_writable_bytes(std::span(digits)));
    return out;
}

Result<void> write_recovery_file(const std::string& path, const SecretBytes& text) {
    UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!fd) {
        return errno_error(errno, path);
    }
    auto written = ::write(fd.get(), text.data(), text.size());
    if (written != static_cast<ssize_t>(text.size())) {
        const int err = written < 0 ? errno : ENOSPC;
        (void)::unlink(path.c_str()); // it is ours, and opens nothing
        return errno_error(err, path);
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
    SecretBytes text(text_limit);
    auto got = ::read(fd.get(), text.data(), text.size());
    if (got < 0) {
        return errno_error(errno, path);
    }
    std::string_view all(reinterpret_cast<const char*>(text.data()), static_cast<std::size_t>(got));
    while (all.starts_with('#')) {
        const std::size_t end = all.find('\n');
        all.remove_prefix(end == std::string_view::npos ? all.size() : end + 1);
    }
    if (all.ends_with('\n')) {
        all.remove_suffix(1);
    }
    if (all.ends_with('\r')) {
        all.remove_suffix(1);
    }
    auto key = all.size() == 2 * key_size ? from_hex(all) : Result<Bytes>(make_error(Errc::corrupt, "length"));
    if (!key) {
        return make_error(Errc::corrupt,
                          "{}: not a recovery file (lines that begin with #, then {} hexadecimal digits, are expected)",
                          path, 2 * key_size);
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
