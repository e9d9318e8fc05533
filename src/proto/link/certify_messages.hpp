// CERTIFY, pure: a vTPM that is being made asks for the certificate of one of its endorsement keys. Which vTPM that is,
// and of which family, says the link, never the request.
//
//   request   u8 key (1: RSA-2048, modulus[256]; 2: ECC NIST P-256, x[32], y[32]), the key, u32 manufacturer, u32
//             firmware version,
//             u32 specification level, u32 specification revision
//   answer    the certificate, DER (1 to 1536 bytes)
//
// The key and the four numbers are the instance's word, as are the keys in a quote: they are its TPM's. The rest of a
// key is its template (TCG EK Credential Profile for TPM Family 2.0, templates L-1 and L-2; a TPM 1.2 has one kind), so
// it is not sent.
#pragma once

#include "proto/link/frame.hpp"

namespace vtpmd::proto {

inline constexpr std::size_t ek_modulus_size = 256; ///< RSA-2048
inline constexpr std::size_t ek_point_size = 64;    ///< x, y on P-256
/// A TPM 1.2 has 2048 bytes of NV in all, a TPM 2.0 as many for one index.
inline constexpr std::size_t ek_certificate_limit = 1536;

enum class EkKind : std::uint8_t { rsa_2048 = 1, ecc_p256 = 2 };

/// What a TPM says of itself. 2.0: TPM_PT_MANUFACTURER, FIRMWARE_VERSION_1, LEVEL, REVISION (Library part 2, section
/// 6.13); 1.2: TPM_CAP_VERSION_INFO (Main part 2, section 21.6) and the revision of the specification.
struct TpmDescription {
    std::uint32_t manufacturer = 0;
    std::uint32_t firmware = 0;
    std::uint32_t level = 0;
    std::uint32_t revision = 0;
    friend bool operator==(const TpmDescription&, const TpmDescription&) = default;
};

struct CertifyRequest {
    EkKind kind = EkKind::rsa_2048;
    Bytes key; ///< modulus, or x and y
    TpmDescription tpm;
    friend bool operator==(const CertifyRequest&, const CertifyRequest&) = default;
};

[[nodiscard]] constexpr std::size_t ek_size(EkKind kind) noexcept {
    return kind == EkKind::rsa_2048 ? ek_modulus_size : ek_point_size;
}

/// Precondition: the key has ek_size() bytes.
[[nodiscard]] Bytes encode_certify(const CertifyRequest& request);
/// Errc::protocol: a body of the wrong length; usage: an unknown kind of key, or a modulus of fewer bits or that is
/// even.
[[nodiscard]] Result<CertifyRequest> parse_certify(ByteView body);
/// Errc::too_large.
[[nodiscard]] Result<Bytes> encode_certify_reply(ByteView certificate);
[[nodiscard]] Result<Bytes> parse_certify_reply(ByteView frame);

} // namespace vtpmd::proto
