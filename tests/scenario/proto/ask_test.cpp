// The manager asks a running instance: both real ends over links in memory, with the real vault on a fake disk and a fake TPM.
#include "manager/links/key_service.hpp"
#include "manager_machine.hpp"
#include "proto/query/answerer.hpp"
#include "service_link.hpp"
#include "util/text.hpp"
#include "util/wire.hpp"

#include <algorithm>

namespace ask_test {

using namespace vtpmd;
using namespace vtpmd::manager;
using fakes::Machine;
using fakes::MemoryChannel;
using namespace std::chrono_literals;

namespace {

const Uuid uuid = parse_uuid("a5000000-0000-4000-8000-000000000001").value();

proto::AskQuote question(std::uint8_t mark = 1) {
    proto::AskQuote q;
    q.nonce = Bytes(8, static_cast<std::byte>(mark));
    q.host_pcrs.push_back({.bank = 0, .pcrs = 1});
    return q;
}

/// Answers with the nonce; holds an answer back on demand.
struct FakeQuestioned final : proto::Questioned {
    explicit FakeQuestioned(const asio::any_io_executor& e)
        : gate(e, asio::steady_timer::time_point::max())
        , news(e, asio::steady_timer::time_point::max()) {}
    Task<Result<Bytes>> quote(proto::AskQuote q) override {
        ++asked;
        while (hold) {
            (void)co_await gate.async_wait(use_tuple);
        }
        if (error) {
            co_return *error;
        }
        co_return q.nonce;
    }
    void go() {
        hold = false;
        gate.cancel();
    }
    Task<> wait_for_news() override {
        if (reports.empty()) {
            (void)co_await news.async_wait(use_tuple);
        }
    }
    std::optional<proto::Report> next_report() override {
        if (reports.empty()) {
            return std::nullopt;
        }
        proto::Report r = reports.front();
        reports.erase(reports.begin());
        return r;
    }
    [[nodiscard]] proto::Report summary() const override { return {.incarnation = 7}; }
    void report_anew() override { ++anew; }

    asio::steady_timer gate, news;
    bool hold = false;
    unsigned asked = 0, anew = 0;
    std::optional<Error> error;
    std::vector<proto::Report> reports;
};

struct Rig {
    Rig() {
        REQUIRE(m.create());
        make_service();
    }
    ~Rig() {
        end_instance();
        end_service();
    }
    void make_service() {
        KeyService::Parts parts{.executor = m.loop.io.get_executor(),
                                .vault = *m.vault,
                                .root = *m.root,
                                .clock = m.loop.clock,
                                .log = m.loop.log};
        parts.report = [this](const Uuid& of, proto::Report r) -> Result<void> {
            CHECK(of == uuid);
            reported.push_back(std::move(r));
            return {};
        };
        service = std::make_unique<KeyService>(KeyService::Options{}, std::move(parts));
    }
    void end_service() {
        if (service) {
            service->stop();
            m.loop.settle();
            CHECK(service->link_count() == 0);
            service.reset();
        }
    }
    Task<Result<std::unique_ptr<proto::Channel>>> connect() {
        ++connects;
        if (!service) {
            co_return make_error(Errc::not_found, "memory: nobody there");
        }
        auto pair = MemoryChannel::make(m.loop.io.get_executor());
        served.push_back(m.loop.start(service->serve(std::move(pair.b), LinkInfo{})));
        co_return std::move(pair.a);
    }
    void start_instance(bool greet = true) {
        proto::ClientOptions o;
        o.greeting = {.uuid = uuid, .version = TpmVersion::tpm20, .create = true};
        auto way = [this] { return connect(); };
        client = proto::make_manager_client(m.loop.io.get_executor(), o, way, m.loop.clock, m.loop.log);
        questioned = std::make_unique<FakeQuestioned>(m.loop.io.get_executor());
        if (greet) {
            REQUIRE(m.loop.run(client->hello()));
        }
        answerer.emplace(proto::Answerer::Parts{.executor = m.loop.io.get_executor(),
                                                .uuid = uuid,
                                                .manager = *client,
                                                .connect = way,
                                                .questioned = *questioned,
                                                .clock = m.loop.clock,
                                                .log = m.loop.log});
        answerer->start();
        if (greet) {
            m.loop.settle();
        }
    }
    void end_instance() {
        if (answerer) {
            questioned->go();
            m.loop.run(answerer->stop());
            answerer.reset();
        }
        if (client) {
            client->close();
            client.reset();
        }
        m.loop.settle();
    }
    std::shared_ptr<fakes::Started<Result<Bytes>>> ask(std::uint8_t mark = 1, Clock::duration limit = 30s) {
        auto started = m.loop.start(service->ask(uuid, proto::encode_ask_quote(question(mark)), limit));
        m.loop.settle();
        return started;
    }
    /// Lets time pass until the instance can be asked.
    bool answers(std::uint8_t mark = 9) {
        for (int i = 0; i < 100; ++i) {
            auto asked = ask(mark);
            if (asked->done && *asked->value) {
                return **asked->value == Bytes(8, static_cast<std::byte>(mark));
            }
            if (!asked->done) {
                return false;
            }
            pass(500ms);
        }
        return false;
    }
    void pass(Clock::duration d) {
        m.loop.clock.advance(d);
        m.loop.settle();
    }

