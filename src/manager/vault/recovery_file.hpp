// A recovery key of a store: 32 random bytes in hexadecimal, in a file of the operator's choosing, to be kept off the host.
// It opens the store without the TPM: when a board is replaced, or PCRs changed before the store could be sealed anew.
//
// Lines that begin with '#' come first and say which store it is of, and how it is used; they are for people. Then one line of
// 64 hexadecimal digits. A file of an older program has only that.
#pragma once

#include "util/result.hpp"
#include "util/secret_bytes.hpp"
#include "util/uuid.hpp"

#include <string>

namespace vtpmd::manager {

/// What a recovery file says of itself.
struct RecoveryFileWords {
    Uuid image;
    std::string store; ///< its path
    std::string host;
    std::string id;            ///< of the key
    std::string label;         ///< or empty
    std::uint64_t created = 0; ///< seconds since 1970
};
/// All of the file.
[[nodiscard]] SecretBytes recovery_file_text(const SecretBytes& key, const RecoveryFileWords& words);
/// This machine's name.
[[nodiscard]] std::string host_name();

/// A new file, mode 0600, durable on return. Errc::exists.
[[nodiscard]] Result<void> write_recovery_file(const std::string& path, const SecretBytes& text);
/// Errc::corrupt if it is no such file.
[[nodiscard]] Result<SecretBytes> read_recovery_file(const std::string& path);
/// Removes the file if it is one of ours.
void discard_recovery_file(const std::string& path);

} // namespace vtpmd::manager
