// The recovery key of a store: 32 random bytes in hexadecimal, in a file of the operator's choosing, to be kept off the host.
// It opens the store without the TPM: when a board is replaced, or PCRs changed before the store could be sealed anew.
#pragma once

#include "util/result.hpp"
#include "util/secret_bytes.hpp"

#include <string>

namespace vtpmd::manager {

/// A new file, mode 0600, durable on return. Errc::exists.
[[nodiscard]] Result<void> write_recovery_file(const std::string& path, const SecretBytes& key);
/// Errc::corrupt if it is anything but 64 hexadecimal digits and a line's end.
[[nodiscard]] Result<SecretBytes> read_recovery_file(const std::string& path);
/// Removes the file if it is one of ours.
void discard_recovery_file(const std::string& path);

} // namespace vtpmd::manager
