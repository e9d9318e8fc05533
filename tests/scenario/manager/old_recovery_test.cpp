// GROUP_REGISTER, GROUP_RECOVER1 and 2: a group of the old form whose TPM was replaced comes back by its approver, and by nobody
// else. The real groups, vault and journal, a fake disk and a fake TPM of both families.
#include "administrator_host.hpp"

namespace old_recovery_scenario_test {

using namespace vtpmd;
using namespace vtpmd::manager;
using namespace test::administrator;
using management::Number;
using test::OldApprover;

namespace {

constexpr std::uint32_t in_the_way = 0x40a; // Errc::exists
constexpr std::uint32_t differs = 0x407;    // Errc::pcr_mismatch

Number of_small(unsigned value) {
    Number out{};
    out.back() = static_cast<std::byte>(value);
    return out;
}
Number prime_less_one() {
    // RFC 3526 section 3: p begins and ends with 64 ones, so p - 1 differs from it in the last bit.
    static const std::string_view p = "FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74020BBEA63B139B22"
                                      "514A08798E3404DDEF9519B3CD3A431B"
                                      "302B0A6DF25F14374FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED"
                                      "EE386BFB5A899FA5AE9F24117C4B1FE6"
                                      "49286651ECE45B3DC2007CB8A163BF0598DA48361C55D39A69163FA8FD24CF5F83655D23DCA3AD96"
                                      "1C62F356208552BB9ED529077096966D"
                                      "670C354E4ABC9804F1746C08CA18217C32905E462E36CE3BE39E772C180E86039B2783A2EC07A28F"
                                      "B5C55DF06F4C52C9DE2BCBF695581718"
                                      "3995497CEA956AE515D2261898FA051015728E5A8AACAA68FFFFFFFFFFFFFFFF";
    Number out = OldApprover::number(from_hex(p).value());
    out.back() = std::byte{0xFE};
    return out;
}

/// A host with a group of an approver's, number 1, with a vTPM that has state; another vTPM is the store's own.
struct Lost : Host {
    explicit Lost(TpmVersion version)
        : Host(version)
        , sealed_at_first(m.tpm.sealed.rbegin()->first) {
        m.tpm.rsa_quotes = true;
        const Bytes made = tell(management::GroupNew{.chosen_id = {}, .modulus = approver.modulus()});
        std::copy_n(made.begin(), 16, group.bytes.begin());
        (void)tell(management::VtpmNew{.group = 1, .uuid = vtpm_uuid(1)});
        (void)tell(management::VtpmNew{.group = 0, .uuid = vtpm_uuid(2)});
        CHECK(start_vtpm(1, 11).value() == 0);
        CHECK(start_vtpm(2, 22).value() == 0);
    }
    void take_list() { CHECK(tell(approver.sign(1, list(1, {a}), pcr_4)).empty()); }
    void take_registration() {
        registered = tell(approver.sign_half(1, group, approver.half.value(), pcr_4));
        key = approver.take_key(group, registered);
    }
    /// Another TPM: it opens the store (by its recovery file, on a real one), and nothing else that the first one sealed.
    void replace_tpm(std::uint8_t configuration = a) {
        std::erase_if(m.tpm.sealed, [&](const auto& s) { return s.first > sealed_at_first; });
        reboot(configuration);
    }
    /// The key to quote by: of a group that was made for that.
    management::GroupRecover1 begin() {
        if (proxy.empty()) {
            const Bytes made = tell(management::GroupNew{.chosen_id = {}, .modulus = OldApprover().modulus()});
            proxy = OldApprover::tpm_key(ByteView(made).subspan(16, 256));
        }
        management::GroupRecover1 out{.group = 1, .key = proxy, .nonce = {}, .pcrs = pcr_4};
        out.nonce.fill(std::byte{0x4e});
        return out;
    }
    Number begun() {
        const Bytes answer = tell(begin());
        REQUIRE(answer.size() >= 256);
        return OldApprover::number(to_bytes(ByteView(answer).first(256)));
    }
    [[nodiscard]] management::GroupRecover2 give(const Number& theirs) const {
        return OldApprover::give_key(1, group, theirs, key);
    }
    void is_closed() {
        CHECK(start_vtpm(1).error().code == Errc::pcr_mismatch);
        CHECK_FALSE(m.vault->group_open(1));
        CHECK(start_vtpm(2).value() == 22);
    }

