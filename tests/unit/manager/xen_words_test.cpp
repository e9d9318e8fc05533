#include "check.hpp"
#include "manager/command_line.hpp"
#include "manager/xen_words.hpp"

namespace manager_xen_words_test {

using namespace vtpmd;
using namespace vtpmd::manager;

namespace {
Result<ManagerOptions> parse(const std::vector<std::string>& words) {
    auto translated = translate_xen_words(words);
    if (!translated) {
        return translated.error();
    }
    auto line = CommandLine::parse({option_specs(), std::move(translated->arguments), ""});
    if (!line) {
        return line.error();
    }
    return parse_options(*line);
}
} // namespace

TEST_SUITE("manager") {
    TEST_CASE("words of vtpmmgr-stubdom: each is what it is there") {
        CHECK(parse({"owner_auth=well-known"})->tpm.owner_auth == "well-known");
        CHECK(parse({"owner_auth=text:x"})->tpm.owner_auth == "text:x");
        CHECK(parse({"srk_auth=text:y"})->tpm.srk_auth == "text:y");
        CHECK(parse({"srk_handle=81000002"})->tpm.srk_handle == 0x81000002U);
        CHECK(parse({"srk_handle=0x81000002"})->tpm.srk_handle == 0x81000002U);
        CHECK(parse({"tpmdriver=tpm_tis"})->tpm.driver == "tis");
        CHECK(parse({"tpmdriver=tpmfront"})->tpm.driver == "xen");
        CHECK(parse({"tpmiomem=0xfed40000"})->tpm.driver == "tis:0xfed40000");
        CHECK(parse({"tpmdriver=tpm_tis", "tpmiomem=fed40000"})->tpm.driver == "tis:0xfed40000");
        CHECK(parse({"tpmlocality=2"})->tpm.locality == 2);
        CHECK(parse({"loglevel=debug"}));
    }
    TEST_CASE("words of vtpmmgr-stubdom: one without effect is told of") {
        for (const char* word : {"tpmirq=0", "tpmirq=probe", "tpmirq=7", "tpm2=1", "tpm2=0"}) {
            CAPTURE(word);
            auto translated = translate_xen_words({word});
            REQUIRE(translated);
            CHECK(translated->arguments.empty());
            REQUIRE(translated->notices.size() == 1);
            CHECK(translated->notices[0].find("has no effect") != std::string::npos);
        }
    }
    TEST_CASE("words of vtpmmgr-stubdom: a refusal says what takes the word's place") {
        auto said = [](const char* word) { return parse({word}).error().message; };
        CHECK(said("owner_auth=random").find("hash:HEX") != std::string::npos);
        CHECK(said("srk_auth=random").find("hash:HEX") != std::string::npos);
        CHECK(said("tpmdriver=tpm_crb").find("tpm_tis or tpmfront") != std::string::npos);
        CHECK(said("tpmirq=often").find("expected 0, probe") != std::string::npos);
        CHECK(said("tpm2=2").find("expected 0 or 1") != std::string::npos);
        CHECK(parse({"tpmdriver=tpmfront", "tpmiomem=0xfed40000"}).error().code == Errc::usage);
        CHECK(said("nonsense").find("is not an option") != std::string::npos);
    }
}

} // namespace manager_xen_words_test
