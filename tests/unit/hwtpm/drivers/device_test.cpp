// What stands between ESAPI and a driver: the TCTI, the patience with codes that mean "later", the question for the family,
// and the state file of the embedded TPM.
#include "check.hpp"
#include "scripted_device.hpp"
#include "swtpm_process.hpp"

#include "hwtpm/drivers/embedded_state.hpp"
#include "hwtpm/drivers/kernel_device.hpp"
#include "hwtpm/patient_device.hpp"
#include "hwtpm/queue/probe.hpp"
#include "hwtpm/tcti.hpp"

#include <array>

namespace hwtpm_device_test {

using namespace vtpmd;
using namespace vtpmd::hwtpm;
using namespace std::chrono_literals;
using fakes::response_with;
using fakes::ScriptedDevice;

namespace {

const Bytes some_command = response_with(0x17B); // TPM2_GetRandom's code; only the length matters here

struct Patience {
    std::vector<std::chrono::milliseconds> pauses;
    std::unique_ptr<PatientDevice> make(ScriptedDevice::Answer answer) {
        return std::make_unique<PatientDevice>(std::make_unique<ScriptedDevice>(std::move(answer)),
                                               PatientDevice::Config{.first_pause = 20ms,
                                                                     .longest_pause = 100ms,
                                                                     .patience = 500ms,
                                                                     .sleep = [this](auto d) { pauses.push_back(d); }});
    }
};

/// What the macros Tss2_Tcti_Transmit and Tss2_Tcti_Receive do.
TSS2_RC send(TSS2_TCTI_CONTEXT* c, size_t size, const std::uint8_t* command) {
    return reinterpret_cast<TSS2_TCTI_CONTEXT_COMMON_V1*>(c)->transmit(c, size, command);
}
TSS2_RC receive(TSS2_TCTI_CONTEXT* c, size_t* size, std::uint8_t* response) {
    return reinterpret_cast<TSS2_TCTI_CONTEXT_COMMON_V1*>(c)->receive(c, size, response, TSS2_TCTI_TIMEOUT_BLOCK);
}

} // namespace

TEST_SUITE("hwtpm") {
    TEST_CASE("'later' is asked again after pauses that grow to their limit") {
        for (std::uint32_t code : {0x908U, 0x90AU, 0x920U, 0x921U, 0x922U, 0x923U, 0x800U, 0x802U, 0x803U}) {
            CAPTURE(code);
            Patience p;
            int left = 4;
            auto device = p.make([&](ByteView) -> Result<Bytes> { return response_with(left-- > 0 ? code : 0); });
            CHECK(device->transmit(some_command, 1s).value() == response_with(0));
            CHECK(p.pauses == std::vector<std::chrono::milliseconds>{20ms, 40ms, 80ms, 100ms});
            CHECK(device->retries() == 4);
        }
    }
    TEST_CASE("patience ends: unavailable, with the code") {
        Patience p;
        auto device = p.make([](ByteView) -> Result<Bytes> { return response_with(0x922); });
        auto r = device->transmit(some_command, 1s);
        REQUIRE(!r);
        CHECK(r.error().code == Errc::unavailable);
        CHECK(r.error().detail == 0x922);
        std::chrono::milliseconds sum{0};
        for (auto d : p.pauses) {
            sum += d;
        }
        CHECK(sum >= 500ms);
        CHECK(sum <= 600ms);
    }
    TEST_CASE("other codes and lost answers are not for patience") {
        Patience p;
        auto refused = p.make([](ByteView) -> Result<Bytes> { return response_with(0x101); });
        CHECK(refused->transmit(some_command, 1s).value() == response_with(0x101));
        auto lost = p.make([](ByteView) -> Result<Bytes> { return make_error(Errc::closed, "gone"); });
        CHECK(lost->transmit(some_command, 1s).error().code == Errc::closed);
        CHECK(p.pauses.empty());
    }
    TEST_CASE("the TCTI keeps the order of things") {
        ScriptedDevice device([](ByteView) -> Result<Bytes> { return response_with(0); });
        DeviceTcti tcti(device);
        TSS2_TCTI_CONTEXT* c = tcti.context();
        std::array<std::uint8_t, 64> buffer{};
        size_t size = buffer.size();
        const auto* command = reinterpret_cast<const std::uint8_t*>(some_command.data());
        CHECK(receive(c, &size, buffer.data()) == TSS2_TCTI_RC_BAD_SEQUENCE);
        CHECK(send(c, 9, command) == TSS2_TCTI_RC_BAD_VALUE);
        REQUIRE(send(c, some_command.size(), command) == TSS2_RC_SUCCESS);
        CHECK(send(c, some_command.size(), command) == TSS2_TCTI_RC_BAD_SEQUENCE);
        size = 0;
        REQUIRE(receive(c, &size, nullptr) == TSS2_RC_SUCCESS); // how much is it?
        CHECK(size == 10);
        size = 9;
        CHECK(receive(c, &size, buffer.data()) == TSS2_TCTI_RC_INSUFFICIENT_BUFFER);
        CHECK(size == 10);
        REQUIRE(receive(c, &size, buffer.data()) == TSS2_RC_SUCCESS);
        CHECK(to_bytes(view_of(buffer.data(), size)) == response_with(0));
        CHECK(device.commands == std::vector<Bytes>{some_command}); // once, however often it was asked for
    }
    TEST_CASE("the TCTI remembers why no answer came, and is usable again") {
        bool broken = true;
        ScriptedDevice device([&](ByteView) -> Result<Bytes> {
            if (broken) {
                return make_error(Errc::timed_out, "hung");
            }
            return response_with(0);
        });
        DeviceTcti tcti(device);
        TSS2_TCTI_CONTEXT* c = tcti.context();
        std::array<std::uint8_t, 64> buffer{};
        size_t size = buffer.size();
        const auto* command = reinterpret_cast<const std::uint8_t*>(some_command.data());
        REQUIRE(send(c, some_command.size(), command) == TSS2_RC_SUCCESS);
        CHECK(receive(c, &size, buffer.data()) == TSS2_TCTI_RC_IO_ERROR);
        REQUIRE(tcti.failure());
        CHECK(tcti.failure()->code == Errc::timed_out);
        broken = false;
        size = buffer.size();
        REQUIRE(send(c, some_command.size(), command) == TSS2_RC_SUCCESS);
        CHECK(receive(c, &size, buffer.data()) == TSS2_RC_SUCCESS);
        CHECK(!tcti.failure());
    }
    TEST_CASE("the family is in the answer's tag") {
        auto ask = [](Bytes answer) {
            ScriptedDevice d([&](ByteView) -> Result<Bytes> { return answer; });
            return probe_family(d);
        };
        CHECK(ask(response_with(0x100)).value() == TpmVersion::tpm20); // TPM_RC_INITIALIZE: not started yet
        CHECK(ask(response_with(0)).value() == TpmVersion::tpm20);
        Bytes v12 = response_with(0x1E);
        v12[0] = std::byte{0};
        v12[1] = std::byte{0xC4};
        CHECK(ask(v12).value() == TpmVersion::tpm12);
        v12[9] = std::byte{0x0A};
        CHECK(ask(v12).value() == TpmVersion::tpm12);
        v12[9] = std::byte{9}; // TPM_FAIL: not powered on, or not a TPM
        CHECK(ask(v12).error().code == Errc::protocol);
        CHECK(ask(Bytes(4)).error().code == Errc::protocol);
    }
    TEST_CASE("the embedded TPM's state file: round trip, every truncation, every flipped byte, a byte too many") {
        EngineState state;
        state.permanent = SecretBytes(as_bytes("permanent state"));
        state.save_state = SecretBytes(as_bytes("saved"));
        const Bytes file = to_bytes(encode_embedded_state(state).view());
        auto back = decode_embedded_state(file).value();
        CHECK(back.permanent.equals(state.permanent.view()));
        CHECK(back.save_state.equals(state.save_state.view()));
        for (std::size_t n = 0; n < file.size(); ++n) {
            CAPTURE(n);
            CHECK(!decode_embedded_state(ByteView(file).first(n)));
            Bytes flipped = file;
            flipped[n] ^= std::byte{0x20};
            CHECK(!decode_embedded_state(flipped));
        }
        Bytes longer = file;
        longer.push_back(std::byte{0});
        CHECK(decode_embedded_state(longer).error().code == Errc::corrupt);
        Bytes newer = file;
        newer[11] = std::byte{2};
        CHECK(decode_embedded_state(newer).error().code == Errc::version);
        Bytes alien = file;
        alien[0] = std::byte{'x'};
        CHECK(decode_embedded_state(alien).error().code == Errc::not_ours);
    }
    TEST_CASE("the kernel's TPMs: whatever number they have, in order, without those that are software") {
        fakes::TempDir dir;
        CHECK(kernel_tpms(dir.path() / "none").empty());
        CHECK(kernel_tpms(dir.path()).empty());
        for (const char* name : {"tpm10/device", "tpm9/device", "tpm1", "tpmrm0/device", "tpm/device", "tp/device"}) {
            std::filesystem::create_directories(dir.path() / name); // tpm1 as /dev/vtpmx makes them
        }
        CHECK(kernel_tpms(dir.path()) == std::vector<std::string>{"tpm9", "tpm10"});
    }
    TEST_CASE("the embedded TPM's directory: one process at a time, the state replaced as a whole") {
        // Same process: flock is per open file description, so a second open is a second holder.
        std::string pattern = "/tmp/vtpmd-embedded-XXXXXX";
        REQUIRE(mkdtemp(pattern.data()) != nullptr);
        const std::filesystem::path dir = std::filesystem::path(pattern) / "tpm";
        CHECK(EmbeddedState::open(dir, false).error().code == Errc::not_found);
        {
            auto first = EmbeddedState::open(dir, true);
            REQUIRE(first);
            CHECK(EmbeddedState::open(dir, true).error().code == Errc::busy);
            CHECK(!first->load().value());
            EngineState state;
            state.permanent = SecretBytes(as_bytes("one"));
            REQUIRE(first->replace(state));
            state.permanent = SecretBytes(as_bytes("two"));
            REQUIRE(first->replace(state));
        }
        auto again = EmbeddedState::open(dir, false);
        REQUIRE(again);
        auto state = again->load().value();
        REQUIRE(state);
        CHECK(state->permanent.equals(as_bytes("two")));
        std::filesystem::remove_all(pattern);
    }
}

} // namespace hwtpm_device_test
