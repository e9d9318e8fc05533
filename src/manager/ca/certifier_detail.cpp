// Layout, all big-endian; a string is u32 n, bytes[n]:
//   u8 version (1) | string box | string request | u8 n (1 to 8), n * string certificate
#include "manager/ca/certifier_detail.hpp"

#include "manager/vault/crypto.hpp"
#include "util/wire.hpp"

namespace vtpmd::manager {

namespace {

constexpr std::uint8_t certifier_version = 1;

void put_certifier_part(WireWriter& w, ByteView s) { w.be32(static_cast<std::uint32_t>(s.size())).bytes(s); }
Bytes get_certifier_part(WireReader& r) { return to_bytes(r.bytes(r.be32())); }

SecretBytes ca_box_key(const SecretBytes& group_key, const Uuid& group) {
    return derive_key(group_key, "vtpmd ca key", group.bytes);
}

} // namespace

Bytes encode(const CertifierDetail& detail) {
    WireWriter w;
    w.u8(certifier_version);
    put_certifier_part(w, detail.box);
    put_certifier_part(w, detail.request);
    w.u8(static_cast<std::uint8_t>(detail.chain.size()));
    for (const Bytes& certificate : detail.chain) {
        put_certifier_part(w, certificate);
    }
    return w.take();
}

Result<CertifierDetail> decode_certifier_detail(ByteView bytes) {
    WireReader r(bytes);
    CertifierDetail out;
    const std::uint8_t version = r.u8();
    if (r.ok() && version != certifier_version) {
        return make_error(Errc::version, "a group's CA of version {} (this program knows {})", version,
                          certifier_version);
    }
    out.box = get_certifier_part(r);
    out.request = get_certifier_part(r);
    for (unsigned n = r.u8(); n > 0 && r.ok(); --n) {
        out.chain.push_back(get_certifier_part(r));
    }
    if (!r.expect_end() || out.chain.empty() || out.chain.size() > chain_limit) {
        return make_error(Errc::corrupt, "a group's CA of {} bytes is malformed", bytes.size());
    }
    return out;
}

Bytes box_ca_key(const SecretBytes& group_key, const Uuid& group, const SecretBytes& key) {
    return close_box(ca_box_key(group_key, group), group.bytes, key.view());
}

Result<SecretBytes> unbox_ca_key(const SecretBytes& group_key, const Uuid& group, ByteView box) {
    auto key = open_box(ca_box_key(group_key, group), group.bytes, box);
    if (!key) {
        return in_context(key.error(), fmt::format("the key of group {}'s CA", group));
    }
    return key;
}

} // namespace vtpmd::manager
