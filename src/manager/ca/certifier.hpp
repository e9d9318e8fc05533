// The CAs for endorsement keys: each group has one, the store's own too. It is made when it is first needed, kept in the journal, and
// signs only while its group is open. Who is to trust the vTPMs of a group takes its certificate, or has a CA of its own sign that one.
#pragma once

#include "manager/ca/certifier_detail.hpp"
#include "manager/vault/vault.hpp"
#include "util/fifo_lock.hpp"

namespace vtpmd::manager {

class Certifier {
  public:
    /// All of it outlives the object.
    struct Parts {
        asio::any_io_executor executor;
        Vault& vault;
        const Log& log;
        std::function<std::uint64_t()> unix_time; ///< seconds since 1970
    };
    explicit Certifier(Parts parts)
        : parts_(std::move(parts))
        , lock_(parts_.executor) {}

    /// The certificate (DER) of an endorsement key of a vTPM that has not saved anything yet. Errc::not_found: no such vTPM;
    /// pcr_mismatch: its group is closed; usage: it has a state, or the key is none of its family's.
    Task<Result<Bytes>> certify(Uuid vtpm, proto::CertifyRequest claim);

    struct Ca {
        std::vector<Bytes> chain; ///< DER; the first is over the CA's key
        Bytes request;            ///< DER PKCS #10
    };
    /// Errc::not_found; pcr_mismatch: there is none yet, and the group is closed.
    Task<Result<Ca>> show(GroupId group);
    /// Another CA's certificate over this one's key, and as much of the chain above it as is wanted: read_chain(). Certificates that
    /// were issued stay under it if its subject is the same. Errc::usage; not_found, pcr_mismatch as above.
    Task<Result<Ca>> replace(GroupId group, std::string pem);

  private:
    /// As it is stored, or made now.
    Task<Result<CertifierDetail>> detail(GroupId group);
    [[nodiscard]] Result<CertifierDetail> stored(GroupId group) const;

    Parts parts_;
    FifoLock lock_; ///< one change at a time
};

} // namespace vtpmd::manager
