#include "commands.hpp"
#include "http_client.hpp"
#include "print.hpp"
#include "util/text.hpp"

#include <boost/json.hpp>
#include <cstdio>
#include <fmt/format.h>
#include <sysexits.h>

namespace vtpmctl {

namespace json = boost::json;

namespace {

std::string path_of(const Options& o) {
    const std::string& word = o.words.front();
    if (word.find_first_not_of("0123456789abcdefABCDEF-") != std::string::npos) {
        fail(EX_USAGE, fmt::format("'{}' is not a UUID; vtpmctl group list shows them", word));
    }
    return "/v1/groups/" + word;
}

/// A file, in hexadecimal.
std::string hex_of_file(const std::string& path) { return vtpmd::to_hex(vtpmd::as_bytes(read_file(path))); }

} // namespace

void group_list(const Options& o) { print(o, ask(o, "GET", "/v1/groups")); }

void group_show(const Options& o) { print(o, ask(o, "GET", path_of(o))); }

void group_create(const Options& o) {
    json::object body{{"approver", read_file(*o.one("approver"))}, {"list", hex_of_file(*o.one("list"))}};
    if (auto key = o.one("recovery-key")) {
        body["recovery_key"] = read_file(*key);
        body["recovery_signature"] =
            hex_of_file(o.needed("recovery-signature", "the approver's signature for the recovery key"));
    } else if (o.has("recovery-signature")) {
        o.refuse("takes --recovery-signature together with --recovery-key");
    }
    print(o, ask(o, "POST", "/v1/groups", json::serialize(body)));
}

void group_update(const Options& o) {
    const json::object body{{"list", hex_of_file(*o.one("list"))}};
    print(o, ask(o, "POST", path_of(o) + "/update", json::serialize(body)));
}

void group_recover(const Options& o) {
    const json::object body{{"shared", hex_of_file(*o.one("shared"))}};
    print(o, ask(o, "POST", path_of(o) + "/recover", json::serialize(body)));
}

/// PEM as it is, for a file; or what the manager answers.
void group_ca(const Options& o) {
    const std::string path = path_of(o) + "/ca";
    const auto file = o.one("set");
    if (file && o.has("csr")) {
        fail(EX_USAGE, "--csr and --set do not go together: get the request, have it signed, then set what came of it");
    }
    std::string answer;
    if (file) {
        const json::object body{{"certificates", read_file(*file)}};
        answer = ask(o, "PUT", path, json::serialize(body));
    } else {
        answer = ask(o, "GET", path);
    }
    const json::value v = json::parse(answer);
    std::fputs(o.has("json") ? answer.c_str() : v.at(o.has("csr") ? "request" : "certificates").as_string().c_str(),
               stdout);
}

void group_delete(const Options& o) {
    const std::string path = path_of(o);
    confirm(o, "Delete group " + o.words.front() + " for good?", "Its keys are lost.");
    print(o, ask(o, "DELETE", path));
}

} // namespace vtpmctl
