// X.509 as a CA for endorsement keys needs it: its own key and certificate, a request for another's signature, the certificates that
// it issues, and the judgement of a chain that an operator brings. Pure: OpenSSL, and no state.
//
// Endorsement key certificates are as the TCG EK Credential Profile for TPM Family 2.0 (version 2.3, section 3.2) and the TCG
// Credential Profiles for TPM Family 1.2 (version 1.2, section 3.2) have them:
//   subject               serialNumber: the vTPM's UUID, so that a certificate says whose it is
//   validity              until 99991231235959Z
//   subjectPublicKeyInfo  rsaEncryption, or id-ecPublicKey on P-256. The profile of 1.2 has id-RSAES-OAEP there, which OpenSSL, and with it
//                         the usual tools, do not take for an RSA key
//   subjectAltName        critical, directoryName: tcg-at-tpmManufacturer, -tpmModel, -tpmVersion
//   basicConstraints      critical, CA:FALSE;   keyUsage  critical, keyEncipherment (RSA), keyAgreement (ECC)
//   extendedKeyUsage      tcg-kp-EKCertificate;   authorityKeyIdentifier
//   subjectDirectoryAttributes  tcg-at-tpmSpecification: family, level, revision
// The signature is ECDSA with SHA-256, for both families.
#pragma once

#include "proto/link/certify_messages.hpp"
#include "tpm/version.hpp"
#include "util/secret_bytes.hpp"
#include "util/uuid.hpp"

#include <vector>

namespace vtpmd::manager {

/// Certificates in a chain, and bytes of the DER of one, at most.
inline constexpr std::size_t chain_limit = 8;
inline constexpr std::size_t chain_certificate_limit = 4096;

/// A CA's key on P-256.
struct NewCa {
    SecretBytes key;   ///< DER PKCS #8
    Bytes certificate; ///< signed by itself: CA, path length 0
    Bytes request;     ///< PKCS #10, for another CA
};
/// `unix_time` in seconds since 1970; the certificate has no end. Errc::unsupported: OpenSSL refuses.
[[nodiscard]] Result<NewCa> make_ca(std::string_view common_name, std::uint64_t unix_time);

struct EkCertificate {
    Uuid vtpm;
    TpmVersion family = TpmVersion::tpm20;
    proto::CertifyRequest claim;
    std::uint64_t unix_time = 0; ///< of issue, seconds since 1970
};
/// DER. `ca` is DER of the CA's certificate that is over `key`'s public half. Errc::usage: the claim has no such key (a point that is
/// not on the curve, a modulus that is none); unsupported.
[[nodiscard]] Result<Bytes> issue_ek_certificate(const SecretBytes& key, ByteView ca, const EkCertificate& what);

/// PEM as an operator has it: the CA's own certificate first, each one after it of the issuer of the one before. The root may be among
/// them. Gives DER. `own` is DER of a certificate over the CA's key. Errc::usage names what is wrong: another key, no CA, not valid
/// now, an order or a signature that is not right, too many or too large.
[[nodiscard]] Result<std::vector<Bytes>> read_chain(std::string_view pem, ByteView own, std::uint64_t unix_time);

[[nodiscard]] std::string pem_of_certificates(const std::vector<Bytes>& chain);
[[nodiscard]] std::string pem_of_request(ByteView request);

} // namespace vtpmd::manager
