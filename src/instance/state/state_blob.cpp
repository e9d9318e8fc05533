#include "instance/state/state_blob.hpp"

#include "util/wire.hpp"

#include <algorithm>
#include <vector>

namespace vtpmd::instance {

namespace {
constexpr std::uint32_t magic = 0x5654504D;
constexpr std::uint16_t format_version = 1;
constexpr std::uint16_t newest_version = 3; ///< one blob more with each after the first
constexpr std::size_t blobs_of_first = 3;
constexpr std::size_t head_size = 8;

SecretBytes read_blob(WireReader& in) {
    const ByteView v = in.bytes(in.be32());
    return v.empty() ? SecretBytes() : SecretBytes(v);
}
} // namespace

SecretBytes encode_state(TpmVersion version, const EngineState& state) {
    std::vector<const SecretBytes*> blobs{&state.permanent, &state.save_state, &state.volatile_state};
    if (!state.unconfirmed.empty() || !state.given_out.empty()) {
        blobs.push_back(&state.unconfirmed);
    }
    if (!state.given_out.empty()) {
        blobs.push_back(&state.given_out);
    }
    std::size_t size = head_size;
    for (const SecretBytes* b : blobs) {
        size += 4 + b->size();
    }
    SecretBytes out(size);
    std::byte* at = out.data();
    auto put = [&at](ByteView v) { at = std::copy(v.begin(), v.end(), at); };
    WireWriter head;
    head.be32(magic)
        .be16(static_cast<std::uint16_t>(format_version + blobs.size() - blobs_of_first))
        .u8(static_cast<std::uint8_t>(version))
        .u8(0);
    put(head.view());
    for (const SecretBytes* b : blobs) {
        WireWriter length;
        length.be32(static_cast<std::uint32_t>(b->size()));
        put(length.view());
        put(b->view());
    }
    return out;
}

Result<EngineState> decode_state(TpmVersion version, ByteView blob) {
    WireReader in(blob);
    const std::uint32_t found_magic = in.be32();
    const std::uint16_t found_format = in.be16();
    const std::uint8_t found_tpm = in.u8();
    (void)in.u8();
    if (!in.ok() || found_magic != magic) {
        return make_error(Errc::corrupt, "the decrypted state ({} bytes) does not begin as one", blob.size());
    }
    if (found_format < format_version || found_format > newest_version) {
        return make_error(Errc::version,
                          "the decrypted state has format version {}, this program knows {}; use a newer one",
                          found_format, newest_version);
    }
    if (found_tpm != static_cast<std::uint8_t>(version)) {
        return make_error(Errc::mismatch, "the decrypted state is of TPM family {}, not of a TPM {}", found_tpm,
                          to_string(version));
    }
    EngineState out;
    out.permanent = read_blob(in);
    out.save_state = read_blob(in);
    out.volatile_state = read_blob(in);
    if (found_format > format_version) {
        out.unconfirmed = read_blob(in);
    }
    if (found_format == newest_version) {
        out.given_out = read_blob(in);
    }
    if (!in.expect_end() || out.permanent.empty()) {
        return make_error(Errc::corrupt, "the decrypted state ({} bytes) has lengths that do not fit", blob.size());
    }
    if (found_format == newest_version) {
        if (auto given = decode_given_out(out.given_out.view()); !given) {
            return given.error();
        }
    }
    return out;
}

SecretBytes encode_given_out(const GivenOut& given) {
    WireWriter out;
    out.u8(static_cast<std::uint8_t>(given.power));
    for (const store::Digest& digest : given.digests) {
        out.bytes(digest);
    }
    return SecretBytes(out.view());
}

Result<GivenOut> decode_given_out(ByteView blob) {
    WireReader in(blob);
    GivenOut out;
    const std::uint8_t power = in.u8();
    for (store::Digest& digest : out.digests) {
        const ByteView found = in.bytes(digest.size());
        std::copy(found.begin(), found.end(), digest.begin());
    }
    if (!in.expect_end() || power < static_cast<std::uint8_t>(Power::on) ||
        power > static_cast<std::uint8_t>(Power::stored)) {
        return make_error(Errc::corrupt, "the decrypted state says in {} bytes what was given out last; it takes {}",
                          blob.size(), 1 + out.digests.size() * store::digest_size);
    }
    out.power = static_cast<Power>(power);
    return out;
}

} // namespace vtpmd::instance
