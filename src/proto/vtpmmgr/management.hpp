// Management in the old protocol of Xen's manager (tag 0x01C2), pure: what the administrator's vTPM may ask.
// Big-endian.
//
//   ordinal      name            request body                                       response body
//   0x02000101   GROUP_LIST      -                                                  u32 count
//   0x02000102   GROUP_NEW       chosen-id[20], approver's RSA modulus[256]         uuid[16], AIK modulus[256],
//                                                                                   binding[256]
//   0x02000103   GROUP_DEL       u32 group                                          -
//   0x02000104   GROUP_ACTIVATE  u32 group, u32 n, blob[n]                          TPM_SYMMETRIC_KEY
//   0x02000105   GROUP_REGISTER  u32 group, dh[256], proof[256], PCR selection      dh[256], recovery blob[32],
//                                                                                   signature[256], +
//   0x02000106   GROUP_UPDATE    u32 group, signature[256], config list, selection  -
//                                for each of its platforms
//   0x02000107   GROUP_SHOW      u32 group                                          uuid[16], modulus[256], config list
//   0x02000108   GROUP_QUOTE     u32 group, nonce[20], PCR selection                signature[256], PCR values, +
//   0x02000109   GROUP_RECOVER1  u32 group, TPM_KEY, nonce[20], PCR selection       dh[256], signature[256], +
//   0x0200010A   GROUP_RECOVER2  u32 group, dh[256], recovery blob[32]              -
//   0x02000201   VTPM_LIST       u32 group, u32 offset                              u32 total, uuid[16]...
//   0x02000202   VTPM_SHOW       uuid[16]                                           u32 group, u32 flags (1 open, 2 has
//                                                                                   state, 4 administrator's), u32 TPM
//                                                                                   version (0x0102, 0x0200),
//                                                                                   u64 created, u64 saves
//   0x02000203   VTPM_EDIT       uuid[16], u32 group                                -
//   0x02000204   VTPM_NEW        u32 group [, uuid[16] [, 0]]                       uuid[16]
//   0x02000205   VTPM_DEL        uuid[16]                                           -
//
// config list: u64 sequence, u32 n, n * composite hash[20], u32 m, m * label hash[20]. PCR selection: u16 n (at most
// 4), bitmap[n]. A group's number is its place in the list of groups. +: on a TPM 2.0 the TPMS_ATTEST that is signed;
// on a TPM 1.2 nothing, what is signed follows from the PCR values. What dh, proof and blobs are:
// manager/groups/vtpmmgr_recovery.hpp, vtpmd(8). GROUP_SHOW of a list that does not fit into a packet (a group of our
// own form may have one) is refused as too large. The bodies of VTPM_SHOW and VTPM_EDIT are ours: nobody had built
// them. VTPM_NEW's 17th byte is what Xen's own script sends.
#pragma once

#include "proto/link/frame.hpp"
#include "util/uuid.hpp"

#include <array>
#include <optional>
#include <variant>
#include <vector>

