#include "check.hpp"
#include "util/command_line.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <unistd.h>

namespace util_command_line_test {

using namespace vtpmd;

namespace {
constexpr OptionSpec specs[] = {
    {"config", "FILE", "more options"}, {"store", "PATH", "where"},
    {"create", "", "make it"},          {"guest", "ENDPOINT", "who", true},
    {"owner-auth", "AUTH", "auth"},     {"tpm-locality", "N", "locality", false, "tpmlocality"},
};

Result<CommandLine> parse(std::vector<std::string> arguments, std::string config = "") {
    return CommandLine::parse({specs, std::move(arguments), std::move(config)});
}

struct TempFile {
    explicit TempFile(const std::string& text) {
        int fd = ::mkstemp(path.data());
        REQUIRE(fd >= 0);
        ::close(fd);
        std::ofstream(path) << text;
    }
    ~TempFile() { std::remove(path.c_str()); }
    TempFile(const TempFile&) = delete;
    TempFile& operator=(const TempFile&) = delete;
    std::string path = "/tmp/vtpmd-conf-XXXXXX";
};
} // namespace

TEST_SUITE("util") {
    TEST_CASE("command line: values, switches, repeats") {
        auto c = parse({"--store=/a b", "--create", "--guest=x", "--guest", "y"});
        REQUIRE(c);
        CHECK(c->get("store") == "/a b");
        CHECK(c->flag("create").value());
        CHECK(c->all("guest") == std::vector<std::string>{"x", "y"});
        CHECK_FALSE(c->has("owner-auth"));
    }
    TEST_CASE("command line: old spellings as key=value words") {
        auto c = parse({"owner_auth=well-known", "tpmlocality=2"});
        REQUIRE(c);
        CHECK(c->get("owner-auth") == "well-known");
        CHECK(c->get("tpm-locality") == "2");
    }
    TEST_CASE("command line: a switch does not swallow the word that follows it") {
        auto c = parse({"--create", "owner_auth=well-known"});
        REQUIRE(c);
        CHECK(c->flag("create").value());
        CHECK(c->get("owner-auth") == "well-known");
    }
    TEST_CASE("command line: help is no wider than a terminal") {
        constexpr OptionSpec wordy[] = {
            {"short", "", "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"},
            {"an-option-with-a-long-name", "ARGUMENT", "help"},
        };
        const std::string text = CommandLine::help(wordy);
        CHECK(text.find("\n                              thirteen fourteen fifteen\n") != std::string::npos);
        CHECK(text.find("=ARGUMENT\n                              help\n") != std::string::npos);
        std::size_t start = 0;
        for (std::size_t end = text.find('\n'); end != std::string::npos; end = text.find('\n', start)) {
            CHECK(end - start <= 100);
            start = end + 1;
        }
    }
    TEST_CASE("command line: what is wrong is named") {
        for (const auto& wrong :
             std::vector<std::pair<std::vector<std::string>, std::string>>{{{"--stor=x"}, "stor"},
                                                                           {{"--nonsense"}, "nonsense"},
                                                                           {{"stray"}, "stray"},
                                                                           {{"what=ever"}, "what=ever"},
                                                                           {{"--store=a", "--store=b"}, "store"},
                                                                           {{"--store"}, "store"},
                                                                           {{"-x"}, "x"}}) {
            CAPTURE(wrong.second);
            auto c = parse(wrong.first);
            REQUIRE_FALSE(c);
            CHECK(c.error().code == Errc::usage);
            CHECK(c.error().message.find(wrong.second) != std::string::npos);
        }
        auto c = parse({"--create=perhaps"});
        REQUIRE(c);
        CHECK_FALSE(c->flag("create"));
    }
    TEST_CASE("command line: it wins over the configuration file") {
        TempFile file("# a comment\nstore = /from/file\nguest = a\nguest = b\ncreate = yes\n");
        auto c = parse({"--config=" + file.path, "--guest=c"});
        REQUIRE(c);
        CHECK(c->get("store") == "/from/file");
        CHECK(c->all("guest") == std::vector<std::string>{"c"});
        CHECK(c->flag("create").value());
        CHECK(parse({}, file.path)->get("store") == "/from/file");
        CHECK(parse({"--create=no"}, file.path)->flag("create").value() == false);
        CHECK(c->is_from_file("store"));
        CHECK_FALSE(c->is_from_file("guest"));
        CHECK_FALSE(c->is_from_file("help"));
    }
    TEST_CASE("command line: a configuration file as editors on other systems write it") {
        TempFile file("\xEF\xBB\xBF# first\r\nstore = /a b # and why\r\n\r\n\tguest=c=d\r\ncreate =\r\nguest = e");
        auto c = parse({}, file.path);
        REQUIRE(c);
        CHECK(c->get("store") == "/a b");
        CHECK(c->all("guest") == std::vector<std::string>{"c=d", "e"});
        CHECK(c->get("create") == "");
    }
    TEST_CASE("command line: a bad configuration file is named, with the line and what was meant") {
        for (const auto& example : std::vector<std::pair<std::string, std::string>>{
                 {"# one\nnonsense = 1\n", "line 2: there is no option 'nonsense';"},
                 {"stor = 1\n", "line 1: there is no option 'stor'; did you mean store?"},
                 {"\n\ncreate\n", "line 3: 'create' is not name = value"},
                 {"[section]\nstore = a\n", "line 1: '[section]' is not name = value"},
                 {"= 1\n", "line 1: there is no option ''"},
                 {"store = a\nstore = b\n", "--store is given 2 times"}}) {
            const std::string& content = example.first;
            const std::string& words = example.second;
            CAPTURE(content);
            TempFile file(content);
            auto c = parse({}, file.path);
            REQUIRE_FALSE(c);
            CHECK(c.error().code == Errc::usage);
            CHECK(c.error().message.find(file.path) != std::string::npos);
            CHECK(c.error().message.find(words) != std::string::npos);
        }
        CHECK(parse({"--stor=x"}).error().message.find("did you mean store?") != std::string::npos);
        CHECK(parse({"--config=/nonexistent/x"}).error().code == Errc::not_found);
        CHECK(parse({}, "/nonexistent/x"));
    }
}

} // namespace util_command_line_test
