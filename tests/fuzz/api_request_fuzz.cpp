// A management request that anybody with the socket may send: u8 rights, then method, target and body, each ended by a zero
// (the body by the end).
#include "api/routes.hpp"
#include "fake_control.hpp"
#include "fuzz.hpp"
#include "run_task.hpp"

#include <algorithm>
#include <initializer_list>

namespace api_request_fuzz {

using namespace vtpmd;

namespace {

std::string take(std::string_view& rest) {
    const std::size_t end = std::min(rest.find('\0'), rest.size());
    std::string word(rest.substr(0, end));
    rest.remove_prefix(std::min(end + 1, rest.size()));
    return word;
}

/// One that is taken.
std::string value_for(const api::Field& field) {
    if (field.name == "uuid") {
        return "6f1e7c1a-0000-4000-8000-000000000001";
    }
    return field.name == "tpm_version" ? "1.2" : "6f1e7c1a00004000800000000000000100";
}

std::vector<Bytes> seeds() {
    std::vector<Bytes> seeds;
    const std::string uuid = "6f1e7c1a-0000-4000-8000-000000000001";
    for (const auto& route : api::routes()) {
        std::string target(route.path);
        if (auto at = target.find("{uuid}"); at != std::string::npos) {
            target.replace(at, 6, uuid);
        }
        std::string text = std::string("\x01") + std::string(route.method) + '\0' + target + '\0';
        std::string body;
        for (const auto& field : route.fields) {
            body += std::string(body.empty() ? "" : ",") + "\"" + std::string(field.name) + "\":\"" + value_for(field) +
                    "\"";
        }
        text += "{" + body + "}";
        if (!route.query.empty()) {
            std::string asked = std::string("\x01") + std::string(route.method) + '\0' + target;
            for (const auto& field : route.query) {
                asked += (asked.ends_with(target) ? "?" : "&") + std::string(field.name) + "=%36" + value_for(field);
            }
            const ByteView bytes = view_of(asked.data(), asked.size());
            seeds.emplace_back(bytes.begin(), bytes.end());
        }
        const ByteView bytes = view_of(text.data(), text.size());
        seeds.emplace_back(bytes.begin(), bytes.end());
    }
    return seeds;
}

void run(ByteView bytes) {
    static asio::io_context loop(1);
    std::string_view rest(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    const bool may_change = !rest.empty() && (rest.front() & 1) != 0;
    rest.remove_prefix(std::min<std::size_t>(1, rest.size()));
    fakes::FakeControl control;
    api::Request request{.method = take(rest), .target = take(rest), .body = {}, .may_change = may_change};
    request.body = std::string(rest);
    const api::Response answer = test::run_task(loop, api::handle(control, std::move(request)));
    fuzz::fuzz_check(answer.status >= 200 && answer.status < 600, "an answer has a status");
    fuzz::fuzz_check(!answer.body.empty() || answer.stream, "an answer has a body");
    fuzz::fuzz_check(may_change || control.calls.empty(), "a reader changes nothing");
    fuzz::fuzz_check(answer.status < 400 || control.calls.empty(), "what is refused has done nothing");
}

const fuzz::Harness harness("api_request", seeds, run);

} // namespace

} // namespace api_request_fuzz
