#include "manager/links/tpm_proxy.hpp"

#include "check.hpp"
#include "fake_root_of_trust.hpp"
#include "loop.hpp"
#include "tpm/commands.hpp"
#include "util/text.hpp"
#include "util/wire.hpp"

namespace manager_tpm_proxy_test {

using namespace vtpmd;
using hwtpm::HashAlg;

namespace {

struct Proxy {
    fakes::Loop loop;
    fakes::FakeTpm tpm;
    manager::PeerRight right = manager::PeerRight::vtpm;
    Result<Bytes> run(Bytes command) {
        fakes::FakeRootOfTrust root(tpm);
        return loop.run(manager::run_tpm_command(root, std::move(command), right));
    }
    std::uint32_t code(Bytes command) {
        auto response = run(std::move(command));
        REQUIRE(response);
        auto header = tpm::parse_header(*response);
        REQUIRE(header);
        return header->code;
    }
};

Bytes command(std::uint16_t tag, std::uint32_t code, ByteView body) {
    WireWriter w;
    w.be16(tag).be32(static_cast<std::uint32_t>(10 + body.size())).be32(code).bytes(body);
    return w.take();
}

} // namespace

TEST_SUITE("manager") {
    TEST_CASE("passed on: randomness, in both families") {
        Proxy p;
        for (TpmVersion v : {TpmVersion::tpm12, TpmVersion::tpm20}) {
            auto response = p.run(tpm::get_random_command(v, 20));
            REQUIRE(response);
            CHECK(tpm::parse_get_random(v, *response).value().size() == 20);
            response = p.run(tpm::get_random_command(v, 0));
            REQUIRE(response);
            CHECK(tpm::parse_get_random(v, *response).value().empty());
            response = p.run(tpm::get_random_command(v, 0xFFFF));
            REQUIRE(response);
            CHECK(response->size() <= tpm::packet_limit);
            CHECK(tpm::parse_get_random(v, *response).value().size() >= 64);
        }
        Bytes lots = command(0x00C1, 0x46, from_hex("ffffffff").value());
        CHECK(p.run(lots)->size() <= tpm::packet_limit);
    }
    TEST_CASE("passed on: TPM_PcrRead is the SHA-1 bank, TPM_BADINDEX without one or past the last PCR") {
        Proxy p;
        auto response = p.run(tpm::pcr_read_command(17));
        REQUIRE(response);
        CHECK(to_bytes(tpm::parse_pcr_value(*response).value()) == p.tpm.pcrs[{HashAlg::sha1, 17}]);
        CHECK(p.code(tpm::pcr_read_command(24)) == 2);
        CHECK(p.code(command(0x00C1, 0x15, from_hex("ffffffff").value())) == 2);
        p.tpm.banks = {HashAlg::sha256};
        CHECK(p.code(tpm::pcr_read_command(17)) == 2);
    }
    TEST_CASE("passed on: TPM2_PCR_Read gives the first eight, says which, and leaves out banks that are not there") {
        Proxy p;
        std::vector<tpm::PcrBank> banks{{.alg = tpm::alg::sha384, .pcrs = 0xFFFFFF},
                                        {.alg = tpm::alg::sha1, .pcrs = 0x000006},
                                        {.alg = tpm::alg::sha256, .pcrs = 0xFFFFFF}};
        auto response = p.run(tpm::pcr_read_command(banks));
        REQUIRE(response);
        auto reply = tpm::parse_pcr_read(*response);
        REQUIRE(reply);
        REQUIRE(reply->digests.size() == 8);
        CHECK(reply->banks == std::vector<tpm::PcrBank>{{.alg = tpm::alg::sha384, .pcrs = 0},
                                                        {.alg = tpm::alg::sha1, .pcrs = 0x06},
                                                        {.alg = tpm::alg::sha256, .pcrs = 0x3F}});
        CHECK(reply->digests[0] == p.tpm.pcrs[{HashAlg::sha1, 1}]);
        CHECK(reply->digests[7] == p.tpm.pcrs[{HashAlg::sha256, 5}]);
        banks = {{.alg = tpm::alg::sha256, .pcrs = 0}};
        CHECK(p.code(tpm::pcr_read_command(banks)) == 0);
    }
    TEST_CASE("passed on: everything else and everything malformed is refused, and the TPM never hears of it") {
        Proxy p;
        for (std::uint32_t code = 0; code < 0x200; ++code) {
            if (code != 0x46 && code != 0x15) {
                CHECK(p.code(command(0x00C1, code, {})) == 10);
            }
            if (code != 0x17B && code != 0x17E) {
                CHECK(p.code(command(0x8001, code, {})) == 0x143);
            }
        }
        CHECK(p.code(command(0x00C2, 0x46, from_hex("00000010").value())) == 30);
        CHECK(p.code(command(0x8002, 0x17B, from_hex("0010").value())) != 0);
        // Truncated at every length, and one byte longer.
        std::vector<tpm::PcrBank> banks{{.alg = tpm::alg::sha256, .pcrs = 7}};
        for (Bytes whole :
             {tpm::get_random_command(TpmVersion::tpm12, 8), tpm::get_random_command(TpmVersion::tpm20, 8),
              tpm::pcr_read_command(3U), tpm::pcr_read_command(banks)}) {
            ByteView body = ByteView(whole).subspan(10);
            std::uint16_t tag = tpm::peek_header(whole).tag;
            std::uint32_t ordinal = tpm::peek_header(whole).code;
            for (std::size_t n = 0; n < body.size(); ++n) {
                CHECK(p.code(command(tag, ordinal, body.first(n))) != 0);
            }
            Bytes longer = to_bytes(body);
            longer.push_back(std::byte{0});
            CHECK(p.code(command(tag, ordinal, longer)) != 0);
            CHECK(p.run(Bytes(whole.begin(), whole.end() - 1))); // the size in the header is wrong: answered
        }
        CHECK(p.code(command(0x8001, 0x17E,
                             from_hex("00000001"
                                      "000b"
                                      "05"
                                      "0000000000")
                                 .value())) != 0);
        CHECK(p.code(command(0x8001, 0x17E,
                             from_hex("00000001"
                                      "7777"
                                      "03"
                                      "000000")
                                 .value())) == 0x1C3);
        CHECK(p.code(command(0x8001, 0x17E, from_hex("00000011").value())) != 0);
        CHECK(p.tpm.calls.empty());
    }
    TEST_CASE("passed on: TPM_Extend, from the administrator's vTPM only") {
        Proxy p;
        WireWriter w;
        w.be32(20).bytes(Bytes(20, std::byte{7}));
        const Bytes extend = command(0x00C1, 0x14, w.view());
        CHECK(p.code(extend) == 0x0A);
        CHECK(p.tpm.calls.empty());
        p.right = manager::PeerRight::administrator;
        auto response = p.run(extend);
        REQUIRE(response);
        CHECK(to_hex(*response) == "00c40000001e00000000" + to_hex(Bytes(20, std::byte{7})));
        CHECK(p.tpm.pcrs[{HashAlg::sha1, 20}] == Bytes(20, std::byte{7}));
        for (std::size_t n = 0; n < w.view().size(); ++n) {
            CHECK(p.code(command(0x00C1, 0x14, w.view().first(n))) != 0);
        }
        CHECK(p.code(command(0x00C1, 0x14, WireWriter().be32(24).bytes(Bytes(20)).view())) == 2);
        p.tpm.banks = {HashAlg::sha256};
        CHECK(p.code(extend) == 2);
        CHECK(p.tpm.calls.size() == 1);
    }
    TEST_CASE("passed on: what the hardware fails at is an error") {
        Proxy p;
        p.tpm.before = [](std::string_view) { return std::optional(make_error(Errc::timed_out, "no answer")); };
        CHECK(p.run(tpm::get_random_command(TpmVersion::tpm20, 8)).has_error());
        CHECK(p.run(tpm::pcr_read_command(3U)).has_error());
    }
}

} // namespace manager_tpm_proxy_test
