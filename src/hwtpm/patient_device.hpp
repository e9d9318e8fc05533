// Waits out the response codes that mean "later": the same command is sent again after a pause that grows, until the
// TPM takes it or the patience is over (Errc::unavailable; the TPM did not execute the command).
//
// TPM 2.0 part 2 section 6.6.3 (warnings): RC_YIELDED, RC_TESTING, RC_NV_RATE, RC_LOCKOUT, RC_RETRY, RC_NV_UNAVAILABLE.
// TPM Main part 2 section 16: TPM_RETRY, TPM_DOING_SELFTEST, TPM_DEFEND_LOCK_RUNNING.
// A command refused so has not moved a session's nonces, so the very same bytes are right again.
#pragma once

#include "hwtpm/device.hpp"

#include <atomic>
#include <functional>

namespace vtpmd::hwtpm {

[[nodiscard]] bool means_later(std::uint32_t response_code) noexcept;

class PatientDevice final : public TpmDevice {
  public:
    struct Config {
        std::chrono::milliseconds first_pause{20};
        std::chrono::milliseconds longest_pause{1000};
        std::chrono::milliseconds patience{30'000};
        std::function<void(std::chrono::milliseconds)> sleep; ///< empty: std::this_thread::sleep_for
    };
    PatientDevice(std::unique_ptr<TpmDevice> inner, Config config);

    [[nodiscard]] std::string description() const override { return inner_->description(); }
    Result<Bytes> transmit(ByteView command, std::chrono::milliseconds limit) override;
    Result<void> claim() override { return inner_->claim(); }
    void release() noexcept override { inner_->release(); }
    Result<void> restart() override { return inner_->restart(); }
    void cancel() noexcept override { inner_->cancel(); }
    [[nodiscard]] bool exclusive() const override { return inner_->exclusive(); }

    /// How often a command was sent again. From any thread.
    [[nodiscard]] std::uint64_t retries() const noexcept { return retries_.load(std::memory_order_relaxed); }
    /// Commands sent, retries among them. From any thread.
    [[nodiscard]] std::uint64_t commands() const noexcept { return commands_.load(std::memory_order_relaxed); }

  private:
    std::unique_ptr<TpmDevice> inner_;
    Config config_;
    std::atomic<std::uint64_t> retries_ = 0;
    std::atomic<std::uint64_t> commands_ = 0;
};

} // namespace vtpmd::hwtpm
