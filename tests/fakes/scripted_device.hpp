// TpmDevices for tests: one that answers what the test says, one that records what goes over the bus.
#pragma once

#include "hwtpm/device.hpp"

#include <functional>
#include <memory>
#include <mutex>
#include <vector>

namespace vtpmd::fakes {

/// A ten-byte TPM 2.0 response with this code.
inline Bytes response_with(std::uint32_t code) {
    Bytes out = {std::byte{0x80}, std::byte{0x01}, std::byte{0}, std::byte{0}, std::byte{0}, std::byte{10}};
    for (int shift = 24; shift >= 0; shift -= 8) {
        out.push_back(static_cast<std::byte>(code >> shift));
    }
    return out;
}

class ScriptedDevice final : public hwtpm::TpmDevice {
  public:
    using Answer = std::function<Result<Bytes>(ByteView command)>;
    explicit ScriptedDevice(Answer answer)
        : answer_(std::move(answer)) {}
    [[nodiscard]] std::string description() const override { return "scripted"; }
    Result<Bytes> transmit(ByteView command, std::chrono::milliseconds /*limit*/) override {
        commands.push_back(to_bytes(command));
        return answer_(command);
    }
    [[nodiscard]] bool exclusive() const override { return true; }

    std::vector<Bytes> commands;

  private:
    Answer answer_;
};

/// Everything that went over the bus, in both directions. Outlives the device.
struct BusRecord {
    std::mutex mutex;
    std::vector<Bytes> traffic;
    unsigned claims = 0;
    unsigned releases = 0;
    /// If set, looked at before each command: an error is returned instead of asking the TPM.
    std::function<Result<void>(ByteView command)> fault;

    [[nodiscard]] bool contains(ByteView needle);
    [[nodiscard]] std::size_t count(std::uint32_t command_code);
};

class RecordingDevice final : public hwtpm::TpmDevice {
  public:
    RecordingDevice(std::unique_ptr<hwtpm::TpmDevice> inner, BusRecord& record)
        : inner_(std::move(inner))
        , record_(record) {}
    [[nodiscard]] std::string description() const override { return inner_->description(); }
    Result<Bytes> transmit(ByteView command, std::chrono::milliseconds limit) override;
    Result<void> claim() override;
    void release() noexcept override;
    Result<void> restart() override { return inner_->restart(); }
    void cancel() noexcept override { inner_->cancel(); }
    [[nodiscard]] bool exclusive() const override { return inner_->exclusive(); }

  private:
    std::unique_ptr<hwtpm::TpmDevice> inner_;
    BusRecord& record_;
};

} // namespace vtpmd::fakes
