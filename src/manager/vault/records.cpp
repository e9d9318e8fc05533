// Layout: u8 type, u8 version (1), then by type
//   1 group      u32 id, uuid[16], u64 created
//   2 vtpm       uuid[16], u32 group, u8 TPM version (1: 1.2, 2: 2.0), u64 created
//   3 key        uuid[16], u64 sequence, u8 n (80 or 92), wrapped key[n]
//   4 tombstone  uuid[16], u8 reason (1 deleted, 2 migrated away), u64 when
//   5 freshness  u64 counter
//   6 detail     u32 id, u32 n, bytes[n] (group_detail.cpp)
//   7 group gone u32 id
//   8 returned   as vtpm, which was migrated away and comes back
//   9 moved      uuid[16], u32 group
//  10 certifier  u32 group, u32 n, bytes[n] (certifier_detail.cpp)
//  11 name       uuid[16], u8 n (0 to 64), UTF-8[n]
//  12 reset      uuid[16], u64 sequence, u64 when, u8 n (32 or 20), hash of the slot that was given up[n]
//  13 number     uuid[16], u32 number (not 0)
//  14 away       uuid[16], group's uuid[16], u64 when: a tombstone of one that was migrated away from a group with an approver
//  15 owner      uuid[16], u32 user (0: none)
#include "manager/vault/records.hpp"

#include "util/text.hpp"
#include "util/utf8.hpp"
#include "util/wire.hpp"

#include <algorithm>

namespace vtpmd::manager {

namespace {

enum class Type : std::uint8_t {
    group = 1,
    vtpm = 2,
    key = 3,
    tombstone = 4,
    freshness = 5,
    detail = 6,
    group_gone = 7,
    returned = 8,
    moved = 9,
    certifier = 10,
    name = 11,
    reset = 12,
    number = 13,
    away = 14,
    owner = 15,
};
constexpr std::uint8_t layout_version = 1;

struct Encoder {
    WireWriter& out;
    WireWriter& begin(Type type) { return out.u8(static_cast<std::uint8_t>(type)).u8(layout_version); }

