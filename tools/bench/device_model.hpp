// The way of a QEMU guest to its TPM, as QEMU's tpm-emulator goes it: a control channel, and beside it a socket for commands of
// which the TPM is handed one end.
#pragma once

#include "client.hpp"

namespace bench {

/// What a TPM gives out for a migration: the blobs of type 1, 2 and 3.
struct MovingState {
    struct Blob {
        std::uint32_t flags = 0;
        Bytes data;
    };
    std::array<Blob, 3> blobs;
};

class DeviceModel final : public Client {
  public:
    /// Hands the descriptor over and asks what QEMU asks; the TPM is off. Throws.
    DeviceModel(const std::filesystem::path& control, std::chrono::milliseconds patience);

    void power_on();                         ///< INIT, without which a migrated TPM does not go on
    void start_up();                         ///< what firmware sends first: TPM2_Startup
    MovingState state_out();                 ///< as QEMU saves it
    void state_in(const MovingState& state); ///< as QEMU loads it, before power_on()

  private:
    struct Ends {
        vtpmd::UniqueFd mine;
        vtpmd::UniqueFd tpms;
    };
    DeviceModel(const std::filesystem::path& control, std::chrono::milliseconds patience, Ends ends);

    /// The answer's body; throws if the result is not 0.
    Bytes call(std::uint32_t command, ByteView body, std::size_t answer);
    void request(std::uint32_t command, ByteView body);
    Bytes receive(std::size_t size);

    vtpmd::UniqueFd control_;
};

} // namespace bench