namespace vtpmd::proto::management {

/// A ring without extra pages carries no longer answer.
inline constexpr std::size_t answer_limit = 4088;
inline constexpr std::size_t number_size = 256; ///< RSA-2048, and Diffie-Hellman in the 2048-bit group of RFC 3526
inline constexpr std::size_t blob_size = 32;

using Hash = std::array<std::byte, 20>; ///< SHA-1
using Number = std::array<std::byte, number_size>;
using Blob = std::array<std::byte, blob_size>;
using PcrMask = std::uint32_t; ///< bit n: PCR n, 0 to 23

namespace ordinal {
inline constexpr std::uint32_t group_list = 0x02000101;
inline constexpr std::uint32_t group_new = 0x02000102;
inline constexpr std::uint32_t group_del = 0x02000103;
inline constexpr std::uint32_t group_activate = 0x02000104;
inline constexpr std::uint32_t group_register = 0x02000105;
inline constexpr std::uint32_t group_update = 0x02000106;
inline constexpr std::uint32_t group_show = 0x02000107;
inline constexpr std::uint32_t group_quote = 0x02000108;
inline constexpr std::uint32_t group_recover1 = 0x02000109;
inline constexpr std::uint32_t group_recover2 = 0x0200010A;
inline constexpr std::uint32_t vtpm_list = 0x02000201;
inline constexpr std::uint32_t vtpm_show = 0x02000202;
inline constexpr std::uint32_t vtpm_edit = 0x02000203;
inline constexpr std::uint32_t vtpm_new = 0x02000204;
inline constexpr std::uint32_t vtpm_del = 0x02000205;
} // namespace ordinal

struct ConfigList {
    std::uint64_t sequence = 0;
    std::vector<Hash> platforms; ///< SHA-1 of TPM_PCR_COMPOSITE
    std::vector<Hash> labels;
    friend bool operator==(const ConfigList&, const ConfigList&) = default;
};
[[nodiscard]] Bytes encode(const ConfigList& list);

struct GroupList {
    friend bool operator==(const GroupList&, const GroupList&) = default;
};
struct GroupNew {
    Hash chosen_id{};
    Number modulus{};
    friend bool operator==(const GroupNew&, const GroupNew&) = default;
};
struct GroupDel {
    std::uint32_t group = 0;
    friend bool operator==(const GroupDel&, const GroupDel&) = default;
};
struct GroupActivate {
    std::uint32_t group = 0;
    Bytes blob;
    friend bool operator==(const GroupActivate&, const GroupActivate&) = default;
};
struct GroupRegister {
    std::uint32_t group = 0;
    Number dh{};
    Number proof{};
    PcrMask pcrs = 0;
    friend bool operator==(const GroupRegister&, const GroupRegister&) = default;
};
struct GroupUpdate {
    std::uint32_t group = 0;
    Number signature{}; ///< RSA, SHA-1, over encode(list)
    ConfigList list;
    std::vector<PcrMask> selections; ///< one for each platform
    friend bool operator==(const GroupUpdate&, const GroupUpdate&) = default;
};
struct GroupShow {
    std::uint32_t group = 0;
    friend bool operator==(const GroupShow&, const GroupShow&) = default;
};
struct GroupQuote {
    std::uint32_t group = 0;
    Hash nonce{};
    PcrMask pcrs = 0;
    friend bool operator==(const GroupQuote&, const GroupQuote&) = default;
};
struct GroupRecover1 {
    std::uint32_t group = 0;
    Bytes key; ///< a TPM_KEY
    Hash nonce{};
    PcrMask pcrs = 0;
    friend bool operator==(const GroupRecover1&, const GroupRecover1&) = default;
};
struct GroupRecover2 {
    std::uint32_t group = 0;
    Number dh{};
    Blob blob{};
    friend bool operator==(const GroupRecover2&, const GroupRecover2&) = default;
};
struct VtpmList {
    std::uint32_t group = 0;
    std::uint32_t offset = 0;
    friend bool operator==(const VtpmList&, const VtpmList&) = default;
};
struct VtpmShow {
    Uuid uuid;
    friend bool operator==(const VtpmShow&, const VtpmShow&) = default;
};
struct VtpmEdit {
    Uuid uuid;
    std::uint32_t group = 0;
    friend bool operator==(const VtpmEdit&, const VtpmEdit&) = default;
};
struct VtpmNew {
    std::uint32_t group = 0;
    std::optional<Uuid> uuid;
    friend bool operator==(const VtpmNew&, const VtpmNew&) = default;
};
struct VtpmDel {
    Uuid uuid;
    friend bool operator==(const VtpmDel&, const VtpmDel&) = default;
};
using Request = std::variant<GroupList, GroupNew, GroupDel, GroupActivate, GroupRegister, GroupUpdate, GroupShow,
                             GroupQuote, GroupRecover1, GroupRecover2, VtpmList, VtpmShow, VtpmEdit, VtpmNew, VtpmDel>;

/// A whole frame of tag 0x01C2. Errc::unsupported: no such ordinal; protocol: a body of another size than its fields
/// have; usage: a PCR above 23, a UUID of zeros.
[[nodiscard]] Result<Request> parse(ByteView frame);
/// As Xen's script sends them.
[[nodiscard]] Bytes encode(const Request& request);
[[nodiscard]] std::string_view name_of(const Request& request);

/// The modulus of a TPM_KEY (TPM Main part 2 section 10.2); empty if it is none.
[[nodiscard]] Bytes modulus_of_key(ByteView tpm_key);

/// UUIDs from `offset` on, as many as fit.
[[nodiscard]] Bytes encode_vtpm_list(const std::vector<Uuid>& all, std::uint32_t offset);

struct VtpmStatus {
    std::uint32_t group = 0;
    bool open = false;
    bool has_state = false;
    bool administrator = false;
    std::uint32_t version = 0; ///< 0x0102, 0x0200
    std::uint64_t created = 0; ///< seconds since 1970
    std::uint64_t saves = 0;
    friend bool operator==(const VtpmStatus&, const VtpmStatus&) = default;
};
[[nodiscard]] Bytes encode(const VtpmStatus& status);

} // namespace vtpmd::proto::management
