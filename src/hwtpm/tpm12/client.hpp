// TPM 1.2 commands with their authorisation, as far as a root of trust needs them: OIAP and OSAP sessions with rolling
// nonces, the answer's HMAC verified. Hardware thread only.
//
// TPM Main part 1 section 13 (OIAP, OSAP, ADIP), part 3 section 3 (the layouts of authorised commands):
//   command:  tag | size | ordinal | handles | parameters | { session u32 | nonceOdd[20] | continue u8 | HMAC[20] } * n
//   response: tag | size | code | parameters | { nonceEven[20] | continue u8 | HMAC[20] } * n
//   HMAC(key, SHA1(ordinal | parameters) | nonceEven | nonceOdd | continue), with the code before the ordinal in a
//   response.
// Sessions are used once (continue = 0): nothing is left in the TPM.
#pragma once

#include "hwtpm/device.hpp"
#include "tpm/sha1.hpp"
#include "util/secret_bytes.hpp"

#include <array>
#include <span>

namespace vtpmd::hwtpm {

using tpm::hmac_sha1;
using tpm::sha1;
using Digest12 = tpm::Sha1Digest; ///< SHA-1, TPM_NONCE, TPM_AUTHDATA

/// A session that one command uses up.
struct Session12 {
    std::uint32_t handle = 0;
    Digest12 nonce_even{};
    SecretBytes key; ///< the entity's authorisation value (OIAP), or the shared secret (OSAP)
};

class Tpm12Client {
  public:
    /// `device` outlives it.
    explicit Tpm12Client(TpmDevice& device)
        : device_(device) {}

    struct Command {
        std::uint32_t ordinal = 0;
        ByteView handles;    ///< not covered by the HMAC
        ByteView parameters; ///< covered
        std::size_t response_handles =
            0; ///< bytes of handles in the answer that its HMAC does not cover (TPM_LoadKey2)
        std::string_view name;
    };
    /// The response's parameters. Errc::tpm with the code in detail, Errc::permission for a refused authorisation (the
    /// code in detail too), Errc::protocol for an answer that is malformed or whose HMAC is wrong.
    Result<Bytes> run(const Command& command);
    Result<Bytes> run(const Command& command, std::span<Session12> sessions);

    Result<Session12> oiap(const SecretBytes& auth);
    Result<Session12> osap(std::uint16_t entity_type, std::uint32_t entity, const SecretBytes& auth);

    /// A new authorisation value as an OSAP session carries it: XOR with SHA1(shared secret | nonceEven).
    static Result<Digest12> encrypt_auth(const Session12& osap, ByteView new_auth);

  private:
    Result<Bytes> exchange(const Command& command, ByteView packet, std::uint16_t response_tag);
    TpmDevice& device_;
};

[[nodiscard]] Result<Digest12> random_nonce();

/// RSAES-OAEP with SHA-1 and the label "TCPA" (TPM Main part 1 section 31.1.1), exponent 65537.
[[nodiscard]] Result<Bytes> encrypt_for_endorsement_key(ByteView modulus, ByteView secret);

} // namespace vtpmd::hwtpm
