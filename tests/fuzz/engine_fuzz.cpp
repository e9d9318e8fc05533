// What a guest may send to its TPM 2.0: the answer is well-formed, the TPM goes on, and what it stages is a state that it
// starts with again. The first byte is the locality. Commands that make keys are left out for their time.
#include "fuzz.hpp"

#include "engine/engine.hpp"
#include "tpm/commands.hpp"
#include "tpm/cost.hpp"

namespace engine_fuzz {

using namespace vtpmd;

namespace {

constexpr auto v20 = TpmVersion::tpm20;

/// A TPM that is started anew from what it staged, now and then.
class Guest {
  public:
    Guest()
        : engine_(Engine::create(v20).value()) {
        cycle();
    }
    void send(ByteView command, std::uint8_t locality) {
        const Bytes answer = engine_->execute(command, locality);
        fuzz::fuzz_check(tpm::is_well_formed_response(v20, answer), "every answer is well-formed");
        if (++commands_ % 500 == 0) {
            cycle();
        }
    }

  private:
    void cycle() {
        if (auto staged = engine_->take_staged()) {
            disk_ = std::move(*staged);
        }
        fuzz::fuzz_check(engine_->power_on(disk_).has_value(), "the TPM starts with what it staged");
        const Bytes answer = engine_->execute(tpm::startup_command(v20, tpm::StartupMode::clear), 0);
        fuzz::fuzz_check(tpm::peek_header(answer).code == 0, "and TPM2_Startup succeeds");
    }

    std::unique_ptr<Engine> engine_;
    EngineState disk_;
    unsigned commands_ = 0;
};

Bytes at_locality_0(Bytes command) {
    command.insert(command.begin(), std::byte{0});
    return command;
}

std::vector<Bytes> seeds() {
    const tpm::HashValue value{tpm::alg::sha256, Bytes(32)};
    const tpm::PcrBank bank{tpm::alg::sha256, 0xffffff};
    return {
        at_locality_0(tpm::get_random_command(v20, 16)),
        at_locality_0(tpm::pcr_extend_command(7, std::span(&value, 1))),
        at_locality_0(tpm::pcr_read_command(std::span(&bank, 1))),
        at_locality_0(tpm::get_capability_pcrs_command()),
        at_locality_0(tpm::shutdown_command(tpm::StartupMode::state)),
    };
}

void run(ByteView input) {
    static Guest guest;
    if (input.empty()) {
        return;
    }
    const ByteView command = input.subspan(1);
    if (tpm::cost(v20, command) == tpm::Cost::fast) {
        guest.send(command, std::to_integer<unsigned>(input[0]));
    }
}

const fuzz::Harness harness("engine", seeds, run);

} // namespace

} // namespace engine_fuzz
