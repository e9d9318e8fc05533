#include "api/routes.hpp"

#include "api/errors.hpp"
#include "fakes/fake_control.hpp"
#include "fakes/run_task.hpp"
#include "util/text.hpp"

#include <boost/json.hpp>
#include <cctype>
#include <doctest/doctest.h>

namespace api_routes_test {

using namespace vtpmd;
using namespace vtpmd::api;

namespace {

namespace json = boost::json;
constexpr const char* some = "6f1e7c1a-0000-4000-8000-000000000001";

struct Fixture {
    asio::io_context io{1};
    fakes::FakeControl control;

    Response call(std::string method, std::string target, std::string body = "", bool may_change = true) {
        Request request{.method = std::move(method),
                        .target = std::move(target),
                        .body = std::move(body),
                        .may_change = may_change};
        return test::run_task(io, handle(control, std::move(request)));
    }
    static json::object object(const Response& r) { return json::parse(r.body).as_object(); }
};

} // namespace

TEST_SUITE("api") {

    TEST_CASE_FIXTURE(Fixture, "the OpenAPI description has every route with its fields, and no other") {
        const Response r = call("GET", "/openapi.json", "", false);
        REQUIRE(r.status == 200);
        const json::object description = object(r);
        CHECK(description.at("openapi").as_string() == "3.0.3");
        CHECK(!description.at("info").at("version").as_string().empty());
        std::size_t described = 0;
        for (const auto& path : description.at("paths").as_object()) {
            described += path.value().as_object().size();
        }
        CHECK(described == routes().size());
        for (const RouteInfo& route : routes()) {
            CAPTURE(route.path);
            std::string method(route.method);
            for (char& c : method) {
                c = static_cast<char>(std::tolower(c));
            }
            const json::object& one = description.at("paths").at(route.path).at(method).as_object();
            CHECK(one.at("summary").as_string() == route.summary);
            const std::size_t parameters =
                route.query.size() + (route.path.find('{') != std::string_view::npos ? 1 : 0);
            REQUIRE(one.contains("parameters") == (parameters != 0));
            if (parameters != 0) {
                CHECK(one.at("parameters").as_array().size() == parameters);
            }
            REQUIRE(one.contains("requestBody") == (!route.fields.empty() || route.octets));
            if (route.fields.empty()) {
                CHECK((!route.octets ||
                       one.at("requestBody").at("content").as_object().contains("application/octet-stream")));
                continue;
            }
            const json::object& schema =
                one.at("requestBody").at("content").at("application/json").at("schema").as_object();
            const json::object& properties = schema.at("properties").as_object();
            CHECK(properties.size() == route.fields.size());
            for (const Field& f : route.fields) {
                CHECK(properties.at(f.name).at("type").as_string() == f.type);
            }
        }
    }

    TEST_CASE_FIXTURE(Fixture, "a vTPM is made, listed, shown, started, stopped and deleted") {
        CHECK(object(call("GET", "/v1/vtpms")).at("vtpms").as_array().empty());
        auto made = call("POST", "/v1/vtpms", fmt::format(R"({{"uuid":"{}","tpm_version":"1.2"}})", some));
        CHECK(made.status == 201);
        CHECK(object(made).at("tpm_version") == "1.2");
        CHECK(object(call("GET", "/v1/vtpms")).at("vtpms").as_array().size() == 1);
        const std::string path = fmt::format("/v1/vtpms/{}", some);
        CHECK(object(call("GET", path)).at("uuid") == some);
        CHECK(call("POST", path + "/start").status == 200);
        CHECK(call("POST", path + "/stop").status == 200);
        CHECK(!object(call("GET", path)).contains("reset"));
        control.all.begin()->second.reset = 7;
        CHECK(object(call("POST", path + "/reset")).at("reset") == 7);
        CHECK(call("DELETE", path).status == 200);
        CHECK(call("GET", path).status == 404);
        const std::string u = some;
        CHECK(control.calls ==
              std::vector<std::string>{"create " + u, "start " + u, "stop " + u, "reset " + u, "remove " + u});
    }

    TEST_CASE_FIXTURE(Fixture, "how a vTPM is started and stopped, and what is known of it") {
        CHECK(call("POST", "/v1/vtpms", fmt::format(R"({{"uuid":"{}"}})", some)).status == 201);
        control.calls.clear();
        const std::string path = fmt::format("/v1/vtpms/{}", some);
        CHECK(call("POST", path + "/start", R"({"once":true,"wait":30})").status == 200);
        CHECK(call("POST", path + "/start", R"({"once":false})").status == 200);
        CHECK(call("POST", path + "/stop", R"({"keep_autostart":true})").status == 200);
        CHECK(object(call("PATCH", path, R"({"autostart":true})")).at("autostart") == true);
        CHECK(object(call("PATCH", path, R"({"autostart":false})")).at("autostart") == false);
        const std::string u = some;
        CHECK(control.calls == std::vector<std::string>{"start once wait 30 " + u, "start " + u, "stop keep " + u,
                                                        "autostart on " + u, "autostart off " + u});
        for (const char* body : {R"({"wait":0})", R"({"wait":601})", R"({"wait":"1"})", R"({"wait":1.5})",
                                 R"({"once":"true"})", R"({"once":null})"}) {
            CHECK(call("POST", path + "/start", body).status == 400);
        }
        CHECK(call("PATCH", path, R"({"autostart":"on"})").status == 400);
        CHECK(call("PATCH", path, R"({"autostart":true,"name":"x"})").status == 400);
        control.details = {
            .image = "/i", .socket = "/s", .why = "w", .last_error = "\"e\"", .last_error_time = 9, .last_save = 8};
        const json::object shown = object(call("GET", path));
        CHECK(shown.at("image") == "/i");
        CHECK(shown.at("socket") == "/s");
        CHECK(shown.at("why") == "w");
        CHECK(shown.at("last_error") == "\"e\"");
        CHECK(shown.at("last_error_time") == 9);
        CHECK(shown.at("last_save") == 8);
        CHECK(shown.at("uuid") == some);
    }

    TEST_CASE_FIXTURE(Fixture, "a long list has every vTPM as it is shown, in order, and asks for each once") {
        constexpr unsigned count = 1201; // in several strides
        for (unsigned n = 0; n < count; ++n) {
            Uuid uuid;
            uuid.bytes[14] = static_cast<std::byte>(n >> 8U);
            uuid.bytes[15] = static_cast<std::byte>(n);
            control.all[uuid] = {.uuid = uuid, .created = n, .saves = 2 * n, .pid = static_cast<int>(n % 3)};
        }
        const Response r = call("GET", "/v1/vtpms", "", false);
        CHECK(control.asked_for == count);
        const json::object listed = object(r);
        const json::array& all = listed.at("vtpms").as_array();
        REQUIRE(all.size() == count);
        auto expected = control.all.begin();
        for (const json::value& v : all) {
            const std::string uuid = to_string(expected->first);
            CHECK(v.at("uuid").as_string() == uuid.c_str());
            if (expected->second.created % 400 == 0) {
                const json::object shown = object(call("GET", "/v1/vtpms/" + uuid));
                for (const auto& member : v.as_object()) { // it tells more beside that
                    CHECK(shown.at(member.key()) == member.value());
                }
            }
            ++expected;
        }
        CHECK(all.at(0).at("pid").is_null());
        CHECK(all.at(1).at("pid") == 1);
        // One that goes while the list is made is not in it.
        control.gone = control.all.rbegin()->first;
        CHECK(object(call("GET", "/v1/vtpms")).at("vtpms").as_array().size() == count - 1);
        control.gone = control.all.begin()->first;
        CHECK(object(call("GET", "/v1/vtpms")).at("vtpms").as_array().size() == count - 1);
    }

    TEST_CASE_FIXTURE(Fixture, "a vTPM has a name, which need not be unique, and is found by it") {
        const std::string name = R"(Zürich "3" \ a&b)";
        auto named = [](const std::string& n) { return json::serialize(json::object{{"name", n}}); };
        auto made = object(call("POST", "/v1/vtpms", named(name)));
        CHECK(made.at("name").as_string() == name.c_str());
        const std::string path = "/v1/vtpms/" + std::string(made.at("uuid").as_string());
        call("POST", "/v1/vtpms", named(name));
        call("POST", "/v1/vtpms");
        auto found = [&](const std::string& query) {
            const Response r = call("GET", "/v1/vtpms?" + query, "", false);
            CHECK(r.status == 200);
            return object(r).at("vtpms").as_array().size();
        };
        CHECK(found("name=Z%C3%BCrich%20%223%22%20%5C%20a%26b") == 2);
        CHECK(found("name=") == 1);
        CHECK(found("name=other") == 0);
        CHECK(object(call("PATCH", path, named("b"))).at("name") == "b");
        CHECK(found("name=b") == 1);
        CHECK(object(call("PATCH", path, named(""))).at("name") == "");
        Uuid group = *parse_uuid(some);
        control.all_groups[group] = {.uuid = group};
        CHECK(found("group=" + std::string(some)) == 0);
        CHECK(object(call("PATCH", path, fmt::format(R"({{"group":"{}"}})", some))).at("group") == some);
        CHECK(found("group=" + std::string(some) + "&name=") == 1);
        CHECK(object(call("GET", path)).at("name") == "");
    }

    TEST_CASE_FIXTURE(Fixture, "the store grows to the size that is said, or to what its device has") {
        CHECK(call("POST", "/v1/store/grow", R"({"size":"33554432"})").status == 200);
        CHECK(control.grown_to == 33'554'432);
        CHECK(call("POST", "/v1/store/grow").status == 200);
        CHECK(control.grown_to == 0);
        CHECK(call("POST", "/v1/store/grow", R"({"size":"much"})").status == 400);
        CHECK(call("POST", "/v1/store/grow", R"({"size":"1"})", false).status == 403);
    }

    TEST_CASE_FIXTURE(Fixture, "a backup is a stream, and one that is refused is not") {
        Response r = call("POST", "/v1/backup");
        CHECK(r.status == 200);
        CHECK(r.content_type == "application/octet-stream");
        REQUIRE(r.stream);
        CHECK(r.stream->size() == 21);
        Bytes all;
        Bytes piece(4);
        while (const std::size_t n = test::run_task(io, r.stream->read(piece)).value()) {
            all.insert(all.end(), piece.begin(), piece.begin() + static_cast<std::ptrdiff_t>(n));
        }
        CHECK(to_hex(all) == "01010101010202020303030000"
                             "0000000000000000");
        control.next_error = make_error(Errc::busy, "one is being made");
        CHECK(call("POST", "/v1/backup").status == 409);
    }

    TEST_CASE_FIXTURE(Fixture, "without a body a UUID is made up, of a TPM 2.0") {
        auto made = call("POST", "/v1/vtpms");
        CHECK(made.status == 201);
        CHECK(object(made).at("tpm_version") == "2.0");
        CHECK(control.all.size() == 1);
    }

    TEST_CASE_FIXTURE(Fixture, "a group is made, listed, shown, updated, recovered, given a vTPM, and deleted") {
        const std::string hex = "6f1e7c1a000040008000000000000001";
        auto made = call(
            "POST", "/v1/groups",
            fmt::format(R"({{"approver":"PEM","list":"{}ff","recovery_key":"P","recovery_signature":"ab"}})", hex));
        CHECK(made.status == 201);
        CHECK(object(made).at("uuid") == some);
        CHECK(control.new_group.list.size() == 17);
        CHECK(control.new_group.recovery_key == "P");
        CHECK(control.new_group.recovery_signature == Bytes{std::byte{0xab}});
        const std::string path = fmt::format("/v1/groups/{}", some);
        control.all_groups.begin()->second.platforms.push_back(
            {.selection = "sha256:0", .pcrs = {{.bank = "sha256", .index = 0, .value = "00"}}});
        control.all_groups.begin()->second.labels.emplace_back("aa");
        const auto shown = object(call("GET", path, "", false));
        CHECK(shown.at("approver") == "PEM");
        CHECK(shown.at("labels").as_array().at(0) == "aa");
        CHECK(shown.at("platforms").as_array().at(0).at("selection") == "sha256:0");
        const auto listed = object(call("GET", "/v1/groups", "", false)).at("groups").as_array();
        REQUIRE(listed.size() == 1);
        CHECK(listed.at(0).at("uuid") == some);
        CHECK(object(call("POST", path + "/update", R"({"list":"0102"})")).at("sequence") == 2);
        CHECK(call("POST", path + "/recover", R"({"shared":"0102"})").status == 200);
        CHECK(object(call("GET", path + "/ca")).at("request") == "request\n");
        CHECK(control.if_no_ca == manager::NoCa::make);
        CHECK(object(call("GET", path + "/ca", "", false)).at("certificates") == "chain\n");
        CHECK(control.if_no_ca == manager::NoCa::refuse); // who only looks has none made
        CHECK(object(call("PUT", path + "/ca", R"({"certificates":"P\nE\nM"})")).at("certificates") == "P\nE\nM");
        auto vtpm = call("POST", "/v1/vtpms", fmt::format(R"({{"uuid":"{}","group":"{}"}})", some, some));
        CHECK(object(vtpm).at("group") == some);
        CHECK(call("DELETE", path).status == 200);
        CHECK(call("GET", path).status == 404);
        const std::string u = some;
        CHECK(control.calls == std::vector<std::string>{"create group " + u, "update group " + u + " by 2 bytes",
                                                        "recover group " + u + " by 2 bytes",
                                                        "set CA of group " + u + " by 5 bytes", "create " + u,
                                                        "remove group " + u});
    }

    TEST_CASE_FIXTURE(Fixture, "a reader changes nothing, whatever it asks") {
        const std::string path = fmt::format("/v1/vtpms/{}", some);
        for (const RouteInfo& r : routes()) {
            std::string target(r.path);
            if (auto at = target.find("{uuid}"); at != std::string::npos) {
                target.replace(at, 6, some);
            }
            const auto answer = call(std::string(r.method), target, "", false);
            if (r.method == "GET") {
                CHECK((answer.status == 200 || answer.status == 404));
            } else {
                CHECK(answer.status == 403);
            }
        }
        CHECK(control.calls.empty());
    }

    TEST_CASE_FIXTURE(Fixture, "bad requests change nothing and say what to do") {
        struct Bad {
            const char* method;
            const char* target;
            std::string body;
            unsigned status;
        };
        const Bad all[] = {
            {"GET", "", "", 404},
            {"GET", "/", "", 404},
            {"GET", "/v1/vtpms/", "", 404},
            {"GET", "/v1/vtpms/a/b", "", 404},
            {"GET", "/v1/vtpms/x", "", 400},
            {"GET", "/v1/vtpms?x", "", 400},
            {"GET", "/v1/vtpms", "{\"a\":\"b\"}", 400},
            {"get", "/v1/vtpms", "", 405},
            {"POST", "/v1/host", "", 405},
            {"POST", "/v1/vtpms", "null", 400},
            {"POST", "/v1/vtpms", "{", 400},
            {"POST", "/v1/vtpms", "{} {}", 400},
            {"POST", "/v1/vtpms", std::string(60000, '['), 400},
            {"POST", "/v1/vtpms", R"({"uuid":1})", 400},
            {"POST", "/v1/vtpms", R"({"uuid":null})", 400},
            {"POST", "/v1/vtpms", R"({"uuid":"00000000-0000-0000-0000-000000000000"})", 400},
            {"POST", "/v1/vtpms", R"({"tpm_version":"2"})", 400},
            {"POST", "/v1/vtpms", R"({"colour":"blue"})", 400},
            {"POST", "/v1/vtpms", R"({"group":"blue"})", 400},
            {"POST", "/v1/vtpms", R"({"group":"6f1e7c1a-0000-4000-8000-000000000009"})", 404},
            {"POST", "/v1/vtpms/6f1e7c1a-0000-4000-8000-000000000009/quote", "", 400},
            {"POST", "/v1/vtpms/6f1e7c1a-0000-4000-8000-000000000009/quote", R"({"nonce":"0"})", 400},
            {"POST", "/v1/vtpms/6f1e7c1a-0000-4000-8000-000000000009/quote", R"({"nonce":"00"})", 404},
            {"GET", "/v1/vtpms/6f1e7c1a-0000-4000-8000-000000000009/quote", "", 405},
            {"GET", "/v1/vtpms?", "", 400},
            {"GET", "/v1/vtpms?name", "", 400},
            {"GET", "/v1/vtpms?name=a&name=b", "", 400},
            {"GET", "/v1/vtpms?name=%", "", 400},
            {"GET", "/v1/vtpms?name=%zz", "", 400},
            {"GET", "/v1/vtpms?limit=1", "", 400},
            {"GET", "/v1/vtpms?group=x", "", 400},
            {"GET", "/v1/vtpms?group=6f1e7c1a-0000-4000-8000-000000000009", "", 404},
            {"GET", "/v1/host?name=a", "", 400},
            {"POST", "/v1/vtpms?name=a", "", 400},
            {"PATCH", "/v1/vtpms/6f1e7c1a-0000-4000-8000-000000000009", "", 400},
            {"PATCH", "/v1/vtpms/6f1e7c1a-0000-4000-8000-000000000009", R"({"name":1})", 400},
            {"PATCH", "/v1/vtpms/6f1e7c1a-0000-4000-8000-000000000009", R"({"label":"a"})", 400},
            {"PATCH", "/v1/vtpms/6f1e7c1a-0000-4000-8000-000000000009", R"({"group":"a"})", 400},
            {"PATCH", "/v1/vtpms/6f1e7c1a-0000-4000-8000-000000000009", R"({"name":"a"})", 404},
            {"POST", "/v1/vtpms/6f1e7c1a-0000-4000-8000-000000000009/reset", "", 404},
            {"POST", "/v1/vtpms/6f1e7c1a-0000-4000-8000-000000000009/reset", R"({"yes":"1"})", 400},
            {"GET", "/v1/backup", "", 405},
            {"POST", "/v1/backup", R"({"file":"/etc/passwd"})", 400},
            {"POST", "/v1/backup?file=x", "", 400},
            {"POST", "/v1/groups", "", 400},
            {"POST", "/v1/groups", R"({"approver":"x"})", 400},
            {"POST", "/v1/groups", R"({"approver":"x","list":"1"})", 400},
            {"POST", "/v1/groups", R"({"approver":"x","list":"xx"})", 400},
            {"GET", "/v1/groups/6f1e7c1a-0000-4000-8000-000000000009", "", 404},
            {"DELETE", "/v1/groups/6f1e7c1a-0000-4000-8000-000000000009", "", 404},
            {"POST", "/v1/groups/6f1e7c1a-0000-4000-8000-000000000009/update", R"({"list":"00"})", 404},
            {"POST", "/v1/groups/6f1e7c1a-0000-4000-8000-000000000009/recover", R"({"shared":"00"})", 404},
            {"POST", "/v1/groups/6f1e7c1a-0000-4000-8000-000000000009/recover", "", 400},
            {"GET", "/v1/groups/6f1e7c1a-0000-4000-8000-000000000009/ca", "", 404},
            {"PUT", "/v1/groups/6f1e7c1a-0000-4000-8000-000000000009/ca", R"({"certificates":""})", 404},
            {"PUT", "/v1/groups/6f1e7c1a-0000-4000-8000-000000000009/ca", "", 400},
            {"PUT", "/v1/groups/6f1e7c1a-0000-4000-8000-000000000009/ca", R"({"certificates":7})", 400},
            {"POST", "/v1/groups/6f1e7c1a-0000-4000-8000-000000000009/ca", R"({"certificates":""})", 405},
        };
        for (const Bad& b : all) {
            CAPTURE(b.method);
            CAPTURE(b.target);
            CAPTURE(b.body.substr(0, 60));
            const auto answer = call(b.method, b.target, b.body);
            CHECK(answer.status == b.status);
            const auto error = object(answer);
            for (const char* field : {"code", "message", "action"}) {
                CHECK(!error.at(field).as_string().empty());
            }
            CHECK((answer.status == 405) == !answer.allow.empty());
        }
        CHECK(control.calls.empty());
    }

    TEST_CASE_FIXTURE(Fixture, "a deep quote: of a vTPM, over the PCRs that are named, not for mere readers") {
        (void)call("POST", "/v1/vtpms", fmt::format(R"({{"uuid":"{}"}})", some));
        const std::string path = fmt::format("/v1/vtpms/{}/quote", some);
        const std::string body = R"({"nonce":"0a0B","pcrs":"sha256:0+sha1:1","host_pcrs":"sha256:4"})";
        CHECK(call("POST", path, body, false).status == 403);
        control.calls.clear();
        const auto quoted = call("POST", path, body);
        CHECK(quoted.status == 200);
        CHECK(object(quoted).at("quote") == "0a0b");
        REQUIRE(control.calls.size() == 1);
        CHECK(control.calls[0].find("of sha256:0+sha1:1 on sha256:4 for 2 bytes") != std::string::npos);
        control.next_error = make_error(Errc::timed_out, "its instance is slow");
        CHECK(call("POST", path, R"({"nonce":"00"})").status == 504);
    }

    TEST_CASE_FIXTURE(Fixture, "what the manager refuses keeps its story") {
        control.next_error = make_error(Errc::tombstone, "it was deleted");
        auto answer = call("POST", "/v1/vtpms");
        CHECK(answer.status == 410);
        CHECK(object(answer).at("message") == "it was deleted");
    }

    TEST_CASE("every error has a status, a name and advice") {
        for (int i = static_cast<int>(Errc::usage); i <= static_cast<int>(Errc::unsupported); ++i) {
            const auto kind = kind_of(static_cast<Errc>(i));
            CHECK(kind.status >= 400);
            CHECK(!kind.code.empty());
            CHECK(!kind.action.empty());
        }
    }

    TEST_CASE_FIXTURE(Fixture, "metrics in Prometheus' text format") {
        auto answer = call("GET", "/metrics");
        CHECK(answer.content_type.starts_with("text/plain; version=0.0.4"));
        CHECK(answer.body ==
              "# HELP a_total A\n# TYPE a_total counter\na_total{x=\"y\"} 3\n# HELP b B\n# TYPE b gauge\nb 0.25\n");
    }

} // TEST_SUITE

} // namespace api_routes_test
