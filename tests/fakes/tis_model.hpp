// A TPM behind TIS registers, in memory and in a time of its own: keeps the protocol, and can misbehave.
#pragma once

#include "hwtpm/drivers/tis.hpp"

#include <functional>

namespace vtpmd::fakes {

class TisModel final : public hwtpm::TisBus {
  public:
    /// The TPM itself: one command at this locality, one answer.
    using Tpm = std::function<Bytes(ByteView command, std::uint8_t locality)>;
    explicit TisModel(Tpm tpm)
        : tpm_(std::move(tpm)) {}

    /// What goes wrong, and how often; 0: nothing. Public on purpose: a test turns these while it runs.
    struct Faults {
        int stuck_burst_zero = 0; ///< reads of the burst count that give 0
        int stuck_burst_ones = 0; ///< reads of the burst count that give 0xFFFF
        int lost_expect = 0;      ///< commands whose 5th byte makes EXPECT go
        int lost_byte = 0;        ///< commands of which a byte gets lost, so that EXPECT stays
        int never_ready = 0;      ///< command-ready writes that are ignored
        int short_answer = 0;     ///< answers whose data end early until responseRetry
        int wrong_size = 0;       ///< answers whose header is garbage until responseRetry
        bool hangs = false;       ///< no answer ever, unless cancelled
        bool ignores_cancel = false;
        bool vanished = false; ///< all ones
        bool refuses_locality = false;
        bool crb = false;
    };
    Faults faults;
    unsigned burst = 16;
    std::chrono::microseconds execution{1000};
    int holder = -1; ///< the locality that has the TPM

    // What was seen.
    unsigned commands = 0;
    unsigned retries = 0;
    unsigned cancels = 0;
    unsigned requests = 0;
    unsigned relinquishes = 0;
    std::chrono::microseconds slept{0};

    std::uint8_t read8(std::uint32_t offset) override;
    std::uint32_t read32(std::uint32_t offset) override;
    void write8(std::uint32_t offset, std::uint8_t value) override;
    void write32(std::uint32_t offset, std::uint32_t value) override;
    [[nodiscard]] Time now() override { return now_; }
    void pause(std::chrono::microseconds d) override {
        now_ += d;
        slept += d;
    }

  private:
    enum class State { idle, ready, reception, execution, completion };
    static bool take(int& count);
    [[nodiscard]] std::uint8_t status();
    [[nodiscard]] bool expects() const;
    void settle();
    void write_status(std::uint8_t value);
    void take_byte(std::uint8_t value);
    std::uint8_t give_byte();

    Tpm tpm_;
    State state_ = State::idle;
    Time now_{};
    Time done_at_{};
    bool cancelled_ = false;
    bool expect_lost_ = false;
    bool byte_lost_ = false;
    Bytes command_;
    Bytes answer_;
    std::size_t given_ = 0;
    std::size_t cut_ = 0; ///< bytes that are not given before responseRetry
    bool garbled_ = false;
};

/// A TisBus that forwards to one that the test keeps.
class BorrowedBus final : public hwtpm::TisBus {
  public:
    explicit BorrowedBus(TisBus& inner)
        : inner_(inner) {}
    std::uint8_t read8(std::uint32_t o) override { return inner_.read8(o); }
    std::uint32_t read32(std::uint32_t o) override { return inner_.read32(o); }
    void write8(std::uint32_t o, std::uint8_t v) override { inner_.write8(o, v); }
    void write32(std::uint32_t o, std::uint32_t v) override { inner_.write32(o, v); }
    [[nodiscard]] Time now() override { return inner_.now(); }
    void pause(std::chrono::microseconds d) override { inner_.pause(d); }

  private:
    TisBus& inner_;
};

} // namespace vtpmd::fakes
