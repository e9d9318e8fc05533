// What the journal keeps of a group's CA for endorsement keys. Its private key is in a box under a key that is derived from the
// group's: while the group is closed nobody can sign with it.
#pragma once

#include "manager/ca/x509.hpp"

namespace vtpmd::manager {

struct CertifierDetail {
    Bytes box;                ///< the private key
    Bytes request;            ///< DER PKCS #10, made with the key
    std::vector<Bytes> chain; ///< DER; the first is over the key. At first that alone, signed by itself
    friend bool operator==(const CertifierDetail&, const CertifierDetail&) = default;
};

/// Layout beside the codec.
[[nodiscard]] Bytes encode(const CertifierDetail& detail);
/// Errc::version, Errc::corrupt.
[[nodiscard]] Result<CertifierDetail> decode_certifier_detail(ByteView bytes);

/// The private key for the journal, and back. Errc::corrupt: it was not put away for this group, or by its key.
[[nodiscard]] Bytes box_ca_key(const SecretBytes& group_key, const Uuid& group, const SecretBytes& key);
[[nodiscard]] Result<SecretBytes> unbox_ca_key(const SecretBytes& group_key, const Uuid& group, ByteView box);

} // namespace vtpmd::manager
