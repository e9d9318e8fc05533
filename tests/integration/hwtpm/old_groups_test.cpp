// GROUP_REGISTER, GROUP_RECOVER1 and 2 on a real TPM (swtpm) of either family, that another takes the place of. The approver has
// OpenSSL's command line alone (contrib/xl/group-recovery), and checks every quote itself.
#include "administration_parts.hpp"
#include "check.hpp"
#include "host.hpp"
#include "old_approver.hpp"
#include "test_data.hpp"

#include "quote/hardware_quote.hpp"
#include "tpm/sha1.hpp"

#include <cstdlib>
#include <fstream>
#include <iterator>

namespace old_groups_on_swtpm_test {

using namespace vtpmd;
using namespace vtpmd::manager;
namespace management = proto::management;
using management::Number;
using test::OldApprover;

namespace {

constexpr management::PcrMask pcr_4 = 1U << 4U;
const Uuid member = parse_uuid("76000000-0000-4000-8000-000000000011").value();
const Uuid bystander = parse_uuid("76000000-0000-4000-8000-000000000012").value();

Bytes file_content(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    const std::string text{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
    return to_bytes(as_bytes(text));
}

/// Who has the approver's directory, and the script.
class Agent {
  public:
    explicit Agent(const OldApprover& approver) {
        approver.key.write_private(at("key.pem"));
        run("new", "");
    }
    management::GroupRegister proof(std::uint32_t number, const Uuid& group) {
        const Bytes made = run("proof", fmt::format("{} {}", group, at("key.pem")));
        REQUIRE(made.size() == 512);
        return {.group = number,
                .dh = OldApprover::number(to_bytes(ByteView(made).first(256))),
                .proof = OldApprover::number(to_bytes(ByteView(made).last(256))),
                .pcrs = pcr_4};
    }
    void take(const Uuid& group, ByteView answer) { (void)run("take", fmt::format("{}", group), answer); }
    management::GroupRecover2 give(std::uint32_t number, const Uuid& group, ByteView theirs) {
        const Bytes made = run("give", fmt::format("{}", group), theirs);
        REQUIRE(made.size() == 288);
        management::GroupRecover2 out{.group = number, .dh = {}, .blob = {}};
        std::copy_n(made.begin(), 256, out.dh.begin());
        std::copy_n(made.begin() + 256, 32, out.blob.begin());
        return out;
    }

  private:
    [[nodiscard]] std::string at(const std::string& name) const { return (dir_.path() / name).string(); }
    Bytes run(const std::string& what, const std::string& arguments, ByteView input = {}) {
        std::ofstream(at("in"), std::ios::binary)
            .write(reinterpret_cast<const char*>(input.data()), static_cast<std::streamsize>(input.size()));
        const std::string command = fmt::format("timeout 60 {} {} {} {} < {} > {}", VTPMD_GROUP_RECOVERY, what,
                                                dir_.path().string(), arguments, at("in"), at("out"));
        REQUIRE(std::system(command.c_str()) == 0);
        return file_content(at("out"));
    }

    fakes::TempDir dir_;
};

struct Managed {
    explicit Managed(TpmVersion v)
        : version(v)
        , host(v) {}
    Result<Bytes> ask(const management::Request& request) {
        test::AdministrationParts parts(host.loop, *host.vault, *host.root, *groups);
        return host.loop.run(parts.administration.run(encode(request)));
    }
    Bytes tell(const management::Request& request) {
        auto answer = ask(request);
        REQUIRE(answer);
        return *answer;
    }
    /// The store's boot: why group 1 does not open.
    Result<void> boot() {
        groups.reset();
        REQUIRE(host.start());
        groups.emplace(Groups::Parts{
            .executor = host.loop.io.get_executor(), .vault = *host.vault, .root = *host.root, .log = host.loop.log});
        return host.loop.run(groups->open(1));
    }
    std::vector<hwtpm::PcrValue> present() {
        return host.loop.run(host.root->pcr_read({{.bank = hwtpm::HashAlg::sha1, .pcrs = {4}}})).value();
    }
    /// As an approver checks it: the signature, and on a TPM 2.0 what is signed, over SHA-1 of `parts` and PCR 4.
    void quote_is_good(const Bytes& key, std::initializer_list<ByteView> parts, ByteView answer) {
        const Bytes data = to_bytes(*tpm::sha1(parts));
        hwtpm::Quote quote{.attested = {}, .signature = to_bytes(answer.first(256)), .values = present()};
        if (version == TpmVersion::tpm20) {
            WireWriter w; // TPMT_SIGNATURE: RSASSA, SHA-256
            quote.signature = w.be16(0x14).be16(0x0b).be16(256).bytes(answer.first(256)).take();
            quote.attested = to_bytes(answer.subspan(256));
        } else {
            REQUIRE(answer.size() == 256);
            WireWriter w; // TPM_QUOTE_INFO
            w.be32(0x01010000).bytes(as_bytes("QUOT"));
            w.bytes(hwtpm::pcr_composite({.bank = hwtpm::HashAlg::sha1, .pcrs = {4}}, quote.values).value());
            quote.attested = w.bytes(data).take();
        }
        const quote::HardwareQuoteCheck check{.version = version, .key = key, .nonce = data, .pcrs = present()};
        CHECK(quote::verify_hardware_quote(quote, check));
        quote::HardwareQuoteCheck other = check;
        other.nonce[0] ^= std::byte{1};
        CHECK(quote::verify_hardware_quote(quote, other).has_error());
    }

    TpmVersion version;
    test::Host host;
    std::optional<Groups> groups;
};

void recovered(TpmVersion version, bool listed) {
    test::Host spare(version);
    const test::Host::Copy another_tpm = spare.copy();
    const fakes::TempDir dir;
    const std::string recovery_file = (dir.path() / "recovery").string();
    const OldApprover approver;
    Agent agent(approver);

    Managed m(version);
    m.host.options.recovery_file = recovery_file;
    REQUIRE(m.host.start(true));
    m.host.options.recovery_file.clear();
    m.groups.emplace(Groups::Parts{.executor = m.host.loop.io.get_executor(),
                                   .vault = *m.host.vault,
                                   .root = *m.host.root,
                                   .log = m.host.loop.log});
    Uuid group;
    const Bytes made = m.tell(management::GroupNew{.chosen_id = {}, .modulus = approver.modulus()});
    std::copy_n(made.begin(), 16, group.bytes.begin());
    REQUIRE(m.host.loop.run(m.host.vault->register_vtpm(member, TpmVersion::tpm20, 1)));
    REQUIRE(m.host.enrol(bystander));
    REQUIRE(m.host.save(member, 1));
    REQUIRE(m.host.save(bystander, 2));
    if (listed) {
        management::ConfigList list{.sequence = 1, .platforms = {{}}, .labels = {}};
        std::ranges::copy(hwtpm::pcr_composite({.bank = hwtpm::HashAlg::sha1, .pcrs = {4}}, m.present()).value(),
                          list.platforms[0].begin());
        CHECK(m.tell(approver.sign(1, std::move(list), pcr_4)).empty());
    }
    const auto request = agent.proof(1, group);
    const Bytes registered = m.tell(request);
    REQUIRE(registered.size() >= 256 + 32 + 256);
    m.quote_is_good(m.groups->show(1)->attestation_key,
                    {as_bytes("REGR"), request.dh, ByteView(registered).first(256 + 32)},
                    ByteView(registered).subspan(256 + 32));
    agent.take(group, registered);
    REQUIRE(m.boot());
    CHECK(m.host.load(member) == 1);

    m.host.power_cycle(test::FaultDisk::Loss::none);
    m.host.put_back_tpm(another_tpm);
    m.host.options.accept_no_counter = true; // the other TPM has no counter to compare
    m.host.options.recovery_file = recovery_file;
    auto lost = m.boot();
    m.host.options.accept_no_counter = false;
    m.host.options.recovery_file.clear();
    REQUIRE(lost.has_error());
    CHECK(lost.error().code == Errc::mismatch);
    CHECK(m.host.loop.run(m.host.vault->load_key(member)).error().code == Errc::pcr_mismatch);
    CHECK(m.host.load(bystander) == 2);

    // Its own key is the lost TPM's: another group is made, to quote by.
    management::GroupRecover1 begin{.group = 1, .key = {}, .nonce = {}, .pcrs = pcr_4};
    begin.nonce.fill(std::byte{0x4e});
    begin.key = OldApprover::tpm_key(ByteView(made).subspan(16, 256));
    CHECK(m.ask(begin).error().code == Errc::mismatch);
    const Bytes proxy = m.tell(management::GroupNew{.chosen_id = {}, .modulus = approver.modulus()});
    begin.key = OldApprover::tpm_key(ByteView(proxy).subspan(16, 256));
    const Bytes begun = m.tell(begin);
    REQUIRE(begun.size() >= 512);
    const ByteView theirs = ByteView(begun).first(256);
    m.quote_is_good(m.groups->show(2)->attestation_key, {as_bytes("RCVR"), begin.nonce, theirs},
                    ByteView(begun).subspan(256));

    // Somebody else, with the same script; then the approver, for another exchange; then for this.
    Agent stranger(approver);
    stranger.take(group, registered);
    CHECK(m.ask(stranger.give(1, group, theirs)).error().code == Errc::permission);
    const auto late = agent.give(1, group, theirs);
    const Bytes again = m.tell(begin);
    CHECK(m.ask(late).error().code == Errc::permission);
    CHECK(m.host.loop.run(m.host.vault->load_key(member)).error().code == Errc::pcr_mismatch);
    CHECK(m.ask(agent.give(1, group, ByteView(again).first(256))).error().code == Errc::usage);
    const Bytes last = m.tell(begin);
    CHECK(m.tell(agent.give(1, group, ByteView(last).first(256))).empty());
    CHECK(m.host.load(member) == 1);
    // The new attestation key quotes: GROUP_QUOTE's PCR stands behind the signature.
    CHECK(m.tell(management::GroupQuote{.group = 1, .nonce = {}, .pcrs = pcr_4}).size() >= 256 + 20);
    REQUIRE(m.boot());
    CHECK(m.host.load(member) == 1);
    CHECK(m.host.load(bystander) == 2);
    if (listed) {
        REQUIRE(m.host.loop.run(m.host.root->pcr_extend(4, Bytes(20, std::byte{0x55}))));
        CHECK(m.host.loop.run(m.groups->open(1)).error().code == Errc::pcr_mismatch);
    }
}

} // namespace

TEST_SUITE("hwtpm-2.0") {
    TEST_CASE("2.0: a group of the old form, and another TPM: it comes back by its approver with OpenSSL alone") {
        for (const bool listed : {false, true}) {
            CAPTURE(listed);
            recovered(TpmVersion::tpm20, listed);
        }
    }
}

TEST_SUITE("hwtpm-1.2") {
    TEST_CASE("1.2: a group of the old form, and another TPM: it comes back by its approver with OpenSSL alone") {
        for (const bool listed : {false, true}) {
            CAPTURE(listed);
            recovered(TpmVersion::tpm12, listed);
        }
    }
}

} // namespace old_groups_on_swtpm_test
