#include "instance/making/manufacture.hpp"

#include "instance/making/ek_certificates.hpp"
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
    WireWriter out = tpm::begin_command(tpm::tag_rqu_command, tpm::ord::create_endorsement_key_pair);
    out.bytes(anti_replay);
    out.be32(alg_rsa).be16(es_oaep).be16(ss_none); // TPM_KEY_PARMS, Main part 2 section 10.1
    out.be32(rsa_parms_size).be32(ek_bits).be32(two_primes).be32(default_exponent);
    return tpm::finish_command(out);
}

namespace {

Task<Result<Bytes>> make_endorsement_key(Engine& engine, Worker& worker) {
    // The nonce only ties the answer to the question, and both are here.
    WireWriter nonce;
    nonce.bytes(random_uuid().bytes).zeros(tpm::sha1_size - sizeof(Uuid));
    const Bytes command = create_ek_command(nonce.view());
    Bytes answer = co_await worker.run([&engine, &command] { return engine.execute(command, 0); });
    if (auto made = tpm::check_response(answer, "making the endorsement key"); !made) {
        co_return made.error();
    }
    co_return answer;
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
    return {};
}

/// A manager from before certificates, or one that gives none.
Result<void> or_without(Result<void> certified, const Log& log) {
    if (!certified && certified.error().code == Errc::unsupported) {
        log.warning("this TPM has no endorsement key certificates: the manager gives none ({})",
                    certified.error().message);
        return {};
    }
    if (!certified) {
        return in_context(certified.error(), "certifying the endorsement keys");
    }
    return certified;
}

Task<Result<void>> make_12(Engine& engine, Worker& worker, NewTpm wanted, const Log& log) {
    auto answer = co_await make_endorsement_key(engine, worker);
    if (!answer) {
        co_return answer.error();
    }
    if (wanted.certifier != nullptr) {
        auto certified = co_await certify_key_12(engine, std::move(*answer), *wanted.certifier);
        co_return or_without(std::move(certified), log);
    }
    co_return Result<void>{};
}

Task<Result<void>> make_20(Engine& engine, Worker& worker, NewTpm wanted, const Log& log) {
    if (wanted.certifier != nullptr) {
        auto certified = co_await certify_keys_20(engine, worker, *wanted.certifier);
        if (auto made = or_without(std::move(certified), log); !made) {
            co_return made;
        }
    }
    if (!wanted.banks.empty()) {
        if (auto chosen = choose_banks(engine, wanted.banks); !chosen) {
            co_return chosen;
        }
    }
    const Bytes shut = engine.execute(tpm::shutdown_command(tpm::StartupMode::clear), 0);
    co_return tpm::check_response(shut, "shutting a new TPM down");
}

/// Off, also when the task is cancelled: a TPM that is half made must not be taken for one that runs.
struct PowerOff {
    Engine& engine;
    ~PowerOff() { engine.power_off(); }
};

} // namespace

Task<Result<EngineState>> manufacture(Engine& engine, Worker& worker, NewTpm wanted, const Log& log) {
    const TpmVersion version = engine.version();
    PowerOff off{engine};
    auto on = engine.power_on(EngineState{});
    if (!on) {
        co_return std::move(on).error();
    }
    const Bytes started = engine.execute(tpm::startup_command(version, tpm::StartupMode::clear), 0);
    auto made = tpm::check_response(started, "starting a new TPM");
    if (made) {
        auto make = version == TpmVersion::tpm12 ? make_12 : make_20;
        made = co_await make(engine, worker, std::move(wanted), log);
    }
    if (!made) {
        co_return std::move(made).error();
    }
    auto state = engine.snapshot();
    if (state) {
        state->volatile_state.clear();
    }
    co_return state;
}

} // namespace vtpmd::instance
