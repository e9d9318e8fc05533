#include "manager/instances/restart_policy.hpp"
#include "manager/links/listener.hpp"

#include <algorithm>
#include <csignal>
#include <doctest/doctest.h>

namespace manager_restart_policy_test {

using namespace vtpmd;
using namespace vtpmd::manager;
using namespace std::chrono_literals;

TEST_SUITE("manager") {
    TEST_CASE("restart: good order at once, what cannot get better never, the rest slower each time") {
        RestartPolicy policy;
        auto good = policy.after({.code = EX_OK}, 1s, 7);
        CHECK_FALSE(good.give_up);
        CHECK(good.wait == 0s);
        CHECK(good.failures == 0);
        CHECK(policy.after({.code = EX_DATAERR}, 1h, 0).give_up);
        for (const int code : {EX_USAGE, EX_NOINPUT, EX_NOPERM, EX_CONFIG}) {
            CHECK(policy.after({.code = code}, 1s, 0).give_up);
            CHECK_FALSE(policy.after({.code = code, .unknown = true}, 1s, 0).give_up);
        }
        CHECK(policy.after({.unknown = true}, 1s, 0).wait == policy.first); // how it ended is not known

        unsigned failures = 0;
        std::chrono::seconds last{0};
        for (int i = 0; i < 40; ++i) {
            auto v = policy.after({.code = EX_TEMPFAIL}, 100ms, failures);
            CHECK_FALSE(v.give_up);
            CHECK(v.wait >= std::max(last, policy.first));
            CHECK(v.wait <= policy.longest);
            last = v.wait;
            failures = v.failures;
        }
        CHECK(last == policy.longest);
        CHECK(policy.after({.code = EX_TEMPFAIL}, 61s, failures).wait == policy.first); // it had served
        CHECK_FALSE(policy.after({.code = 0, .signal = SIGKILL}, 1s, 0).give_up);
        CHECK(policy.after({.code = EX_DATAERR, .signal = SIGSEGV}, 1s, 0).give_up == false);
    }
    TEST_CASE("listener: root, the manager's own user and the group may connect") {
        const gid_t group = 77;
        AllowedPeers allowed{.own_uid = 500, .group = group};
        const std::vector<gid_t> none;
        const std::vector<gid_t> member{5, 77, 9};
        CHECK(is_allowed(allowed, {.pid = 1, .uid = 0, .gid = 0}, none));
        CHECK(is_allowed(allowed, {.pid = 1, .uid = 500, .gid = 5}, none));
        CHECK(is_allowed(allowed, {.pid = 1, .uid = 501, .gid = 77}, none));
        CHECK(is_allowed(allowed, {.pid = 1, .uid = 501, .gid = 5}, member));
        CHECK_FALSE(is_allowed(allowed, {.pid = 1, .uid = 501, .gid = 5}, none));
        allowed.group.reset();
        CHECK_FALSE(is_allowed(allowed, {.pid = 1, .uid = 501, .gid = 77}, member));
    }
}

} // namespace manager_restart_policy_test
