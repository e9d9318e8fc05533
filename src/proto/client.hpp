// The instance's end of the manager protocol.
#pragma once

#include "proto/channel.hpp"
#include "tpm/version.hpp"
#include "util/clock.hpp"
#include "util/secret_bytes.hpp"
#include "util/uuid.hpp"

#include <functional>
#include <memory>
#include <optional>

namespace vtpmd::proto {

/// What the manager says of a vTPM when it is greeted.
struct HelloReply {
    bool known = false;                     ///< the manager has a registration for this UUID
    bool has_record = false;                ///< and a hash_key: state was acknowledged once
    bool may_create = false;                ///< the manager's --auto-create
    TpmVersion version = TpmVersion::tpm20; ///< as registered, if known
};

struct HelloRequest {
    Uuid uuid;
    TpmVersion version = TpmVersion::tpm20;
    bool create = false; ///< register the UUID if it is new (--create)
};

/// One manager, one vTPM. Requests are strictly one after another. If the link breaks the client connects again with
/// back-off; a request whose answer was lost is sent again (all of them are idempotent), until its deadline.
class ManagerClient {
  public:
    using Connect = std::function<Task<Result<std::unique_ptr<Channel>>>()>;
    virtual ~ManagerClient() = default;

    /// Connects and says hello. Errc::tombstone, busy (open elsewhere), permission, mismatch (version), unavailable.
    virtual Task<Result<HelloReply>> hello() = 0;
    /// Durable at the manager on success. Errc::unavailable after `deadline`: the outcome is unknown and the same
    /// hash_key must be offered again before any slot is written.
    virtual Task<Result<void>> save_hash_key(ByteView hash_key) = 0;
    /// nullopt: registered, but nothing was ever saved.
    virtual Task<Result<std::optional<SecretBytes>>> load_hash_key() = 0;
    /// Passes a TPM command to the manager's TPM (GetRandom, PcrRead of either family), as the manager allows.
    virtual Task<Result<Bytes>> tpm_command(Bytes command) = 0;
    virtual void close() = 0;
};

} // namespace vtpmd::proto
