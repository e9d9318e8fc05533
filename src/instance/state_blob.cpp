#include "instance/state_blob.hpp"

#include "util/wire.hpp"

#include <algorithm>
#include <vector>

namespace vtpmd::instance {

namespace {
constexpr std::uint32_t magic = 0x5654504D;
constexpr std::uint16_t format_version = 1;
constexpr std::uint16_t unconfirmed_version =
    2; ///< with a fourth blob; programs that know version 1 only must not run it
constexpr std::size_t head_size = 8;

SecretBytes read_blob(WireReader& in) {
    const ByteView v = in.bytes(in.be32());
    return v.empty() ? SecretBytes() : SecretBytes(v);
}
} // namespace

SecretBytes encode_state(TpmVersion version, const EngineState& state) {
    std::vector<const SecretBytes*> blobs{&state.permanent, &state.save_state, &state.volatile_state};
    if (!state.unconfirmed.empty()) {
        blobs.push_back(&state.unconfirmed);
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
        .be16(blobs.size() == 3 ? format_version : unconfirmed_version)
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
    if (found_format != format_version && found_format != unconfirmed_version) {
        return make_error(Errc::version,
                          "the decrypted state has format version {}, this program knows {}; use a newer one",
                          found_format, unconfirmed_version);
    }
    if (found_tpm != static_cast<std::uint8_t>(version)) {
        return make_error(Errc::mismatch, "the decrypted state is of TPM family {}, not of a TPM {}", found_tpm,
                          to_string(version));
    }
    EngineState out;
    out.permanent = read_blob(in);
    out.save_state = read_blob(in);
    out.volatile_state = read_blob(in);
    if (found_format == unconfirmed_version) {
        out.unconfirmed = read_blob(in);
    }
    if (!in.expect_end() || out.permanent.empty()) {
        return make_error(Errc::corrupt, "the decrypted state ({} bytes) has lengths that do not fit", blob.size());
    }
    return out;
}

} // namespace vtpmd::instance
