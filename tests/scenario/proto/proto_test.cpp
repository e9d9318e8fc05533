// Both ends of the manager protocol: over links that break, stall and lie, on a fake clock.
#include "check.hpp"
#include "loop.hpp"
#include "memory_channel.hpp"
#include "proto/link/backoff.hpp"
#include "proto/link/client.hpp"
#include "proto/link/server.hpp"
#include "proto/link/stream_channel.hpp"
#include "util/task_group.hpp"
#include "util/text.hpp"
#include "util/wire.hpp"

#include <functional>
#include <random>
#include <sys/socket.h>

namespace proto_test {

using namespace vtpmd;
using namespace vtpmd::proto;
using namespace vtpmd::fakes;

namespace {

const Uuid uuid = parse_uuid("00112233-4455-6677-8899-aabbccddeeff").value();

/// Remembers what it was asked.
struct FakeHandler final : Handler {
    Task<Result<HelloReply>> hello(HelloRequest r) override {
        ++hellos;
        last = r;
        if (on_hello) {
            on_hello();
        }
        if (hello_error) {
            co_return *hello_error;
        }
        co_return HelloReply{
            .known = true, .has_record = record.has_value(), .version = r.version, .was_reset = reset.has_value()};
    }
    Task<Result<void>> save_hash_key(SecretBytes key) override {
        ++saves;
        record = std::move(key);
        co_return Result<void>{};
    }
    Task<Result<void>> save_over(Bytes over, SecretBytes key) override {
        if (!takes_over) {
            co_return co_await Handler::save_over(std::move(over), std::move(key)); // as an older manager
        }
        overs.push_back(over);
        const ByteView there = record ? record->view().subspan(hash_key_part) : ByteView{};
        if (!std::ranges::equal(there, over)) {
            co_return make_error(Errc::rollback, "another has saved");
        }
        co_return co_await save_hash_key(std::move(key));
    }
    Task<Result<std::optional<SecretBytes>>> load_hash_key() override {
        if (load_error) {
            co_return *load_error;
        }
        if (!record) {
            co_return std::optional<SecretBytes>{};
        }
        co_return std::optional<SecretBytes>(record->clone());
    }
    Task<Result<ResetInfo>> reset_info() override {
        if (!reset) {
            co_return co_await Handler::reset_info();
        }
        co_return *reset;
    }
    Task<Result<BootHash>> boot_hash() override { co_return BootHash{std::byte{7}}; }
    Task<Result<QuoteReply>> quote(QuoteRequest r) override {
        if (!quote_reply) {
            co_return co_await Handler::quote(std::move(r)); // as a manager that has none to give
        }
        asked = std::move(r);
        co_return *quote_reply;
    }
    Task<Result<Bytes>> tpm_command(Bytes) override { co_return tpm_answer; }

    std::function<void()> on_hello;
    std::optional<Error> hello_error, load_error;
    std::optional<SecretBytes> record;
    std::optional<ResetInfo> reset;
    Bytes tpm_answer = make_frame(tag::tpm20_command, 0);
    HelloRequest last;
    QuoteRequest asked;
    std::optional<QuoteReply> quote_reply;
    unsigned hellos = 0, saves = 0;
    bool takes_over = false;
    std::vector<Bytes> overs;
};

/// A manager that can be down, and whose links can be cut after so many frames either way.
struct Rig {
    explicit Rig(bool create = false)
        : group(loop.io.get_executor(), loop.log) {
        ClientOptions options;
        options.greeting = {uuid, TpmVersion::tpm20, create};
        options.superseded = [this](const Error&) { ++superseded; };
        client = make_manager_client(
            loop.io.get_executor(), options, [this] { return connect(); }, loop.clock, loop.log);
    }
    ~Rig() {
        client.reset();
        group.cancel();
        loop.run(group.join());
    }

