// Quotes as a TPM writes them, over PCRs 0 and 17, signed by OpenSSL.
#pragma once

#include "check.hpp"
#include "openssl_key.hpp"
#include "tpm/attestation.hpp"
#include "util/wire.hpp"

#include <openssl/evp.h>

namespace vtpmd::test::made_quote {

inline Bytes hash(const EVP_MD* algorithm, ByteView data) {
    Bytes out(static_cast<std::size_t>(EVP_MD_get_size(algorithm)));
    REQUIRE(EVP_Digest(data.data(), data.size(), uchar_ptr(MutByteView(out)), nullptr, algorithm, nullptr) == 1);
    return out;
}

inline std::vector<hwtpm::PcrValue> values_of(hwtpm::HashAlg bank) {
    const std::size_t size = bank == hwtpm::HashAlg::sha1 ? 20 : 32;
    return {{bank, 0, Bytes(size, std::byte{0xa0})}, {bank, 17, Bytes(size, std::byte{0xa1})}};
}

inline Bytes concatenated(const std::vector<hwtpm::PcrValue>& values) {
    WireWriter w;
    for (const auto& v : values) {
        w.bytes(v.digest);
    }
    return w.take();
}

inline Bytes attest(ByteView nonce, std::uint16_t type = 0x8018) {
    WireWriter w;
    w.be32(0xff544347).be16(type).be16(34).zeros(34); // magic, type, qualifiedSigner
    w.be16(static_cast<std::uint16_t>(nonce.size())).bytes(nonce).zeros(17 + 8);
    w.be32(1).be16(0x000b).u8(3).u8(0x01).u8(0x00).u8(0x02); // PCRs 0 and 17
    w.be16(32).bytes(hash(EVP_sha256(), concatenated(values_of(hwtpm::HashAlg::sha256))));
    return w.take();
}

inline hwtpm::Quote quote20(const OpensslKey& key, bool rsa, Bytes attested) {
    hwtpm::Quote q{.attested = std::move(attested), .signature = {}, .values = values_of(hwtpm::HashAlg::sha256)};
    const Bytes plain = key.sign_sha256(q.attested);
    WireWriter w;
    w.be16(rsa ? 0x0014 : 0x0018).be16(0x000b);
    if (rsa) {
        w.be16(256).bytes(plain);
    } else {
        const auto pair = hwtpm::parse_ecdsa_signature(plain).value();
        w.be16(32).bytes(pair.r).be16(32).bytes(pair.s);
    }
    q.signature = w.take();
    return q;
}

inline hwtpm::Quote quote12(const OpensslKey& key, ByteView nonce) {
    hwtpm::Quote q{.attested = {}, .signature = {}, .values = values_of(hwtpm::HashAlg::sha1)};
    WireWriter composite;
    composite.be16(3).u8(0x01).u8(0x00).u8(0x02).be32(40).bytes(concatenated(q.values));
    WireWriter info;
    info.be32(0x01010000).bytes(as_bytes("QUOT")).bytes(hash(EVP_sha1(), composite.view())).bytes(nonce);
    q.attested = info.take();
    q.signature = key.sign_sha1(q.attested);
    return q;
}

} // namespace vtpmd::test::made_quote
