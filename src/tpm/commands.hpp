// The few commands that this program itself sends to a TPM, and what it reads from the answers. Everything else is the
// guest's, or goes through tpm2-tss.
#pragma once

#include "tpm/header.hpp"
#include "tpm/sha1.hpp"
#include "util/bytes.hpp"
#include "util/result.hpp"
#include "util/wire.hpp"

#include <array>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace vtpmd::tpm {

/// PCRs of a PC client TPM: 0-23, in both families.
inline constexpr unsigned pcr_count = 24;

/// Bytes of a digest of a hash algorithm (TPM_ALG_SHA1, SHA256, SHA384, SHA512); 0 for any other.
[[nodiscard]] std::size_t digest_size(std::uint16_t hash_alg) noexcept;

/// The header of a command, whose size is still open: finish_command() fills it in.
[[nodiscard]] WireWriter begin_command(std::uint16_t tag, std::uint32_t code);
[[nodiscard]] Bytes finish_command(WireWriter& command);
/// An authorisation area of one TPMS_AUTH_COMMAND (Library part 2 section 10.13.2): TPM_RS_PW, no nonce, no attributes,
/// the empty password.
void put_empty_password(WireWriter& command);

/// How a TPM wakes: TPM_STARTUP_TYPE (Main part 2 section 4.5) or TPM_SU (Library part 2 section 6.10). TPM 2.0 has no
/// `deactivated`: building that command is a broken invariant.
enum class StartupMode : std::uint8_t { clear, state, deactivated };

/// TPM_Startup (Main part 3 section 3.2), TPM2_Startup (Library part 3 section 9.3).
[[nodiscard]] Bytes startup_command(TpmVersion version, StartupMode mode);
/// TPM_SaveState, Main part 3 section 3.3.
[[nodiscard]] Bytes save_state_command();
/// TPM2_Shutdown, Library part 3 section 9.4; clear or state.
[[nodiscard]] Bytes shutdown_command(StartupMode mode);

/// TPM_GetRandom (Main part 3 section 13.1), TPM2_GetRandom (Library part 3 section 16.1). A TPM may give fewer bytes.
[[nodiscard]] Bytes get_random_command(TpmVersion version, std::uint16_t count);
[[nodiscard]] Result<Bytes> parse_get_random(TpmVersion version, ByteView response);

/// TPM_Extend, Main part 3 section 16.1. The answer is the PCR's new value.
[[nodiscard]] Bytes extend_command(unsigned pcr, const Sha1Digest& digest);
/// TPM_PcrRead, Main part 3 section 16.2.
[[nodiscard]] Bytes pcr_read_command(unsigned pcr);
/// The 20-byte value in the answer of TPM_Extend or TPM_PcrRead.
[[nodiscard]] Result<Sha1Digest> parse_pcr_value(ByteView response);

/// TPMT_HA: a digest with its algorithm.
struct HashValue {
    std::uint16_t alg = 0;
    Bytes digest;
    friend bool operator==(const HashValue&, const HashValue&) = default;
};
/// TPM2_PCR_Extend with the empty password, Library part 3 section 22.2.
[[nodiscard]] Bytes pcr_extend_command(unsigned pcr, std::span<const HashValue> values);

/// TPMS_PCR_SELECTION: PCRs of one bank, bit n for PCR n.
struct PcrBank {
    std::uint16_t alg = 0;
    std::uint32_t pcrs = 0;
    friend bool operator==(const PcrBank&, const PcrBank&) = default;
};
/// TPM2_PCR_Read, Library part 3 section 22.4. A TPM gives at most eight values at once and says which.
[[nodiscard]] Bytes pcr_read_command(std::span<const PcrBank> banks);
struct PcrReadReply {
    std::uint32_t update_counter = 0;
    std::vector<PcrBank> banks; ///< the PCRs whose values are here
    std::vector<Bytes> digests; ///< bank by bank, ascending PCR
};
[[nodiscard]] Result<PcrReadReply> parse_pcr_read(ByteView response);

/// TPM2_GetCapability(TPM_CAP_PCRS), Library part 3 section 30.2: the banks and their PCRs. A bank that is not
/// allocated may be there with no PCR.
[[nodiscard]] Bytes get_capability_pcrs_command();
[[nodiscard]] Result<std::vector<PcrBank>> parse_capability_pcrs(ByteView response);

/// TPM2_PCR_Allocate with the platform's empty password, Library part 3 section 22.5: every bank that is named has just
/// these PCRs from the next start on. False: the TPM has no room for it, and nothing changed.
[[nodiscard]] Bytes pcr_allocate_command(std::span<const PcrBank> banks);
[[nodiscard]] Result<bool> parse_pcr_allocate(ByteView response);

/// Success, or Errc::tpm with the return code in `detail` and `what` in the message, or Errc::protocol.
[[nodiscard]] Result<void> check_response(ByteView response, std::string_view what);

} // namespace vtpmd::tpm
