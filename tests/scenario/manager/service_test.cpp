// The key service over links in memory, with the real vault and journal on a fake disk and a fake TPM.
#include "manager/links/key_service.hpp"

#include "manager_machine.hpp"
#include "service_link.hpp"
#include "tpm/commands.hpp"
#include "util/text.hpp"
#include "util/wire.hpp"

namespace manager_service_test {

using namespace vtpmd;
using namespace vtpmd::manager;
using fakes::Machine;
using fakes::MemoryChannel;
using namespace std::chrono_literals;

namespace {

Uuid uuid_of(unsigned n) {
    Uuid u;
    u.bytes[0] = std::byte{0xbb};
    u.bytes[15] = static_cast<std::byte>(n);
    u.bytes[14] = static_cast<std::byte>(n >> 8U);
    return u;
}

Task<Result<Bytes>> certificate(const Uuid& /*vtpm*/, proto::CertifyRequest /*request*/) { co_return Bytes(3); }

struct Rig {
    explicit Rig(KeyService::Options o = {}, FreshnessPolicy::Mode mode = FreshnessPolicy::Mode::window) {
        m.options.freshness.mode = mode;
        REQUIRE(m.create());
        make_service(o);
    }
    ~Rig() {
        service->stop();
        m.loop.settle();
        CHECK(service->link_count() == 0);
        service.reset();
        m.disk->plan = {};
        m.tpm.before = m.tpm.after = nullptr;
    }
    void make_service(KeyService::Options o) {
        service =
            std::make_unique<KeyService>(o, KeyService::Parts{.executor = m.loop.io.get_executor(),
                                                              .vault = *m.vault,
                                                              .root = *m.root,
                                                              .clock = m.loop.clock,
                                                              .log = m.loop.log,
                                                              .gone = [this](const Uuid& u) { gone.push_back(u); },
                                                              .certify = &certificate});
    }
    Machine m;
    std::unique_ptr<KeyService> service;
    std::vector<Uuid> gone; ///< as the service told
};

/// The far end of a link.
struct Peer : fakes::ServiceLink {
    explicit Peer(Rig& rig, LinkInfo info = {})
        : ServiceLink(rig.m.loop, *rig.service, std::move(info)) {}
    Result<proto::HelloReply> hello(unsigned n, bool create = true, TpmVersion version = TpmVersion::tpm20) {
        proto::HelloRequest request{.uuid = uuid_of(n), .version = version, .create = create};
        Bytes a = ask(proto::encode_hello(request));
        return proto::parse_hello_reply(a);
    }
    Result<void> save(std::uint8_t mark) {
        Bytes a = ask(proto::encode_save(Bytes(hash_key_long, static_cast<std::byte>(mark))));
        return proto::parse_save_reply(a);
    }
    Result<void> save_over(std::optional<std::uint8_t> over, std::uint8_t mark) {
        const Bytes base = over ? Bytes(32, static_cast<std::byte>(*over)) : Bytes{};
        Bytes a = ask(proto::encode_save_over(base, Bytes(hash_key_long, static_cast<std::byte>(mark))));
        return proto::parse_save_reply(a);
    }
    int load() {
        Bytes a = ask(proto::encode_load());
        auto key = proto::parse_load_reply(a);
        REQUIRE(key);
        return *key ? std::to_integer<int>((*key)->data()[0]) : -1;
    }
};

} // namespace

TEST_SUITE("manager service") {
    TEST_CASE("a vTPM's link: registered, saves, loads, and again on the next link") {
        Rig rig;
        {
            Peer p(rig);
            auto reply = p.hello(1);
            REQUIRE(reply);
            CHECK(reply->known);
            CHECK_FALSE(reply->has_record);
            CHECK(p.load() == -1);
            REQUIRE(p.save(5));
            REQUIRE(p.save(6));
            CHECK(p.load() == 6);
            p.hang_up();
            CHECK(p.ended());
        }
        Peer p(rig);
        auto reply = p.hello(1, false);
        REQUIRE(reply);
        CHECK(reply->has_record);
        CHECK(p.load() == 6);
        auto& c = rig.service->counters();
        CHECK(c.of(Request::hello).done == 2);
        CHECK(c.of(Request::save).done == 2);
        CHECK(c.of(Request::load).done == 3);
        CHECK(c.registered == 1);
        CHECK(rig.m.loop.logged("registered"));
        p.hang_up();
    }
    TEST_CASE("a save that names what it goes over: only over that, or if it is there already") {
        Rig rig;
        {
            Peer p(rig);
            REQUIRE(p.hello(1));
            CHECK(p.save_over(4, 5).error().code == Errc::rollback); // there is nothing
            REQUIRE(p.save_over(std::nullopt, 5));
            REQUIRE(p.save_over(std::nullopt, 5)); // the answer was lost
            CHECK(p.save_over(std::nullopt, 6).error().code == Errc::rollback);
            REQUIRE(p.save_over(5, 6));
            CHECK(p.save_over(5, 7).error().code == Errc::rollback);
            CHECK(p.load() == 6);
            p.hang_up();
            CHECK(p.ended());
        }
        {
            Peer other(rig); // on a copy of the image
            REQUIRE(other.hello(1, false));
            REQUIRE(other.save_over(6, 8));
            other.hang_up();
            CHECK(other.ended());
        }
        Peer p(rig);
        REQUIRE(p.hello(1, false));
        CHECK(p.save_over(6, 7).error().code == Errc::rollback);
        CHECK(p.load() == 8);
        REQUIRE(p.save(9)); // an older instance names nothing
        CHECK(p.load() == 9);
        p.hang_up();
    }
    TEST_CASE("reset: not while it is open; then nothing is kept but by who knows of it") {
        Rig rig;
        auto reset = [&] { return rig.m.loop.run(rig.service->reset(uuid_of(1))); };
        CHECK(reset().error().code == Errc::not_found);
        auto info_of = [](Peer& p) { return proto::parse_reset_info_reply(p.ask(proto::encode_reset_info())); };
        {
            Peer p(rig);
            REQUIRE(p.hello(1));
            CHECK(info_of(p).has_error()); // never
            REQUIRE(p.save(5));
            CHECK(reset().error().code == Errc::busy);
            p.hang_up();
        }
        for (std::uint8_t round = 0; round < 2; ++round) { // and again, after a save
            REQUIRE(reset());
            REQUIRE(reset()); // twice, with nothing between
            const std::uint8_t last = round == 0 ? 5 : 7;
            {
                // One that began before, or an older program: it has the link, and keeps nothing.
                Peer p(rig);
                auto reply = p.hello(1, false);
                REQUIRE(reply);
                CHECK(reply->was_reset);
                CHECK_FALSE(reply->has_record);
                CHECK(p.load() == -1);
                CHECK(p.save(6).error().code == Errc::tombstone);
                CHECK(p.load() == -1);
                CHECK(rig.m.loop.logged("was reset to factory, and its instance does not know of it"));
                p.hang_up();
            }
            Peer p(rig);
            REQUIRE(p.hello(1, false));
            auto info = info_of(p);
            REQUIRE(info);
            CHECK(info->given_up == Bytes(32, static_cast<std::byte>(last)));
            REQUIRE(p.save(7));
            CHECK(p.load() == 7);
            p.hang_up();
        }
        // Also once there is a state again.
        Peer p(rig);
        auto reply = p.hello(1, false);
        REQUIRE(reply);
        CHECK(reply->has_record);
        CHECK(p.save(8).error().code == Errc::tombstone);
        CHECK(proto::parse_save_reply(p.ask(proto::encode_handed_over())).error().code == Errc::tombstone);
        CHECK(p.load() == 7);
        p.hang_up();
    }
    TEST_CASE("reset: one of Xen's stub domains, which sends no hello, asks for its key and goes on") {
        Rig rig;
        REQUIRE(rig.m.loop.run(rig.service->enrol(uuid_of(1), TpmVersion::tpm12)));
        const LinkInfo ring{.made_for = uuid_of(1), .named_by_transport = true};
        {
            Peer p(rig, ring);
            REQUIRE(p.save(5));
            p.hang_up();
        }
        REQUIRE(rig.m.loop.run(rig.service->reset(uuid_of(1))));
        Peer p(rig, ring);
        CHECK(p.save(6).error().code == Errc::tombstone);
        CHECK(p.load() == -1);
        REQUIRE(p.save(7));
        CHECK(p.load() == 7);
        p.hang_up();
    }
    TEST_CASE("who may be made: only when asked, by the instance or by auto-create") {
        {
            Rig rig;
            Peer p(rig);
            auto refused = p.hello(1, false);
            REQUIRE(refused.has_error());
            CHECK(refused.error().code == Errc::not_found);
            CHECK(refused.error().message.find("--create") != std::string::npos);
            CHECK(p.ended());
            CHECK(rig.m.vault->registry().vtpm_count() == 0);
        }
        Rig rig({.auto_create = true});
        Peer p(rig);
        auto made = p.hello(1, false);
        REQUIRE(made);
        CHECK(made->may_create);
        CHECK(made->known);
        p.hang_up();
    }
    TEST_CASE("a registration that does not become durable is not a yes") {
        Rig rig;
        rig.m.disk->plan = {.fail_at = rig.m.disk->operations(), .fail_until = test::never};
        Peer p(rig);
        auto refused = p.hello(1);
        REQUIRE(refused.has_error());
        CHECK(refused.error().code == Errc::unavailable);
        CHECK_FALSE(rig.service->is_open(uuid_of(1)));
        rig.m.disk->plan = {};
        Peer again(rig);
        CHECK(again.hello(1));
        again.hang_up();
    }
    TEST_CASE("a second opener is refused, by name, and the first goes on") {
        Rig rig;
        Peer first(rig);
        REQUIRE(first.hello(1));
        REQUIRE(first.save(1));
        Peer second(rig);
        auto refused = second.hello(1);
        REQUIRE(refused.has_error());
        CHECK(refused.error().code == Errc::busy);
        CHECK(second.ended());
        CHECK(rig.m.loop.logged("is open already"));
        CHECK(first.save(2));
        CHECK(first.load() == 2);
        Peer other(rig);
        CHECK(other.hello(2));
        CHECK(rig.service->open_count() == 2);
        first.hang_up();
        other.hang_up();
        CHECK(rig.service->open_count() == 0);
    }
    TEST_CASE("an instance that comes back takes over from its dead link, after that link's last request") {
        Rig rig;
        bool gone = false;
        Peer first(rig, {.made_for = std::nullopt, .peer_gone = [&gone] { return gone; }});
        REQUIRE(first.hello(1));
        // A save is at the disk when the instance dies; the link will end only after it.
        first.send(proto::encode_save(Bytes(hash_key_long, std::byte{9})));
        rig.m.loop.io.restart();
        for (int i = 0; i < 3; ++i) {
            rig.m.loop.io.poll_one();
        }
        gone = true;
        Peer second(rig);
        second.send(proto::encode_hello({.uuid = uuid_of(1)}));
        first.hang_up();
        Bytes a = second.answer();
        auto reply = proto::parse_hello_reply(a);
        REQUIRE(reply);
        CHECK(reply->has_record);
        CHECK(second.load() == 9);
        second.hang_up();
    }
    TEST_CASE("a dead link that does not end in time is an answer too") {
        Rig rig;
        Peer first(rig, {.made_for = std::nullopt, .peer_gone = [] { return true; }});
        REQUIRE(first.hello(1));
        Peer second(rig);
        auto refused = second.hello(1); // fake time passes
        REQUIRE(refused.has_error());
        CHECK(refused.error().code == Errc::busy);
        first.hang_up();
    }
    TEST_CASE("a link made for one vTPM serves no other") {
        Rig rig;
        Peer wrong(rig, {.made_for = uuid_of(1), .peer_gone = {}});
        auto refused = wrong.hello(2);
        REQUIRE(refused.has_error());
        CHECK(refused.error().code == Errc::permission);
        CHECK(wrong.ended());
        CHECK(rig.m.vault->registry().vtpm_count() == 0);
        Peer right(rig, {.made_for = uuid_of(1), .peer_gone = {}});
        CHECK(right.hello(1));
        right.hang_up();
    }
    TEST_CASE("another TPM version, a deleted vTPM: refused") {
        Rig rig;
        {
            Peer p(rig);
            REQUIRE(p.hello(1, true, TpmVersion::tpm12));
            REQUIRE(p.save(1));
            CHECK(rig.m.loop.run(rig.service->remove(uuid_of(1), TombstoneRecord::Reason::deleted)).error().code ==
                  Errc::busy);
            p.hang_up();
        }
        Peer wrong(rig);
        auto refused = wrong.hello(1, true, TpmVersion::tpm20);
        REQUIRE(refused.has_error());
        CHECK(refused.error().code == Errc::mismatch);
        CHECK(wrong.ended());

        REQUIRE(rig.m.loop.run(rig.service->remove(uuid_of(1), TombstoneRecord::Reason::deleted)));
        Peer late(rig);
        auto gone = late.hello(1, true, TpmVersion::tpm12);
        REQUIRE(gone.has_error());
        CHECK(gone.error().code == Errc::tombstone);
        CHECK(gone.error().detail == static_cast<std::uint32_t>(proto::Status::vendor_deleted));
        CHECK(late.ended());
        CHECK(rig.service->open_count() == 0);
    }
    TEST_CASE("a vTPM that was migrated away comes back from another host only, a deleted one never") {
        Rig rig;
        auto ask = [&](unsigned n, bool incoming) {
            Peer p(rig);
            proto::HelloRequest request{.uuid = uuid_of(n), .create = true, .incoming = incoming};
            Bytes a = p.ask(proto::encode_hello(request));
            auto reply = proto::parse_hello_reply(a);
            p.hang_up();
            return reply;
        };
        {
            Peer p(rig);
            REQUIRE(p.hello(1));
            REQUIRE(p.save(1));
            CHECK(proto::parse_save_reply(p.ask(proto::encode_handed_over())));
            p.hang_up();
        }
        const Error away = ask(1, false).error();
        CHECK(away.code == Errc::tombstone);
        CHECK(away.detail == static_cast<std::uint32_t>(proto::Status::vendor_tombstone));
        auto back = ask(1, true);
        REQUIRE(back);
        CHECK_FALSE(back->has_record);                        // the state that it left is nobody's
        CHECK(ask(1, false).error().code == Errc::tombstone); // it has not come yet
        {
            Peer p(rig);
            proto::HelloRequest request{.uuid = uuid_of(1), .create = true, .incoming = true};
            Bytes a = p.ask(proto::encode_hello(request));
            REQUIRE(proto::parse_hello_reply(a));
            REQUIRE(p.save(2));
            p.hang_up();
        }
        auto home = ask(1, false);
        REQUIRE(home);
        CHECK(home->has_record);
        REQUIRE(ask(2, false));
        REQUIRE(rig.m.loop.run(rig.m.vault->remove(uuid_of(2), TombstoneRecord::Reason::deleted)));
        CHECK(ask(2, true).error().code == Errc::tombstone);
    }
    TEST_CASE("what is gone is told of: deleted or handed over, and also where only the counter's step is owed") {
        Rig rig;
        const auto remove = [&] {
            return rig.m.loop.run(rig.service->remove(uuid_of(1), TombstoneRecord::Reason::deleted));
        };
        {
            Peer p(rig);
            REQUIRE(p.hello(1));
            CHECK(remove().error().code == Errc::busy);
            CHECK(rig.gone.empty());
        }
        rig.m.tpm.before = [](std::string_view) { return std::optional(make_error(Errc::timed_out, "no answer")); };
        CHECK(remove().has_error());
        rig.m.tpm.before = nullptr;
        REQUIRE(rig.m.vault->registry().tombstone(uuid_of(1)) != nullptr);
        CHECK(rig.gone == std::vector<Uuid>{uuid_of(1)});
        Peer p(rig);
        REQUIRE(p.hello(2));
        REQUIRE(p.save(1));
        REQUIRE(proto::parse_save_reply(p.ask(proto::encode_handed_over())));
        CHECK(rig.gone == std::vector<Uuid>{uuid_of(1), uuid_of(2)});
    }
    TEST_CASE("what never had a state was not handed over: no tombstone, no step of the counter") {
        Rig rig;
        Peer p(rig);
        REQUIRE(p.hello(1));
        CHECK(proto::parse_save_reply(p.ask(proto::encode_handed_over())).has_error());
        CHECK(rig.gone.empty());
        CHECK(rig.m.vault->registry().find(uuid_of(1)) != nullptr);
        CHECK(p.save(1)); // the link goes on
        p.hang_up();
    }
    TEST_CASE("more changes than a day has: refused for certain, to that vTPM alone, until there is time again") {
        Rig rig({.changes_a_day = 4});
        Peer p(rig);
        REQUIRE(p.hello(1));
        REQUIRE(p.save(1));
        REQUIRE(p.save_over(1, 2));
        REQUIRE(p.save_over(1, 2)); // it is there: no change
        REQUIRE(p.save(3));
        REQUIRE(p.save(4));
        CHECK(p.save(5).error().code == Errc::busy);
        auto refused = p.save_over(4, 5);
        CHECK(refused.error().code == Errc::busy);
        CHECK(refused.error().message.find("more than its share") != std::string::npos);
        CHECK(rig.m.loop.logged("strict:CHANGES"));
        CHECK(p.load() == 4);
        CHECK(rig.service->counters().over_bounds == 2);
        p.hang_up();
        CHECK(p.ended());
        Peer again(rig); // a new link is no new day
        REQUIRE(again.hello(1, false));
        CHECK(again.save(5).error().code == Errc::busy);
        Peer other(rig);
        REQUIRE(other.hello(2));
        CHECK(other.save(5));
        rig.m.loop.clock.advance(6h);
        CHECK(again.save(5));
        CHECK(again.save(6).error().code == Errc::busy);
        again.hang_up();
        other.hang_up();
    }
    TEST_CASE("more hand-overs and certificates than an hour has: refused, however often the vTPM comes back") {
        Rig rig;
        const auto steps = [&] { return rig.m.vault->freshness().counters().steps; };
        const auto before = steps();
        auto hand_over = [&](bool incoming) {
            Peer p(rig);
            Bytes a = p.ask(proto::encode_hello({.uuid = uuid_of(1), .create = true, .incoming = incoming}));
            REQUIRE(proto::parse_hello_reply(a));
            if (!incoming) {
                REQUIRE(p.save(1));
            }
            auto done = proto::parse_save_reply(p.ask(proto::encode_handed_over()));
            p.hang_up();
            return done;
        };
        REQUIRE(hand_over(false));
        for (int i = 1; i < 60; ++i) {
            REQUIRE(hand_over(true));
        }
        CHECK(steps() - before == 60);
        CHECK(hand_over(true).error().code == Errc::busy);
        CHECK(steps() - before == 60);
        auto certify = [&] {
            Peer p(rig);
            REQUIRE(p.hello(2));
            Bytes a =
                p.ask(proto::encode_certify({.kind = proto::EkKind::rsa_2048, .key = Bytes(256, std::byte{0xC1})}));
            p.hang_up();
            return proto::parse_certify_reply(a);
        };
        for (int i = 0; i < 20; ++i) {
            REQUIRE(certify());
        }
        CHECK(certify().error().code == Errc::busy);
        rig.m.loop.clock.advance(1h);
        CHECK(certify());
        CHECK(hand_over(true));
    }
    TEST_CASE("a user who is neither root nor the manager's own opens their own vTPMs, and nobody else's") {
        Rig rig;
        for (unsigned n : {1U, 2U, 3U}) {
            REQUIRE(rig.m.loop.run(rig.service->enrol(uuid_of(n), TpmVersion::tpm20, 0, {}, n == 3 ? 0 : 1000 + n)));
        }
        const LinkInfo user{.user = 1001};
        {
            Peer p(rig, user);
            REQUIRE(p.hello(1, false));
            CHECK(p.save(1));
            p.hang_up();
        }
        for (unsigned n : {2U, 3U, 4U}) { // another's, root's, one that is not registered
            Peer p(rig, user);
            const auto refused = p.hello(n, true);
            REQUIRE(refused.has_error());
            CHECK(refused.error().code == Errc::permission);
            CHECK_FALSE(rig.service->is_open(uuid_of(n))); // not even for a moment
            CHECK(p.ended());
        }
        CHECK(rig.m.vault->registry().find(uuid_of(4)) == nullptr);
        REQUIRE(rig.m.loop.run(rig.m.vault->give_to(uuid_of(1), 1002)));
        Peer gone(rig, user);
        CHECK(gone.hello(1, false).error().code == Errc::permission);
        Peer theirs(rig, LinkInfo{.user = 1002});
        CHECK(theirs.hello(1, false));
        theirs.hang_up();
    }
    TEST_CASE("a process that was spawned for a vTPM is that one, also by the listening socket") {
        Rig rig;
        REQUIRE(rig.m.loop.run(rig.service->enrol(uuid_of(1), TpmVersion::tpm20)));
        REQUIRE(rig.m.loop.run(rig.service->enrol(uuid_of(2), TpmVersion::tpm20)));
        const LinkInfo spawned{.made_for = uuid_of(1)};
        Peer other(rig, spawned);
        CHECK(other.hello(2, false).error().code == Errc::permission);
        Peer p(rig, spawned);
        REQUIRE(p.hello(1, false));
        const Bytes invited = p.ask(proto::encode_invite());
        auto key = proto::parse_invite_reply(invited);
        REQUIRE(key);
        // Its second connection too, and nobody else's.
        const Bytes vouched = proto::encode_attach({uuid_of(1), key->clone()});
        Peer wrong(rig, LinkInfo{.made_for = uuid_of(2)});
        const Bytes refused = wrong.ask(vouched);
        CHECK(proto::parse_response(refused).has_error());
        Peer right(rig, spawned);
        const Bytes taken = right.ask(vouched);
        CHECK(proto::parse_response(taken));
        right.hang_up();
        p.hang_up();
    }
    TEST_CASE("nothing before the hello, and no second one") {
        Rig rig;
        Peer p(rig);
        CHECK(proto::parse_save_reply(p.ask(proto::encode_save(Bytes(hash_key_long)))).has_error());
        REQUIRE(p.hello(1));
        auto second = p.hello(2);
        CHECK(second.has_error());
        CHECK_FALSE(rig.service->is_open(uuid_of(2)));
        CHECK(p.save(1)); // the link goes on
        p.hang_up();
    }
    TEST_CASE("a peer that says nothing is let go, one that has said hello may be silent for ever") {
        Rig rig;
        Peer silent(rig);
        Peer quiet(rig);
        REQUIRE(quiet.hello(1));
        rig.m.loop.clock.advance(11s);
        CHECK(silent.ended());
        rig.m.loop.clock.advance(1000h);
        CHECK_FALSE(quiet.ended());
        CHECK(quiet.save(1));
        quiet.hang_up();
    }
    TEST_CASE("malformed frames get an error answer and hurt nobody") {
        Rig rig;
        Peer good(rig);
        REQUIRE(good.hello(1));
        Peer bad(rig);
        std::uint32_t seed = 1;
        for (int i = 0; i < 2000; ++i) {
            seed = seed * 1664525 + 1013904223;
            std::size_t size = proto::header_size + seed % 120;
            WireWriter w;
            const std::uint16_t tags[] = {0x01C1, 0x01C2, 0x00C1, 0x8001, 0x0000};
            w.be16(tags[seed >> 8U & 3U]).be32(static_cast<std::uint32_t>(size)).be32(seed >> 16U & 0x1FFU);
            for (std::size_t b = proto::header_size; b < size; ++b) {
                seed = seed * 1664525 + 1013904223;
                w.u8(static_cast<std::uint8_t>(seed >> 24U));
            }
            Bytes a = bad.ask(w.take());
            CHECK(proto::parse_frame(a));
        }
        CHECK(rig.m.vault->registry().vtpm_count() == 1);
        CHECK(good.save(3));
        CHECK(good.load() == 3);
        CHECK(rig.m.loop.lines.size() < 100);
        good.hang_up();
        bad.hang_up();
    }
    TEST_CASE("the disk fails: the answer is an error, nothing is lost, and service goes on") {
        Rig rig;
        Peer p(rig);
        REQUIRE(p.hello(1));
        REQUIRE(p.save(1));
        rig.m.disk->plan = {.fail_at = rig.m.disk->operations(), .fail_until = test::never, .error = Errc::io};
        CHECK(p.save(2).error().code == Errc::unavailable);
        CHECK(p.save(2).error().code == Errc::unavailable);
        rig.m.disk->plan = {};
        CHECK(p.load() == 1);
        REQUIRE(p.save(2));
        CHECK(p.load() == 2);
        CHECK(rig.service->counters().of(Request::save).failed == 2);
        p.hang_up();
    }
    TEST_CASE("one failing write that the journal gets over: a definite no, and the next save is fine") {
        Rig rig;
        Peer p(rig);
        REQUIRE(p.hello(1));
        REQUIRE(p.save(1));
        rig.m.disk->plan = {.fail_at = rig.m.disk->operations(), .error = Errc::no_space};
        CHECK(p.save(2).error().code == Errc::no_space);
        CHECK(p.load() == 1);
        REQUIRE(p.save(3));
        p.hang_up();
    }
    TEST_CASE("stop: a request in flight is answered, idle links end") {
        Rig rig;
        Peer idle(rig);
        REQUIRE(idle.hello(1));
        Peer busy(rig);
        REQUIRE(busy.hello(2));
        busy.send(proto::encode_save(Bytes(hash_key_long, std::byte{4})));
        rig.m.loop.io.restart();
        for (int i = 0; i < 4; ++i) {
            rig.m.loop.io.poll_one(); // it is at the disk
        }
        REQUIRE_FALSE(busy.served->done);
        rig.service->stop();
        CHECK(idle.ended());
        CHECK(busy.ended());
        CHECK(rig.m.load(uuid_of(2)) == 4);
        CHECK(proto::parse_save_reply(busy.answer()));
        Peer late(rig);
        CHECK(late.ended());
    }
    TEST_CASE("cancelled at every turn: the link ends, the vault is whole") {
        for (int turns = 0; turns < 60; ++turns) {
            Rig rig;
            auto pair = MemoryChannel::make(rig.m.loop.io.get_executor());
            auto served = rig.m.loop.start(rig.service->serve(std::move(pair.b), LinkInfo{}));
            (void)rig.m.loop.run(pair.a->send(proto::encode_hello({.uuid = uuid_of(1), .create = true})), false);
            (void)rig.m.loop.run(pair.a->send(proto::encode_save(Bytes(hash_key_long, std::byte{1}))), false);
            rig.m.loop.io.restart();
            for (int i = 0; i < turns; ++i) {
                rig.m.loop.io.poll_one();
            }
            served->cancel();
            rig.m.loop.settle();
            INFO("after ", turns, " turns");
            CHECK(served->done);
            CHECK(rig.service->open_count() == 0);
            CHECK(rig.service->link_count() == 0);
            Peer p(rig);
            REQUIRE(p.hello(1));
            REQUIRE(p.save(2));
            CHECK(p.load() == 2);
            p.hang_up();
        }
    }
    TEST_CASE("randomness and PCR values of the hardware, and nothing else of it") {
        Rig rig;
        Peer p(rig);
        REQUIRE(p.hello(1));
        auto random = tpm::parse_get_random(TpmVersion::tpm20, p.ask(tpm::get_random_command(TpmVersion::tpm20, 16)));
        REQUIRE(random);
        CHECK(random->size() == 16);
        rig.m.tpm.calls.clear();
        WireWriter clear; // TPM2_Clear
        clear.be16(0x8002).be32(27).be32(0x126).be32(0x4000000A).be32(9).be32(0x40000009).be16(0).u8(0).be16(0);
        Bytes refused = p.ask(clear.take());
        CHECK(proto::parse_frame(refused)->code != 0);
        CHECK(rig.m.tpm.calls.empty());
        p.hang_up();
    }
    TEST_CASE("boot hash: zeros for a process of this host") {
        Rig rig;
        Peer p(rig);
        REQUIRE(p.hello(1));
        Bytes a = p.ask(proto::encode_get_boot_hash());
        CHECK(proto::parse_boot_hash_reply(a).value() == proto::BootHash{});
        p.hang_up();
    }
}

} // namespace manager_service_test
