#include "engine/pcr_preset.hpp"
#include "support.hpp"

#include <algorithm>
#include <openssl/evp.h>

namespace engine_pcr_preset_test {

using namespace vtpmd;
using namespace vtpmd::tpm;
using namespace vtpmd::test;

namespace {

Bytes digest_of(std::uint16_t alg, unsigned seed) {
    Bytes d(digest_size(alg));
    for (std::size_t i = 0; i < d.size(); ++i) {
        d[i] = static_cast<std::byte>(seed * 31 + i * 7 + 1);
    }
    return d;
}

std::uint32_t update_counter(Engine& engine) {
    const std::vector<PcrBank> one{{alg::sha1, 1}};
    return parse_pcr_read(engine.execute(pcr_read_command(one), 0)).value().update_counter;
}

/// Every PCR of the banks given, by (bank, index).
std::vector<Bytes> all_pcrs(Engine& engine, const std::vector<std::uint16_t>& banks) {
    std::vector<Bytes> out;
    for (auto alg : banks) {
        for (unsigned i = 0; i < pcr_count; ++i) {
            out.push_back(read_pcr(engine, alg, i));
        }
    }
    return out;
}

/// Sets the presets and checks that exactly those PCRs, and nothing permanent, changed.
void check_preset(TpmVersion v, const std::vector<std::uint16_t>& banks, const std::vector<PcrPreset>& presets) {
    auto engine = started(v);
    REQUIRE(engine->take_staged());
    engine->staged_is_durable();
    const EngineState before = engine->snapshot().value();
    std::vector<Bytes> expected = all_pcrs(*engine, banks);
    for (const PcrPreset& p : presets) {
        const auto bank = std::find(banks.begin(), banks.end(), p.alg) - banks.begin();
        expected.at(static_cast<std::size_t>(bank) * pcr_count + p.index) = p.digest;
    }

    auto count = preset_pcrs(*engine, presets);
    REQUIRE(count);
    CHECK(*count == presets.size());

    CHECK(all_pcrs(*engine, banks) == expected);
    CHECK_FALSE(engine->has_staged());
    const EngineState after = engine->snapshot().value();
    CHECK(after.permanent.equals(before.permanent.view()));
    CHECK(after.save_state.equals(before.save_state.view()));
    // A second Startup would be an error: the TPM never stopped as far as it knows.
    const auto again = check_response(engine->execute(startup_command(v, StartupMode::clear), 0), "again");
    CHECK(again.error().detail == (v == v12 ? rc12::invalid_postinit : rc20::initialize));
}

} // namespace

TEST_SUITE("engine") {
    TEST_CASE("preset: all PCRs of TPM 1.2, also those that only a locality may extend") {
        std::vector<PcrPreset> presets;
        for (unsigned i = 0; i < pcr_count; ++i) {
            presets.push_back({alg::sha1, i, digest_of(alg::sha1, i)});
        }
        check_preset(v12, {alg::sha1}, presets);
    }
    TEST_CASE("preset: one PCR of one bank of TPM 2.0") {
        check_preset(v20, {alg::sha1, alg::sha256, alg::sha384, alg::sha512},
                     {{alg::sha256, 5, digest_of(alg::sha256, 5)}});
    }
    TEST_CASE("preset: all PCRs of all banks of TPM 2.0") {
        const std::vector<std::uint16_t> banks{alg::sha1, alg::sha256, alg::sha384, alg::sha512};
        std::vector<PcrPreset> presets;
        for (auto a : banks) {
            for (unsigned i = 0; i < pcr_count; ++i) {
                presets.push_back({a, i, digest_of(a, i + a)});
            }
        }
        check_preset(v20, banks, presets);
    }
    TEST_CASE("preset: the same value in several PCRs, and a value a PCR had already") {
        check_preset(v20, {alg::sha256},
                     {{alg::sha256, 1, digest_of(alg::sha256, 9)},
                      {alg::sha256, 2, digest_of(alg::sha256, 9)},
                      {alg::sha256, 3, Bytes(32)}});
    }
    TEST_CASE("preset: an extend goes on from the value set") {
        auto engine = started(v12);
        const Bytes value = digest_of(alg::sha1, 1);
        REQUIRE(preset_pcrs(*engine, std::vector<PcrPreset>{{alg::sha1, 3, value}}));
        Bytes both = value;
        both.resize(2 * sha1_size); // extended with zeros
        Sha1Digest expected{};
        REQUIRE(EVP_Digest(both.data(), both.size(), uchar_ptr(MutByteView(expected)), nullptr, EVP_sha1(), nullptr) ==
                1);
        CHECK(parse_pcr_value(engine->execute(extend_command(3, Sha1Digest{}), 0)).value() == expected);
    }
    TEST_CASE("preset: TPM 2.0's update counter steps once for each PCR that was set") {
        auto engine = started(v20);
        const auto before = update_counter(*engine);
        REQUIRE(preset_pcrs(*engine, std::vector<PcrPreset>{{alg::sha1, 3, digest_of(alg::sha1, 3)},
                                                            {alg::sha1, 4, digest_of(alg::sha1, 4)}}));
        CHECK(update_counter(*engine) == before + 2);
    }
    TEST_CASE("preset: banks that this TPM has not are left out") {
        for (auto v : {v12, v20}) {
            auto engine = started(v);
            const std::vector<PcrPreset> presets{{alg::sha1, 3, digest_of(alg::sha1, 3)},
                                                 {alg::sha512, 3, digest_of(alg::sha512, 3)}};
            CHECK(preset_pcrs(*engine, presets).value() == (v == v12 ? 1 : 2));
            CHECK(read_pcr(*engine, alg::sha1, 3) == presets[0].digest);
        }
    }
    TEST_CASE("preset: nothing asked for is nothing done") {
        auto engine = started(v20);
        const auto before = update_counter(*engine);
        CHECK(preset_pcrs(*engine, {}).value() == 0);
        CHECK(update_counter(*engine) == before);
    }
    TEST_CASE("preset: what makes no sense is refused before anything is done") {
        auto engine = started(v20);
        const auto before = update_counter(*engine);
        const auto refused = [&](std::vector<PcrPreset> presets) {
            auto r = preset_pcrs(*engine, presets);
            REQUIRE_FALSE(r.has_value());
            CHECK(r.error().code == Errc::usage);
        };
        refused({{alg::sha1, 24, Bytes(20)}});
        refused({{alg::sha1, 1, Bytes(19)}});
        refused({{alg::sha1, 1, Bytes(21)}});
        refused({{0x1234, 1, Bytes(20)}});
        refused({{alg::sha1, 1, Bytes(20)}, {alg::sha1, 1, Bytes(20)}});
        CHECK(update_counter(*engine) == before);
    }
    TEST_CASE("preset: a TPM without its start-up says so") {
        for (auto v : {v12, v20}) {
            auto engine = Engine::create(v).value();
            REQUIRE(engine->power_on({}));
            auto r = preset_pcrs(*engine, std::vector<PcrPreset>{{alg::sha1, 3, Bytes(20)}});
            REQUIRE_FALSE(r.has_value());
            CHECK(r.error().code == Errc::tpm);
            CHECK(engine->running());
        }
    }
    TEST_CASE("preset: what is staged stays staged") {
        auto engine = started(v20);
        REQUIRE(engine->has_staged()); // the fresh TPM, not taken yet
        REQUIRE(preset_pcrs(*engine, std::vector<PcrPreset>{{alg::sha1, 3, digest_of(alg::sha1, 3)}}));
        CHECK(engine->has_staged());
    }
}

} // namespace engine_pcr_preset_test