    Task<Result<std::unique_ptr<Channel>>> connect() {
        ++connects;
        if (down) {
            co_return make_error(Errc::not_found, "no socket");
        }
        auto pair = MemoryChannel::make(loop.io.get_executor());
        group.spawn("serve", serve_one(std::move(pair.b)));
        co_return std::unique_ptr<Channel>(std::move(pair.a));
    }
    Task<> serve_one(std::unique_ptr<MemoryChannel> channel) {
        if (cut == Cut::before_hello) {
            cut = Cut::none;
            co_return;
        }
        if (garbage > 0) {
            --garbage;
            (void)co_await channel->receive();
            (void)co_await channel->send(make_frame(0x1234, 0));
            co_return;
        }
        if (cut == Cut::none) {
            (void)co_await serve(*channel, handler, loop.clock, loop.log, ServeOptions{});
            co_return;
        }
        (void)co_await pass_one(*channel, true);
        (void)co_await pass_one(*channel, cut != Cut::answer);
        if (cut == Cut::silent) {
            (void)co_await channel->receive(); // never answers again
        }
    }
    /// Handles one request; the answer may be lost with the link.
    Task<bool> pass_one(MemoryChannel& channel, bool answer) {
        auto frame = co_await channel.receive();
        if (!frame ||
            (cut == Cut::request && handler.hellos > 0 && std::holds_alternative<SaveRequest>(parse_request(*frame)))) {
            cut = cut == Cut::silent ? cut : Cut::none;
            co_return false;
        }
        Request request = parse_request(*frame);
        if (std::holds_alternative<HelloRequest>(request)) {
            auto reply = co_await handler.hello(std::get<HelloRequest>(request));
            (void)co_await channel.send(encode_hello_reply(*reply));
            co_return true;
        }
        if (cut == Cut::silent) {
            co_return true;
        }
        if (std::holds_alternative<LoadRequest>(request)) {
            (void)co_await channel.send(encode_success(handler.record->view()));
            co_return co_await pass_one(channel, answer);
        }
        if (std::holds_alternative<HandedOverRequest>(request)) {
            cut = Cut::none; // done or not, the answer is lost
            co_return true;
        }
        auto saved = co_await handler.save_hash_key(std::move(std::get<SaveRequest>(request).hash_key));
        if (answer && saved) {
            (void)co_await channel.send(encode_success());
        }
        cut = Cut::none;
        co_return true;
    }

