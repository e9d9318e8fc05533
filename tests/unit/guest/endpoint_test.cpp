#include "check.hpp"
#include "guest/endpoint.hpp"

namespace guest_endpoint_test {

using namespace vtpmd;
using namespace vtpmd::guest;

TEST_SUITE("guest") {
    TEST_CASE("endpoints") {
        CHECK(std::get<UnixEndpoint>(*parse_endpoint("socket:unix:/run/a.sock")).control_path() == "/run/a.sock.ctrl");
        CHECK(std::get<TcpEndpoint>(*parse_endpoint("socket:tcp:2321")).port == 2321);
        CHECK(std::get<TcpEndpoint>(*parse_endpoint("socket:tcp:127.0.0.1:2321")).port == 2321);
        CHECK(std::get<XenEndpoint>(*parse_endpoint("xen:7")) == XenEndpoint{7, 0});
        CHECK(std::get<XenEndpoint>(*parse_endpoint("xen:7/2")) == XenEndpoint{7, 2});
        for (const char* text : {"socket:unix:/run/a.sock", "socket:tcp:127.0.0.1:2321", "xen:7/2"}) {
            CHECK(to_string(*parse_endpoint(text)) == text);
        }
    }
    TEST_CASE("endpoints: sockets that were opened before") {
        CHECK(std::get<PassedEndpoint>(*parse_endpoint("fd:commands=3,control=4,remove")) ==
              PassedEndpoint{3, 4, true});
        CHECK(std::get<PassedEndpoint>(*parse_endpoint("fd:control=9")) == PassedEndpoint{std::nullopt, 9, false});
        for (const char* text : {"fd:commands=3", "fd:control=4", "fd:commands=3,control=4", "fd:commands=5,remove"}) {
            CHECK(to_string(*parse_endpoint(text)) == text);
        }
        for (const char* bad : {"fd:", "fd:remove", "fd:3", "fd:commands=2", "fd:commands=", "fd:commands=x",
                                "fd:control=-1", "fd:commands=3,commands=4", "fd:commands=3,remove,remove",
                                "fd:commands=3,other=4", "fd:commands=3,", "fd:commands=99999999"}) {
            CAPTURE(bad);
            REQUIRE_FALSE(parse_endpoint(bad));
            CHECK(parse_endpoint(bad).error().code == Errc::usage);
        }
    }
    TEST_CASE("endpoints that cannot be") {
        for (const char* bad : {"", "socket", "socket:", "socket:unix:", "socket:unix:relative", "socket:tcp:",
                                "socket:tcp:0", "socket:tcp:65535", "socket:tcp:x", "socket:tcp:0.0.0.0:2321",
                                "socket:tcp:192.0.2.1:2321", "xen:", "xen:x", "xen:1/", "xen:32752", "xen:1/2/3"}) {
            CAPTURE(bad);
            REQUIRE_FALSE(parse_endpoint(bad));
            CHECK(parse_endpoint(bad).error().code == Errc::usage);
        }
        CHECK(parse_endpoint("socket:unix:/" + std::string(101, 'x')));
        CHECK_FALSE(parse_endpoint("socket:unix:/" + std::string(102, 'x')));
        CHECK(to_string(*parse_endpoint("vtpmx")) == "vtpmx");
        CHECK(parse_endpoint("vtpmx:1").error().code == Errc::usage);
        CHECK(std::get<QemuEndpoint>(*parse_endpoint("qemu:/x")).path == "/x");
        CHECK(to_string(*parse_endpoint("qemu:/x")) == "qemu:/x");
        CHECK(parse_endpoint("qemu:x").error().code == Errc::usage);
        CHECK(parse_endpoint("qemu:").error().code == Errc::usage);
    }
}

} // namespace guest_endpoint_test