    Machine m;
    std::unique_ptr<KeyService> service;
    std::unique_ptr<proto::ManagerClient> client;
    std::unique_ptr<FakeQuestioned> questioned;
    std::optional<proto::Answerer> answerer;
    std::vector<std::shared_ptr<fakes::Started<bool>>> served;
    std::vector<proto::Report> reported;
    unsigned connects = 0;
};

/// A peer that says what it likes.
struct Raw : fakes::ServiceLink {
    explicit Raw(Rig& rig, LinkInfo info = {})
        : ServiceLink(rig.m.loop, *rig.service, std::move(info)) {}
    Result<proto::HelloReply> hello() {
        return proto::parse_hello_reply(
            ask(proto::encode_hello({.uuid = uuid, .version = TpmVersion::tpm20, .create = true})));
    }
    SecretBytes invite() { return std::move(proto::parse_invite_reply(ask(proto::encode_invite()))).value(); }
    Result<void> attach(const SecretBytes& key, const Uuid& of = uuid) {
        const Bytes reply = ask(proto::encode_attach({.uuid = of, .key = key.clone()}));
        auto body = proto::parse_response(reply);
        return body ? Result<void>{} : Result<void>(body.error());
    }
};

Errc failure(const std::shared_ptr<fakes::Started<Result<Bytes>>>& asked) {
    REQUIRE(asked->done);
    REQUIRE(!*asked->value);
    return asked->value->error().code;
}

} // namespace

TEST_SUITE("ask") {
    TEST_CASE("an instance is asked, and answers or says why not; a save does not wait for that") {
        Rig rig;
        CHECK(failure(rig.ask()) == Errc::unavailable); // not open
        rig.start_instance();
        auto good = rig.ask(3);
        REQUIRE(good->done);
        CHECK(good->value->value() == Bytes(8, std::byte{3}));

        rig.questioned->error = make_error(Errc::permission, "its owner says no");
        auto refused = rig.ask();
        CHECK(failure(refused) == Errc::permission);
        CHECK(refused->value->error().message.find("its owner says no") != std::string::npos);
        rig.questioned->error.reset();

        rig.questioned->hold = true;
        auto slow = rig.ask(4);
        CHECK_FALSE(slow->done);
        CHECK(rig.m.loop.run(rig.client->save_hash_key(Bytes(64, std::byte{5})), false));
        auto second = rig.ask(5); // its turn comes
        CHECK_FALSE(second->done);
        CHECK(rig.questioned->asked == 3);
        rig.questioned->go();
        rig.m.loop.settle();
        REQUIRE((slow->done && second->done));
        CHECK(slow->value->value() == Bytes(8, std::byte{4}));
        CHECK(second->value->value() == Bytes(8, std::byte{5}));
    }

    TEST_CASE("a slow instance: whoever asks waits for its bound, and never gets the answer to another's question") {
        Rig rig;
        rig.start_instance();
        rig.questioned->hold = true;
        auto slow = rig.ask(1, 5s);
        auto waiting = rig.ask(2, 6s);
        rig.pass(5s);
        CHECK(failure(slow) == Errc::timed_out);
        CHECK(failure(waiting) == Errc::closed); // its connection went with the first
        rig.questioned->go();
        rig.m.loop.settle();
        CHECK(rig.answers(7));
        rig.questioned->hold = true;
        auto a = rig.ask(1, 9s);
        auto b = rig.ask(2, 3s);
        rig.pass(3s);
        CHECK(failure(b) == Errc::timed_out); // before its turn: the first goes on
        CHECK_FALSE(a->done);
        rig.questioned->go();
        rig.m.loop.settle();
        CHECK(a->value->value() == Bytes(8, std::byte{1}));
    }

    TEST_CASE("an instance that is gone while it is asked; one that another takes the place of") {
        Rig rig;
        {
            Raw own(rig), second(rig);
            REQUIRE(own.hello());
            const SecretBytes key = own.invite();
            CHECK(key.equals(own.invite().view()));
            REQUIRE(second.attach(key));
            auto asked = rig.ask();
            CHECK_FALSE(asked->done);
            second.hang_up();
            CHECK(failure(asked) == Errc::closed);
            CHECK(failure(rig.ask()) == Errc::unavailable); // it may come back
            Raw third(rig), fourth(rig);
            REQUIRE(third.attach(key));
            auto lost = rig.ask();
            REQUIRE(fourth.attach(key)); // in the third's place
            CHECK(third.ended());
            CHECK(failure(lost) == Errc::closed);
            auto again = rig.ask();
            own.hang_up(); // what vouched for it
            CHECK(fourth.ended());
            CHECK(failure(again) == Errc::closed);
            CHECK(own.ended());
        }
        CHECK(failure(rig.ask()) == Errc::unavailable);
        CHECK(rig.service->link_count() == 0);
    }

    TEST_CASE("nobody but who holds the vTPM is asked, and to be asked holds nothing") {
        Rig rig;
        const SecretBytes guess(proto::attach_key_size);
        {
            Raw early(rig);
            CHECK(early.attach(guess).error().code == Errc::permission);
            CHECK(early.ended());
        }
        Raw own(rig);
        const Bytes before = own.ask(proto::encode_invite());
        CHECK(proto::parse_invite_reply(before).error().code == Errc::permission); // before the hello
        REQUIRE(own.hello());
        CHECK(failure(rig.ask()) == Errc::unsupported); // it never asked for a key
        {
            Raw stranger(rig);
            CHECK(stranger.attach(guess).error().code == Errc::permission);
        }
        const SecretBytes key = own.invite();
        {
            Raw stranger(rig), other(rig),
                spawned(rig, {.made_for = parse_uuid("a5000000-0000-4000-8000-000000000002").value(), .peer_gone = {}});
            CHECK(stranger.attach(guess).error().code == Errc::permission);
            CHECK(other.attach(key, parse_uuid("a5000000-0000-4000-8000-000000000002").value()).error().code ==
                  Errc::permission);
            CHECK(spawned.attach(key).error().code == Errc::permission);
        }
        Raw second(rig);
        REQUIRE(second.attach(key));
        CHECK(rig.service->open_count() == 1);
        Raw opener(rig); // the rule for a second opener stands
        CHECK(opener.hello().error().code == Errc::busy);
        const Bytes late = own.ask(proto::encode_attach({.uuid = uuid, .key = key.clone()}));
        CHECK(proto::parse_response(late).error().code == Errc::usage);
        CHECK(own.ended());
        CHECK(second.ended());
    }

    TEST_CASE("a hostile instance: answers nobody asked for, of no form, with another's tag") {
        const Bytes garbage[] = {proto::encode_success({}), proto::encode_hello({.uuid = uuid}),
                                 proto::make_frame(proto::tag::management, 1),
                                 proto::make_frame(proto::tag::request, proto::ordinal::report, Bytes(5)),
                                 proto::encode_load()};
        for (const Bytes& unasked : garbage) {
            Rig rig;
            Raw own(rig), second(rig);
            REQUIRE(own.hello());
            REQUIRE(second.attach(own.invite()));
            second.send(unasked);
            CHECK(second.ended());
            CHECK(rig.service->counters().links_broken == 1);
            CHECK_FALSE(own.ended()); // its vTPM serves on
            own.hang_up();
        }
        Rig rig;
        Raw own(rig), second(rig);
        REQUIRE(own.hello());
        REQUIRE(second.attach(own.invite()));
        auto asked = rig.ask();
        CHECK(proto::parse_ask_quote(proto::body_of(second.answer())).value() == question());
        second.send(proto::make_frame(proto::tag::response, 0x12345678, as_bytes(std::string_view("\x1b[2J"))));
        CHECK(failure(asked) == Errc::tpm);
        CHECK(asked->value->error().message.find('\x1b') == std::string::npos);
        auto twice = rig.ask();
        (void)second.answer();
        second.send(proto::encode_success(Bytes(3)));
        second.send(proto::encode_success(Bytes(4)));
        rig.m.loop.settle();
        CHECK(twice->value->value() == Bytes(3));
        CHECK(second.ended());
        own.hang_up();
    }

    TEST_CASE("a manager that was started anew asks again; an instance behind a ring is not asked") {
        Rig rig;
        rig.start_instance();
        REQUIRE(rig.answers(1));
        rig.questioned->hold = true;
        auto lost = rig.ask();
        rig.service->stop_asking();
        rig.m.loop.settle();
        CHECK(failure(lost) == Errc::closed);
        rig.questioned->go();
        rig.end_service();
        rig.pass(1min);
        const unsigned before = rig.connects;
        rig.pass(1s);
        CHECK(rig.connects - before <= 1); // ever more seldom
        rig.make_service();
        CHECK(rig.answers(2));
        CHECK(rig.questioned->anew >= 2);
        rig.end_instance();

        Raw ring(rig, {.made_for = uuid, .named_by_transport = true, .peer_gone = {}});
        REQUIRE(ring.hello());
        (void)ring.invite();
        auto asked = rig.ask();
        CHECK(failure(asked) == Errc::unsupported);
        CHECK(asked->value->error().message.find("in its guest") != std::string::npos);
        ring.hang_up();
    }

    TEST_CASE("an older manager refuses: one line, and hardly another try") {
        Rig rig;
        rig.service.reset();
        unsigned invites = 0, connects = 0;
        auto old_manager = [&invites](std::unique_ptr<MemoryChannel> link) -> Task<> {
            for (;;) {
                auto frame = co_await link->receive();
                if (!frame) {
                    co_return;
                }
                const std::uint32_t code = proto::parse_header(*frame)->code;
                invites += code == proto::ordinal::invite ? 1 : 0;
                const Error no = make_error(Errc::unsupported, "unknown ordinal");
                const Bytes answer = code == proto::ordinal::hello
                                         ? proto::encode_hello_reply({.known = true, .has_record = true})
                                         : proto::encode_error(no);
                (void)co_await link->send(answer);
            }
        };
        proto::ManagerClient::Connect way = [&]() -> Task<Result<std::unique_ptr<proto::Channel>>> {
            auto connecting = [](Rig& r, unsigned& count,
                                 auto& serve) -> Task<Result<std::unique_ptr<proto::Channel>>> {
                ++count;
                auto pair = MemoryChannel::make(r.m.loop.io.get_executor());
                r.served.push_back(r.m.loop.start(serve(std::move(pair.b))));
                co_return std::move(pair.a);
            };
            return connecting(rig, connects, old_manager);
        };
        proto::ClientOptions o;
        o.greeting = {.uuid = uuid, .version = TpmVersion::tpm20};
        auto client =
            proto::make_manager_client(rig.m.loop.io.get_executor(), o, way, rig.m.loop.clock, rig.m.loop.log);
        FakeQuestioned questioned(rig.m.loop.io.get_executor());
        proto::Answerer answerer({.executor = rig.m.loop.io.get_executor(),
                                  .uuid = uuid,
                                  .manager = *client,
                                  .connect = way,
                                  .questioned = questioned,
                                  .clock = rig.m.loop.clock,
                                  .log = rig.m.loop.log});
        answerer.start();
        rig.m.loop.settle();
        for (int i = 0; i < 60; ++i) {
            rig.pass(1min);
        }
        CHECK(invites >= 2);
        CHECK(invites <= 8);
        CHECK(connects <= 2 * invites);
        CHECK(std::ranges::count_if(rig.m.loop.lines, [](const std::string& l) {
                  return l.find("does not ask this instance") != std::string::npos;
              }) == 1);
        rig.m.loop.run(answerer.stop());
        client->close();
        rig.m.loop.settle();
    }

    TEST_CASE("whoever asks may be cancelled at every point; an instance may be stopped at every point") {
        for (std::size_t at = 1; at < 60; ++at) {
            CAPTURE(at);
            Rig rig;
            rig.start_instance();
            rig.questioned->hold = at % 2 == 0;
            auto asked = rig.m.loop.start(rig.service->ask(uuid, proto::encode_ask_quote(question()), 30s));
            rig.m.loop.settle(at);
            asked->cancel();
            rig.m.loop.settle();
            CHECK(asked->done);
            rig.questioned->go();
            rig.m.loop.settle();
            CHECK(rig.answers(8));
        }
        for (std::size_t at = 0; at < 60; ++at) {
            CAPTURE(at);
            Rig rig;
            rig.start_instance(false); // the first that it does is to connect
            rig.m.loop.settle(at);
            rig.questioned->hold = at % 3 == 0;
            auto asked = rig.m.loop.start(rig.service->ask(uuid, proto::encode_ask_quote(question()), 30s));
            rig.m.loop.settle(at / 2);
            rig.end_instance();
            CHECK(asked->done);
            CHECK(rig.service->link_count() == 0);
        }
    }

    TEST_CASE("reports come in the instance's own time, the last one when it ends") {
        Rig rig;
        rig.start_instance();
        REQUIRE(rig.answers(1));
        CHECK(rig.reported.empty());
        rig.questioned->reports = {{.incarnation = 7, .commits = 1}, {.incarnation = 7, .commits = 2}};
        rig.questioned->news.cancel();
        rig.m.loop.settle();
        REQUIRE(rig.reported.size() == 2);
        CHECK(rig.reported.back().commits == 2);
        rig.questioned->hold = true; // they do not wait for an answer
        auto asked = rig.ask();
        rig.questioned->reports = {{.incarnation = 7, .commits = 3}};
        rig.questioned->news.cancel();
        rig.m.loop.settle();
        CHECK(rig.reported.size() == 2); // not so soon
        rig.pass(proto::Answerer::report_pause);
        CHECK(rig.reported.size() == 3);
        CHECK_FALSE(asked->done);
        rig.questioned->reports = {{.incarnation = 7, .commits = 4}};
        rig.end_instance();
        REQUIRE(rig.reported.size() == 5);
        CHECK(rig.reported[3].commits == 4);
        CHECK(rig.reported[4].last);
    }
}

} // namespace ask_test
