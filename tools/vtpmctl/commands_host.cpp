#include "backup.hpp"
#include "commands.hpp"
#include "http_client.hpp"
#include "made_file.hpp"
#include "print.hpp"
#include "top.hpp"
#include "util/secret_bytes.hpp"

#include "util/text.hpp"

#include <boost/json.hpp>
#include <cstdio>
#include <limits>
#include <span>
#include <utility>

namespace vtpmctl {

namespace json = boost::json;

void status(const Options& o) { print(o, ask(o, "GET", "/v1/host")); }

void seal(const Options& o) { print(o, ask(o, "GET", "/v1/seal")); }

void freshness(const Options& o) { print(o, ask(o, "GET", "/v1/freshness")); }

void metrics(const Options& o) { std::fputs(ask(o, "GET", "/metrics").c_str(), stdout); }

void live_view(const Options& o) {
    top(o, [&o] { return ask(o, "GET", "/v1/top"); });
}

namespace {

/// A recovery key as its operator knows it.
std::string key_words(const json::value& key) {
    const std::string label = text_of(key.at("label"));
    return text_of(key.at("id")) + (label.empty() ? "" : fmt::format(" ({})", label));
}

/// What a file is, beside the store that is open.
void verify_copy(const Options& o, const std::string& file) {
    const std::string answer = ask(o, "POST", "/v1/backup/verify", read_copy(file));
    if (o.has("json")) {
        print(o, answer);
        return;
    }
    json::object seen = json::parse(answer).as_object();
    const json::array opened_by = seen.at("opened_by").as_array(), not_opened_by = seen.at("not_opened_by").as_array();
    seen.erase("opened_by");
    seen.erase("not_opened_by");
    print(o, json::serialize(seen));
    const std::string relation = text_of(seen.at("relation"));
    if (relation == "newest") {
        std::puts("It has all that the store has.");
    } else if (relation == "older") {
        std::puts("It is an older copy: what was changed since is not in it. In the place of the store it is refused, "
                  "if the\n"
                  "counter has moved since.");
    } else {
        std::puts(
            "It is a fork: it has what the store has not, so it went on by itself. One of the two has to be given up.");
    }
    if (opened_by.empty()) {
        std::puts("No recovery key opens it: without this TPM it is lost.");
    }
    for (const json::value& key : opened_by) {
        std::printf("Recovery key %s opens it.\n", key_words(key).c_str());
    }
    for (const json::value& key : not_opened_by) {
        std::printf("Recovery key %s does NOT open it: it was added since. Make another backup.\n",
                    key_words(key).c_str());
    }
}

} // namespace

void make_backup(const Options& o) {
    const std::string& file = o.words.front();
    if (o.has("verify")) {
        if (o.has("yes")) {
            o.refuse("--yes does not go with --verify, which changes nothing");
        }
        verify_copy(o, file);
        return;
    }
    const std::string store = text_of(json::parse(ask(o, "GET", "/v1/host")).at("store"));
    const std::uint64_t size = backup(o, file, store, [&o](const Sink& sink) { fetch(o, "POST", "/v1/backup", sink); });
    const json::object done{{"file", file}, {"bytes", size}};
    print(o, json::serialize(done) + "\n");
}

void recovery_list(const Options& o) { print(o, ask(o, "GET", "/v1/recovery")); }

/// The key goes into its file and nowhere else; if that cannot be made, the store forgets it again.
void recovery_add(const Options& o) {
    const std::string& path = o.words.front();
    MadeFile file{.path = path, .what = "", .is_one = [](vtpmd::ByteView, std::uint64_t) { return false; }};
    check_place(file);
    json::object body;
    if (auto label = o.one("label")) {
        body["label"] = *label;
    }
    json::object made = json::parse(ask(o, "POST", "/v1/recovery", json::serialize(body))).as_object();
    const std::string id = text_of(made.at("id"));
    std::string text = text_of(made.at("file"));
    made.erase("file");
    try {
        make_file(std::move(file), vtpmd::as_bytes(text));
    } catch (const Failure& f) {
        (void)ask(o, "DELETE", "/v1/recovery?id=" + encoded(id));
        fail(f.status, f.message + "; no key was added");
    }
    vtpmd::cleanse(std::as_writable_bytes(std::span(text)));
    made["file"] = path;
    print(o, json::serialize(made) + "\n");
    if (!o.has("json")) {
        std::puts("Keep that file off this host. Copies of the store that were made before are not opened by it.");
    }
}

void recovery_remove(const Options& o) {
    const std::string& id = o.words.front();
    confirm(o, "Remove recovery key " + id + "?", "Its file opens this store no more.");
    print(o, ask(o, "DELETE", "/v1/recovery?id=" + encoded(id)));
}

namespace {

/// Bytes from "33554432", "32M" and the like.
std::uint64_t bytes_of(const Options& o, std::string_view text) {
    constexpr std::string_view units = "KMG";
    const std::size_t unit = text.empty() ? std::string_view::npos : units.find(text.back());
    const unsigned shift = unit == std::string_view::npos ? 0 : 10 * (static_cast<unsigned>(unit) + 1);
    const auto number = vtpmd::parse_number(unit == std::string_view::npos ? text : text.substr(0, text.size() - 1),
                                            std::numeric_limits<std::uint64_t>::max() >> shift);
    if (!number || *number == 0) {
        o.refuse("needs the size that the store is to have, in bytes, or with K, M or G: 64M");
    }
    return *number << shift;
}

} // namespace

void store_grow(const Options& o) {
    json::object body;
    if (!o.words.empty()) {
        body["size"] = std::to_string(bytes_of(o, o.words.front()));
    }
    print(o, ask(o, "POST", "/v1/store/grow", json::serialize(body)));
}

} // namespace vtpmctl
