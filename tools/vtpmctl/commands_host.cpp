#include "backup.hpp"
#include "commands.hpp"
#include "http_client.hpp"
#include "print.hpp"
#include "top.hpp"

#include <boost/json.hpp>
#include <cstdio>

namespace vtpmctl {

namespace json = boost::json;

void status(const Options& o) { print(o, ask(o, "GET", "/v1/host")); }

void seal(const Options& o) { print(o, ask(o, "GET", "/v1/seal")); }

void freshness(const Options& o) { print(o, ask(o, "GET", "/v1/freshness")); }

void metrics(const Options& o) { std::fputs(ask(o, "GET", "/metrics").c_str(), stdout); }

void live_view(const Options& o) {
    top(o, [&o] { return ask(o, "GET", "/v1/top"); });
}

void make_backup(const Options& o) {
    const std::string& file = o.words.front();
    const std::uint64_t size = backup(o, file, [&o](const Sink& sink) { fetch(o, "POST", "/v1/backup", sink); });
    const json::object done{{"file", file}, {"bytes", size}};
    print(o, json::serialize(done) + "\n");
}

} // namespace vtpmctl
