// Owner authorisation of commands that a TPM 1.2 of ours has and libtpms does not (vendor commands with one
// authorisation, AUTH1).
//
// The guest's proof is an HMAC under the owner's secret, or under an OSAP session's, over the command and the session's
// nonce; both are in libtpms' own state. If it is right, libtpms itself is asked: the same session, with the same
// nonces, authorises a TPM_OwnerReadPubek, which changes nothing. So libtpms decides whether there is such a session
// and such an owner, rolls the nonces, and keeps or ends the session. If it is wrong, libtpms is shown the wrong proof,
// and does what it does to whoever guesses.
#pragma once

#include "engine/engine.hpp"

#include <variant>

namespace vtpmd {

/// What the answer to an authorised command is made with.
struct OwnerAuthorised {
    std::uint32_t ordinal = 0;
    std::uint32_t handle = 0; ///< of the session
    Bytes parameters;         ///< of the command, without its authorisation
    Bytes endorsement_key;    ///< TPM_PUBKEY, Main part 2 section 10.5
    Bytes nonce_even;         ///< the session's next one
    Bytes nonce_odd;          ///< the command's
    std::uint8_t more = 0;    ///< continueAuthSession, as libtpms left it
    SecretBytes key;          ///< HMAC key of the session
};

/// `command` is whole (its size is that of its header). Otherwise the TPM response that refuses it: TPM_BADTAG,
/// TPM_BAD_PARAM_SIZE, or what libtpms said (TPM_AUTHFAIL, TPM_INVALID_AUTHHANDLE, TPM_DISABLED...).
[[nodiscard]] std::variant<OwnerAuthorised, Bytes> authorise_as_owner(Engine& engine, ByteView command,
                                                                      std::uint8_t locality);

/// The endorsement key (TPM_PUBKEY) of a running TPM 1.2, for the host: by TPM_ReadPubek, or where its owner has closed
/// that, by TPM_OwnerReadPubek with what libtpms' own state says. Errc::unavailable: it has no session free; tpm: it
/// has no such key, is disabled, or was not started.
[[nodiscard]] Result<Bytes> read_endorsement_key(Engine& engine);

/// Ends the session, if libtpms kept it: what follows a command that was authorised and failed. Main part 1 section 13.
void end_session(Engine& engine, const OwnerAuthorised& session);

/// A success response with these parameters, authorised for the guest. Main part 1 section 13.2.
[[nodiscard]] Bytes authorised_response(const OwnerAuthorised& session, ByteView parameters);

} // namespace vtpmd
