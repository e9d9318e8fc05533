// The TIS protocol on a register model: as it should be, and every way in which a part can misbehave.
#include "check.hpp"
#include "tis_model.hpp"

#include "hwtpm/drivers/kernel_device.hpp"
#include "hwtpm/drivers/tis_device.hpp"
#include "tpm/header.hpp"
#include "util/wire.hpp"

#include <sys/socket.h>
#include <thread>

namespace hwtpm_tis_test {

using namespace vtpmd;
using namespace vtpmd::hwtpm;
using namespace std::chrono_literals;
using fakes::TisModel;

namespace {

Bytes command_of(std::size_t size, std::uint16_t tag = 0x8001) {
    WireWriter w;
    w.be16(tag).be32(static_cast<std::uint32_t>(size)).be32(0x17B);
    for (std::size_t i = w.size(); i < size; ++i) {
        w.u8(static_cast<std::uint8_t>(i));
    }
    return w.take();
}

/// Answers with the command itself: every byte must have gone both ways.
struct Echo {
    TisModel model{[this](ByteView c, std::uint8_t l) {
        locality = l;
        return to_bytes(c);
    }};
    unsigned locality = 99;
    TisPort port{model, {.locality = 2}};
    Result<Bytes> exchange(const Bytes& c) {
        if (auto r = port.request_locality(); !r) {
            return r.error();
        }
        auto out = port.transmit(c, 10s);
        port.relinquish();
        return out;
    }
};

} // namespace

TEST_SUITE("hwtpm") {
    TEST_CASE("TIS: commands and answers of every size, with every burst") {
        for (unsigned burst : {1U, 2U, 7U, 16U, 63U, 64U, 255U, 256U, 4096U}) {
            for (std::size_t size : {10U, 11U, 16U, 17U, 64U, 65U, 1000U, 4096U}) {
                CAPTURE(burst);
                CAPTURE(size);
                Echo e;
                e.model.burst = burst;
                const Bytes c = command_of(size);
                auto answer = e.exchange(c);
                REQUIRE(answer);
                CHECK(*answer == c);
                CHECK(e.locality == 2);
                CHECK(e.model.commands == 1);
                CHECK(e.model.holder == -1);
            }
        }
    }
    TEST_CASE("TIS: one locality for many commands, given back once") {
        Echo e;
        REQUIRE(e.port.request_locality());
        for (int i = 0; i < 5; ++i) {
            REQUIRE(e.port.transmit(command_of(22), 1s));
        }
        REQUIRE(e.port.request_locality()); // held already: nothing is asked
        e.port.relinquish();
        CHECK(e.model.requests == 1);
        CHECK(e.model.relinquishes == 1);
        CHECK(e.model.commands == 5);
    }
    TEST_CASE("TIS: a burst count of 0 or 0xFFFF that passes is waited out; one that stays is an error, not a hang") {
        for (int TisModel::Faults::*fault :
             {&TisModel::Faults::stuck_burst_zero, &TisModel::Faults::stuck_burst_ones}) {
            Echo e;
            e.model.faults.*fault = 20;
            CHECK(e.exchange(command_of(22)));
            e.model.faults.*fault = 1'000'000;
            auto r = e.exchange(command_of(22));
            REQUIRE(!r);
            CHECK(r.error().code == Errc::timed_out);
            CHECK(r.error().message.find("burst count") != std::string::npos);
            CHECK(e.model.holder == -1);
            CHECK(e.model.slept < 10s);
            e.model.faults.*fault = 0;
            CHECK(e.exchange(command_of(22))); // usable again
        }
    }
    TEST_CASE("TIS: EXPECT that goes too early, or stays: the command is sent again, it was not executed") {
        for (int TisModel::Faults::*fault : {&TisModel::Faults::lost_expect, &TisModel::Faults::lost_byte}) {
            Echo e;
            e.model.burst = 4;
            e.model.faults.*fault = 2;
            const Bytes c = command_of(40);
            CHECK(e.exchange(c).value() == c);
            CHECK(e.model.commands == 1);
            e.model.faults.*fault = 1000;
            auto r = e.exchange(c);
            REQUIRE(!r);
            CHECK(r.error().code == Errc::timed_out);
            CHECK(e.model.commands == 1);
        }
    }
    TEST_CASE("TIS: an answer that is not read whole is asked for again, the command is not") {
        for (int TisModel::Faults::*fault : {&TisModel::Faults::short_answer, &TisModel::Faults::wrong_size}) {
            Echo e;
            e.model.faults.*fault = 2;
            const Bytes c = command_of(100);
            CHECK(e.exchange(c).value() == c);
            CHECK(e.model.commands == 1);
            CHECK(e.model.retries == 2);
            e.model.faults.*fault = 1000;
            CHECK(!e.exchange(c));
            CHECK(e.model.commands == 2);
            e.model.faults.*fault = 0;
            CHECK(e.exchange(c));
        }
    }
    TEST_CASE("TIS: busy is 'unavailable', a TPM that hangs is cancelled and timed out") {
        Echo e;
        e.model.faults.never_ready = 1000;
        CHECK(e.exchange(command_of(22)).error().code == Errc::unavailable);
        e.model.faults.never_ready = 0;
        e.model.faults.hangs = true;
        auto r = e.exchange(command_of(22));
        REQUIRE(!r);
        CHECK(r.error().code == Errc::timed_out);
        CHECK(e.model.cancels == 1);
        (void)e.exchange(command_of(22, 0x00C1));
        CHECK(e.model.cancels == 1); // TPM 1.2 has no such bit
        e.model.faults.ignores_cancel = true;
        CHECK(e.exchange(command_of(22)).error().code == Errc::timed_out);
        e.model.faults.hangs = false;
        CHECK(e.exchange(command_of(22)));
    }
    TEST_CASE("TIS: vanished is 'closed', at once; a locality that another holds is named") {
        Echo e;
        e.model.faults.vanished = true;
        auto r = e.exchange(command_of(22));
        REQUIRE(!r);
        CHECK(r.error().code == Errc::closed);
        CHECK(e.model.slept < 1s);
        e.model.faults.vanished = false;
        e.model.holder = 0;
        auto held = e.exchange(command_of(22));
        REQUIRE(!held);
        CHECK(held.error().code == Errc::unavailable);
        CHECK(held.error().message.find("locality 0 holds") != std::string::npos);
        e.port.relinquish_others();
        CHECK(e.exchange(command_of(22)));
        e.model.holder = 1;
        TisPort seizing(e.model, {.locality = 2, .seize = true});
        REQUIRE(seizing.request_locality());
        CHECK(e.model.holder == 2);
    }
    TEST_CASE("TIS: what is at the address is looked at first") {
        TisModel model([](ByteView c, std::uint8_t) { return to_bytes(c); });
        CHECK(detect_tis(model).value() == 0x00011014);
        model.faults.crb = true;
        auto crb = detect_tis(model);
        REQUIRE(!crb);
        CHECK(crb.error().code == Errc::unsupported);
        CHECK(crb.error().message.find("--tpm=device:") != std::string::npos);
        model.faults.vanished = true;
        CHECK(detect_tis(model).error().code == Errc::not_found);
    }
    TEST_CASE(
        "TIS device: the firmware's locality 0 is taken away only from nobody else's TPM; errors give ours back") {
        for (bool exclusive : {true, false}) {
            TisModel model([](ByteView c, std::uint8_t) { return to_bytes(c); });
            model.holder = 0;
            auto device =
                make_tis_device(std::make_unique<fakes::BorrowedBus>(model), {.locality = 2}, "tis", exclusive);
            REQUIRE(device);
            CHECK(model.holder == (exclusive ? -1 : 0));
            CHECK((*device)->claim().has_value() == exclusive);
            if (!exclusive) {
                continue;
            }
            CHECK((*device)->transmit(command_of(22), 1s));
            model.faults.hangs = true;
            CHECK(!(*device)->transmit(command_of(22), 1s));
            CHECK(model.holder == -1);
            CHECK((*device)->transmit(command_of(22), 1s).error().code == Errc::closed); // nothing without a claim
            model.faults.hangs = false;
            REQUIRE((*device)->claim());
            CHECK((*device)->transmit(command_of(22), 1s));
            device->reset();
            CHECK(model.holder == -1);
        }
    }
    TEST_CASE("kernel device: one write a command, one read an answer; time-outs, hang-ups and garbage are errors") {
        int pair[2];
        auto connect = [&](int type) {
            REQUIRE(::socketpair(AF_UNIX, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) == 0);
            return make_kernel_device(UniqueFd(pair[0]), "/dev/tpm-test");
        };
        auto answer_with = [&](Bytes bytes) { REQUIRE(::write(pair[1], bytes.data(), bytes.size()) > 0); };
        {
            auto device = connect(SOCK_SEQPACKET);
            UniqueFd kernel(pair[1]);
            answer_with(command_of(12));
            CHECK(device->transmit(command_of(22), 1s).value() == command_of(12));
            Bytes seen(100);
            CHECK(::read(kernel.get(), seen.data(), seen.size()) == 22);
            Bytes lies = command_of(12);
            lies.pop_back();
            answer_with(lies);
            CHECK(device->transmit(command_of(22), 1s).error().code == Errc::protocol);
            CHECK(device->claim().error().code == Errc::closed);
        }
        {
            auto device = connect(SOCK_SEQPACKET);
            UniqueFd kernel(pair[1]);
            CHECK(device->transmit(command_of(22), 30ms).error().code == Errc::timed_out);
            CHECK(device->transmit(command_of(22), 30ms).error().code == Errc::closed);
        }
        auto missing = open_kernel_device("/dev/vtpmd-no-such-tpm");
        REQUIRE(!missing);
        CHECK(missing.error().code == Errc::not_found);
        CHECK(make_kernel_device(UniqueFd(), "/dev/tpmrm0")->exclusive() == false);
        CHECK(make_kernel_device(UniqueFd(), "/dev/tpm0")->exclusive() == true);
    }
}

} // namespace hwtpm_tis_test
