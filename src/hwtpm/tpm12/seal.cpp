// PCRs and sealed data of a TPM 1.2.
#include "hwtpm/tcti.hpp"
#include "hwtpm/tpm12/attempt.hpp"
#include "tpm/commands.hpp"
#include "tpm/pcr.hpp"
#include "util/wire.hpp"

#include <algorithm>

namespace vtpmd::hwtpm {

namespace {

constexpr std::uint8_t any_locality = 0x1F;
constexpr std::size_t secret_limit = 128;

/// The sealed data's own authorisation value: PCRs and the SRK protect it, not a password.
const SecretBytes& no_data_auth() {
    static const SecretBytes zeros(20);
    return zeros;
}

} // namespace

void put_pcr_selection(WireWriter& w, const PcrSelection& selection, std::uint16_t size) {
    std::vector<std::uint8_t> bits(size);
    for (unsigned pcr : selection.pcrs) {
        bits.at(pcr / 8) |= static_cast<std::uint8_t>(1U << (pcr % 8));
    }
    w.be16(size);
    for (std::uint8_t b : bits) {
        w.u8(b);
    }
}

Result<Bytes> pcr_composite(const PcrSelection& selection, const std::vector<PcrValue>& values) {
    WireWriter composite;
    put_pcr_selection(composite, selection);
    composite.be32(static_cast<std::uint32_t>(values.size() * digest_size(selection.bank)));
    for (const PcrValue& v : values) {
        composite.bytes(v.digest);
    }
    auto digest = sha1({composite.view()});
    return digest ? Result<Bytes>(to_bytes(*digest)) : Result<Bytes>(digest.error());
}

Result<std::vector<PcrValue>> Tpm12::pcr_read(const std::vector<PcrSelection>& selections) {
    return attempt(Repeat::always, [&] { return pcr_read_once(selections); });
}

Result<std::vector<PcrValue>> Tpm12::pcr_read_once(const std::vector<PcrSelection>& selections) {
    std::vector<PcrValue> out;
    for (const PcrSelection& s : selections) {
        if (s.bank != HashAlg::sha1) {
            continue;
        }
        for (unsigned pcr : s.pcrs) {
            if (pcr >= pcr_count) {
                return make_error(Errc::usage, "PCR {}: indices go from 0 to 23", pcr);
            }
            const Bytes command = tpm::pcr_read_command(pcr);
            auto answer = device_.transmit(command, time_limit(command));
            if (!answer) {
                return answer.error();
            }
            auto value = tpm::parse_pcr_value(*answer);
            if (!value) {
                return value.error();
            }
            out.push_back({HashAlg::sha1, pcr, to_bytes(*value)});
        }
    }
    return out;
}

Result<Bytes> Tpm12::pcr_extend(unsigned index, ByteView digest) {
    return attempt(Repeat::if_not_executed, [&]() -> Result<Bytes> {
        WireWriter w;
        w.be32(index).bytes(digest);
        auto value = client_.run({.ordinal = tpm::ord::extend, .parameters = w.view(), .name = "TPM_Extend"});
        if (value && value->size() != digest_size(HashAlg::sha1)) {
            return make_error(Errc::protocol, "TPM_Extend: malformed answer");
        }
        return value;
    });
}

Result<std::vector<PcrValue>> Tpm12::checked_values(const RootOfTrust::SealOptions& options) {
    const PcrSelection& selection = options.selection;
    if (!selection.pcrs.empty() && selection.bank != HashAlg::sha1) {
        return make_error(Errc::pcr_mismatch, "{}: a TPM 1.2 has SHA-1 PCRs only: choose them as sha1:...",
                          to_string(selection));
    }
    if (!options.composite.empty()) {
        return options.composite.size() == digest_size(HashAlg::sha1) && options.values.empty() &&
                       !selection.pcrs.empty()
                   ? Result<std::vector<PcrValue>>(std::vector<PcrValue>{})
                   : Result<std::vector<PcrValue>>(
                         make_error(Errc::usage, "a seal to a composite hash: 20 bytes, of some PCRs, and no values"));
    }
    auto values = options.values.empty() ? pcr_read_once({selection}) : Result<std::vector<PcrValue>>(options.values);
    if (values && !options.values.empty() && !fits(*values, selection)) {
        return make_error(Errc::usage, "the PCR values given for a seal are not those of {}", to_string(selection));
    }
    if (!values || options.allow_zero_pcrs) {
        return values;
    }
    std::vector<std::string> wrong;
    for (const PcrValue& v : *values) {
        if (untouched(v.digest)) {
            wrong.push_back(fmt::format("sha1:{}", v.index));
        }
    }
    if (!wrong.empty()) {
        return make_error(
            Errc::pcr_mismatch,
            "nothing was measured into {}: a seal to it would protect nothing; choose other PCRs, or allow "
            "it knowingly with --allow-zero-pcrs, or seal to none with --seal-pcrs=none",
            fmt::join(wrong, ", "));
    }
    return values;
}

/// TPM_PCR_INFO_LONG, TPM Main part 2 section 8.4; empty if there is nothing to bind to.
Result<Bytes> Tpm12::pcr_info(const SealedSecret& sealed, ByteView given_composite) const {
    const PcrSelection& selection = sealed.selection;
    const std::vector<PcrValue>& values = sealed.values;
    if (selection.pcrs.empty() && config_.locality == 0) {
        return Bytes{};
    }
    // A selection of no PCR is not compared.
    Digest12 digest{};
    if (!given_composite.empty()) {
        std::copy(given_composite.begin(), given_composite.end(), digest.begin());
    } else if (!selection.pcrs.empty()) {
        auto d = pcr_composite(selection, values);
        if (!d) {
            return d.error();
        }
        std::copy(d->begin(), d->end(), digest.begin());
    }
    const auto release = static_cast<std::uint8_t>(config_.locality == 0 ? any_locality : 1U << config_.locality);
    WireWriter w;
    w.be16(v12::tag_pcr_info_long).u8(static_cast<std::uint8_t>(1U << config_.locality)).u8(release);
    put_pcr_selection(w, selection);
    put_pcr_selection(w, selection);
    w.zeros(20).bytes(digest); // the TPM fills in what is at creation
    return w.take();
}

Result<SealedSecret> Tpm12::seal(const SecretBytes& secret, const RootOfTrust::SealOptions& options) {
    if (secret.empty() || secret.size() > secret_limit) {
        return make_error(Errc::too_large, "a secret of {} bytes: a TPM seals 1 to {}", secret.size(), secret_limit);
    }
    return attempt(Repeat::always, [&] { return seal_once(secret, options); });
}

Result<SealedSecret> Tpm12::seal_once(const SecretBytes& secret, const RootOfTrust::SealOptions& options) {
    SealedSecret out;
    out.selection = options.selection;
    auto values = checked_values(options);
    if (!values) {
        return values.error();
    }
    out.values = std::move(*values);
    auto info = pcr_info(out, options.composite);
    if (!info) {
        return info.error();
    }
    auto session = client_.osap(v12::et_srk, v12::kh_srk, config_.srk_auth);
    if (!session) {
        return session.error();
    }
    auto auth = Tpm12Client::encrypt_auth(*session, no_data_auth().view());
    if (!auth) {
        return auth.error();
    }
    WireWriter handle;
    handle.be32(v12::kh_srk);
    WireWriter w(512);
    w.bytes(*auth).be32(static_cast<std::uint32_t>(info->size())).bytes(*info);
    w.be32(static_cast<std::uint32_t>(secret.size())).bytes(secret.view());
    auto blob =
        client_.run({.ordinal = tpm::ord::seal, .handles = handle.view(), .parameters = w.view(), .name = "TPM_Seal"},
                    std::span(&*session, 1));
    Bytes sent = w.take();
    cleanse(sent);
    if (!blob && blob.error().code == Errc::permission) {
        return in_context(blob.error(), "the storage root key's authorisation is refused: give the right --srk-auth");
    }
    if (!blob) {
        return blob.error();
    }
    out.blob = std::move(*blob);
    if (!options.values.empty() || !options.composite.empty()) {
        return out; // it is not to open now
    }
    if (auto proven = check_opens(unseal_once(out), secret); !proven) {
        return proven.error();
    }
    return out;
}

Result<SecretBytes> Tpm12::unseal(const SealedSecret& sealed) {
    auto secret = attempt(Repeat::always, [&] { return unseal_once(sealed); });
    if (!secret) {
        return explain(sealed, secret.error());
    }
    return secret;
}

Result<SecretBytes> Tpm12::unseal_once(const SealedSecret& sealed) {
    std::array<Session12, 2> sessions;
    for (Session12& s : sessions) {
        auto made = client_.oiap(&s == sessions.data() ? config_.srk_auth : no_data_auth());
        if (!made) {
            return made.error();
        }
        s = std::move(*made);
    }
    WireWriter handle;
    handle.be32(v12::kh_srk);
    auto out = client_.run(
        {.ordinal = tpm::ord::unseal, .handles = handle.view(), .parameters = sealed.blob, .name = "TPM_Unseal"},
        sessions);
    if (!out) {
        return out.error();
    }
    WireReader r(*out);
    SecretBytes secret(r.bytes(r.be32()));
    const bool whole = r.expect_end();
    cleanse(*out);
    if (!whole) {
        return make_error(Errc::protocol, "TPM_Unseal: malformed answer");
    }
    return secret;
}

Error Tpm12::explain(const SealedSecret& sealed, Error cause) {
    switch (cause.code == Errc::tpm ? cause.detail : 0) {
    case v12::rc_decrypt_error:
    case v12::rc_not_sealed_blob:
    case v12::rc_bad_parameter:
    case v12::rc_bad_param_size:
        return make_error(Errc::mismatch,
                          "{}: this was not sealed by this TPM, or the TPM was cleared since (the storage root key is "
                          "another), or it is damaged",
                          device_.description());
    case v12::rc_bad_locality:
        return make_error(Errc::permission, "{}: sealed to another locality than {}: give the --tpm-locality of then",
                          device_.description(), config_.locality);
    case v12::rc_wrong_pcr_value:
        break;
    default:
        if (cause.code == Errc::permission) {
            return in_context(std::move(cause),
                              "the storage root key's authorisation is refused: give the right --srk-auth");
        }
        return cause;
    }
    auto present = pcr_read({sealed.selection});
    if (!present) {
        return in_context(present.error(), "the seal does not open, and the PCRs cannot be read");
    }
    const auto differences = pcr_differences(sealed.values, *present);
    if (differences.empty()) {
        return make_error(
            Errc::pcr_mismatch,
            "the seal to {} does not open although its PCRs are as recorded: the record of the values was "
            "altered",
            to_string(sealed.selection));
    }
    return make_error(Errc::pcr_mismatch, "the platform is not the one that was sealed to: {}",
                      fmt::join(differences, "; "));
}

} // namespace vtpmd::hwtpm
