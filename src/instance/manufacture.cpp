#include "instance/manufacture.hpp"

#include "tpm/commands.hpp"
#include "util/uuid.hpp"
#include "util/wire.hpp"

#include <algorithm>

namespace vtpmd::instance {

namespace {
// TPM Main part 2: sections 4.8 (TPM_ALG_RSA), 5.8.4.1 (TPM_ES_RSAESOAEP_SHA1_MGF1), 5.8.5.1 (TPM_SS_NONE).
constexpr std::uint32_t alg_rsa = 1;
constexpr std::uint16_t es_oaep = 3;
constexpr std::uint16_t ss_none = 1;
constexpr std::uint32_t rsa_parms_size = 12;
constexpr std::uint32_t ek_bits = 2048;
constexpr std::uint32_t two_primes = 2;
constexpr std::uint32_t default_exponent = 0; // its length: 0 is 2^16 + 1
} // namespace

Bytes create_ek_command(ByteView anti_replay) {
    WireWriter out;
    out.be16(tpm::tag_rqu_command).be32(0).be32(tpm::ord::create_endorsement_key_pair);
    out.bytes(anti_replay);
    out.be32(alg_rsa).be16(es_oaep).be16(ss_none); // TPM_KEY_PARMS, Main part 2 section 10.1
    out.be32(rsa_parms_size).be32(ek_bits).be32(two_primes).be32(default_exponent);
    out.patch_be32(2, static_cast<std::uint32_t>(out.size()));
    return out.take();
}

namespace {

Task<Result<void>> make_endorsement_key(Engine& engine, Worker& worker) {
    // The nonce only ties the answer to the question, and both are here.
    WireWriter nonce;
    nonce.bytes(random_uuid().bytes).zeros(tpm::sha1_size - sizeof(Uuid));
    const Bytes command = create_ek_command(nonce.view());
    const Bytes answer = co_await worker.run([&engine, &command] { return engine.execute(command, 0); });
    co_return tpm::check_response(answer, "making the endorsement key");
}

/// TPM2_PCR_Allocate changes the banks that it names only, so all are named. They are active after the next start.
Result<void> choose_banks(Engine& engine, const std::vector<std::uint16_t>& wanted) {
    auto banks = tpm::parse_capability_pcrs(engine.execute(tpm::get_capability_pcrs_command(), 0));
    if (!banks) {
        return banks.error();
    }
    for (const std::uint16_t alg : wanted) {
        if (std::none_of(banks->begin(), banks->end(), [alg](const tpm::PcrBank& b) { return b.alg == alg; })) {
            return make_error(Errc::unsupported,
                              "this libtpms has no PCR bank of the hash algorithm {:#06x} (--pcr-banks)", alg);
        }
    }
    for (tpm::PcrBank& bank : *banks) {
        const bool active = std::find(wanted.begin(), wanted.end(), bank.alg) != wanted.end();
        bank.pcrs = active ? (1U << tpm::pcr_count) - 1 : 0;
    }
    auto done = tpm::parse_pcr_allocate(engine.execute(tpm::pcr_allocate_command(*banks), 0));
    if (!done) {
        return done.error();
    }
    if (!*done) {
        return make_error(Errc::tpm, "the TPM has no room for these PCR banks (--pcr-banks)");
    }
    const Bytes shut = engine.execute(tpm::shutdown_command(tpm::StartupMode::clear), 0);
    return tpm::check_response(shut, "shutting a new TPM down");
}

} // namespace

Task<Result<EngineState>> manufacture(Engine& engine, Worker& worker, std::vector<std::uint16_t> banks) {
    const TpmVersion version = engine.version();
    auto on = engine.power_on(EngineState{});
    if (!on) {
        co_return std::move(on).error();
    }
    const Bytes started = engine.execute(tpm::startup_command(version, tpm::StartupMode::clear), 0);
    auto made = tpm::check_response(started, "starting a new TPM");
    if (made && version == TpmVersion::tpm12) {
        made = co_await make_endorsement_key(engine, worker);
    } else if (made) {
        made = choose_banks(engine, banks);
    }
    if (!made) {
        engine.power_off();
        co_return std::move(made).error();
    }
    auto state = engine.snapshot();
    engine.power_off();
    if (state) {
        state->volatile_state.clear();
    }
    co_return state;
}

} // namespace vtpmd::instance
