// Who holds the disk puts old copies of the store back, or cuts its end off, on a host with a real TPM: what was acknowledged
// and covered by the counter is not lost without a refusal. For both families.
#include "host.hpp"

namespace rollback_attack_test {

using namespace vtpmd;
using manager::FreshnessPolicy;
using test::FaultDisk;
using test::Host;
using Loss = FaultDisk::Loss;
using Mode = FreshnessPolicy::Mode;

namespace {

Uuid vtpm() {
    Uuid u;
    u.bytes[0] = std::byte{0xbb};
    return u;
}

void begin(Host& host, Mode mode) {
    host.options.freshness.mode = mode;
    REQUIRE(host.start(true));
    REQUIRE(host.enrol(vtpm()));
    REQUIRE(host.save(vtpm(), 1));
}

/// Refused for being old, and left as it is.
void check_refused(Host& host) {
    const Bytes content = host.disk->content();
    auto opened = host.start();
    REQUIRE(opened.has_error());
    CHECK_MESSAGE(opened.error().code == Errc::rollback, opened.error().message);
    CHECK(opened.error().message.find("counter") != std::string::npos);
    CHECK(host.disk->content() == content);
}

/// `now` with what was written since `then` gone, as if it had never reached the disk.
Bytes tail_cut(const Bytes& then, const Bytes& now) {
    Bytes out = now;
    for (std::size_t i = 0; i < out.size(); ++i) {
        if (i >= then.size() || out[i] != then[i]) {
            out[i] = std::byte{0};
        }
    }
    return out;
}

void whole_disk(TpmVersion version) {
    for (Mode mode : {Mode::window, Mode::strict}) {
        Host host(version);
        begin(host, mode);
        REQUIRE(host.off());
        const Bytes old = host.disk->content();
        REQUIRE(host.start());
        REQUIRE(host.save(vtpm(), 2));
        REQUIRE(host.off()); // a clean stop
        const Bytes newest = host.disk->content();

        host.put_back_disk(old);
        check_refused(host);
        host.power_cycle(Loss::none); // a reboot changes nothing
        check_refused(host);

        host.put_back_disk(newest);
        REQUIRE(host.start());
        CHECK(host.load(vtpm()) == 2);

        // The start was a step as well: what was the newest before it is old now, even after a crash.
        host.power_cycle(Loss::all);
        host.put_back_disk(newest);
        check_refused(host);
    }
}

void tail(TpmVersion version) {
    { // strict: any acknowledged save that is cut off is missed
        Host host(version);
        begin(host, Mode::strict);
        for (unsigned cut = 1; cut <= 3; ++cut) {
            const Bytes then = host.disk->content();
            for (unsigned i = 1; i <= cut; ++i) {
                REQUIRE(host.save(vtpm(), 10 * cut + i));
            }
            host.power_cycle(Loss::all);
            const Bytes newest = host.disk->content();
            host.put_back_disk(tail_cut(then, newest));
            check_refused(host);
            host.put_back_disk(newest);
            REQUIRE(host.start());
            CHECK(host.load(vtpm()) == 11 * cut);
        }
    }
    { // window: from the last step on
        Host host(version);
        begin(host, Mode::window);
        const Bytes then = host.disk->content();
        REQUIRE(host.save(vtpm(), 2));
        REQUIRE(host.off());
        host.put_back_disk(tail_cut(then, host.disk->content()));
        check_refused(host);
    }
}

/// Power goes between the record of a step and the step: the journal is one ahead. Old copies and cut tails are told from
/// that, and the store itself is finished and goes on.
void between_record_and_step(TpmVersion version) {
    Host host(version);
    begin(host, Mode::strict);
    const Bytes two_before = host.disk->content();
    REQUIRE(host.save(vtpm(), 2));
    const Bytes one_before = host.disk->content();
    REQUIRE(host.save(vtpm(), 3));
    const Bytes at_three = host.disk->content();
    host.cut_at_tpm(0);
    CHECK_FALSE(host.save(vtpm(), 4)); // durable, but neither stepped nor acknowledged
    host.power_cycle(Loss::none);
    const Bytes ahead = host.disk->content();
    REQUIRE(ahead != at_three);

    for (const Bytes& old : {two_before, one_before}) {
        host.put_back_disk(old);
        check_refused(host);
    }
    host.put_back_disk(tail_cut(one_before, ahead));
    check_refused(host);
    // What nobody was told of may be missing.
    const Host::Copy before = [&] {
        host.put_back_disk(ahead);
        return host.copy();
    }();
    host.put_back_disk(tail_cut(at_three, ahead));
    REQUIRE(host.start());
    CHECK(host.load(vtpm()) == 3);
    // The rest of it there: the step is finished.
    host.put_back(before);
    REQUIRE(host.start());
    CHECK(host.load(vtpm()) == 4);
    REQUIRE(host.off());
    host.put_back_disk(ahead);
    check_refused(host);
}

/// The other way round: a TPM that is behind its store. By one it is what a crash leaves, by two it cannot be.
void counter_behind(TpmVersion version) {
    Host host(version);
    begin(host, Mode::strict);
    const Host::Copy then = host.copy(); // the stop is a step
    REQUIRE(host.start());               // one step
    host.power_cycle(Loss::all);
    const Bytes one_ahead = host.disk->content();
    REQUIRE(host.start());
    REQUIRE(host.save(vtpm(), 2));
    host.power_cycle(Loss::all);
    const Bytes more_ahead = host.disk->content();

    host.put_back_tpm(then);
    host.put_back_disk(one_ahead);
    REQUIRE(host.start());
    CHECK(host.load(vtpm()) == 1);

    host.put_back_tpm(then);
    host.put_back_disk(more_ahead);
    check_refused(host);
}

void window(TpmVersion version) {
    Host host(version);
    begin(host, Mode::window);
    // A crash loses nothing.
    for (unsigned mark = 2; mark < 20; ++mark) {
        REQUIRE(host.save(vtpm(), mark));
        if (mark % 5 == 0) {
            host.power_cycle(Loss::all);
            REQUIRE(host.start());
            CHECK(host.load(vtpm()) == mark);
        }
    }
    // A window's boundary, with the store running as it does in the manager.
    auto lazy = host.loop.start(host.vault->freshness().run());
    const Bytes old = host.disk->content();
    const auto steps = host.vault->freshness().counters().steps;
    REQUIRE(host.save(vtpm(), 30));
    host.loop.clock.advance(host.options.freshness.window);
    REQUIRE(host.loop.until([&] { return host.vault->freshness().counters().steps > steps; }));
    lazy->cancel();
    REQUIRE(host.loop.wait(*lazy));
    host.power_cycle(Loss::all);
    const Bytes newest = host.disk->content();
    host.put_back_disk(old);
    check_refused(host);
    host.put_back_disk(newest);
    REQUIRE(host.start());
    CHECK(host.load(vtpm()) == 30);
}

} // namespace

TEST_SUITE("hwtpm-2.0") {
    TEST_CASE("2.0: a copy of the whole disk put back after more commits") { whole_disk(TpmVersion::tpm20); }
    TEST_CASE("2.0: the journal's tail cut off") { tail(TpmVersion::tpm20); }
    TEST_CASE("2.0: old copies after a crash between record and step") { between_record_and_step(TpmVersion::tpm20); }
    TEST_CASE("2.0: a counter that is one behind is finished, more is refused") { counter_behind(TpmVersion::tpm20); }
    TEST_CASE("2.0: window loses nothing in a crash, and its boundary holds") { window(TpmVersion::tpm20); }
}

TEST_SUITE("hwtpm-1.2") {
    TEST_CASE("1.2: a copy of the whole disk put back after more commits") { whole_disk(TpmVersion::tpm12); }
    TEST_CASE("1.2: the journal's tail cut off") { tail(TpmVersion::tpm12); }
    TEST_CASE("1.2: old copies after a crash between record and step") { between_record_and_step(TpmVersion::tpm12); }
    TEST_CASE("1.2: a counter that is one behind is finished, more is refused") { counter_behind(TpmVersion::tpm12); }
    TEST_CASE("1.2: window loses nothing in a crash, and its boundary holds") { window(TpmVersion::tpm12); }
}

} // namespace rollback_attack_test
