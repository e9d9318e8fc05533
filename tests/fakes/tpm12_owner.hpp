// A TPM 1.2 is given an owner, by the client that talks to hardware TPMs. The storage root key's authorisation is zeros.
#pragma once

#include "check.hpp"
#include "hwtpm/tpm12/client.hpp"
#include "tpm/codes.hpp"
#include "util/wire.hpp"

namespace vtpmd::test {

inline hwtpm::Digest12 owner_secret() {
    hwtpm::Digest12 d{};
    d.fill(std::byte{0x5a});
    return d;
}

/// RSA-2048, Main part 2 section 10.1 (TPM_KEY_PARMS).
inline void put_rsa(WireWriter& w) { w.be32(1).be16(3).be16(1).be32(12).be32(2048).be32(2).be32(0); }

inline Bytes without_checksum(const Result<Bytes>& pubkey) {
    REQUIRE(pubkey);
    return Bytes(pubkey->begin(), pubkey->end() - 20);
}
/// TPM_PUBKEY of a new endorsement key.
inline Bytes make_endorsement_key(hwtpm::Tpm12Client& client) {
    WireWriter ek;
    ek.zeros(20);
    put_rsa(ek);
    return without_checksum(client.run(
        {.ordinal = tpm::ord::create_endorsement_key_pair, .parameters = ek.view(), .name = "making an EK"}));
}
/// TPM_PUBKEY of the endorsement key, as long as there is no owner.
inline Bytes read_endorsement_key(hwtpm::Tpm12Client& client) {
    const Bytes nonce(20);
    return without_checksum(
        client.run({.ordinal = tpm::ord::read_pubek, .parameters = nonce, .name = "reading the EK"}));
}
inline void take_ownership(hwtpm::Tpm12Client& client, const Bytes& pubkey) {
    const Bytes modulus(pubkey.end() - 256, pubkey.end());
    const Bytes owner = hwtpm::encrypt_for_endorsement_key(modulus, owner_secret()).value();
    const Bytes srk = hwtpm::encrypt_for_endorsement_key(modulus, hwtpm::Digest12{}).value();
    WireWriter w;
    w.be16(5).be32(256).bytes(owner).be32(256).bytes(srk); // TPM_PID_OWNER
    w.be32(0x01010000).be16(0x11).be32(0).u8(1);           // TPM_KEY: storage
    put_rsa(w);
    w.be32(0).be32(0).be32(0);
    auto session = client.oiap(SecretBytes(owner_secret())).value();
    REQUIRE(client.run({.ordinal = tpm::ord::take_ownership, .parameters = w.view(), .name = "taking ownership"},
                       std::span(&session, 1)));
}

} // namespace vtpmd::test
