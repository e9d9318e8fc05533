// The CAs for endorsement keys in the manager: the real vault, journal and key service, over restarts, crashes and closed groups.
#include "manager/ca/certifier.hpp"

#include "manager/links/key_service.hpp"
#include "manager_machine.hpp"
#include "openssl_key.hpp"
#include "service_link.hpp"
#include "tpm/public_key.hpp"

#include <algorithm>

namespace certifier_test {

using namespace vtpmd;
using namespace vtpmd::manager;

namespace {

constexpr GroupId group = 4;

Uuid named(std::uint8_t n) {
    Uuid u;
    u.bytes[0] = std::byte{0xee};
    u.bytes[15] = static_cast<std::byte>(n);
    return u;
}

proto::CertifyRequest claim(proto::EkKind kind) {
    static const test::OpensslKey rsa("RSA");
    static const test::OpensslKey ecc("EC");
    const auto key = hwtpm::parse_public_key(kind == proto::EkKind::rsa_2048 ? rsa.spki() : ecc.spki()).value();
    proto::CertifyRequest out;
    out.kind = kind;
    out.key = key.modulus;
    out.key.insert(out.key.end(), key.x.begin(), key.x.end());
    out.key.insert(out.key.end(), key.y.begin(), key.y.end());
    out.tpm.manufacturer = 0x49424D00;
    return out;
}

struct Host {
    explicit Host(bool make = true) {
        if (make) {
            REQUIRE(m.create());
            serve();
        }
    }
    ~Host() { stop(); }
    void serve() {
        certifier.emplace(Certifier::Parts{
            .executor = m.loop.io.get_executor(), .vault = *m.vault, .log = m.loop.log, .unix_time = [] {
                return std::uint64_t{1'790'000'000};
            }});
        KeyService::Parts parts{
            .executor = m.loop.io.get_executor(),
            .vault = *m.vault,
            .root = *m.root,
            .clock = m.loop.clock,
            .log = m.loop.log,
            .certify = [this](const Uuid& u, proto::CertifyRequest r) { return certifier->certify(u, std::move(r)); }};
        service = std::make_unique<KeyService>(KeyService::Options{}, std::move(parts));
    }
    void stop() {
        if (service) {
            service->stop();
            m.loop.settle();
        }
        service.reset();
        certifier.reset();
    }
    void restart() {
        stop();
        REQUIRE(m.off());
        REQUIRE(m.open());
        serve();
    }
    void add_group() {
        REQUIRE(m.loop.run(m.vault->create_group(group, named(100), Bytes(1, std::byte{1}))));
        open();
    }
    void open() { m.vault->open_group(group, SecretBytes(Bytes(32, std::byte{7}))); }
    void close() { m.vault->close_group(group, "closed for the test"); }
    void enrol(std::uint8_t n, TpmVersion version = TpmVersion::tpm20, GroupId into = 0) {
        REQUIRE(m.loop.run(m.vault->register_vtpm(named(n), version, into)));
    }
    Result<Bytes> certify(std::uint8_t n, proto::EkKind kind = proto::EkKind::ecc_p256) {
        return m.loop.run(certifier->certify(named(n), claim(kind)));
    }
    Result<Certifier::Ca> show(GroupId id = 0) { return m.loop.run(certifier->show(id)); }

    fakes::Machine m;
    std::optional<Certifier> certifier;
    std::unique_ptr<KeyService> service;
};

/// A vTPM's link.
struct Link : fakes::ServiceLink {
    explicit Link(Host& host)
        : ServiceLink(host.m.loop, *host.service) {}
    void hello(std::uint8_t n, TpmVersion version = TpmVersion::tpm20) {
        REQUIRE(proto::parse_hello_reply(ask(proto::encode_hello({.uuid = named(n), .version = version}))));
    }
    Result<Bytes> certify(proto::EkKind kind) {
        return proto::parse_certify_reply(ask(proto::encode_certify(claim(kind))));
    }
};

} // namespace

TEST_SUITE("certifier") {
    TEST_CASE("a store that has no CA opens, gets one when it is needed, and keeps it over restarts") {
        Host host;
        host.enrol(1);
        host.restart();
        CHECK(host.m.vault->registry().group(0)->certifier.empty());
        REQUIRE(host.certify(1));
        const Certifier::Ca made = host.show().value();
        CHECK(made.chain.size() == 1);
        for (int i = 0; i < 2; ++i) {
            host.restart();
            CHECK(host.show()->chain == made.chain);
            CHECK(host.show()->request == made.request);
            REQUIRE(host.certify(1)); // by the key that was kept
        }
        CHECK(host.show(group).error().code == Errc::not_found);
    }

    TEST_CASE("two that need a CA at once have the same one") {
        Host host;
        host.enrol(1);
        host.enrol(2);
        auto first = host.m.loop.start(host.certifier->certify(named(1), claim(proto::EkKind::ecc_p256)));
        auto second = host.m.loop.start(host.certifier->certify(named(2), claim(proto::EkKind::ecc_p256)));
        host.m.loop.settle();
        REQUIRE(host.show());
        CHECK(std::ranges::count_if(host.m.loop.lines, [](const std::string& line) {
                  return line.find("a CA for endorsement keys was made") != std::string::npos;
              }) == 1);
        CHECK(first->done);
        CHECK(second->done);
    }

    TEST_CASE("a closed group signs nothing, and has its CA again when it is open; a deleted one takes it along") {
        Host host;
        host.add_group();
        host.enrol(1, TpmVersion::tpm20, group);
        host.close();
        CHECK(host.show(group).error().code == Errc::pcr_mismatch); // none to show, none made
        CHECK(host.certify(1).error().code == Errc::pcr_mismatch);
        host.open();
        REQUIRE(host.certify(1));
        const Certifier::Ca made = host.show(group).value();
        CHECK(made.chain != host.show(0)->chain);
        host.close();
        CHECK(host.certify(1).error().code == Errc::pcr_mismatch);
        CHECK(host.show(group)->chain == made.chain); // that is no secret
        host.restart();
        CHECK(host.certify(1).error().code == Errc::pcr_mismatch);
        // Another key than the group's opens nothing.
        host.m.vault->open_group(group, SecretBytes(Bytes(32, std::byte{8})));
        CHECK(host.certify(1).error().code == Errc::corrupt);
        host.open();
        REQUIRE(host.certify(1));

        REQUIRE(host.m.loop.run(host.m.vault->remove(named(1), TombstoneRecord::Reason::deleted)));
        REQUIRE(host.m.loop.run(host.m.vault->remove_group(group)));
        CHECK(host.show(group).error().code == Errc::not_found);
        host.restart();
        host.add_group();
        CHECK(host.m.vault->registry().group(group)->certifier.empty());
        CHECK(host.show(group)->chain != made.chain);
    }

    TEST_CASE("by a link: after the hello, each kind of key once, of a vTPM without a state, of its family") {
        using enum proto::EkKind;
        Host host;
        host.enrol(1);
        host.enrol(2, TpmVersion::tpm12);
        {
            Link link(host);
            CHECK(link.certify(rsa_2048).error().code == Errc::permission);
            link.hello(1);
            CHECK(link.certify(rsa_2048));
            CHECK(link.certify(rsa_2048).error().code == Errc::exists);
            CHECK(link.certify(ecc_p256));
            CHECK(link.certify(ecc_p256).error().code == Errc::exists);
            auto bad = claim(ecc_p256);
            bad.key[3] ^= std::byte{1};
            CHECK(link.ask(proto::encode_certify(bad)).size() == proto::header_size);
            CHECK(host.service->counters().of(Request::certify).done == 2);
            CHECK(host.service->counters().of(Request::certify).refused == 3);
        }
        { // A vTPM that was not saved is made again, over another link.
            Link link(host);
            link.hello(1);
            CHECK(link.certify(rsa_2048));
            auto bad = claim(ecc_p256); // not on the curve: refused, and the link goes on
            bad.key[3] ^= std::byte{1};
            CHECK(proto::parse_certify_reply(link.ask(proto::encode_certify(bad))).error().code == Errc::usage);
            REQUIRE(proto::parse_save_reply(link.ask(proto::encode_save(Bytes(64, std::byte{1})))));
        }
        {
            Link link(host);
            link.hello(1);
            CHECK(link.certify(rsa_2048).error().code == Errc::usage); // it has a state
        }
        Link old(host);
        old.hello(2, TpmVersion::tpm12);
        CHECK(old.certify(ecc_p256).error().code == Errc::usage);
        CHECK(old.certify(rsa_2048));
    }

    TEST_CASE("a manager that gives none says so as one from before does") {
        Host host;
        host.enrol(1);
        host.service = std::make_unique<KeyService>(KeyService::Options{},
                                                    KeyService::Parts{.executor = host.m.loop.io.get_executor(),
                                                                      .vault = *host.m.vault,
                                                                      .root = *host.m.root,
                                                                      .clock = host.m.loop.clock,
                                                                      .log = host.m.loop.log});
        Link link(host);
        link.hello(1);
        CHECK(link.certify(proto::EkKind::rsa_2048).error().code == Errc::unsupported);
    }

    TEST_CASE("power goes while a CA is made: there is a whole one afterwards, or none") {
        for (std::uint64_t n = 0;; ++n) {
            Host host;
            host.enrol(1);
            host.m.die_at_disk(n);
            const bool made = host.show().has_value();
            host.stop();
            host.m.crash(test::FaultDisk::Loss::all);
            REQUIRE(host.m.open());
            host.serve();
            CHECK((!made || !host.m.vault->registry().group(0)->certifier.empty()));
            REQUIRE(host.certify(1));
            if (made) {
                CHECK(n > 0);
                break;
            }
        }
    }

    TEST_CASE("a disk that takes no writes: no certificate, and no CA that is not kept") {
        Host host;
        host.enrol(1);
        host.m.disk->plan.die_at = host.m.disk->operations();
        CHECK(host.certify(1).has_error());
        CHECK(host.m.vault->registry().group(0)->certifier.empty());
    }

    TEST_CASE("a chain from outside is put in place and kept; another key's is not") {
        Host host;
        host.enrol(1);
        const Certifier::Ca made = host.show().value();
        const std::string own = pem_of_certificates(made.chain);
        CHECK(host.m.loop.run(host.certifier->replace(0, own))->chain == made.chain);
        CHECK(host.m.loop.run(host.certifier->replace(0, "no PEM")).error().code == Errc::usage);
        const std::string other = pem_of_certificates({make_ca("another", 1'790'000'000).value().certificate});
        CHECK(host.m.loop.run(host.certifier->replace(0, other)).error().code == Errc::usage);
        CHECK(host.m.loop.run(host.certifier->replace(group, own)).error().code == Errc::not_found);
        host.restart();
        CHECK(host.show()->chain == made.chain);
    }
}

} // namespace certifier_test