    OldApprover approver;
    std::uint32_t sealed_at_first;
    Uuid group;
    Bytes registered;
    SecretBytes key;
    Bytes proxy;
};

const auto both = {TpmVersion::tpm12, TpmVersion::tpm20};

} // namespace

TEST_SUITE("administration") {
    TEST_CASE("recovery by the old protocol: another TPM, and the group comes back by its approver") {
        for (TpmVersion version : both) {
            for (const bool listed : {false, true}) {
                CAPTURE(static_cast<int>(version));
                CAPTURE(listed);
                Lost host(version);
                if (listed) {
                    host.take_list();
                }
                host.take_registration();
                // dhkx_2, the blob, the quote over SHA1("REGR" || dhkx_1 || dhkx_2 || blob), on a TPM 2.0 what is signed
                const bool tpm20 = version == TpmVersion::tpm20;
                REQUIRE(host.registered.size() == 256 + 32 + 256 + (tpm20 ? 20 : 0));
                const auto quoted = tpm::sha1(
                    {as_bytes("REGR"), host.approver.half.value(), ByteView(host.registered).first(256 + 32)});
                CHECK(to_hex(ByteView(host.registered).subspan(256 + 32, 20)) == to_hex(*quoted));
                CHECK(host.key.equals(host.m.vault->group_key(1)->view()));
                // Nothing is left that the store could open by itself.
                CHECK(host.groups->show(1)->old->box.empty());

                host.reboot(a);
                CHECK(host.start_vtpm(1).value() == 11);
                CHECK(host.ask(host.begin()).code == in_the_way); // there is nothing to recover

                host.replace_tpm();
                host.is_closed();
                const Bytes answer = host.tell(host.begin());
                REQUIRE(answer.size() == 256 + 256 + (tpm20 ? 20 : 0));
                const auto shown = tpm::sha1({as_bytes("RCVR"), host.begin().nonce, ByteView(answer).first(256)});
                CHECK(to_hex(ByteView(answer).subspan(256, 20)) == to_hex(*shown));
                const Bytes attestation = host.groups->show(1)->attestation_key;
                CHECK(host.tell(host.give(OldApprover::number(to_bytes(ByteView(answer).first(256))))).empty());
                CHECK(host.start_vtpm(1, 12).value() == 11);
                CHECK(host.groups->show(1)->attestation_key != attestation);
                host.reboot(a);
                CHECK(host.start_vtpm(1).value() == 12);
                if (listed) {
                    host.reboot(b);
                    host.is_closed();
                    host.reboot(a);
                }
                // And once more: what the approver keeps is good for every TPM to come.
                host.replace_tpm();
                host.is_closed();
                CHECK(host.tell(host.give(host.begun())).empty());
                CHECK(host.start_vtpm(1).value() == 12);
            }
        }
    }

    TEST_CASE("recovery by the old protocol: who else comes is refused, and nothing changes") {
        for (TpmVersion version : both) {
            CAPTURE(static_cast<int>(version));
            Lost host(version);
            host.take_list();
            host.take_registration();
            // A second group of the approver's, number 2, also lost.
            const Bytes made = host.tell(management::GroupNew{.chosen_id = {}, .modulus = host.approver.modulus()});
            Uuid second;
            std::copy_n(made.begin(), 16, second.bytes.begin());
            const auto register_second = host.approver.sign_half(2, second, host.approver.half.value(), 0);
            const SecretBytes second_key = host.approver.take_key(second, host.tell(register_second));
            host.replace_tpm();
            host.is_closed();
            const Bytes before = host.m.vault->registry().group(1)->detail;

            // No exchange has begun; its key is nobody's; another group.
            CHECK(host.ask(host.give(host.approver.half.value())).code == bad_parameter);
            auto begin = host.begin();
            begin.key = OldApprover::tpm_key(host.approver.modulus());
            CHECK(host.ask(begin).code == bad_index);
            begin.key = OldApprover::tpm_key({});
            CHECK(host.ask(begin).code == bad_index);
            begin = host.begin();
            begin.group = 0;
            CHECK(host.ask(begin).code == bad_parameter);
            begin.group = 3; // the proxy's, of which nobody is the approver's
            CHECK(host.ask(begin).code == bad_parameter);
            begin.group = 77;
            CHECK(host.ask(begin).code == bad_index);

            const auto refuse = [&](auto change) {
                auto answer = host.give(host.begun());
                change(answer);
                CHECK(host.ask(answer).code == auth_fail);
                host.is_closed();
            };
            refuse([](auto& r) { r.blob[0] ^= std::byte{1}; });
            refuse([](auto& r) { r.blob[31] ^= std::byte{0x80}; });
            refuse([](auto& r) { r.blob = {}; });
            refuse([](auto& r) { r.dh = of_small(4); });
            refuse([&](auto& r) { r.dh = host.approver.half.value(); });
            refuse([&](auto& r) { r = host.give(host.approver.half.value()); }); // for another exchange
            // A stranger, with another key; one with what was sent at registration, but not the half's other side.
            refuse([&](auto& r) { r = OldApprover::give_key(1, host.group, host.begun(), SecretBytes(32)); });
            refuse([&](auto& r) { std::copy_n(host.registered.begin() + 256, 32, r.blob.begin()); });
            refuse([&](auto& r) { r = OldApprover::give_key(1, host.group, host.begun(), second_key); });
            refuse([&](auto& r) { r = OldApprover::give_key(1, second, host.begun(), host.key); });
            // Halves that give the shared number away.
            for (const Number& half : {of_small(0), of_small(1), prime_less_one(), Number{std::byte{0xFF}}}) {
                auto answer = host.give(host.begun());
                answer.dh = half;
                CHECK(host.ask(answer).code == bad_parameter);
                host.is_closed();
            }
            // Right, but for the group beside it, which has an exchange of its own.
            auto begin_second = host.begin();
            begin_second.group = 2;
            const Number theirs = OldApprover::number(to_bytes(ByteView(host.tell(begin_second)).first(256)));
            auto astray = host.give(host.begun());
            astray.group = 2;
            CHECK(host.ask(astray).code == auth_fail);
            CHECK(host.ask(OldApprover::give_key(2, second, theirs, second_key)).code == bad_parameter); // was answered
            CHECK(host.m.vault->registry().group(1)->detail == before);

            // An answer that came too late, after a restart, or twice.
            const auto late = host.give(host.begun());
            const auto good = host.give(host.begun());
            CHECK(host.ask(late).code == auth_fail);
            CHECK(host.ask(good).code == bad_parameter); // its exchange was the one that `late` answered
            const auto before_restart = host.give(host.begun());
            host.reboot(a);
            CHECK(host.ask(before_restart).code == bad_parameter);
            host.is_closed();
            const auto right = host.give(host.begun());
            CHECK(host.tell(right).empty());
            CHECK(host.start_vtpm(1).value() == 11);
            CHECK(host.ask(right).code == in_the_way);
            host.replace_tpm();
            (void)host.begun();
            CHECK(host.ask(right).code == auth_fail);
            host.is_closed();
        }
    }

    TEST_CASE("GROUP_REGISTER: by the approver's word for its half, once") {
        for (TpmVersion version : both) {
            CAPTURE(static_cast<int>(version));
            Lost host(version);
            host.take_list();
            const Bytes before = host.m.vault->registry().group(1)->detail;
            const auto good = host.approver.sign_half(1, host.group, host.approver.half.value(), pcr_4);
            auto forged = good;
            forged.proof[100] ^= std::byte{1};
            CHECK(host.ask(forged).code == auth_fail);
            forged = good;
            forged.dh = DhHalf::make()->value();
            CHECK(host.ask(forged).code == auth_fail);
            const OldApprover stranger;
            CHECK(host.ask(stranger.sign_half(1, host.group, stranger.half.value(), pcr_4)).code == auth_fail);
            Uuid other = host.group;
            other.bytes[0] ^= std::byte{1};
            CHECK(host.ask(host.approver.sign_half(1, other, host.approver.half.value(), pcr_4)).code == auth_fail);
            CHECK(host.ask(host.approver.sign_half(0, host.group, host.approver.half.value(), pcr_4)).code ==
                  bad_parameter);
            for (const Number& half : {of_small(0), of_small(1), prime_less_one(), Number{std::byte{0xFF}}}) {
                CHECK(host.ask(host.approver.sign_half(1, host.group, half, pcr_4)).code == bad_parameter);
            }
            CHECK(host.m.vault->registry().group(1)->detail == before);
            host.reboot(b);
            CHECK(host.ask(good).code == differs); // closed
            host.reboot(a);

            host.take_registration();
            // The answer was lost: the same again. Another half of the approver's: no.
            const Bytes detail = host.m.vault->registry().group(1)->detail;
            CHECK(host.tell(good) == host.registered);
            forged = good;
            forged.proof[100] ^= std::byte{1};
            CHECK(host.ask(forged).code == auth_fail);
            CHECK(host.ask(host.approver.sign_half(1, host.group, DhHalf::make()->value(), pcr_4)).code == in_the_way);
            host.reboot(a);
            CHECK(host.tell(good) == host.registered);
            CHECK(host.m.vault->registry().group(1)->detail == detail);
            // Newer lists as before.
            CHECK(host.tell(host.approver.sign(1, Host::list(2, {a, b}), pcr_4)).empty());
            host.reboot(b);
            CHECK(host.start_vtpm(1).value() == 11);
        }
    }

    TEST_CASE("a registration before the first list holds when that comes") {
        for (TpmVersion version : both) {
            Lost host(version);
            host.take_registration();
            host.take_list();
            host.reboot(a);
            CHECK(host.start_vtpm(1).value() == 11);
            host.reboot(b);
            host.is_closed();
            host.replace_tpm();
            host.is_closed();
            CHECK(host.tell(host.give(host.begun())).empty());
            CHECK(host.start_vtpm(1).value() == 11);
        }
    }

    TEST_CASE(
        "recovery on a platform that the list does not name: open until the next start, so that a list can come") {
        for (TpmVersion version : both) {
            CAPTURE(static_cast<int>(version));
            Lost host(version);
            host.take_list();
            host.take_registration();
            host.replace_tpm(b);
            host.is_closed();
            CHECK(host.tell(host.give(host.begun())).empty());
            CHECK(host.start_vtpm(1).value() == 11);
            host.reboot(b);
            host.is_closed();
            CHECK(host.tell(host.give(host.begun())).empty());
            CHECK(host.tell(host.approver.sign(1, Host::list(2, {a, b}), pcr_4)).empty());
            host.reboot(b);
            CHECK(host.start_vtpm(1).value() == 11);
            host.reboot(a);
            CHECK(host.start_vtpm(1).value() == 11);
        }
    }

    TEST_CASE("recovery by the old protocol: the store fails at any write, and all is there or nothing") {
        for (TpmVersion version : both) {
            CAPTURE(static_cast<int>(version));
            unsigned failures = 0;
            for (const char* operation : {"seal", "attestation_key_create", "quote", "counter_increment"}) {
                CAPTURE(operation);
                Lost host(version);
                host.take_list();
                const auto fail = [&](bool on) {
                    host.m.tpm.before = nullptr;
                    if (on) {
                        host.m.tpm.before = [operation](std::string_view what) {
                            return what == operation ? std::optional(make_error(Errc::tpm, "fails")) : std::nullopt;
                        };
                    }
                };
                fail(true);
                const auto request = host.approver.sign_half(1, host.group, host.approver.half.value(), pcr_4);
                failures += host.ask(request).code != 0 ? 1 : 0;
                fail(false);
                host.take_registration();
                host.replace_tpm();
                auto answer = host.give(host.begun());
                fail(true);
                failures += host.ask(answer).code != 0 ? 1 : 0;
                fail(false);
                if (!host.m.vault->group_open(1)) {
                    CHECK(host.tell(host.give(host.begun())).empty());
                }
                CHECK(host.start_vtpm(1).value() == 11);
                host.reboot(a);
                CHECK(host.start_vtpm(1).value() == 11);
            }
            CHECK(failures >= 3);
        }
    }
}

} // namespace old_recovery_scenario_test
