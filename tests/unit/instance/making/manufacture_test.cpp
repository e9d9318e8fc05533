#include "check.hpp"
#include "fake_vtpm.hpp"
#include "instance/making/ek_certificates.hpp"
#include "instance/making/endorsement_key.hpp"
#include "instance/making/manufacture.hpp"
#include "run_task.hpp"
#include "tpm/commands.hpp"
#include "util/wire.hpp"

#include <algorithm>

namespace instance_manufacture_test {

using namespace vtpmd;
using namespace vtpmd::instance;
using namespace vtpmd::test;

namespace {

/// A manager's certificate of so many bytes, another for each call.
Bytes certificate(std::size_t n, std::size_t call) {
    Bytes out(n, static_cast<std::byte>(0xc0 + call));
    for (std::size_t i = 0; i < n; ++i) {
        out[i] ^= static_cast<std::byte>(i);
    }
    return out;
}

struct Maker {
    explicit Maker(TpmVersion version)
        : engine(Engine::create(version).value()) {}

    Result<EngineState> make() {
        NewTpm wanted{.banks = {}, .certifier = &manager};
        auto state = run_task(loop, manufacture(*engine, worker, std::move(wanted), log));
        CHECK_FALSE(engine->running());
        return state;
    }
    void start(const EngineState& state) {
        REQUIRE(engine->power_on(state));
        (void)engine->execute(tpm::startup_command(engine->version(), tpm::StartupMode::clear), 0);
    }
    /// What NV has at an index, by the guest's own commands; nullopt: no such index.
    std::optional<Bytes> nv(std::uint32_t index, std::size_t size) {
        Bytes out;
        while (out.size() < size) {
            const auto part = static_cast<std::uint16_t>(std::min<std::size_t>(size - out.size(), 500));
            WireWriter w;
            if (engine->version() == TpmVersion::tpm20) { // TPM2_NV_Read, authorised by the index itself
                w.be16(tpm::st_sessions).be32(0).be32(tpm::cc::nv_read).be32(index).be32(index);
                w.be32(9).be32(tpm::rh::pw).be16(0).u8(0).be16(0);
                w.be16(part).be16(static_cast<std::uint16_t>(out.size()));
            } else {
                w.be16(tpm::tag_rqu_command).be32(0).be32(tpm::ord::nv_read_value).be32(index);
                w.be32(static_cast<std::uint32_t>(out.size())).be32(part);
            }
            w.patch_be32(2, static_cast<std::uint32_t>(w.size()));
            const Bytes answer = engine->execute(w.view(), 0);
            if (!tpm::check_response(answer, "reading NV")) {
                return std::nullopt;
            }
            const std::size_t at = tpm::header_size + (engine->version() == TpmVersion::tpm20 ? 6 : 4);
            REQUIRE(answer.size() >= at + part);
            out.insert(out.end(), answer.begin() + static_cast<std::ptrdiff_t>(at),
                       answer.begin() + static_cast<std::ptrdiff_t>(at + part));
        }
        return out;
    }