    void operator()(const GroupRecord& r) { begin(Type::group).be32(r.id).bytes(r.uuid.bytes).be64(r.created); }
    void operator()(const VtpmRecord& r) {
        begin(r.returned ? Type::returned : Type::vtpm)
            .bytes(r.uuid.bytes)
            .be32(r.group)
            .u8(static_cast<std::uint8_t>(r.version))
            .be64(r.created);
    }
    void operator()(const KeyRecord& r) {
        begin(Type::key).bytes(r.uuid.bytes).be64(r.sequence).u8(r.key.size()).bytes(r.key.view());
    }
    void operator()(const TombstoneRecord& r) {
        if (!r.group.is_nil()) {
            begin(Type::away).bytes(r.uuid.bytes).bytes(r.group.bytes).be64(r.when);
            return;
        }
        begin(Type::tombstone).bytes(r.uuid.bytes).u8(static_cast<std::uint8_t>(r.reason)).be64(r.when);
    }
    void operator()(const FreshnessRecord& r) { begin(Type::freshness).be64(r.counter); }
    void operator()(const GroupDetailRecord& r) {
        begin(Type::detail).be32(r.id).be32(static_cast<std::uint32_t>(r.detail.size())).bytes(r.detail);
    }
    void operator()(const GroupGoneRecord& r) { begin(Type::group_gone).be32(r.id); }
    void operator()(const NumberRecord& r) { begin(Type::number).bytes(r.uuid.bytes).be32(r.number); }
    void operator()(const OwnerRecord& r) { begin(Type::owner).bytes(r.uuid.bytes).be32(r.user); }
    void operator()(const MovedRecord& r) { begin(Type::moved).bytes(r.uuid.bytes).be32(r.group); }
    void operator()(const NameRecord& r) {
        begin(Type::name).bytes(r.uuid.bytes).u8(static_cast<std::uint8_t>(r.name.size())).bytes(as_bytes(r.name));
    }
    void operator()(const ResetRecord& r) {
        begin(Type::reset).bytes(r.uuid.bytes).be64(r.sequence).be64(r.when);
        out.u8(static_cast<std::uint8_t>(r.given_up.size())).bytes(r.given_up);
    }
    void operator()(const CertifierRecord& r) {
        begin(Type::certifier).be32(r.id).be32(static_cast<std::uint32_t>(r.detail.size())).bytes(r.detail);
    }
};

Uuid read_uuid(WireReader& in) { return Uuid{in.array<16>()}; }

Result<Record> wrong(std::string_view kind, std::size_t size) {
    return make_error(Errc::corrupt, "{} record of {} bytes is malformed", kind, size);
}

Result<Record> decode_group(WireReader& in, std::size_t size) {
    GroupRecord r;
    r.id = in.be32();
    r.uuid = read_uuid(in);
    r.created = in.be64();
    if (!in.expect_end()) {
        return wrong("group", size);
    }
    return r;
}

Result<Record> decode_vtpm(WireReader& in, std::size_t size, Type type) {
    VtpmRecord r;
    r.returned = type == Type::returned;
    r.uuid = read_uuid(in);
    r.group = in.be32();
    r.version = static_cast<TpmVersion>(in.u8());
    r.created = in.be64();
    if (!in.expect_end() || (r.version != TpmVersion::tpm12 && r.version != TpmVersion::tpm20)) {
        return wrong("vTPM", size);
    }
    return r;
}

Result<Record> decode_key(WireReader& in, std::size_t size) {
    KeyRecord r;
    r.uuid = read_uuid(in);
    r.sequence = in.be64();
    auto key = WrappedKey::from(in.bytes(in.u8()));
    if (!in.expect_end() || !key || r.sequence == 0) {
        return wrong("key", size);
    }
    r.key = *key;
    return r;
}

Result<Record> decode_tombstone(WireReader& in, std::size_t size) {
    using Reason = TombstoneRecord::Reason;
    TombstoneRecord r;
    r.uuid = read_uuid(in);
    r.reason = static_cast<Reason>(in.u8());
    r.when = in.be64();
    if (!in.expect_end() || (r.reason != Reason::deleted && r.reason != Reason::migrated)) {
        return wrong("tombstone", size);
    }
    return r;
}

Result<Record> decode_number(WireReader& in, std::size_t size) {
    NumberRecord r{.uuid = read_uuid(in), .number = in.be32()};
    if (!in.expect_end() || r.number == 0) {
        return wrong("number", size);
    }
    return r;
}

Result<Record> decode_owner(WireReader& in, std::size_t size) {
    OwnerRecord r{.uuid = read_uuid(in), .user = in.be32()};
    if (!in.expect_end()) {
        return wrong("owner", size);
    }
    return r;
}

Result<Record> decode_away(WireReader& in, std::size_t size) {
    TombstoneRecord r{.reason = TombstoneRecord::Reason::migrated};
    r.uuid = read_uuid(in);
    r.group = read_uuid(in);
    r.when = in.be64();
    if (!in.expect_end() || r.group.is_nil()) {
        return wrong("away", size);
    }
    return r;
}

Result<Record> decode_freshness(WireReader& in, std::size_t size) {
    FreshnessRecord r{.counter = in.be64()};
    if (!in.expect_end()) {
        return wrong("freshness", size);
    }
    return r;
}

Result<Record> decode_detail(WireReader& in, std::size_t size) {
    GroupDetailRecord r{.id = in.be32(), .detail = {}};
    r.detail = to_bytes(in.bytes(in.be32()));
    if (!in.expect_end() || r.detail.empty()) {
        return wrong("group detail", size);
    }
    return r;
}

Result<Record> decode_group_gone(WireReader& in, std::size_t size) {
    GroupGoneRecord r{.id = in.be32()};
    if (!in.expect_end()) {
        return wrong("group gone", size);
    }
    return r;
}

Result<Record> decode_moved(WireReader& in, std::size_t size) {
    MovedRecord r{.uuid = read_uuid(in), .group = in.be32()};
    if (!in.expect_end()) {
        return wrong("moved", size);
    }
    return r;
}

Result<Record> decode_name(WireReader& in, std::size_t size) {
    NameRecord r{.uuid = read_uuid(in), .name = {}};
    const ByteView name = in.bytes(in.u8());
    r.name.assign(reinterpret_cast<const char*>(name.data()), name.size());
    // What a later program lets through is still a name.
    if (!in.expect_end() || r.name.size() > vtpm_name_limit) {
        return wrong("name", size);
    }
    return r;
}

Result<Record> decode_reset(WireReader& in, std::size_t size) {
    ResetRecord r{.uuid = read_uuid(in), .sequence = in.be64(), .when = in.be64(), .given_up = {}};
    r.given_up = to_bytes(in.bytes(in.u8()));
    if (!in.expect_end() || r.sequence == 0 || !proto::is_slot_hash_size(r.given_up.size())) {
        return wrong("reset", size);
    }
    return r;
}

Result<Record> decode_certifier(WireReader& in, std::size_t size) {
    CertifierRecord r{.id = in.be32(), .detail = {}};
    r.detail = to_bytes(in.bytes(in.be32()));
    if (!in.expect_end() || r.detail.empty()) {
        return wrong("certifier", size);
    }
    return r;
}

} // namespace

Result<void> check_vtpm_name(std::string_view name) {
    if (name.empty() || name.size() > vtpm_name_limit) {
        return make_error(Errc::usage, "name: {} bytes; a name has 1 to {} bytes of UTF-8", name.size(),
                          vtpm_name_limit);
    }
    if (!is_printable_utf8(name) || name.front() == ' ' || name.back() == ' ') {
        return make_error(Errc::usage, "name: '{}' is not printable UTF-8, or has a blank at one end", printable(name));
    }
    if (parse_uuid(name)) {
        return make_error(Errc::usage, "name: '{}' is a UUID, which names a vTPM already", name);
    }
    return {};
}

Result<WrappedKey> WrappedKey::from(ByteView bytes) {
    if (bytes.size() < overhead || !is_hash_key_size(bytes.size() - overhead)) {
        return make_error(Errc::corrupt, "wrapped key of {} bytes (expected {} or {})", bytes.size(),
                          hash_key_short + overhead, hash_key_long + overhead);
    }
    WrappedKey key;
    std::copy(bytes.begin(), bytes.end(), key.bytes_.begin());
    key.size_ = static_cast<std::uint8_t>(bytes.size());
    return key;
}

Bytes encode(const Record& record) {
    WireWriter out(128);
    std::visit(Encoder{out}, record);
    return out.take();
}

Result<Record> decode(ByteView bytes) {
    WireReader in(bytes);
    std::uint8_t type = in.u8();
    std::uint8_t version = in.u8();
    if (!in.ok()) {
        return make_error(Errc::corrupt, "record of {} bytes has no header", bytes.size());
    }
    if (version != layout_version) {
        return make_error(Errc::version, "record of type {} has version {} (this program knows {})", type, version,
                          layout_version);
    }
    switch (static_cast<Type>(type)) {
    case Type::group:
        return decode_group(in, bytes.size());
    case Type::vtpm:
    case Type::returned:
        return decode_vtpm(in, bytes.size(), static_cast<Type>(type));
    case Type::key:
        return decode_key(in, bytes.size());
    case Type::tombstone:
        return decode_tombstone(in, bytes.size());
    case Type::freshness:
        return decode_freshness(in, bytes.size());
    case Type::detail:
        return decode_detail(in, bytes.size());
    case Type::group_gone:
        return decode_group_gone(in, bytes.size());
    case Type::moved:
        return decode_moved(in, bytes.size());
    case Type::name:
        return decode_name(in, bytes.size());
    case Type::reset:
        return decode_reset(in, bytes.size());
    case Type::certifier:
        return decode_certifier(in, bytes.size());
    case Type::number:
        return decode_number(in, bytes.size());
    case Type::away:
        return decode_away(in, bytes.size());
    case Type::owner:
        return decode_owner(in, bytes.size());
    }
    return make_error(Errc::version, "record of unknown type {}: written by a newer program", type);
}

} // namespace vtpmd::manager
