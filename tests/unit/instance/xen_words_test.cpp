#include "check.hpp"
#include "instance/command_line.hpp"
#include "instance/xen_words.hpp"

namespace instance_xen_words_test {

using namespace vtpmd;
using namespace vtpmd::instance;

namespace {
const std::string name = "--uuid=01234567-89ab-cdef-0123-456789abcdef";

Result<InstanceOptions> parse(std::vector<std::string> words) {
    words.insert(words.begin(), name);
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

TEST_SUITE("instance") {
    TEST_CASE("words of vtpm-stubdom: each is what it is there") {
        CHECK(parse({"clear"})->startup == Startup::clear);
        CHECK(parse({"save"})->startup == Startup::save);
        CHECK(parse({"deactivated"})->startup == Startup::deactivated);
        CHECK(parse({"maintcmds=1"})->maintenance_commands);
        CHECK_FALSE(parse({"maintcmds=0"})->maintenance_commands);
        for (const char* level : {"error", "info", "debug"}) {
            CAPTURE(level);
            CHECK(parse({std::string("loglevel=") + level}));
        }
        CHECK(parse({"hwinitpcr=all"})->hwinitpcrs.size() == 24);
        CHECK(parse({"hwinitpcr=none"})->hwinitpcrs.empty());
        CHECK(parse({"hwinitpcr=none,5"})->hwinitpcrs == std::vector<unsigned>{5});
        CHECK(parse({"hwinitpcr=5,16-14"})->hwinitpcrs == std::vector<unsigned>{5, 14, 15, 16});
        CHECK(parse({"hwinitpcrs=5,all"})->hwinitpcrs.size() == 24);
        auto o = parse({"locality=system_u:vm_r:guest_t=0,2", "locality=*:vm_r:other_t=3"});
        REQUIRE(o);
        CHECK(o->localities.of(7, "system_u:vm_r:guest_t").allows(2));
        CHECK_FALSE(o->localities.of(7, "user_u:vm_r:guest_t").allows(2));
        CHECK(o->localities.of(7, "user_u:vm_r:other_t").allows(3));
    }
    TEST_CASE("words of vtpm-stubdom: a refusal says what takes the word's place") {
        auto said = [](const char* word) { return parse({word}).error().message; };
        CHECK(said("tpm2=1").find("--tpm-version=2.0") != std::string::npos);
        CHECK(said("locality=guest_t").find("locality=LABEL=LIST") != std::string::npos);
        CHECK(said("hwinitpcr=24").find("PCR numbers from 0 to 23") != std::string::npos);
        CHECK(said("nonsense").find("is not an option") != std::string::npos);
        CHECK(parse({"clear", "save"}).error().code == Errc::usage);
    }
    TEST_CASE("words of vtpm-stubdom: an option's value is no word") {
        auto translated = translate_xen_words({name, "--startup", "save", "--create", "clear"});
        REQUIRE(translated);
        CHECK(translated->arguments ==
              std::vector<std::string>{name, "--startup", "save", "--create", "--startup=clear"});
    }
}

} // namespace instance_xen_words_test
