#include "engine/owner_auth.hpp"

#include "tpm/commands.hpp"
#include "tpm/sha1.hpp"
#include "util/wire.hpp"

#include <algorithm>
#include <openssl/crypto.h>
#include <optional>

namespace vtpmd {

namespace {

using Hash = tpm::Sha1Digest;

// Main part 1 section 13: authHandle, nonceOdd, continueAuthSession, authorisation value; nonceEven and the rest in the
// answer.
constexpr std::size_t trailer_in = 4 + tpm::sha1_size + 1 + tpm::sha1_size;
constexpr std::size_t trailer_out = tpm::sha1_size + 1 + tpm::sha1_size;
constexpr std::uint32_t ord_owner_read_pubek = 0x7D; // Main part 3 section 30.4
// Main part 2 section 4.16 (TPM_PROTOCOL_ID).
constexpr std::uint16_t pid_oiap = 1;
constexpr std::uint16_t pid_osap = 2;
// libtpms' permanent state: u16 format, u16 tag, tpmProof[20], EKReset[20], ownerAuth[20].
constexpr std::size_t owner_auth_at = 2 + 2 + 20 + 20;
// A session in libtpms' volatile state: u32 handle, u16 protocol, u8 entity type, u8 ADIP scheme, nonceEven[20],
// sharedSecret[20].
constexpr std::size_t session_head = 4 + 2;
constexpr std::size_t session_nonce_at = session_head + 2;
constexpr std::size_t session_secret_at = session_nonce_at + tpm::sha1_size;
constexpr std::size_t session_size = session_secret_at + tpm::sha1_size;

struct Proof {
    std::uint32_t handle = 0;
    ByteView nonce_odd;
    std::uint8_t more = 0;
    ByteView value;
};

/// Main part 1 section 13.2: over the parameters' digest, both nonces and the flag.
Result<Hash> proof_over(const SecretBytes& key, ByteView digest, ByteView nonce_even, ByteView nonce_odd,
                        std::uint8_t more) {
    const std::byte flag{more};
    return tpm::hmac_sha1(key, {digest, nonce_even, nonce_odd, ByteView(&flag, 1)});
}

Bytes be32_bytes(std::uint32_t v) {
    WireWriter w;
    w.be32(v);
    return w.take();
}

struct FoundSession {
    SecretBytes key;
    Bytes nonce_even;
};

/// The session for which the proof is right. More than one place may look like a session: only one can fit the proof.
std::optional<FoundSession> find_session(const EngineState& state, const Proof& proof, ByteView digest) {
    if (state.permanent.size() < owner_auth_at + tpm::sha1_size) {
        return std::nullopt;
    }
    const ByteView all = state.volatile_state.view();
    const ByteView owner = state.permanent.view().subspan(owner_auth_at, tpm::sha1_size);
    for (std::uint16_t protocol : {pid_oiap, pid_osap}) {
        WireWriter head;
        head.be32(proof.handle).be16(protocol);
        auto at = all.begin();
        while ((at = std::search(at, all.end(), head.view().begin(), head.view().end())) != all.end()) {
            const ByteView here = all.subspan(static_cast<std::size_t>(at - all.begin()));
            ++at;
            if (here.size() < session_size) {
                break;
            }
            const ByteView nonce = here.subspan(session_nonce_at, tpm::sha1_size);
            SecretBytes key(protocol == pid_oiap ? owner : here.subspan(session_secret_at, tpm::sha1_size));
            const auto expected = proof_over(key, digest, nonce, proof.nonce_odd, proof.more);
            if (expected && CRYPTO_memcmp(expected->data(), proof.value.data(), expected->size()) == 0) {
                return FoundSession{.key = std::move(key), .nonce_even = to_bytes(nonce)};
            }
        }
    }
    return std::nullopt;
}

Bytes owner_read_pubek(const Proof& proof, ByteView value) {
    WireWriter w;
    w.be16(tpm::tag_rqu_auth1).be32(tpm::header_size + trailer_in).be32(ord_owner_read_pubek);
    w.be32(proof.handle).bytes(proof.nonce_odd).u8(proof.more).bytes(value);
    return w.take();
}

} // namespace

std::variant<OwnerAuthorised, Bytes> authorise_as_owner(Engine& engine, ByteView command, std::uint8_t locality) {
    const tpm::Header header = tpm::peek_header(command);
    if (header.tag != tpm::tag_rqu_auth1) {
        return tpm::error_response(TpmVersion::tpm12, tpm::Refusal::bad_tag);
    }
    if (command.size() < tpm::header_size + trailer_in) {
        return tpm::error_response(TpmVersion::tpm12, tpm::Refusal::bad_size);
    }
    const ByteView parameters = command.subspan(tpm::header_size, command.size() - tpm::header_size - trailer_in);
    WireReader in(command.last(trailer_in));
    Proof proof;
    proof.handle = in.be32();
    proof.nonce_odd = in.bytes(tpm::sha1_size);
    proof.more = in.u8();
    proof.value = in.bytes(tpm::sha1_size);

    auto state = engine.snapshot();
    if (!state) {
        return tpm::error_response(TpmVersion::tpm12, tpm::Refusal::failure);
    }
    const auto digest = tpm::sha1({be32_bytes(header.code), parameters});
    const auto own_digest = tpm::sha1({be32_bytes(ord_owner_read_pubek)});
    if (!digest || !own_digest) {
        return tpm::error_response(TpmVersion::tpm12, tpm::Refusal::failure);
    }
    auto session = find_session(*state, proof, *digest);
    // Shown to libtpms as it came, the guest's value is certainly wrong: it was made for another command.
    Bytes value = to_bytes(proof.value);
    if (session) {
        const auto own = proof_over(session->key, *own_digest, session->nonce_even, proof.nonce_odd, proof.more);
        if (!own) {
            return tpm::error_response(TpmVersion::tpm12, tpm::Refusal::failure);
        }
        value.assign(own->begin(), own->end());
    }
    Bytes answer = engine.execute(owner_read_pubek(proof, value), locality);
    const tpm::Header said = tpm::peek_header(answer);
    if (said.code != tpm::rc12::success || !session) {
        return said.code != tpm::rc12::success ? std::move(answer)
                                               : tpm::error_response(TpmVersion::tpm12, tpm::Refusal::failure);
    }
    if (answer.size() < tpm::header_size + trailer_out) {
        return tpm::error_response(TpmVersion::tpm12, tpm::Refusal::failure);
    }
    const ByteView body = ByteView(answer).subspan(tpm::header_size);
    WireReader out(body.last(trailer_out));
    OwnerAuthorised done;
    done.ordinal = header.code;
    done.handle = proof.handle;
    done.parameters = to_bytes(parameters);
    done.endorsement_key = to_bytes(body.first(body.size() - trailer_out));
    done.nonce_even = to_bytes(out.bytes(tpm::sha1_size));
    done.nonce_odd = to_bytes(proof.nonce_odd);
    done.more = out.u8();
    done.key = std::move(session->key);
    return done;
}

Result<Bytes> read_endorsement_key(Engine& engine) {
    WireWriter open;
    open.be16(tpm::tag_rqu_command).be32(tpm::header_size + tpm::sha1_size).be32(tpm::ord::read_pubek);
    open.zeros(tpm::sha1_size); // antiReplay: the answer is not on its way through anybody's hands
    const Bytes read = engine.execute(open.view(), 0);
    const tpm::Header said = tpm::peek_header(read);
    if (said.code == tpm::rc12::success && read.size() > tpm::header_size + tpm::sha1_size) {
        const ByteView body = ByteView(read).subspan(tpm::header_size); // TPM_PUBKEY, checksum
        return to_bytes(body.first(body.size() - tpm::sha1_size));
    }
    if (said.code != tpm::rc12::disabled_cmd) {
        auto why = tpm::check_response(read, "reading the endorsement key");
        return why ? make_error(Errc::protocol, "TPM_ReadPubek answers with {} bytes", read.size()) : why.error();
    }
    WireWriter begin;
    begin.be16(tpm::tag_rqu_command).be32(tpm::header_size).be32(tpm::ord::oiap);
    const Bytes begun = engine.execute(begin.view(), 0);
    if (auto good = tpm::check_response(begun, "opening a session"); !good) {
        return make_error(Errc::unavailable, "{}: does its guest use all its sessions?", good.error().message);
    }
    WireReader in(ByteView(begun).subspan(tpm::header_size));
    Proof proof;
    proof.handle = in.be32();
    const Bytes nonce_even = to_bytes(in.bytes(tpm::sha1_size));
    const Bytes nonce_odd(tpm::sha1_size);
    proof.nonce_odd = nonce_odd;
    auto state = engine.snapshot();
    const auto digest = tpm::sha1({be32_bytes(ord_owner_read_pubek)});
    const bool whole = in.expect_end() && state && state->permanent.size() >= owner_auth_at + tpm::sha1_size;
    if (!digest || !whole) {
        return make_error(Errc::tpm, "the endorsement key cannot be read with the owner's authorisation");
    }
    const SecretBytes owner(state->permanent.view().subspan(owner_auth_at, tpm::sha1_size));
    const auto value = proof_over(owner, *digest, nonce_even, nonce_odd, proof.more); // and the session ends
    if (!value) {
        return value.error();
    }
    const Bytes answer = engine.execute(owner_read_pubek(proof, *value), 0);
    if (auto good = tpm::check_response(answer, "reading the endorsement key"); !good) {
        return good.error();
    }
    if (answer.size() < tpm::header_size + trailer_out) {
        return make_error(Errc::protocol, "TPM_OwnerReadPubek answers with {} bytes", answer.size());
    }
    return to_bytes(ByteView(answer).subspan(tpm::header_size, answer.size() - tpm::header_size - trailer_out));
}

void end_session(Engine& engine, const OwnerAuthorised& session) {
    if (session.more == 0) {
        return;
    }
    constexpr std::uint32_t rt_auth = 2; // TPM_RT_AUTH, Main part 2 section 4.1
    WireWriter w;
    w.be16(tpm::tag_rqu_command).be32(tpm::header_size + 8).be32(tpm::ord::flush_specific);
    w.be32(session.handle).be32(rt_auth);
    (void)engine.execute(w.view(), 0);
}

Bytes authorised_response(const OwnerAuthorised& session, ByteView parameters) {
    const auto digest = tpm::sha1({be32_bytes(tpm::rc12::success), be32_bytes(session.ordinal), parameters});
    const auto value =
        digest ? proof_over(session.key, *digest, session.nonce_even, session.nonce_odd, session.more) : digest;
    if (!value) {
        return tpm::error_response(TpmVersion::tpm12, tpm::Refusal::failure);
    }
    WireWriter w;
    w.be16(tpm::tag_rsp_auth1).be32(static_cast<std::uint32_t>(tpm::header_size + parameters.size() + trailer_out));
    w.be32(tpm::rc12::success).bytes(parameters).bytes(session.nonce_even).u8(session.more).bytes(*value);
    return w.take();
}

} // namespace vtpmd