    enum class Cut { none, before_hello, request, answer, silent };
    Loop loop;
    FakeHandler handler;
    TaskGroup group;
    std::unique_ptr<ManagerClient> client;
    Cut cut = Cut::none;
    unsigned garbage = 0, connects = 0, superseded = 0;
    bool down = false;
};

Bytes key(std::uint8_t n) { return Bytes(64, std::byte{n}); }

struct SocketPair {
    explicit SocketPair(Loop& loop, std::string peer = "test") {
        int fds[2];
        REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
        theirs = UniqueFd(fds[1]);
        ours = adopt_unix(loop.io.get_executor(), UniqueFd(fds[0]), loop.clock, std::move(peer)).value();
    }
    void put(ByteView b) const {
        REQUIRE(::send(theirs.get(), b.data(), b.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(b.size()));
    }
    UniqueFd theirs;
    std::unique_ptr<Channel> ours;
};

} // namespace

TEST_SUITE("proto") {
    TEST_CASE("back-off: at once, doubling, bounded, spread") {
        const Backoff b;
        CHECK(b.wait_before(0, 99).count() == 0);
        for (std::uint32_t random = 0; random < 200; ++random) {
            CHECK(b.wait_before(1, random).count() >= 15);
            CHECK(b.wait_before(1, random).count() <= 25);
            CHECK(b.wait_before(1000000, random).count() <= 1250);
            CHECK(b.wait_before(1000000, random).count() >= 750);
        }
        CHECK(b.wait_before(3, 25).count() == 80);
    }

    TEST_CASE("client and server: everything once") {
        Rig r;
        auto hello = r.loop.run(r.client->hello());
        REQUIRE(hello);
        CHECK(hello->known);
        CHECK_FALSE(hello->has_record);
        CHECK(r.handler.last.uuid == uuid);
        CHECK_FALSE(r.loop.run(r.client->load_hash_key())->has_value());
        CHECK(r.loop.run(r.client->save_hash_key(key(1))));
        CHECK(r.handler.record->equals(key(1)));
        CHECK((*r.loop.run(r.client->load_hash_key()))->equals(key(1)));
        CHECK((*r.loop.run(r.client->boot_hash()))[0] == std::byte{7});
        CHECK(r.loop.run(r.client->tpm_command(make_frame(tag::tpm20_command, 0x17B, Bytes(2)))));
        CHECK(to_hex(*r.loop.run(r.client->tpm_command(make_frame(tag::tpm20_command, 0x182)))) ==
              "80010000000a00000143");
        CHECK(r.connects == 1);
    }

    TEST_CASE("a quote: passed on and back; not offered; not sent if it makes no sense; too large for the link") {
        Rig r;
        QuoteRequest request{.nonce = Bytes(20, std::byte{1}),
                             .endorsement = Bytes(32, std::byte{2}),
                             .pcrs = Bytes(32, std::byte{3}),
                             .selections = {{.bank = 0x0b, .pcrs = 0x11}}};
        CHECK(r.loop.run(r.client->quote(request)).error().code == Errc::unsupported);
        r.handler.quote_reply = QuoteReply{.hardware = TpmVersion::tpm20,
                                           .group = uuid,
                                           .attested = Bytes(100),
                                           .signature = Bytes(262),
                                           .values = {{.bank = 0x0b, .index = 4, .digest = Bytes(32)}}};
        CHECK(r.loop.run(r.client->quote(request)).value() == *r.handler.quote_reply);
        CHECK(r.handler.asked == request);
        r.handler.quote_reply->values.resize(100, r.handler.quote_reply->values.front());
        r.handler.quote_reply->attested.resize(1000);
        CHECK(r.loop.run(r.client->quote(request)).error().code == Errc::protocol); // TPM_BAD_PARAM_SIZE
        r.handler.asked = {};
        request.nonce.clear();
        CHECK(r.loop.run(r.client->quote(request)).error().code == Errc::usage);
        CHECK(r.handler.asked == QuoteRequest{});
        CHECK(r.connects == 1); // and the link is still the first one
    }

    TEST_CASE("the link lost at every step: the request is repeated and succeeds") {
        for (auto cut : {Rig::Cut::before_hello, Rig::Cut::request, Rig::Cut::answer}) {
            Rig r;
            if (cut != Rig::Cut::before_hello) {
                r.cut = cut;
            }
            REQUIRE(r.loop.run(r.client->hello()));
            if (cut == Rig::Cut::before_hello) {
                r.cut = cut;
            }
            CHECK(r.loop.run(r.client->save_hash_key(key(2))));
            CHECK(r.handler.record->equals(key(2)));
            if (cut == Rig::Cut::answer) {
                CHECK(r.handler.saves == 2);
            }
        }
    }

    TEST_CASE(
        "a link that nobody has answered on yet is none: a service manager holds the socket while the manager starts") {
        Rig r;
        unsigned looks = 0;
        r.handler.on_hello = [&] {
            ++looks;
            CHECK_FALSE(r.client->connected());
        };
        CHECK_FALSE(r.client->connected());
        REQUIRE(r.loop.run(r.client->hello()));
        CHECK(r.client->connected());
        r.group.cancel(); // the present link breaks
        r.loop.settle();
        REQUIRE(r.loop.run(r.client->save_hash_key(key(3))));
        CHECK(looks == 2);
        CHECK(r.client->connected());
    }

    TEST_CASE("a manager that is down: tried with back-off until the deadline; then up again") {
        Rig r;
        REQUIRE(r.loop.run(r.client->hello()));
        r.down = true;
        r.group.cancel(); // the present link breaks
        r.loop.settle();
        const auto before = r.loop.clock.now();
        auto saved = r.loop.run(r.client->save_hash_key(key(3)));
        REQUIRE_FALSE(saved);
        CHECK(saved.error().code == Errc::unavailable);
        CHECK(saved.error().message.find("no socket") != std::string::npos);
        CHECK(r.loop.clock.now() - before >= std::chrono::seconds(30));
        CHECK(r.connects > 10);
        CHECK(r.connects < 100);
        CHECK(r.loop.lines.size() < 20);
        // Known to be down: the next one fails fast.
        const auto again = r.loop.clock.now();
        CHECK_FALSE(r.loop.run(r.client->save_hash_key(key(3))));
        CHECK(r.loop.clock.now() - again < std::chrono::seconds(5));
        r.down = false;
        CHECK(r.loop.run(r.client->save_hash_key(key(3))));
        CHECK(r.handler.record->equals(key(3)));
    }

    TEST_CASE("a manager that takes a request and never answers: unknown after the deadline, not confused afterwards") {
        Rig r;
        r.cut = Rig::Cut::silent;
        REQUIRE(r.loop.run(r.client->hello()));
        auto saved = r.loop.run(r.client->save_hash_key(key(4)));
        CHECK(saved.error().code == Errc::unavailable);
        r.cut = Rig::Cut::none;
        CHECK_FALSE(r.loop.run(r.client->load_hash_key())->has_value());
    }

    TEST_CASE("hello: what time cannot cure comes back at once, busy after some patience") {
        for (Errc code : {Errc::tombstone, Errc::permission, Errc::mismatch, Errc::not_found, Errc::version}) {
            Rig r;
            r.handler.hello_error = make_error(code, "told so");
            const auto before = r.loop.clock.now();
            auto hello = r.loop.run(r.client->hello());
            REQUIRE_FALSE(hello);
            CHECK(hello.error().code == code);
            CHECK(hello.error().message.find("told so") != std::string::npos);
            CHECK(r.handler.hellos == 1);
            CHECK(r.loop.clock.now() == before);
        }
        Rig r;
        r.handler.hello_error = make_error(Errc::busy, "open elsewhere");
        CHECK(r.loop.run(r.client->hello()).error().code == Errc::busy);
        CHECK(r.handler.hellos > 2);
        CHECK(r.handler.hellos < 30);
    }

    TEST_CASE("create is asked for once; a manager that has lost the record is not believed") {
        Rig r(true);
        REQUIRE(r.loop.run(r.client->hello()));
        CHECK(r.handler.last.create);
        REQUIRE(r.loop.run(r.client->save_hash_key(key(5))));
        r.handler.record.reset(); // another store
        r.group.cancel();
        r.loop.settle();
        auto saved = r.loop.run(r.client->save_hash_key(key(6)));
        REQUIRE_FALSE(saved);
        CHECK(saved.error().code == Errc::mismatch);
        CHECK_FALSE(r.handler.last.create);
        CHECK_FALSE(r.handler.record);
    }

    TEST_CASE("a vTPM that was reset: asked for on every link; reset while the instance ran, its past is not kept") {
        Rig r;
        CHECK_FALSE(r.loop.run(r.client->hello())->reset);
        r.handler.reset = ResetInfo{.sequence = 5, .when = 6, .given_up = Bytes(32)};
        auto lose_link = [&] {
            r.group.cancel();
            r.loop.settle();
        };
        CHECK(r.loop.run(r.client->save_hash_key(key(1)))); // this link is older
        lose_link();
        auto saved = r.loop.run(r.client->save_hash_key(key(2)));
        REQUIRE_FALSE(saved);
        CHECK(saved.error().code == Errc::tombstone);
        CHECK(saved.error().message.find("reset to factory") != std::string::npos);
        CHECK(r.handler.saves == 1);

        Rig next; // an instance that knows
        next.handler.reset = r.handler.reset;
        auto hello = next.loop.run(next.client->hello());
        REQUIRE(hello);
        CHECK(hello->reset == next.handler.reset);
        next.group.cancel();
        next.loop.settle();
        CHECK(next.loop.run(next.client->save_hash_key(key(3))));
        CHECK(next.connects == 2);
        next.handler.reset->sequence = 9;
        next.group.cancel();
        next.loop.settle();
        CHECK(next.loop.run(next.client->save_hash_key(key(4))).error().code == Errc::tombstone);
        CHECK(next.handler.saves == 1);
    }

    TEST_CASE("a hand-over whose answer was lost: migrated away is a yes, deleted or reset meanwhile is none") {
        const Error away = make_error(Errc::tombstone, "vTPM was migrated away");
        Error deleted = make_error(Errc::tombstone, "vTPM was deleted");
        deleted.detail = static_cast<std::uint32_t>(Status::vendor_deleted);
        const std::optional<ResetInfo> reset = ResetInfo{.sequence = 5, .when = 6, .given_up = Bytes(32)};
        struct Meanwhile {
            std::optional<Error> refusal;
            std::optional<ResetInfo> reset;
            bool yes;
        };
        for (const bool asked : {true, false}) {
            for (const Meanwhile& m :
                 {Meanwhile{away, {}, asked}, Meanwhile{deleted, {}, false}, Meanwhile{{}, reset, false}}) {
                Rig r;
                r.cut = asked ? Rig::Cut::answer : Rig::Cut::none;
                REQUIRE(r.loop.run(r.client->hello()));
                if (!asked) { // the link was gone before
                    r.group.cancel();
                    r.loop.settle();
                }
                r.handler.hello_error = m.refusal;
                r.handler.reset = m.reset;
                auto gone = r.loop.run(r.client->handed_over());
                CHECK(gone.has_value() == m.yes);
                CHECK((gone || gone.error().code == Errc::tombstone));
            }
        }
    }

    TEST_CASE("what a save goes over is named, where the manager has that; an older one is asked the old way") {
        Rig r;
        REQUIRE(r.loop.run(r.client->hello()));
        REQUIRE(r.loop.run(r.client->save_hash_key(key(1)))); // an older one
        CHECK(r.handler.overs.empty());
        r.handler.takes_over = true;
        r.group.cancel(); // it was updated: once there is a link anew
        r.loop.settle();
        REQUIRE(r.loop.run(r.client->load_hash_key()));
        REQUIRE(r.loop.run(r.client->save_hash_key(key(2))));
        REQUIRE(r.loop.run(r.client->save_hash_key(key(3))));
        CHECK(r.handler.overs == std::vector<Bytes>{Bytes(32, std::byte{1}), Bytes(32, std::byte{2})});
        Rig fresh;
        fresh.handler.takes_over = true;
        REQUIRE(fresh.loop.run(fresh.client->hello()));
        REQUIRE(fresh.loop.run(fresh.client->save_hash_key(key(1))));
        CHECK(fresh.handler.overs == std::vector<Bytes>{Bytes{}});
    }

    TEST_CASE("another instance saved while there was no link: noticed on the next one, nothing is saved over it") {
        for (bool takes_over : {false, true}) {
            Rig r;
            r.handler.takes_over = takes_over;
            REQUIRE(r.loop.run(r.client->hello()));
            REQUIRE(r.loop.run(r.client->save_hash_key(key(1))));
            r.group.cancel();
            r.loop.settle();
            r.handler.record = SecretBytes(key(9)); // the other one's
            auto saved = r.loop.run(r.client->save_hash_key(key(2)));
            REQUIRE_FALSE(saved);
            CHECK(saved.error().code == Errc::rollback);
            CHECK(saved.error().message.find("another instance has saved since") != std::string::npos);
            CHECK(r.superseded == 1);
            CHECK(r.handler.record->equals(key(9)));
            CHECK(r.loop.run(r.client->load_hash_key()).error().code == Errc::rollback);
        }
    }

    TEST_CASE("another instance saved on the same manager: the manager's own word") {
        Rig r;
        r.handler.takes_over = true;
        REQUIRE(r.loop.run(r.client->hello()));
        REQUIRE(r.loop.run(r.client->save_hash_key(key(1))));
        r.handler.record = SecretBytes(key(9));
        CHECK(r.loop.run(r.client->save_hash_key(key(2))).error().code == Errc::rollback);
        CHECK(r.superseded == 1);
    }

    TEST_CASE("what is in doubt when the link is lost may be on record, or what was before it; both are this "
              "instance's own") {
        for (auto cut : {Rig::Cut::request, Rig::Cut::answer}) {
            Rig r;
            REQUIRE(r.loop.run(r.client->hello()));
            REQUIRE(r.loop.run(r.client->save_hash_key(key(1))));
            r.group.cancel();
            r.loop.settle();
            r.cut = cut;
            r.handler.hellos = 0;
            const Bytes second = key(2);
            auto saving = r.loop.start(r.client->save_hash_key(second));
            REQUIRE(r.loop.wait(*saving));
            REQUIRE(saving->value);
            CHECK(*saving->value);
            CHECK(r.handler.record->equals(key(2)));
            CHECK(r.superseded == 0);
        }
    }

    TEST_CASE("answers that are none: the link is dropped and tried again") {
        Rig r;
        r.garbage = 3;
        CHECK(r.loop.run(r.client->hello()));
        CHECK(r.connects == 4);
    }

    TEST_CASE("cancelled at every await of a request: the next one gets its own answer") {
        for (int n = 1; n < 30; ++n) {
            Rig r;
            REQUIRE(r.loop.run(r.client->hello()));
            auto load = r.loop.start(r.client->load_hash_key());
            r.loop.settle(static_cast<std::size_t>(n));
            load->cancel();
            REQUIRE(r.loop.wait(*load));
            CHECK(r.loop.run(r.client->save_hash_key(key(7))));
            CHECK((*r.loop.run(r.client->load_hash_key()))->equals(key(7)));
        }
    }

    TEST_CASE("server: hello first, once; malformed requests get an answer and the link goes on") {
        Loop loop;
        FakeHandler handler;
        auto pair = MemoryChannel::make(loop.io.get_executor());
        auto served = loop.start(serve(*pair.b, handler, loop.clock, loop.log, ServeOptions{}));
        auto ask = [&](Bytes frame) {
            REQUIRE(loop.run(pair.a->send(frame), false));
            return loop.run(pair.a->receive(), false).value();
        };
        auto status = [&](Bytes frame) { return parse_header(ask(std::move(frame)))->code; };
        CHECK(status(encode_load()) == static_cast<std::uint32_t>(Status::vendor_permission));
        CHECK(status(encode_hello({uuid, TpmVersion::tpm12, false})) == 0);
        CHECK(status(encode_hello({uuid, TpmVersion::tpm12, false})) == 3);
        CHECK(handler.hellos == 1);
        CHECK(status(make_frame(tag::request, 77)) == 0x0A);
        CHECK(status(encode_save(Bytes(53))) == 0x19);
        CHECK(status(encode_save(Bytes(52))) == 0);
        CHECK(status(encode_load()) == 0);
        handler.load_error = make_error(Errc::io, "secret path");
        CHECK(to_hex(ask(encode_load())) == "01c40000000a0000001f"); // no text
        handler.tpm_answer = Bytes(3);
        CHECK(to_hex(ask(make_frame(tag::tpm12_command, 0x46))) == "00c40000000a00000009");
        CHECK(to_hex(ask(make_frame(tag::tpm20_command, 0x17B))) == "80010000000a00000101");
        pair.a->close();
        REQUIRE(loop.wait(*served));
        CHECK(*served->value);
    }

    TEST_CASE("server: a refused hello ends the link after its answer; no hello in time too") {
        Loop loop;
        FakeHandler handler;
        handler.hello_error = make_error(Errc::tombstone, "gone");
        auto pair = MemoryChannel::make(loop.io.get_executor());
        auto served = loop.start(serve(*pair.b, handler, loop.clock, loop.log, ServeOptions{}));
        REQUIRE(loop.run(pair.a->send(encode_hello({uuid, TpmVersion::tpm12, false})), false));
        auto reply = parse_hello_reply(*loop.run(pair.a->receive(), false));
        CHECK(reply.error().code == Errc::tombstone);
        CHECK(reply.error().message == "the manager says: gone");
        REQUIRE(loop.wait(*served));
        CHECK(served->value->error().code == Errc::tombstone);

        auto silent = MemoryChannel::make(loop.io.get_executor());
        CHECK(loop.run(serve(*silent.b, handler, loop.clock, loop.log, ServeOptions{})).error().code ==
              Errc::timed_out);
    }

    TEST_CASE("stream channel: frames in pieces, several at once, both ways") {
        Loop loop;
        SocketPair p(loop);
        const Bytes frame = encode_save(key(9));
        for (std::size_t cut = 1; cut < frame.size(); ++cut) {
            auto got = loop.start(p.ours->receive());
            p.put(ByteView(frame).first(cut));
            loop.settle();
            CHECK_FALSE(got->done);
            p.put(ByteView(frame).subspan(cut));
            REQUIRE(loop.wait(*got, false));
            CHECK(**got->value == frame);
        }
        for (int i = 0; i < 3; ++i) {
            p.put(frame);
        }
        for (int i = 0; i < 3; ++i) {
            CHECK(*loop.run(p.ours->receive(), false) == frame);
        }
        REQUIRE(loop.run(p.ours->send(frame), false));
        Bytes in(frame.size());
        CHECK(::recv(p.theirs.get(), in.data(), in.size(), 0) == static_cast<ssize_t>(in.size()));
        CHECK(in == frame);
    }

    TEST_CASE("stream channel: sizes that cannot be, ends inside a frame, stalled peers") {
        for (std::uint32_t size : {0U, 9U, 4097U, 0xFFFFFFFFU}) {
            Loop loop;
            SocketPair p(loop);
            WireWriter w;
            w.be16(tag::request).be32(size).be32(1);
            p.put(w.view());
            CHECK(loop.run(p.ours->receive(), false).error().code == Errc::protocol);
        }
        const Bytes frame = encode_save(key(9));
        for (std::size_t n = 0; n < frame.size(); ++n) {
            Loop loop;
            SocketPair p(loop);
            p.put(ByteView(frame).first(n));
            p.theirs.reset();
            CHECK(loop.run(p.ours->receive(), false).error().code == (n == 0 ? Errc::closed : Errc::protocol));
        }
        Loop loop;
        SocketPair p(loop);
        auto idle = loop.start(p.ours->receive());
        loop.settle();
        loop.clock.advance(std::chrono::hours(24)); // between frames a peer may be silent
        loop.settle();
        CHECK_FALSE(idle->done);
        p.put(ByteView(frame).first(5));
        REQUIRE(loop.until([&] {
            loop.settle();
            return loop.clock.sleeping() == 1;
        }));
        loop.clock.advance(std::chrono::seconds(11));
        REQUIRE(loop.wait(*idle, false));
        CHECK(idle->value->error().code == Errc::timed_out);
    }

    TEST_CASE("stream channel: a peer that does not read is given up; close ends a pending receive") {
        Loop loop;
        SocketPair p(loop);
        const Bytes big = make_frame(tag::response, 0, Bytes(4000));
        Result<void> sent;
        for (int i = 0; i < 10000 && sent; ++i) {
            sent = loop.run(p.ours->send(big));
        }
        REQUIRE_FALSE(sent);
        CHECK(sent.error().code == Errc::timed_out);
        SocketPair q(loop);
        auto pending = loop.start(q.ours->receive());
        loop.settle();
        q.ours->close();
        REQUIRE(loop.wait(*pending, false));
        CHECK(pending->value->error().code == Errc::closed);
        CHECK(loop.run(q.ours->receive(), false).error().code == Errc::closed);
    }

    TEST_CASE("10,000 random frames over a socket: answered or closed, never stuck") {
        Loop loop;
        FakeHandler handler;
        std::mt19937 random(5);
        for (int round = 0; round < 100; ++round) {
            SocketPair p(loop);
            auto served = loop.start(serve(*p.ours, handler, loop.clock, loop.log, ServeOptions{}));
            for (int i = 0; i < 100; ++i) {
                Bytes body(random() % 70);
                for (auto& b : body) {
                    b = static_cast<std::byte>(random());
                }
                Bytes frame = make_frame(random() % 2 ? tag::request : tag::tpm20_command, random() % 5, body);
                if (random() % 50 == 0) {
                    frame[random() % 10] = static_cast<std::byte>(random());
                }
                if (::send(p.theirs.get(), frame.data(), frame.size(), MSG_NOSIGNAL | MSG_DONTWAIT) < 0) {
                    break;
                }
                loop.settle();
                Bytes in(4096);
                (void)!::recv(p.theirs.get(), in.data(), in.size(), MSG_DONTWAIT);
            }
            p.theirs.reset();
            REQUIRE(loop.wait(*served));
        }
        CHECK(loop.lines.size() < 1000);
    }
}

} // namespace proto_test
