#include "check.hpp"
#include "guest/locality_policy.hpp"
#include "guest/tpm12_questions.hpp"
#include "tpm/header.hpp"
#include "util/text.hpp"

namespace guest_xen_test {

using namespace vtpmd;
using namespace vtpmd::guest;

namespace {

Bytes bytes(std::string_view hex) { return from_hex(hex).value(); }
std::string answer(std::string_view hex) {
    const Bytes command = bytes(hex);
    auto a = answer_tpm12_question(command);
    return a ? to_hex(*a) : "the TPM's";
}
std::string refused(tpm::Refusal why) { return to_hex(tpm::error_response(TpmVersion::tpm12, why)); }

} // namespace

TEST_SUITE("guest") {
    TEST_CASE("TPM 1.2 questions to a TPM 2.0: timeouts and durations, as xen-tpmfront asks for them") {
        CHECK(answer("00c100000016000000650000000500000004"
                     "00000115") == "00c40000001e00000000"
                                    "00000010"
                                    "000b71b0001e8480000b71b0000b71b0");
        CHECK(answer("00c100000016000000650000000500000004"
                     "00000120") == "00c40000001a00000000"
                                    "0000000c"
                                    "002dc6c0002dc6c023c34600");
    }
    TEST_CASE("TPM 1.2 questions to a TPM 2.0: everything else is refused in TPM 1.2's form") {
        const std::string no = refused(tpm::Refusal::bad_ordinal);
        CHECK(no == "00c40000000a0000000a");
        CHECK(answer("00c100000016000000650000000500000004"
                     "00000103") == no);                             // manufacturer
        CHECK(answer("00c100000012000000650000000600000000") == no); // another capability
        CHECK(answer("00c10000000a00000053") == no);                 // ContinueSelfTest
        CHECK(answer("00c20000000a00000065") == no);                 // with authorisation
        CHECK(answer("00c100000017000000650000000500000004"
                     "00000115"
                     "00") == no); // a byte too many
        CHECK(answer("00c10000000a00000065") == no);
        CHECK(answer("00c1000000ff00000053") == refused(tpm::Refusal::bad_size));
    }
    TEST_CASE("TPM 1.2 questions to a TPM 2.0: the TPM's own commands pass") {
        CHECK(answer("80010000000c0000017b0008") == "the TPM's");
        CHECK(answer("8002000000ff0000017b") == "the TPM's");
        CHECK(answer("00c1") == "the TPM's"); // no command at all: refused there
        CHECK(answer("") == "the TPM's");
    }
    TEST_CASE("locality policy: the first rule that fits; locality 0 where none does") {
        LocalityPolicy policy;
        const auto allowed = [&](xen::DomId domain, std::optional<std::string> label) {
            std::string out;
            for (std::uint8_t l = 0; l < 9; ++l) {
                out += policy.of(domain, label).allows(l) ? std::to_string(l) : "";
            }
            return out;
        };
        CHECK(allowed(5, std::nullopt) == "0");
        REQUIRE(policy.add("dom:5=0,2-3"));
        REQUIRE(policy.add("label:system_u:system_r:pvgrub_t=1"));
        REQUIRE(policy.add("label:a=b=4"));
        CHECK(allowed(5, std::nullopt) == "023");
        CHECK(allowed(6, std::nullopt) == "0");
        CHECK(allowed(6, "system_u:system_r:pvgrub_t") == "1");
        CHECK(allowed(5, "system_u:system_r:pvgrub_t") == "023");
        CHECK(allowed(6, "a=b") == "4");
        REQUIRE(policy.add("*=0-1"));
        CHECK(allowed(6, std::nullopt) == "01");
    }
    TEST_CASE("locality policy: rules that make no sense") {
        for (const char* rule : {"", "5", "dom:5", "dom:=0", "dom:40000=0", "dom:5=", "dom:5=5", "dom:5=2-1", "dom:5=a",
                                 "label:=0", "uuid:x=0", "=0", "**=0", "*=0,"}) {
            LocalityPolicy policy;
            auto added = policy.add(rule);
            CAPTURE(rule);
            REQUIRE_FALSE(added);
            CHECK(added.error().code == Errc::usage);
            CHECK(policy.empty());
        }
    }
}

} // namespace guest_xen_test
