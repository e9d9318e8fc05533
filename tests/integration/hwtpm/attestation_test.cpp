// Approvers' seals, attestation keys, quotes and credential activation on a real swtpm, checked by others: OpenSSL on the raw
// structures, and tpm2-tools.
#include "check.hpp"
#include "openssl_key.hpp"
#include "support.hpp"
#include "swtpm_process.hpp"

#include "hwtpm/drivers/driver_spec.hpp"
#include "hwtpm/drivers/swtpm_device.hpp"
#include "hwtpm/tpm12/client.hpp"
#include "quote/hardware_quote.hpp"
#include "tpm/commands.hpp"
#include "util/text.hpp"
#include "util/wire.hpp"

#include <fstream>
#include <sys/wait.h>

namespace attestation_test {

using namespace vtpmd;
using namespace vtpmd::hwtpm;
using vtpmd::test::Loop;
using vtpmd::test::OpensslKey;

namespace {

SecretBytes a_secret() { return SecretBytes(as_bytes("0123456789abcdef-THE-GROUP-KEY-of-group-7")); }

PcrSelection pcrs(std::string_view text) { return parse_pcr_selection(text).value(); }

std::unique_ptr<RootOfTrust> open(Loop& loop, const fakes::SwtpmProcess& swtpm) {
    auto root = open_root({.driver = swtpm.driver()}, loop.io.get_executor(), loop.log, true);
    if (!root) {
        FAIL(root.error().message);
    }
    return std::move(*root);
}

/// As firmware would, on a connection of its own: no root may be open.
void extend(const fakes::SwtpmProcess& swtpm, TpmVersion version, unsigned pcr) {
    Loop loop;
    auto device = open_swtpm({.kind = DriverKind::swtpm_unix, .path = swtpm.socket()}, 0, loop.log);
    REQUIRE(device);
    const tpm::HashValue value{0x000B, Bytes(32, std::byte{0x5A})};
    tpm::Sha1Digest sha1_value;
    sha1_value.fill(std::byte{0x5A});
    const Bytes command = version == TpmVersion::tpm12 ? tpm::extend_command(pcr, sha1_value)
                                                       : tpm::pcr_extend_command(pcr, std::span(&value, 1));
    REQUIRE((*device)->transmit(command, std::chrono::seconds(10)));
}

/// An approval of what the TPM's PCRs are now.
Approval approve(Loop& loop, RootOfTrust& root, const OpensslKey& key, const Approver& approver,
                 std::string_view selection) {
    Approval out{.selection = pcrs(selection), .values = {}, .signature = {}};
    out.values = loop.run(root.pcr_read({out.selection})).value();
    out.signature = key.sign_sha256(approval_message(out.selection, out.values, approver.reference).value());
    return out;
}

void write_file(const std::filesystem::path& path, ByteView content) {
    std::ofstream out(path, std::ios::binary);
    out.write(reinterpret_cast<const char*>(content.data()), static_cast<std::streamsize>(content.size()));
}

Bytes read_file(const std::filesystem::path& path) {
    std::ifstream in(path, std::ios::binary);
    const std::string text((std::istreambuf_iterator<char>(in)), {});
    return to_bytes(as_bytes(text));
}

int run_command(const std::string& command) { return WEXITSTATUS(std::system((command + " >/dev/null 2>&1").c_str())); }

} // namespace

TEST_SUITE("hwtpm-2.0") {
    TEST_CASE("2.0: a seal for an approver opens on every configuration that was approved, and on no other") {
        for (const char* type : {"RSA", "EC"}) {
            INFO("approver's key: ", std::string(type));
            fakes::SwtpmProcess swtpm;
            const OpensslKey key(type);
            const Approver approver{.key = key.spki(), .reference = to_bytes(as_bytes("group 7, epoch 1"))};
            extend(swtpm, TpmVersion::tpm20, 4);
            Approval a;
            SealedSecret sealed;
            {
                Loop loop;
                auto root = open(loop, swtpm);
                sealed = loop.run(root->seal_for(a_secret(), approver)).value();
                a = approve(loop, *root, key, approver, "sha256:0,4");
                for (int i = 0; i < 20; ++i) { // and nothing is left behind in the TPM
                    auto secret = loop.run(root->unseal_for(sealed, approver, a));
                    REQUIRE(secret);
                    CHECK(secret->equals(a_secret().view()));
                }
                // Forged, for another group, by another, for another configuration.
                Approval forged = a;
                forged.signature.back() ^= std::byte{1};
                CHECK(loop.run(root->unseal_for(sealed, approver, forged)).error().code == Errc::permission);
                const OpensslKey stranger(type);
                const Approver other{.key = stranger.spki(), .reference = approver.reference};
                const Approval by_other = approve(loop, *root, stranger, other, "sha256:0,4");
                CHECK(loop.run(root->unseal_for(sealed, approver, by_other)).error().code == Errc::permission);
                CHECK(loop.run(root->unseal_for(sealed, other, by_other)).error().code == Errc::mismatch);
                const Approver elsewhere{.key = approver.key, .reference = to_bytes(as_bytes("group 8, epoch 1"))};
                CHECK(loop.run(root->unseal_for(sealed, elsewhere, a)).error().code == Errc::permission);
                const Approval for_elsewhere = approve(loop, *root, key, elsewhere, "sha256:0,4");
                CHECK(loop.run(root->unseal_for(sealed, elsewhere, for_elsewhere)).error().code == Errc::mismatch);
                // Not by the plain way either.
                CHECK_FALSE(loop.run(root->unseal(sealed)));
                loop.run(root->close());
            }
            extend(swtpm, TpmVersion::tpm20, 4); // the host is updated
            Loop loop;
            auto root = open(loop, swtpm);
            auto closed = loop.run(root->unseal_for(sealed, approver, a));
            REQUIRE(closed.has_error());
            CHECK(closed.error().code == Errc::pcr_mismatch);
            CHECK(closed.error().message.find("sha256:4") != std::string::npos);
            CHECK(closed.error().message.find("sha256:0") == std::string::npos);
            const Approval b = approve(loop, *root, key, approver, "sha256:0,4");
            CHECK(loop.run(root->unseal_for(sealed, approver, b)).value().equals(a_secret().view()));
            // A message alone does it: no PCR, no approval.
            CHECK(approval_message({}, {}, approver.reference).error().code == Errc::usage);
            loop.run(root->close());
        }
    }

    TEST_CASE("2.0: an approver's key of another kind, a reference that is too long") {
        fakes::SwtpmProcess swtpm;
        Loop loop;
        auto root = open(loop, swtpm);
        CHECK(loop.run(root->seal_for(a_secret(), {.key = Bytes(30), .reference = {}})).error().code == Errc::usage);
        const OpensslKey small("RSA", 1024);
        CHECK(loop.run(root->seal_for(a_secret(), {.key = small.spki(), .reference = {}})).error().code == Errc::usage);
        const OpensslKey key("EC");
        CHECK(loop.run(root->seal_for(a_secret(), {.key = key.spki(), .reference = Bytes(65)})).error().code ==
              Errc::too_large);
        CHECK(loop.run(root->seal_for(a_secret(), {.key = key.spki(), .reference = Bytes(64)})));
        loop.run(root->close());
    }

    TEST_CASE("2.0: quotes are what tpm2_checkquote accepts; another nonce, PCR or key is not") {
        fakes::SwtpmProcess swtpm;
        extend(swtpm, TpmVersion::tpm20, 7);
        fakes::TempDir dir;
        for (KeyType type : {KeyType::rsa_2048, KeyType::ecdsa_p256}) {
            Loop loop;
            auto root = open(loop, swtpm);
            auto key = loop.run(root->attestation_key_create({.type = type})).value();
            const Bytes nonce(32, std::byte{0x42});
            auto quote = loop.run(root->quote(key, {.nonce = nonce, .selections = {pcrs("sha256:0,7")}}));
            REQUIRE(quote);
            REQUIRE(quote->values.size() == 2);
            CHECK(quote->values[1].index == 7);
            CHECK(quote->values == loop.run(root->pcr_read({pcrs("sha256:0,7")})).value());
            loop.run(root->close());

            write_file(dir.path() / "key.der", key.key);
            write_file(dir.path() / "quote", quote->attested);
            write_file(dir.path() / "signature", quote->signature);
            const std::string d = dir.path().string();
            REQUIRE(run_command(fmt::format("openssl pkey -pubin -inform DER -in {0}/key.der -out {0}/key.pem", d)) ==
                    0);
            const auto check = [&](const std::string& hex) {
                return run_command(fmt::format(
                    "tpm2_checkquote -u {0}/key.pem -m {0}/quote -s {0}/signature -g sha256 -q {1}", d, hex));
            };
            CHECK(check(to_hex(nonce)) == 0);
            CHECK(check(to_hex(Bytes(32, std::byte{0x43}))) != 0);
            // Our own verifier agrees.
            quote::HardwareQuoteCheck ours{
                .version = TpmVersion::tpm20, .key = key.key, .nonce = nonce, .pcrs = quote->values};
            CHECK(quote::verify_hardware_quote(*quote, ours));
            ours.nonce = Bytes(32, std::byte{0x43});
            CHECK(quote::verify_hardware_quote(*quote, ours).error().code == Errc::mismatch);
            // What was quoted are these values: the digest is in the structure that is signed.
            Bytes all;
            for (const PcrValue& v : quote->values) {
                all.insert(all.end(), v.digest.begin(), v.digest.end());
            }
            const Bytes digest = sha256({all}).value();
            CHECK(std::search(quote->attested.begin(), quote->attested.end(), digest.begin(), digest.end()) !=
                  quote->attested.end());
            Bytes altered = quote->attested;
            altered.back() ^= std::byte{1};
            write_file(dir.path() / "quote", altered);
            CHECK(check(to_hex(nonce)) != 0);
        }
    }

    TEST_CASE("2.0: quotes of several banks; banks that are not there, keys of another TPM, nonces too long") {
        fakes::SwtpmProcess swtpm;
        fakes::SwtpmProcess other;
        Loop loop;
        auto root = open(loop, swtpm);
        auto stranger = open(loop, other);
        auto key = loop.run(root->attestation_key_create({.type = KeyType::ecdsa_p256})).value();
        auto quote = loop.run(root->quote(key, {.nonce = {}, .selections = {pcrs("sha256:7"), pcrs("sha1:0-9")}}));
        REQUIRE(quote);
        CHECK(quote->values.size() == 11);
        constexpr auto sha3_256 = static_cast<HashAlg>(0x0027);
        CHECK(loop.run(root->quote(key, {.nonce = {}, .selections = {{sha3_256, {1}}}})).error().code ==
              Errc::pcr_mismatch);
        CHECK(loop.run(root->quote(key, {.nonce = Bytes(33), .selections = {}})).error().code == Errc::too_large);
        CHECK(loop.run(stranger->quote(key, {.nonce = {}, .selections = {pcrs("sha256:7")}})).error().code ==
              Errc::mismatch);
        loop.run(root->close());
        loop.run(stranger->close());
    }

    TEST_CASE("2.0: a credential by tpm2_makecredential is activated, by this key in this TPM only") {
        fakes::SwtpmProcess swtpm;
        fakes::SwtpmProcess other;
        fakes::TempDir dir;
        const std::string d = dir.path().string();
        Loop loop;
        auto root = open(loop, swtpm);
        auto stranger = open(loop, other);
        auto endorsement = loop.run(root->endorsement()).value();
        CHECK(parse_public_key(endorsement.key));
        CHECK(loop.run(root->endorsement()).value().key == endorsement.key);
        auto key = loop.run(root->attestation_key_create({})).value();
        auto second = loop.run(root->attestation_key_create({})).value();
        const Bytes name_digest = sha256({ByteView(key.public_area).subspan(2)}).value();
        write_file(dir.path() / "ek", endorsement.public_area);
        write_file(dir.path() / "secret", as_bytes("a secret of the privacy CA"));
        REQUIRE(run_command(fmt::format("tpm2_makecredential -T none -u {0}/ek -s {0}/secret -n 000b{1} -o {0}/out", d,
                                        to_hex(name_digest))) == 0);
        const Bytes file = read_file(dir.path() / "out");
        REQUIRE(file.size() > 8);
        const Bytes credential(file.begin() + 8, file.end()); // after the tool's magic and version
        for (int i = 0; i < 5; ++i) {
            auto secret = loop.run(root->activate_credential(key, credential));
            REQUIRE(secret);
            CHECK(secret->equals(as_bytes("a secret of the privacy CA")));
        }
        CHECK(loop.run(root->activate_credential(second, credential)).error().code == Errc::mismatch);
        CHECK(loop.run(stranger->activate_credential(key, credential)).error().code == Errc::mismatch);
        auto theirs = loop.run(stranger->attestation_key_create({})).value();
        auto elsewhere = loop.run(stranger->activate_credential(theirs, credential));
        CHECK_MESSAGE(elsewhere.error().code == Errc::mismatch, elsewhere.error().message);
        Bytes longer = credential;
        longer.push_back(std::byte{0});
        CHECK(loop.run(root->activate_credential(key, longer)).error().code == Errc::protocol);
        CHECK(loop.run(root->seal(a_secret(), {.selection = {}}))); // and it goes on
        loop.run(root->close());
        loop.run(stranger->close());
    }
}

TEST_SUITE("hwtpm-1.2") {
    TEST_CASE("1.2: identities, quotes and activation, checked by OpenSSL on the raw structures") {
        fakes::SwtpmProcess swtpm({.version = TpmVersion::tpm12});
        extend(swtpm, TpmVersion::tpm12, 4);
        Loop loop;
        auto root = open(loop, swtpm);
        const Bytes chosen(20, std::byte{0x31});
        auto key = loop.run(root->attestation_key_create({.chosen_id = chosen})).value();
        { // TPM_IDENTITY_CONTENTS, part 2 section 12.5
            WireWriter contents;
            contents.be32(0x01010000).be32(0x79).bytes(chosen).bytes(key.public_area);
            CHECK(test::verify_sha1(key.key, contents.view(), key.binding));
        }
        const Bytes nonce(20, std::byte{0x42});
        auto quote = loop.run(root->quote(key, {.nonce = nonce, .selections = {pcrs("sha1:0,4")}}));
        REQUIRE(quote);
        CHECK(quote->values == loop.run(root->pcr_read({pcrs("sha1:0,4")})).value());
        CHECK(test::verify_sha1(key.key, quote->attested, quote->signature));
        CHECK(quote::verify_hardware_quote(
            *quote, {.version = TpmVersion::tpm12, .key = key.key, .nonce = nonce, .pcrs = quote->values}));
        { // TPM_QUOTE_INFO over the composite of those values, made by hand
            WireWriter composite;
            composite.be16(3).u8(0x11).u8(0).u8(0).be32(40);
            composite.bytes(quote->values[0].digest).bytes(quote->values[1].digest);
            WireWriter info;
            info.be32(0x01010000).bytes(as_bytes("QUOT")).bytes(sha1({composite.view()}).value()).bytes(nonce);
            CHECK(quote->attested == info.take());
        }
        Bytes altered = quote->attested;
        altered.back() ^= std::byte{1};
        CHECK_FALSE(test::verify_sha1(key.key, altered, quote->signature));

        // TPM_ASYM_CA_CONTENTS (part 2 section 12.8): session key, SHA-1 of the identity's TPM_PUBKEY.
        auto endorsement = loop.run(root->endorsement()).value();
        auto ek = parse_public_key(endorsement.key).value();
        const auto credential_for = [&](const AttestationKey& who) {
            WireWriter w;
            w.be32(6).be16(1).be16(16).bytes(Bytes(16, std::byte{0x77})); // TPM_ALG_AES128
            w.bytes(sha1({who.public_area}).value());
            return encrypt_for_endorsement_key(ek.modulus, w.view()).value();
        };
        auto secret = loop.run(root->activate_credential(key, credential_for(key)));
        REQUIRE(secret);
        CHECK(secret->equals(Bytes(16, std::byte{0x77})));
        auto second = loop.run(root->attestation_key_create({})).value();
        CHECK(loop.run(root->activate_credential(second, credential_for(key))).error().code == Errc::mismatch);
        CHECK(loop.run(root->activate_credential(key, Bytes(256, std::byte{1}))).error().code == Errc::mismatch);

        // Many, refused ones among them: no key is left behind in the TPM's few slots.
        AttestationKey damaged = key;
        damaged.blob.back() ^= std::byte{1};
        for (int i = 0; i < 12; ++i) {
            CHECK(loop.run(root->quote(key, {.nonce = nonce, .selections = {pcrs("sha1:4")}})));
            CHECK_FALSE(loop.run(root->quote(damaged, {.nonce = nonce, .selections = {pcrs("sha1:4")}})));
            CHECK_FALSE(loop.run(root->activate_credential(second, credential_for(key))));
        }
        CHECK(loop.run(root->quote(key, {.nonce = Bytes(19), .selections = {pcrs("sha1:4")}})).error().code ==
              Errc::usage);
        CHECK(loop.run(root->quote(key, {.nonce = nonce, .selections = {pcrs("sha256:4")}})).error().code ==
              Errc::pcr_mismatch);
        CHECK(loop.run(root->seal_for(a_secret(), {})).error().code == Errc::unsupported);
        CHECK(loop.run(root->attestation_key_create({.type = KeyType::ecdsa_p256})).error().code == Errc::unsupported);
        loop.run(root->close());
    }
}

} // namespace attestation_test
