// The FIFO interface of a hardware TPM: registers, and the protocol over them, as a state machine over an interface
// that the real mapping and a model in the tests implement.
// PC Client Specific TPM Interface Specification (TIS) 1.3, sections 5.5-5.7; PC Client Platform TPM Profile 1.05,
// section 6.
#pragma once

#include "util/bytes.hpp"
#include "util/result.hpp"

#include <chrono>
#include <cstdint>

namespace vtpmd::hwtpm {

/// Register access and time. Offsets are from the base: locality * 4096 + register.
class TisBus {
  public:
    using Time = std::chrono::steady_clock::time_point;
    virtual ~TisBus() = default;
    virtual std::uint8_t read8(std::uint32_t offset) = 0;
    virtual std::uint32_t read32(std::uint32_t offset) = 0;
    virtual void write8(std::uint32_t offset, std::uint8_t value) = 0;
    virtual void write32(std::uint32_t offset, std::uint32_t value) = 0;
    [[nodiscard]] virtual Time now() = 0;
    virtual void pause(std::chrono::microseconds d) = 0;
};

namespace tis {

inline constexpr unsigned localities = 5;
inline constexpr std::uint32_t locality_size = 0x1000;
inline constexpr std::size_t window_size = std::size_t{localities} * locality_size;

// TIS 1.3 section 5.5, table 13.
inline constexpr std::uint32_t reg_access = 0x00;
inline constexpr std::uint32_t reg_status = 0x18;
inline constexpr std::uint32_t reg_burst_low = 0x19;
inline constexpr std::uint32_t reg_burst_high = 0x1A;
inline constexpr std::uint32_t reg_fifo = 0x24;
inline constexpr std::uint32_t reg_interface_id = 0x30;
inline constexpr std::uint32_t reg_did_vid = 0xF00;

inline constexpr std::uint8_t access_valid = 0x80;
inline constexpr std::uint8_t access_active = 0x20;
inline constexpr std::uint8_t access_relinquish = 0x20; ///< written
inline constexpr std::uint8_t access_seize = 0x08;      ///< written
inline constexpr std::uint8_t access_request = 0x02;

inline constexpr std::uint8_t status_valid = 0x80;
inline constexpr std::uint8_t status_command_ready = 0x40;
inline constexpr std::uint8_t status_go = 0x20;
inline constexpr std::uint8_t status_data_available = 0x10;
inline constexpr std::uint8_t status_expect = 0x08;
inline constexpr std::uint8_t status_response_retry = 0x02;
inline constexpr std::uint32_t status_cancel = 0x0100'0000; ///< bit 24 of the 32-bit register, TPM 2.0 only

inline constexpr std::chrono::milliseconds timeout_a{750};
inline constexpr std::chrono::milliseconds timeout_b{2000};
inline constexpr std::chrono::milliseconds timeout_c{750};
inline constexpr std::chrono::milliseconds timeout_d{750};
inline constexpr int transfer_attempts = 3; ///< a command that was not taken whole, an answer that was not read whole

} // namespace tis

/// What sits at the base address: Errc::not_found (nothing answers), Errc::unsupported (a CRB part; names device:).
[[nodiscard]] Result<std::uint32_t> detect_tis(TisBus& bus);

class TisPort {
  public:
    struct Config {
        std::uint8_t locality = 0;
        bool seize = false; ///< take the locality from one that holds it and does not let go
    };
    TisPort(TisBus& bus, Config config)
        : bus_(bus)
        , config_(config) {}

    /// Errc::unavailable names the locality that holds the TPM; Errc::closed: the registers read as if nothing were
    /// there.
    Result<void> request_locality();
    void relinquish() noexcept;
    /// Lets go of localities that the firmware left active: only where nobody else drives the TPM.
    void relinquish_others();

    /// With the locality held. Errc::timed_out, closed, protocol; the TPM is told to forget the command then.
    Result<Bytes> transmit(ByteView command, std::chrono::milliseconds limit);

  private:
    [[nodiscard]] std::uint32_t at(std::uint32_t reg) const noexcept {
        return config_.locality * tis::locality_size + reg;
    }
    Result<void> make_ready();
    Result<void> send(ByteView command);
    Result<std::size_t> burst();
    Result<Bytes> receive();
    Result<void> receive_into(MutByteView into);
    Result<void> wait_status(std::uint8_t mask, std::uint8_t value, std::chrono::milliseconds limit,
                             std::string_view what);
    [[nodiscard]] bool vanished();
    void abort(bool family20);

    TisBus& bus_;
    Config config_;
};

} // namespace vtpmd::hwtpm
