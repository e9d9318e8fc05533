#include "hwtpm/queue/auth.hpp"

#include "util/text.hpp"

#include <openssl/evp.h>

namespace vtpmd::hwtpm {

namespace {

constexpr std::size_t auth_size_12 = 20;  // TPM_AUTHDATA, TPM Main part 2 section 5.6
constexpr std::size_t auth_limit_20 = 32; // the name algorithm's digest, here SHA-256

SecretBytes without_trailing_zeros(ByteView v) {
    while (!v.empty() && v.back() == std::byte{0}) {
        v = v.first(v.size() - 1);
    }
    return SecretBytes(v);
}

Result<SecretBytes> digest_of_password(ByteView data) {
    SecretBytes out(auth_size_12);
    if (EVP_Digest(data.data(), data.size(), uchar_ptr(out.mut()), nullptr, EVP_sha1(), nullptr) != 1) {
        return make_error(Errc::unsupported, "OpenSSL refuses SHA-1, which a TPM 1.2 needs");
    }
    return out;
}

} // namespace

Result<SecretBytes> parse_auth(std::string_view option, std::string_view text, TpmVersion version) {
    const bool v12 = version == TpmVersion::tpm12;
    if (text == "well-known") {
        return v12 ? SecretBytes(auth_size_12) : SecretBytes();
    }
    if (text.starts_with("text:")) {
        ByteView value = as_bytes(text.substr(5));
        if (v12) {
            return digest_of_password(value);
        }
        if (value.size() > auth_limit_20) {
            return make_error(Errc::usage, "{}: a TPM 2.0 takes at most {} bytes", option, auth_limit_20);
        }
        return without_trailing_zeros(value);
    }
    if (text.starts_with("hash:")) {
        auto value = from_hex(text.substr(5));
        if (!value) {
            return make_error(Errc::usage, "{}: hash: needs an even number of hexadecimal digits", option);
        }
        SecretBytes kept{ByteView(*value)};
        cleanse(*value);
        if (v12 ? kept.size() != auth_size_12 : kept.size() > auth_limit_20) {
            return make_error(Errc::usage, "{}: hash: has {} bytes, a TPM {} takes {}", option, kept.size(),
                              to_string(version), v12 ? "exactly 20" : "at most 32");
        }
        return v12 ? std::move(kept) : without_trailing_zeros(kept.view());
    }
    return make_error(Errc::usage, "{}: one of well-known, hash:HEX, text:STR", option);
}

} // namespace vtpmd::hwtpm
