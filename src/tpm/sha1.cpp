#include "tpm/sha1.hpp"

#include <openssl/core_names.h>
#include <openssl/evp.h>

namespace vtpmd::tpm {

namespace {

Error refused(std::string_view what) { return make_error(Errc::unsupported, "OpenSSL refuses {}", what); }

Bytes joined(std::initializer_list<ByteView> parts) {
    Bytes out;
    for (ByteView p : parts) {
        out.insert(out.end(), p.begin(), p.end());
    }
    return out;
}

} // namespace

Result<Sha1Digest> sha1(std::initializer_list<ByteView> parts) {
    Bytes data = joined(parts);
    Sha1Digest out{};
    const bool ok =
        EVP_Digest(data.data(), data.size(), uchar_ptr(MutByteView(out)), nullptr, EVP_sha1(), nullptr) == 1;
    cleanse(data);
    return ok ? Result<Sha1Digest>(out) : Result<Sha1Digest>(refused("SHA-1, which a TPM 1.2 needs"));
}

Result<Sha1Digest> hmac_sha1(const SecretBytes& key, std::initializer_list<ByteView> parts) {
    const Bytes data = joined(parts);
    Sha1Digest out{};
    size_t size = 0;
    char digest[] = "SHA1";
    const OSSL_PARAM params[] = {OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, digest, 0),
                                 OSSL_PARAM_construct_end()};
    if (EVP_Q_mac(nullptr, "HMAC", nullptr, nullptr, params, key.data(), key.size(), uchar_ptr(data), data.size(),
                  uchar_ptr(MutByteView(out)), out.size(), &size) == nullptr ||
        size != out.size()) {
        return refused("HMAC-SHA-1, which a TPM 1.2 needs");
    }
    return out;
}

} // namespace vtpmd::tpm
