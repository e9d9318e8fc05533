// What the command line says about the hardware TPM: driver, PCRs, authorisation values, measurements.
#include "check.hpp"
#include "hex.hpp"

#include "hwtpm/drivers/driver_spec.hpp"
#include "hwtpm/drivers/measurements.hpp"
#include "hwtpm/queue/auth.hpp"
#include "tpm/pcr.hpp"

namespace hwtpm_options_test {

using namespace vtpmd;
using namespace vtpmd::hwtpm;

TEST_SUITE("hwtpm") {
    TEST_CASE("drivers are told apart and print as they were given") {
        for (const char* text :
             {"auto", "device:/dev/tpm0", "device:/dev/tpmrm0", "tis:0xfed40000", "tis:0xfed50000", "xen:0", "xen:7",
              "swtpm:unix:/run/a b.sock", "swtpm:tcp:127.0.0.1:2321", "swtpm:tcp:[::1]:1", "embedded:/var/lib/t"}) {
            CAPTURE(text);
            auto spec = parse_driver(text);
            REQUIRE(spec);
            CHECK(to_string(*spec) == text);
        }
        CHECK(to_string(parse_driver("device").value()) == "device:/dev/tpm0");
        CHECK(to_string(parse_driver("tis").value()) == "tis:0xfed40000");
        CHECK(parse_driver("swtpm:tcp:localhost:65534").value().port == 65534);
    }
    TEST_CASE("a TPM over the network is told from one on this machine") {
        for (const char* text : {"swtpm:tcp:localhost:1", "swtpm:tcp:127.0.0.1:1", "swtpm:tcp:127.9.9.9:1",
                                 "swtpm:tcp:[::1]:1", "swtpm:unix:/10.0.0.1", "auto"}) {
            CAPTURE(text);
            CHECK_FALSE(crosses_network(parse_driver(text).value()));
        }
        for (const char* text : {"swtpm:tcp:10.0.0.1:1", "swtpm:tcp:128.0.0.1:1", "swtpm:tcp:[::2]:1",
                                 "swtpm:tcp:127.0.0.1.example.org:1", "swtpm:tcp:tpm:1"}) {
            CAPTURE(text);
            CHECK(crosses_network(parse_driver(text).value()));
        }
    }
    TEST_CASE("drivers that make no sense are refused with what is possible") {
        for (const char* text : {"",
                                 "tpm",
                                 "auto:",
                                 "auto:x",
                                 "device:",
                                 "tis:",
                                 "tis:0xfed40001",
                                 "tis:x",
                                 "xen:",
                                 "xen:-1",
                                 "embedded",
                                 "embedded:",
                                 "swtpm",
                                 "swtpm:",
                                 "swtpm:unix",
                                 "swtpm:unix:",
                                 "swtpm:tcp:",
                                 "swtpm:tcp:host",
                                 "swtpm:tcp::1",
                                 "swtpm:tcp:host:0",
                                 "swtpm:tcp:host:65535",
                                 "swtpm:tcp:host:x"}) {
            CAPTURE(text);
            auto spec = parse_driver(text);
            REQUIRE(!spec);
            CHECK(spec.error().code == Errc::usage);
            CHECK(spec.error().message.find("device[:/dev/tpm0]") != std::string::npos);
        }
    }
    TEST_CASE("PCR selections: round trip, order, ranges, refusals") {
        CHECK(to_string(parse_pcr_selection("sha256:0,2,4,7").value()) == "sha256:0,2,4,7");
        CHECK(to_string(parse_pcr_selection("sha1:7,0").value()) == "sha1:0,7");
        CHECK(to_string(parse_pcr_selection("sha384:12-16,1").value()) == "sha384:1,12,13,14,15,16");
        CHECK(parse_pcr_selection("none").value().pcrs.empty());
        CHECK(to_string(PcrSelection{}) == "none");
        for (const char* text : {"", "0,1", "sha256", "sha256:", "sha256:24", "sha256:1,1", "sha256:3-1", "md5:0",
                                 "sha256:1,", "sha256:-1", "SHA256:1", "sha256:1 ", "sha256:0-3,2"}) {
            CAPTURE(text);
            auto s = parse_pcr_selection(text);
            REQUIRE(!s);
            CHECK(s.error().code == Errc::usage);
        }
    }
    TEST_CASE("differences name bank, index and both values; a bank that is gone is one too") {
        const std::vector<PcrValue> sealed = {{HashAlg::sha256, 0, Bytes(32, std::byte{1})},
                                              {HashAlg::sha256, 7, Bytes(32, std::byte{2})},
                                              {HashAlg::sha1, 7, Bytes(20, std::byte{3})}};
        CHECK(pcr_differences(sealed, sealed).empty());
        std::vector<PcrValue> now = {sealed[0], sealed[1]};
        now[1].digest[31] = std::byte{9};
        auto d = pcr_differences(sealed, now);
        REQUIRE(d.size() == 2);
        CHECK(d[0].starts_with("sha256:7 sealed=0202"));
        CHECK(d[0].ends_with("0209"));
        CHECK(d[1].starts_with("sha1:7 sealed=0303"));
        CHECK(d[1].find("not there") != std::string::npos);
    }
    TEST_CASE("a PCR of all zeros or all ones was never measured into") {
        CHECK(untouched(Bytes(32)));
        CHECK(untouched(Bytes(20, std::byte{0xFF})));
        Bytes touched(32);
        touched[31] = std::byte{1};
        CHECK_FALSE(untouched(touched));
    }
    TEST_CASE("authorisation values in their three spellings, for both families") {
        auto value = [](std::string_view text, TpmVersion v) {
            return to_bytes(parse_auth("--owner-auth", text, v).value().view());
        };
        CHECK(value("well-known", TpmVersion::tpm12) == Bytes(20));
        CHECK(value("well-known", TpmVersion::tpm20).empty());
        CHECK(value("text:abc", TpmVersion::tpm20) == to_bytes(as_bytes("abc")));
        // FIPS 180 example: SHA-1("abc")
        CHECK(value("text:abc", TpmVersion::tpm12) == test::hex("a9993e364706816aba3e25717850c26c9cd0d89d"));
        const std::string twenty = "hash:00112233445566778899aabbccddeeff00112200";
        CHECK(value(twenty, TpmVersion::tpm12).size() == 20);
        CHECK(value(twenty, TpmVersion::tpm20).size() == 19); // the TPM drops trailing zeros
        for (const char* text : {"", "secret-word", "hash:123", "hash:0011", "text"}) {
            auto r = parse_auth("--owner-auth", text, TpmVersion::tpm12);
            REQUIRE(!r);
            CHECK(r.error().code == Errc::usage);
            CHECK(r.error().message.starts_with("--owner-auth"));
            CHECK(r.error().message.find("secret-word") == std::string::npos);
        }
        CHECK(!parse_auth("--srk-auth", "text:" + std::string(33, 'x'), TpmVersion::tpm20));
    }
    TEST_CASE("measurements: banks by the digest's length, comments, the line of an error") {
        auto m = parse_measurements("# boot\n\n 0  " + std::string(64, 'a') + " # firmware\r\n7\t" +
                                    std::string(40, '0') + "\n")
                     .value();
        REQUIRE(m.size() == 2);
        CHECK(m[0].pcr == 0);
        CHECK(m[0].value.alg == 0x000B);
        CHECK(m[1].pcr == 7);
        CHECK(m[1].value.alg == 0x0004);
        for (const char* text : {"\n24 aa", "\n0", "\n0 zz", "\n0 aabb", "\n0 aa bb", "\nx aa"}) {
            auto r = parse_measurements(text);
            REQUIRE(!r);
            CHECK(r.error().message.find("line 2") != std::string::npos);
        }
    }
}

} // namespace hwtpm_options_test
