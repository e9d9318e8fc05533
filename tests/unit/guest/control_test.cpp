#include "check.hpp"
#include "fake_service.hpp"
#include "guest/control.hpp"
#include "loop.hpp"
#include "util/text.hpp"
#include "util/wire.hpp"

#include <random>

namespace guest_control_test {

using namespace vtpmd;
using namespace vtpmd::guest;
using namespace vtpmd::fakes;

namespace {

Bytes request(ControlCommand command, ByteView body = {}) {
    WireWriter w;
    w.be32(static_cast<std::uint32_t>(command)).bytes(body);
    return w.take();
}

struct Channel {
    Loop loop;
    FakeService service;
    EndpointState state;

    Bytes ask(ControlCommand command, std::string_view body_hex = {}) {
        const Bytes body = from_hex(body_hex).value();
        const Bytes whole = request(command, body);
        CHECK(*control_size(whole) == whole.size());
        auto parsed = parse_control(whole);
        REQUIRE(parsed);
        return loop.run(carry_out(std::move(*parsed), service, state, {}));
    }
    std::string hex(ControlCommand command, std::string_view body_hex = {}) { return to_hex(ask(command, body_hex)); }
};

constexpr const char* success = "00000000";
constexpr const char* bad_parameter = "00000003";
constexpr const char* bad_ordinal = "0000000a";

} // namespace

TEST_SUITE("guest") {
    TEST_CASE("control: each command, golden bytes") {
        using C = ControlCommand;
        Channel c;
        CHECK(c.hex(C::get_capability) == "0000000000016fff");
        CHECK(c.hex(C::get_config) == "0000000000000000");
        CHECK(c.hex(C::init, "00000001") == success);
        CHECK(c.service.called == "init(delete)");
        CHECK(c.hex(C::init, "00000000") == success);
        CHECK(c.service.called == "init");
        CHECK(c.hex(C::get_established) == "0000000001000000");
        CHECK(c.hex(C::set_locality, "03") == success);
        CHECK(c.state.locality == 3);
        CHECK(c.hex(C::set_locality, "05") == "0000003d");
        CHECK(c.state.locality == 3);
        CHECK(c.hex(C::hash_start) == success);
        CHECK(c.hex(C::hash_data, "00000003616263") == success);
        CHECK(c.service.called == "hash_data 3");
        CHECK(c.hex(C::hash_end) == success);
        CHECK(c.hex(C::cancel) == success);
        CHECK(c.service.called == "cancel");
        CHECK(c.hex(C::store_volatile) == success);
        CHECK(c.hex(C::reset_established, "04") == success);
        CHECK(c.service.called == "reset 4");
        CHECK(c.hex(C::get_stateblob, "00000001"
                                      "00000001"
                                      "00000000") == "00000000"
                                                     "00000000"
                                                     "00000005"
                                                     "00000005"
                                                     "626c6f6231");
        CHECK(c.hex(C::get_stateblob, "00000001"
                                      "00000002"
                                      "00000003") == "00000000"
                                                     "00000000"
                                                     "00000005"
                                                     "00000002"
                                                     "6232");
        CHECK(c.hex(C::get_stateblob, "00000001"
                                      "00000002"
                                      "00000006") == bad_parameter);
        CHECK(c.hex(C::get_stateblob, "00000001"
                                      "00000004"
                                      "00000000") == bad_parameter);
        CHECK(c.hex(C::set_buffersize, "00000000") == "00000000"
                                                      "00001000"
                                                      "00000af8"
                                                      "00001000");
        CHECK(c.hex(C::get_info, "0000000000000001"
                                 "00000000"
                                 "00000000") == "00000000"
                                                "00000002"
                                                "00000002"
                                                "7b7d");
        CHECK(c.hex(C::get_info, "0000000000000001"
                                 "00000003"
                                 "00000000") == bad_parameter);
        CHECK(c.hex(C::lock_storage, "00000003") == success);
        CHECK(c.hex(C::shutdown) == success);
        CHECK(c.service.called != "shutdown"); // the server does that, after the answer
        CHECK(c.hex(C::set_datafd) == bad_ordinal);
        CHECK(c.hex(C::stop) == success);
        CHECK_FALSE(c.service.on);
        CHECK(c.hex(C::set_stateblob, "00000000"
                                      "00000001"
                                      "00000002"
                                      "abcd") == success);
        CHECK(c.service.called == "set_blob 1 2");
        CHECK(c.hex(C::set_stateblob, "00000002"
                                      "00000001"
                                      "00000002"
                                      "abcd") == bad_parameter); // encrypted
        CHECK(c.hex(C::set_stateblob, "00000000"
                                      "00000000"
                                      "00000002"
                                      "abcd") == bad_parameter);
    }

    TEST_CASE("control: what each run state allows") {
        using C = ControlCommand;
        for (bool on : {true, false}) {
            CAPTURE(on);
            Channel c;
            c.service.on = on;
            auto allowed = [&](C command, std::string_view body = {}) {
                c.service.on = on;
                return c.hex(command, body) != bad_ordinal;
            };
            CHECK(allowed(C::get_established) == on);
            CHECK(allowed(C::hash_start) == on);
            CHECK(allowed(C::hash_data, "00000000") == on);
            CHECK(allowed(C::hash_end) == on);
            CHECK(allowed(C::cancel) == on);
            CHECK(allowed(C::store_volatile) == on);
            CHECK(allowed(C::reset_established, "00") == on);
            CHECK(allowed(C::get_stateblob, "000000010000000100000000") == on);
            CHECK(allowed(C::set_stateblob, "000000010000000100000000") == !on);
            CHECK(allowed(C::set_buffersize, "00000400") == !on);
            CHECK(allowed(C::set_buffersize, "00000000"));
            CHECK(allowed(C::get_capability));
            CHECK(allowed(C::init, "00000000"));
            CHECK(allowed(C::stop));
            CHECK(allowed(C::shutdown));
            CHECK(allowed(C::set_locality, "00"));
            CHECK(allowed(C::get_config));
            CHECK(allowed(C::get_info, "00000000000000010000000000000000"));
            CHECK(allowed(C::lock_storage, "00000000"));
        }
    }

    TEST_CASE("control: what an endpoint does not have, it does not claim") {
        using C = ControlCommand;
        Channel c;
        c.state.data_descriptor = true;
        CHECK(c.hex(C::get_capability) == "0000000000017fff");
        c.state = {.state_blobs = false};
        CHECK(c.hex(C::get_capability) == "0000000000016cff");
        CHECK(c.hex(C::get_stateblob, "000000010000000100000000") == bad_ordinal);
        c.service.on = false;
        CHECK(c.hex(C::set_stateblob, "000000000000000100000002abcd") == bad_ordinal);
    }

    TEST_CASE("control: state in clear is given only to whom asks for it so") {
        Channel c;
        CHECK(c.hex(ControlCommand::get_stateblob, "000000000000000100000000") == "00000009");
    }

    TEST_CASE("control: errors of the TPM become results") {
        Channel c;
        c.service.error = make_error(Errc::io, "x");
        CHECK(c.hex(ControlCommand::init, "00000000") == "0000001f");
        c.service.error = make_error(Errc::no_space, "x");
        CHECK(c.hex(ControlCommand::store_volatile) == "0000001f");
        Error tpm = make_error(Errc::tpm, "x");
        tpm.detail = 0x26;
        c.service.error = tpm;
        CHECK(c.hex(ControlCommand::hash_start) == "00000026");
    }

    TEST_CASE("control: sizes, every truncation of every command") {
        const char* bodies[20] = {nullptr,
                                  "",
                                  "00000000",
                                  "",
                                  "",
                                  "00",
                                  "",
                                  "00000003616263",
                                  "",
                                  "",
                                  "",
                                  "00",
                                  "000000000000000000000000",
                                  "000000000000000100000002abcd",
                                  "",
                                  "",
                                  "",
                                  "00000000",
                                  "00000000000000000000000000000000",
                                  "00000000"};
        for (std::uint32_t n = 1; n < 20; ++n) {
            CAPTURE(n);
            const Bytes whole = request(static_cast<ControlCommand>(n), from_hex(bodies[n]).value());
            for (std::size_t k = 0; k < whole.size(); ++k) {
                auto size = control_size(ByteView(whole).first(k));
                REQUIRE(size);
                CHECK(*size > k); // asks for more
                CHECK(*size <= whole.size());
                CHECK_FALSE(parse_control(ByteView(whole).first(k)));
            }
            CHECK(*control_size(whole) == whole.size());
            CHECK(parse_control(whole));
        }
        CHECK(*control_size(from_hex("00000014").value()) == 4);
        CHECK(parse_control(from_hex("00000014").value()).error().code == Errc::unsupported);
        // HASH_DATA of any length: its first piece, and the rest later.
        CHECK(control_size(from_hex("0000000700001000").value()).value() == 8 + 4096);
        CHECK(control_size(from_hex("0000000700001001").value()).value() == 8 + 4096);
        CHECK(control_size(from_hex("00000007ffffffff").value()).value() == 8 + 4096);
        Bytes long_one = from_hex("0000000700001003").value();
        long_one.resize(8 + 4096);
        CHECK(parse_control(long_one)->data.size() == 4096);
        CHECK(parse_control(long_one)->more == 3);
        CHECK(control_size(from_hex("0000000d000000000000000100080001").value()).error().code == Errc::too_large);
    }

    TEST_CASE("control: 10,000 random requests, none crashes") {
        std::mt19937 random(7);
        Channel c;
        for (int i = 0; i < 10000; ++i) {
            Bytes b(random() % 40);
            for (auto& x : b) {
                x = static_cast<std::byte>(random());
            }
            if (b.size() >= 4) {
                b[0] = b[1] = b[2] = std::byte{0};
                b[3] = static_cast<std::byte>(random() % 22);
            }
            auto size = control_size(b);
            if (size && *size <= b.size()) {
                if (auto parsed = parse_control(b)) {
                    c.service.on = random() % 2 == 0;
                    CHECK(c.loop.run(carry_out(std::move(*parsed), c.service, c.state, {})).size() >= 4);
                }
            }
        }
    }
}

} // namespace guest_control_test
