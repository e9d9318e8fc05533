#include "commands.hpp"
#include "http_client.hpp"
#include "print.hpp"
#include "util/text.hpp"
#include "util/uuid.hpp"
#include "words.hpp"

#include <algorithm>
#include <boost/json.hpp>
#include <cstdio>
#include <fmt/format.h>
#include <optional>
#include <sysexits.h>
#include <unistd.h>

namespace vtpmctl {

namespace json = boost::json;

std::string vtpm_word(const Options& o) {
    const std::string& word = o.words.front();
    if (auto uuid = vtpmd::parse_uuid(word)) {
        return vtpmd::to_string(*uuid);
    }
    const json::value found = json::parse(ask(o, "GET", "/v1/vtpms?name=" + encoded(word)));
    const json::array& all = found.at("vtpms").as_array();
    if (word.empty() || all.empty()) {
        fail(EX_NOINPUT, fmt::format("'{}' is neither a UUID nor a vTPM's name; vtpmctl list shows them", word));
    }
    if (all.size() == 1) {
        return text_of(all[0].at("uuid"));
    }
    constexpr std::size_t told = 10;
    std::string candidates;
    for (std::size_t i = 0; i < std::min(told, all.size()); ++i) {
        candidates += "\n  " + text_of(all[i].at("uuid"));
    }
    fail(EX_USAGE, fmt::format("'{}' is the name of {} vTPMs; say which by its UUID{}:{}", word, all.size(),
                               all.size() > told ? " (the first ten)" : "", candidates));
}

void list(const Options& o) {
    std::string target = "/v1/vtpms";
    for (const char* filter : {"name", "group"}) {
        if (auto value = o.one(filter)) {
            target +=
                fmt::format("{}{}={}", target.find('?') == std::string::npos ? "?" : "&", filter, encoded(*value));
        }
    }
    print(o, ask(o, "GET", target));
}

void show(const Options& o) { print(o, ask(o, "GET", "/v1/vtpms/" + vtpm_word(o))); }

void create(const Options& o) {
    json::object body{{"tpm_version", o.one("tpm-version").value_or("2.0")}};
    for (const char* field : {"group", "name", "user"}) {
        if (auto value = o.one(field)) {
            body[field] = *value;
        }
    }
    if (!o.words.empty()) {
        body["uuid"] = o.words.front();
    }
    print(o, ask(o, "POST", "/v1/vtpms", json::serialize(body)));
}

void rename(const Options& o) {
    const json::object body{{"name", o.words[1]}};
    print(o, ask(o, "PATCH", "/v1/vtpms/" + vtpm_word(o), json::serialize(body)));
}

void chown(const Options& o) {
    const json::object body{{"user", o.words[1]}};
    print(o, ask(o, "PATCH", "/v1/vtpms/" + vtpm_word(o), json::serialize(body)));
}

void move(const Options& o) {
    const json::object body{{"group", *o.one("group")}};
    print(o, ask(o, "PATCH", "/v1/vtpms/" + vtpm_word(o), json::serialize(body)));
}

void start(const Options& o) {
    constexpr std::uint64_t longest = 100; // this program waits for an answer not much longer
    json::object body{{"once", o.has("once")}};
    auto timeout = vtpmd::parse_number(o.one("timeout").value_or("60"), longest);
    if (!timeout || *timeout == 0) {
        o.refuse(fmt::format("--timeout: expected 1 to {} seconds", longest));
    }
    if (o.has("timeout") && !o.has("wait")) {
        o.refuse("--timeout is of use with --wait only");
    }
    if (o.has("wait")) {
        body["wait"] = static_cast<std::int64_t>(*timeout);
    }
    print(o, ask(o, "POST", "/v1/vtpms/" + vtpm_word(o) + "/start", json::serialize(body)));
}

namespace {

std::string stop_one(const Options& o, const std::string& uuid) {
    const json::object body{{"keep_autostart", o.has("keep-autostart")}};
    return ask(o, "POST", "/v1/vtpms/" + uuid + "/stop", json::serialize(body));
}

/// All are tried; whatever fails is told of, and the last failure is the outcome.
void stop_all(const Options& o) {
    std::optional<Failure> failure;
    const json::value found = json::parse(ask(o, "GET", "/v1/vtpms"));
    for (const json::value& v : found.at("vtpms").as_array()) {
        const std::string state = text_of(v.at("state"));
        if (state != "running" && state != "starting") {
            continue;
        }
        const std::string uuid = text_of(v.at("uuid"));
        try {
            (void)stop_one(o, uuid);
        } catch (const Failure& f) {
            std::fprintf(stderr, "vtpmctl: %s: %s\n", uuid.c_str(), f.message.c_str());
            failure = f;
        }
    }
    if (failure) {
        fail(failure->status, "not all were stopped, see above");
    }
}

} // namespace

void stop(const Options& o) {
    if (o.has("all") == !o.words.empty()) {
        o.refuse("name one vTPM, or give --all");
    }
    if (o.has("all")) {
        stop_all(o);
    } else {
        print(o, stop_one(o, vtpm_word(o)));
    }
}

void autostart(const Options& o) {
    const std::string& word = o.words[1];
    if (word != "on" && word != "off") {
        o.refuse(fmt::format("expected on or off, found '{}'", vtpmd::printable(word)));
    }
    const json::object body{{"autostart", word == "on"}};
    print(o, ask(o, "PATCH", "/v1/vtpms/" + vtpm_word(o), json::serialize(body)));
}

void reset(const Options& o) {
    const std::string uuid = vtpm_word(o);
    confirm(o, "Reset vTPM " + uuid + " to factory?", "Its guest's keys are lost.");
    print(o, ask(o, "POST", "/v1/vtpms/" + uuid + "/reset"));
}

void remove(const Options& o) {
    const std::string uuid = vtpm_word(o);
    confirm(o, "Delete vTPM " + uuid + " for good?", "Its guest's keys are lost.");
    const json::value known = json::parse(ask(o, "GET", "/v1/vtpms/" + uuid));
    print(o, ask(o, "DELETE", "/v1/vtpms/" + uuid));
    const auto* image = known.as_object().if_contains("image");
    if (image != nullptr && !o.has("json") && ::access(text_of(*image).c_str(), F_OK) == 0) {
        std::printf("Its image stays, and nothing opens it any more: %s can be removed.\n", text_of(*image).c_str());
    }
}

/// A deep quote into a file, for whoever is to be shown it.
void quote(const Options& o) {
    const std::string uuid = vtpm_word(o);
    const std::string out = *o.one("out");
    json::object body{{"nonce", *o.one("nonce")}};
    for (auto [option, field] : {std::pair{"pcrs", "pcrs"}, {"host-pcrs", "host_pcrs"}}) {
        if (auto value = o.one(option)) {
            body[field] = *value;
        }
    }
    const std::string answer = ask(o, "POST", "/v1/vtpms/" + uuid + "/quote", json::serialize(body));
    const auto bytes = vtpmd::from_hex(text_of(json::parse(answer).as_object().at("quote")));
    if (!bytes) {
        fail(EX_PROTOCOL, fmt::format("the manager's quote: {}", bytes.error().message));
    }
    write_file(out, *bytes);
    if (o.has("json")) {
        std::fputs(answer.c_str(), stdout);
    } else {
        std::printf("%s: the deep quote, %zu bytes; check it with: vtpmctl verify-quote %s\n", out.c_str(),
                    bytes->size(), out.c_str());
    }
}

} // namespace vtpmctl