    asio::io_context loop;
    Worker worker;
    fakes::Points points{loop.get_executor()};
    fakes::FakeManager manager{points};
    std::vector<std::string> lines;
    Log log{LogLevel::info, [this](LogLevel, std::string_view line) { lines.emplace_back(line); }};
    std::unique_ptr<Engine> engine;
};

} // namespace

TEST_SUITE("instance") {
    TEST_CASE(
        "manufacture: a TPM 2.0's keys are certified, and the certificates are where guests look, up to the largest") {
        for (const std::size_t size : {std::size_t{700}, proto::ek_certificate_limit}) {
            Maker m(TpmVersion::tpm20);
            m.manager.certify_answer = [&](std::size_t n) { return certificate(size, n); };
            const auto state = m.make();
            REQUIRE(state);
            REQUIRE(m.manager.certified.size() == 2);
            m.start(*state);
            CHECK(m.nv(nv_ek_certificate_rsa, size) == certificate(size, 1));
            CHECK(m.nv(nv_ek_certificate_ecc, size) == certificate(size, 2));
            CHECK_FALSE(m.nv(nv_ek_certificate_rsa, size + 1)); // that is all of it
            for (const proto::CertifyRequest& asked : m.manager.certified) {
                CHECK(asked.key == make_endorsement_key_20(*m.engine, asked.kind).value());
                CHECK(asked.tpm.manufacturer == 0x49424D00); // "IBM", as libtpms says
                CHECK(asked.tpm.revision >= 159);
                CHECK(asked.tpm.firmware != 0);
            }
            CHECK(m.manager.certified[0].kind != m.manager.certified[1].kind);
            m.engine->power_off();
        }
    }

    TEST_CASE("manufacture: a TPM 1.2's certificate has the PC client's header, and the largest fits") {
        Maker m(TpmVersion::tpm12);
        const std::size_t size = proto::ek_certificate_limit;
        m.manager.certify_answer = [&](std::size_t n) { return certificate(size, n); };
        const auto state = m.make();
        REQUIRE(state);
        REQUIRE(m.manager.certified.size() == 1);
        CHECK(m.manager.certified[0].kind == proto::EkKind::rsa_2048);
        CHECK(m.manager.certified[0].tpm.manufacturer == 0x49424D00);
        CHECK(m.manager.certified[0].tpm.level == 2);
        CHECK(m.manager.certified[0].tpm.revision == 116);
        m.start(*state);
        WireWriter expected;
        expected.be16(0x1001).u8(0).be16(static_cast<std::uint16_t>(size + 2)).be16(0x1002).bytes(certificate(size, 1));
        CHECK(m.nv(nv_ek_certificate_12, size + 7) == expected.take());
        m.engine->power_off();
    }

    TEST_CASE(
        "manufacture: a manager that gives no certificates makes a TPM without; one that refuses, or goes, none") {
        Maker m(TpmVersion::tpm20);
        auto without = m.make();
        REQUIRE(without);
        CHECK(std::ranges::count_if(m.lines, [](const std::string& line) {
                  return line.find("no endorsement key certificates") != std::string::npos;
              }) == 1);
        m.start(*without);
        CHECK_FALSE(m.nv(nv_ek_certificate_rsa, 1));
        m.engine->power_off();

        for (const Errc why : {Errc::pcr_mismatch, Errc::unavailable, Errc::usage}) {
            for (const std::size_t at : {1, 2}) {
                m.manager.certified.clear();
                m.manager.certify_answer = [&](std::size_t n) -> Result<Bytes> {
                    return n == at ? Result<Bytes>(make_error(why, "fake: no")) : certificate(100, n);
                };
                const auto state = m.make();
                REQUIRE(state.has_error());
                CHECK(state.error().code == why);
                CHECK(m.manager.certified.size() == at);
            }
        }
    }

    TEST_CASE("manufacture: PCR banks that libtpms has, and one that it has not") {
        auto engine = Engine::create(TpmVersion::tpm20).value();
        asio::io_context loop;
        Worker worker;
        const Log log(LogLevel::error);
        // SM3 is none of libtpms' banks. Nothing is left half made: the engine can be started again.
        auto refused = run_task(loop, manufacture(*engine, worker, {.banks = {tpm::alg::sha256, 0x0012}}, log));
        REQUIRE_FALSE(refused);
        CHECK(refused.error().code == Errc::unsupported);
        CHECK(refused.error().message.find("0x0012 (--pcr-banks)") != std::string::npos);
        auto made = run_task(loop, manufacture(*engine, worker, {.banks = {tpm::alg::sha1}}, log));
        REQUIRE(made);
        REQUIRE(engine->power_on(std::move(*made)));
        (void)engine->execute(tpm::startup_command(TpmVersion::tpm20, tpm::StartupMode::clear), 0);
        auto banks = tpm::parse_capability_pcrs(engine->execute(tpm::get_capability_pcrs_command(), 0));
        REQUIRE(banks);
        for (const tpm::PcrBank& bank : *banks) {
            CAPTURE(bank.alg);
            CHECK(bank.pcrs == (bank.alg == tpm::alg::sha1 ? 0xFFFFFFU : 0U));
        }
        engine->power_off();
    }
}

} // namespace instance_manufacture_test
