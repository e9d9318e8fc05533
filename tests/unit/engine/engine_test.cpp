#include "util/text.hpp"
// The engine over the real libtpms. A process has one, so every case makes its own and lets it go.
#include "hex.hpp"
#include "support.hpp"
#include "tpm/cost.hpp"

#include <atomic>
#include <random>
#include <thread>

namespace engine_engine_test {

using namespace vtpmd;
using namespace vtpmd::tpm;
using namespace vtpmd::test;

namespace {

constexpr std::uint32_t nv_20 = 0x01500001;
constexpr std::uint32_t nv_12 = 0x00011101;
const Bytes thirty_two(32, std::byte{0xa5});

EngineState taken(Engine& engine) {
    auto state = engine.take_staged();
    REQUIRE(state.has_value());
    return std::move(*state);
}

/// A TPM with something of the guest's in it, as the disk would have it.
EngineState used_state(TpmVersion v) {
    auto engine = started(v);
    if (v == v20) {
        REQUIRE(code_of(engine->execute(nv_define_20(nv_20, 32), 0)) == 0);
        REQUIRE(code_of(engine->execute(nv_write_20(nv_20, thirty_two), 0)) == 0);
    } else {
        REQUIRE(code_of(engine->execute(nv_define_12(nv_12, 32), 0)) == 0);
        REQUIRE(code_of(engine->execute(nv_write_12(nv_12, thirty_two), 0)) == 0);
    }
    return taken(*engine);
}

Bytes nv_content(Engine& engine) {
    return engine.version() == v20 ? nv_data_20(engine.execute(nv_read_20(nv_20, 32), 0))
                                   : nv_data_12(engine.execute(nv_read_12(nv_12, 32), 0));
}

EngineState clone(const EngineState& s) {
    EngineState out;
    out.permanent = s.permanent.clone();
    out.save_state = s.save_state.clone();
    out.volatile_state = s.volatile_state.clone();
    return out;
}

/// What a damaged permanent state must come to.
void check_refused(Engine& engine, const EngineState& state) {
    auto r = engine.power_on(state);
    REQUIRE_FALSE(r.has_value());
    CHECK(r.error().code == Errc::corrupt);
    CHECK(r.error().message.find(to_string(engine.version())) != std::string::npos);
    CHECK(r.error().message.find('\n') == std::string::npos);
    CHECK_FALSE(engine.running());
    CHECK_FALSE(engine.has_staged());
}

/// Runs `body` for each family, one engine after the other.
template <typename Body>
void for_each_version(Body body) {
    for (TpmVersion v : {v12, v20}) {
        CAPTURE(to_string(v));
        body(v);
    }
}

} // namespace

TEST_SUITE("engine") {
    TEST_CASE("engine: a second one in the process is refused, until the first has gone") {
        auto first = Engine::create(v20).value();
        auto second = Engine::create(v12);
        REQUIRE_FALSE(second.has_value());
        CHECK(second.error().code == Errc::busy);
        first.reset();
        CHECK(Engine::create(v12).has_value());
    }
    TEST_CASE("engine: a fresh TPM is staged as soon as it is on") {
        for_each_version([](TpmVersion v) {
            auto engine = powered_on(v);
            CHECK(engine->version() == v);
            CHECK(engine->has_staged());
            CHECK_FALSE(taken(*engine).permanent.empty());
            CHECK_FALSE(engine->has_staged());
            CHECK_FALSE(engine->take_staged().has_value());
        });
    }
    TEST_CASE("engine: what was staged brings the TPM back") {
        for_each_version([](TpmVersion v) {
            const EngineState disk = used_state(v);
            auto engine = started(v, disk);
            CHECK(nv_content(*engine) == thirty_two);
        });
    }
    TEST_CASE("engine: a change that was not made durable is gone after a power cycle with the older state") {
        auto engine = started(v20);
        REQUIRE(code_of(engine->execute(nv_define_20(nv_20, 32), 0)) == 0);
        const EngineState disk = taken(*engine);
        REQUIRE(code_of(engine->execute(nv_write_20(nv_20, thirty_two), 0)) == 0);
        CHECK(engine->has_staged());
        REQUIRE(engine->power_on(disk));
        CHECK_FALSE(engine->has_staged());
        REQUIRE(code_of(engine->execute(startup_command(v20, StartupMode::clear), 0)) == 0);
        CHECK(code_of(engine->execute(nv_read_20(nv_20, 32), 0)) == 0x14A); // TPM_RC_NV_UNINITIALIZED
    }
    TEST_CASE("engine: saved state carries the PCRs over a power cycle, and a cleared one is a change too") {
        for_each_version([](TpmVersion v) {
            auto engine = started(v);
            const Bytes extend = extend_with_zeros(v, 3);
            REQUIRE(code_of(engine->execute(extend, 0)) == 0);
            const Bytes value = read_pcr(*engine, alg::sha1, 3);
            REQUIRE(code_of(engine->execute(v == v12 ? save_state_command() : shutdown_command(StartupMode::state),
                                            0)) == 0);
            EngineState disk = taken(*engine);
            CHECK(disk.save_state.empty() == (v == v20)); // TPM 2.0 keeps it in the permanent state
            CHECK(disk.volatile_state.empty());

            REQUIRE(engine->power_on(disk));
            REQUIRE(code_of(engine->execute(startup_command(v, StartupMode::state), 0)) == 0);
            CHECK(read_pcr(*engine, alg::sha1, 3) == value);
            REQUIRE(code_of(engine->execute(extend, 0)) == 0); // makes the saved state out of date
            CHECK(taken(*engine).save_state.empty());
        });
    }
    TEST_CASE("engine: a running TPM goes on from its snapshot") {
        for_each_version([](TpmVersion v) {
            auto engine = started(v, used_state(v));
            const Bytes extend = extend_with_zeros(v, 3);
            REQUIRE(code_of(engine->execute(extend, 0)) == 0);
            const Bytes value = read_pcr(*engine, alg::sha1, 3);
            const EngineState moved = engine->snapshot().value();
            engine.reset();
            engine = powered_on(v, moved);
            CHECK(read_pcr(*engine, alg::sha1, 3) == value);
            CHECK(nv_content(*engine) == thirty_two);
            CHECK_FALSE(engine->has_staged());
        });
    }
    TEST_CASE("engine: a permanent state cut short anywhere is refused, and nothing is staged") {
        for_each_version([](TpmVersion v) {
            const EngineState good = used_state(v);
            auto engine = Engine::create(v).value();
            const std::size_t size = good.permanent.size();
            for (std::size_t n = 1; n < size; n += n + 16 < size ? 13 : 1) {
                CAPTURE(n);
                EngineState cut;
                cut.permanent = SecretBytes(good.permanent.view().first(n));
                check_refused(*engine, cut);
            }
            REQUIRE(engine->power_on(good));
        });
    }
    TEST_CASE("engine: a permanent state of something else is refused") {
        for_each_version([](TpmVersion v) {
            const EngineState other = used_state(v == v12 ? v20 : v12);
            auto engine = Engine::create(v).value();
            check_refused(*engine, other);
            EngineState noise;
            noise.permanent = SecretBytes(2000);
            check_refused(*engine, noise);
            if (v == v20) { // what libtpms itself says is in the error, not on stderr
                CHECK(engine->power_on(noise).error().message.find("libtpms/tpm2") != std::string::npos);
            }
        });
    }
    TEST_CASE("engine: volatile state that is damaged is refused") {
        for_each_version([](TpmVersion v) {
            auto engine = started(v);
            const EngineState good = engine->snapshot().value();
            for (std::size_t at : {good.volatile_state.size() / 2, good.volatile_state.size() - 1}) {
                EngineState bad = clone(good);
                bad.volatile_state.mut()[at] ^= std::byte{1};
                check_refused(*engine, bad);
            }
            REQUIRE(engine->power_on(good));
        });
    }
    TEST_CASE("engine: volatile or saved state without a permanent one makes no fresh TPM") {
        auto engine = Engine::create(v12).value();
        EngineState lone;
        lone.volatile_state = SecretBytes(100);
        check_refused(*engine, lone);
        lone.volatile_state.clear();
        lone.save_state = SecretBytes(100);
        check_refused(*engine, lone);
    }
    TEST_CASE("engine: resuming keeps what is staged, and a bad state turns the TPM off") {
        auto engine = started(v20);
        const EngineState now = engine->snapshot().value();
        CHECK(engine->has_staged());
        REQUIRE(engine->resume(now.volatile_state));
        CHECK(engine->has_staged());
        SecretBytes bad = now.volatile_state.clone();
        bad.mut()[20] ^= std::byte{1};
        auto r = engine->resume(bad);
        REQUIRE_FALSE(r.has_value());
        CHECK(r.error().code == Errc::corrupt);
        CHECK_FALSE(engine->running());
        CHECK(engine->has_staged());
        CHECK(engine->resume(now.volatile_state).error().code == Errc::unavailable);
    }

    TEST_CASE("staging: the same bytes again are no change once they are durable") {
        auto engine = started(v20);
        // TPM2_DictionaryAttackLockReset by the lockout hierarchy's empty password: writes, and not the clock.
        const Bytes reset = from_hex("80020000001b000001394000000a00000009400000090000000000").value();
        REQUIRE(code_of(engine->execute(reset, 0)) == 0);
        REQUIRE(engine->take_staged());
        engine->staged_is_durable();
        REQUIRE(code_of(engine->execute(reset, 0)) == 0);
        CHECK_FALSE(engine->has_staged());
    }
    TEST_CASE("staging: the same bytes again are a change as long as nobody said they are durable") {
        auto engine = started(v20);
        REQUIRE(code_of(engine->execute(shutdown_command(StartupMode::clear), 0)) == 0);
        REQUIRE(engine->take_staged());
        REQUIRE(code_of(engine->execute(shutdown_command(StartupMode::clear), 0)) == 0);
        CHECK(engine->has_staged());
    }
    TEST_CASE("staging: a failed commit is staged again, and the same bytes after it too") {
        auto engine = started(v20);
        REQUIRE(code_of(engine->execute(nv_define_20(nv_20, 32), 0)) == 0);
        const EngineState first = taken(*engine);
        engine->staged_failed();
        CHECK(engine->has_staged());
        CHECK(taken(*engine).permanent.equals(first.permanent.view()));
        engine->staged_is_durable();
        CHECK_FALSE(engine->has_staged());
    }
    TEST_CASE("staging: what changed after it was taken is not durable by the older commit") {
        auto engine = started(v20);
        REQUIRE(engine->take_staged());
        REQUIRE(code_of(engine->execute(nv_define_20(nv_20, 32), 0)) == 0);
        engine->staged_is_durable();
        CHECK(engine->has_staged());
    }
    TEST_CASE("staging: commands that change nothing permanent stage nothing") {
        for_each_version([](TpmVersion v) {
            auto engine = started(v, used_state(v));
            (void)engine->take_staged(); // TPM 2.0 notes the start
            engine->staged_is_durable();
            const Bytes extend = extend_with_zeros(v, 3);
            for (int i = 0; i < 100; ++i) {
                REQUIRE(code_of(engine->execute(get_random_command(v, 16), 0)) == 0);
                REQUIRE(code_of(engine->execute(extend, 0)) == 0);
                (void)nv_content(*engine);
            }
            CHECK_FALSE(engine->has_staged());
        });
    }

    TEST_CASE("execute: a TPM that is off answers with a failure") {
        for_each_version([](TpmVersion v) {
            auto engine = Engine::create(v).value();
            const Bytes command = get_random_command(v, 8);
            CHECK(engine->execute(command, 0) == error_response(v, Refusal::failure));
            REQUIRE(engine->power_on({}));
            engine->power_off();
            CHECK_FALSE(engine->running());
            CHECK(engine->execute(command, 0) == error_response(v, Refusal::failure));
            CHECK(engine->snapshot().error().code == Errc::unavailable);
            CHECK(engine->hash_start().error().code == Errc::unavailable);
            CHECK_FALSE(engine->established());
        });
    }
    TEST_CASE("execute: too long a command and a locality that is none get their errors") {
        for_each_version([](TpmVersion v) {
            auto engine = started(v);
            CHECK(engine->execute(Bytes(packet_limit + 1), 0) == error_response(v, Refusal::bad_size));
            CHECK(engine->execute(get_random_command(v, 8), 5) == error_response(v, Refusal::bad_locality));
            CHECK(code_of(engine->execute(get_random_command(v, 8), 4)) == 0);
        });
    }
    TEST_CASE("execute: malformed commands of every length get well-formed responses") {
        for_each_version([](TpmVersion v) {
            auto engine = started(v);
            const std::vector<Bytes> commands =
                v == v12 ? std::vector<Bytes>{get_random_command(v, 16), extend_command(1, {}), nv_define_12(nv_12, 8)}
                         : std::vector<Bytes>{get_random_command(v, 16), nv_define_20(nv_20, 8),
                                              create_primary_rsa(rh::owner, 1)};
            for (const Bytes& whole : commands) {
                for (std::size_t n = 0; n < whole.size(); ++n) {
                    Bytes cut(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(n));
                    for (bool true_size : {false, true}) {
                        CAPTURE(n);
                        if (true_size && n >= header_size) {
                            cut[4] = static_cast<std::byte>(n >> 8);
                            cut[5] = static_cast<std::byte>(n);
                        }
                        const Bytes r = engine->execute(cut, 0);
                        CHECK(is_well_formed_response(v, r));
                        CHECK(code_of(r) != 0);
                    }
                }
            }
            CHECK(code_of(engine->execute(get_random_command(v, 16), 0)) == 0);
        });
    }
    TEST_CASE("execute: random commands get well-formed responses, and the TPM lives on") {
        std::mt19937 random(20260101); // the same every time
        for_each_version([&random](TpmVersion v) {
            auto engine = started(v);
            for (int i = 0; i < 5000; ++i) {
                const std::size_t n = random() % 80;
                WireWriter w;
                w.be16(static_cast<std::uint16_t>((v == v12 ? 0xc1 : 0x8001) + random() % 3));
                w.be32(static_cast<std::uint32_t>(header_size + n));
                const std::uint32_t code = v == v12 ? random() % 0x100 : 0x11f + random() % 0x80;
                w.be32(cost(v, code) == Cost::long_ ? 0x46 : code); // spares the time that keys take
                for (std::size_t k = 0; k < n; ++k) {
                    w.u8(static_cast<std::uint8_t>(random() % 4 == 0 ? random() : 0));
                }
                CHECK(is_well_formed_response(v, engine->execute(w.view(), 0)));
            }
            CHECK(is_well_formed_response(v, engine->execute(get_random_command(v, 16), 0)));
        });
    }

    TEST_CASE("cancel: a key search on another thread ends early") {
        auto engine = started(v20);
        bool canceled = false;
        for (std::uint16_t label = 0; !canceled && label < 40; ++label) {
            std::atomic<bool> done = false;
            Bytes response;
            std::thread worker([&] {
                response = engine->execute(create_primary_rsa(rh::null, label), 0);
                done = true;
            });
            while (!done) {
                engine->cancel();
                std::this_thread::yield();
            }
            worker.join();
            REQUIRE(is_well_formed_response(v20, response));
            canceled = code_of(response) == rc20::canceled;
            if (!canceled) {
                REQUIRE(code_of(response) == 0); // found its primes before anybody looked
                REQUIRE(code_of(engine->execute(flush_20(0x80000000), 0)) == 0);
            }
        }
        CHECK(canceled);
        CHECK(code_of(engine->execute(create_primary_rsa(rh::null, 1000), 0)) == 0);
    }
    TEST_CASE("cancel: with nothing running it spoils nothing") {
        auto engine = started(v20);
        engine->cancel();
        CHECK(code_of(engine->execute(create_primary_rsa(rh::null, 1), 0)) == 0);
    }

    TEST_CASE("tis: a hash sequence sets tpmEstablished and the DRTM's PCR; localities 3 and 4 reset the flag") {
        for_each_version([](TpmVersion v) {
            auto engine = started(v);
            const Bytes before = read_pcr(*engine, alg::sha1, 17);
            CHECK_FALSE(engine->established());
            (void)engine->take_staged();
            engine->staged_is_durable();

            REQUIRE(engine->hash_start());
            REQUIRE(engine->hash_data(as_bytes("launch")));
            REQUIRE(engine->hash_data(as_bytes("ed")));
            REQUIRE(engine->hash_end());
            CHECK(engine->established());
            CHECK(read_pcr(*engine, alg::sha1, 17) != before);

            auto refused = engine->reset_established(2);
            REQUIRE_FALSE(refused.has_value());
            CHECK(refused.error().detail == rc12::bad_locality);
            CHECK(engine->established());
            REQUIRE(engine->reset_established(3));
            CHECK_FALSE(engine->established());
            CHECK(engine->has_staged() == (v == v12)); // a permanent flag there, volatile here
        });
    }
    TEST_CASE("info: the family is in it") {
        for_each_version([](TpmVersion v) {
            auto engine = Engine::create(v).value();
            CHECK(engine->info(1).find(to_string(v)) != std::string::npos);
            CHECK(engine->info(0) == "{}");
        });
    }
    TEST_CASE("fresh TPM 1.2: enabled, activated, free to take, without an endorsement key") {
        auto engine = started(v12);
        // TPM_GetCapability(TPM_CAP_FLAG, TPM_CAP_FLAG_PERMANENT): TPM_PERMANENT_FLAGS, Main part 2 section 7.1
        const Bytes r = engine->execute(hex("00c1 00000016 00000065 00000004 00000004 00000108"), 0);
        WireReader flags(ByteView(r).subspan(header_size));
        flags.skip(6);          // respSize, tag
        CHECK(flags.u8() == 0); // disable
        CHECK(flags.u8() == 1); // ownership
        CHECK(flags.u8() == 0); // deactivated
        CHECK(flags.ok());
        WireWriter read_pubek;
        read_pubek.be16(tag_rqu_command).be32(0).be32(ord::read_pubek).zeros(20);
        CHECK(code_of(engine->execute(sized(std::move(read_pubek)), 0)) == 0x23); // TPM_NO_ENDORSEMENT
    }
}

} // namespace engine_engine_test
