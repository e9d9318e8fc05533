// A private key of OpenSSL's, for those who sign in tests: approvers, CAs.
#pragma once

#include "tpm/public_key.hpp"
#include "util/bytes.hpp"

#include <string>

namespace vtpmd::test {

class OpensslKey {
  public:
    /// "RSA" with so many bits, or "EC" on P-256; new each time.
    explicit OpensslKey(const std::string& type, unsigned bits = 2048);
    /// DER SubjectPublicKeyInfo.
    [[nodiscard]] Bytes spki() const;
    /// PKCS #1 v1.5, or ECDSA as DER.
    [[nodiscard]] Bytes sign_sha256(ByteView message) const;

    /// PKCS #1 v1.5 with SHA-1 (RSA), as an old approver signs.
    [[nodiscard]] Bytes sign_sha1(ByteView message) const;
    /// ECDH with another's public key (P-256): the x coordinate.
    [[nodiscard]] Bytes derive(ByteView peer_spki) const;

    /// PEM, for OpenSSL's command line.
    void write_private(const std::string& path) const;

  private:
    hwtpm::Pkey key_;
};

/// PKCS #1 v1.5 with SHA-1, as a TPM 1.2 signs.
[[nodiscard]] bool verify_sha1(ByteView spki, ByteView message, ByteView signature);

} // namespace vtpmd::test
