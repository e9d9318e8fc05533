#include "proto/vtpmmgr/management.hpp"

#include "util/wire.hpp"

#include <algorithm>

namespace vtpmd::proto::management {

namespace {

constexpr std::size_t select_limit = 4;
/// Of a TPM_KEY, before its parameters: version, usage, flags, authDataUsage, algorithm, encryption and signature
/// scheme.
constexpr std::size_t key_head = 4 + 2 + 4 + 1 + 4 + 2 + 2;
constexpr PcrMask all_pcrs = 0xFFFFFF;
constexpr std::uint32_t flag_open = 1;
constexpr std::uint32_t flag_state = 2;
constexpr std::uint32_t flag_administrator = 4;

/// A reader's failure is a wrong size; a value that makes no sense is noted here.
class Body {
  public:
    explicit Body(ByteView data)
        : in(data) {}
    WireReader in;
    std::string_view bad_value;

    PcrMask pcrs() {
        const std::size_t size = in.be16();
        if (size > select_limit) {
            in.fail();
            return 0;
        }
        PcrMask mask = 0;
        for (std::size_t i = 0; i < size; ++i) {
            mask |= PcrMask{in.u8()} << (8 * i);
        }
        if ((mask & ~all_pcrs) != 0) {
            bad_value = "a PCR above 23";
        }
        return mask;
    }
    Uuid uuid() {
        const Uuid u{in.array<16>()};
        if (u.is_nil()) {
            bad_value = "a UUID of zeros";
        }
        return u;
    }
    std::vector<Hash> hashes() {
        const std::size_t count = in.be32();
        std::vector<Hash> out;
        if (count > in.remaining() / sizeof(Hash)) {
            in.fail();
            return out;
        }
        for (std::size_t i = 0; i < count; ++i) {
            out.push_back(in.array<sizeof(Hash)>());
        }
        return out;
    }
    ConfigList list() {
        ConfigList out;
        out.sequence = in.be64();
        out.platforms = hashes();
        out.labels = hashes();
        return out;
    }
    /// The bytes of a TPM_KEY; what is in it is not judged.
    Bytes key() {
        WireReader ahead = in;
        ahead.skip(key_head);
        for (int part = 0; part < 4; ++part) { // its parameters, PCR info, public and private part
            ahead.skip(ahead.be32());
        }
        if (!ahead.ok()) {
            in.fail();
            return {};
        }
        return to_bytes(in.bytes(ahead.position() - in.position()));
    }
};

GroupUpdate read_update(Body& b) {
    GroupUpdate r;
    r.group = b.in.be32();
    r.signature = b.in.array<number_size>();
    r.list = b.list();
    for (std::size_t i = 0; i < r.list.platforms.size() && b.in.ok(); ++i) {
        r.selections.push_back(b.pcrs());
    }
    return r;
}

VtpmNew read_vtpm_new(Body& b) {
    VtpmNew r{.group = b.in.be32(), .uuid = std::nullopt};
    if (b.in.ok() && b.in.remaining() != 0) {
        r.uuid = b.uuid();
        if (b.in.remaining() == 1 && b.in.u8() != 0) {
            b.in.fail();
        }
    }
    return r;
}

std::optional<Request> read(std::uint32_t code, Body& b) {
    WireReader& in = b.in; // in braces the fields are read in their order
    switch (code) {
    case ordinal::group_list:
        return GroupList{};
    case ordinal::group_new:
        return GroupNew{in.array<sizeof(Hash)>(), in.array<number_size>()};
    case ordinal::group_del:
        return GroupDel{in.be32()};
    case ordinal::group_activate:
        return GroupActivate{in.be32(), to_bytes(in.bytes(in.be32()))};
    case ordinal::group_register:
        return GroupRegister{in.be32(), in.array<number_size>(), in.array<number_size>(), b.pcrs()};
    case ordinal::group_update:
        return read_update(b);
    case ordinal::group_show:
        return GroupShow{in.be32()};
    case ordinal::group_quote:
        return GroupQuote{in.be32(), in.array<sizeof(Hash)>(), b.pcrs()};
    case ordinal::group_recover1:
        return GroupRecover1{in.be32(), b.key(), in.array<sizeof(Hash)>(), b.pcrs()};
    case ordinal::group_recover2:
        return GroupRecover2{in.be32(), in.array<number_size>(), in.array<blob_size>()};
    case ordinal::vtpm_list:
        return VtpmList{in.be32(), in.be32()};
    case ordinal::vtpm_show:
        return VtpmShow{b.uuid()};
    case ordinal::vtpm_edit:
        return VtpmEdit{b.uuid(), in.be32()};
    case ordinal::vtpm_new:
        return read_vtpm_new(b);
    case ordinal::vtpm_del:
        return VtpmDel{b.uuid()};
    default:
        return std::nullopt;
    }
}

void put_pcrs(WireWriter& w, PcrMask mask) {
    w.be16(3);
    for (unsigned shift : {0U, 8U, 16U}) {
        w.u8(static_cast<std::uint8_t>(mask >> shift));
    }
}

Bytes frame(std::uint32_t code, const WireWriter& body) { return make_frame(tag::management, code, body.view()); }

struct Encoder {
    WireWriter w;
    Bytes operator()(const GroupList&) { return frame(ordinal::group_list, w); }
    Bytes operator()(const GroupNew& r) { return frame(ordinal::group_new, w.bytes(r.chosen_id).bytes(r.modulus)); }
    Bytes operator()(const GroupDel& r) { return frame(ordinal::group_del, w.be32(r.group)); }
    Bytes operator()(const GroupActivate& r) {
        w.be32(r.group).be32(static_cast<std::uint32_t>(r.blob.size())).bytes(r.blob);
        return frame(ordinal::group_activate, w);
    }
    Bytes operator()(const GroupRegister& r) {
        w.be32(r.group).bytes(r.dh).bytes(r.proof);
        put_pcrs(w, r.pcrs);
        return frame(ordinal::group_register, w);
    }
    Bytes operator()(const GroupUpdate& r) {
        w.be32(r.group).bytes(r.signature).bytes(encode(r.list));
        for (PcrMask mask : r.selections) {
            put_pcrs(w, mask);
        }
        return frame(ordinal::group_update, w);
    }
    Bytes operator()(const GroupShow& r) { return frame(ordinal::group_show, w.be32(r.group)); }
    Bytes operator()(const GroupQuote& r) {
        w.be32(r.group).bytes(r.nonce);
        put_pcrs(w, r.pcrs);
        return frame(ordinal::group_quote, w);
    }
    Bytes operator()(const GroupRecover1& r) {
        w.be32(r.group).bytes(r.key).bytes(r.nonce);
        put_pcrs(w, r.pcrs);
        return frame(ordinal::group_recover1, w);
    }
    Bytes operator()(const GroupRecover2& r) {
        return frame(ordinal::group_recover2, w.be32(r.group).bytes(r.dh).bytes(r.blob));
    }
    Bytes operator()(const VtpmList& r) { return frame(ordinal::vtpm_list, w.be32(r.group).be32(r.offset)); }
    Bytes operator()(const VtpmShow& r) { return frame(ordinal::vtpm_show, w.bytes(r.uuid.bytes)); }
    Bytes operator()(const VtpmEdit& r) { return frame(ordinal::vtpm_edit, w.bytes(r.uuid.bytes).be32(r.group)); }
    Bytes operator()(const VtpmNew& r) {
        w.be32(r.group);
        if (r.uuid) {
            w.bytes(r.uuid->bytes).u8(0);
        }
        return frame(ordinal::vtpm_new, w);
    }
    Bytes operator()(const VtpmDel& r) { return frame(ordinal::vtpm_del, w.bytes(r.uuid.bytes)); }
};

} // namespace

Bytes encode(const ConfigList& list) {
    WireWriter w;
    w.be64(list.sequence);
    for (const std::vector<Hash>* hashes : {&list.platforms, &list.labels}) {
        w.be32(static_cast<std::uint32_t>(hashes->size()));
        for (const Hash& h : *hashes) {
            w.bytes(h);
        }
    }
    return w.take();
}

Result<Request> parse(ByteView whole) {
    auto header = parse_frame(whole);
    if (!header) {
        return header.error();
    }
    Body body(body_of(whole));
    auto request = read(header->code, body);
    if (!request) {
        return make_error(Errc::unsupported, "management: unknown ordinal 0x{:x}", header->code);
    }
    if (!body.in.expect_end()) {
        return make_error(Errc::protocol, "{} with a body of {} bytes, of another size than its fields",
                          name_of(*request), body_of(whole).size());
    }
    if (!body.bad_value.empty()) {
        return make_error(Errc::usage, "{} with {}", name_of(*request), body.bad_value);
    }
    return std::move(*request);
}

Bytes encode(const Request& request) { return std::visit(Encoder{}, request); }

std::string_view name_of(const Request& request) {
    constexpr std::array<std::string_view, std::variant_size_v<Request>> names{
        "GROUP_LIST",   "GROUP_NEW",  "GROUP_DEL",   "GROUP_ACTIVATE", "GROUP_REGISTER",
        "GROUP_UPDATE", "GROUP_SHOW", "GROUP_QUOTE", "GROUP_RECOVER1", "GROUP_RECOVER2",
        "VTPM_LIST",    "VTPM_SHOW",  "VTPM_EDIT",   "VTPM_NEW",       "VTPM_DEL"};
    return names.at(request.index());
}

Bytes modulus_of_key(ByteView tpm_key) {
    WireReader in(tpm_key);
    in.skip(key_head);
    in.skip(in.be32()); // parameters
    in.skip(in.be32()); // PCR info
    const ByteView modulus = in.bytes(in.be32());
    return in.ok() ? to_bytes(modulus) : Bytes{};
}

Bytes encode_vtpm_list(const std::vector<Uuid>& all, std::uint32_t offset) {
    constexpr std::size_t room = (answer_limit - header_size - sizeof(std::uint32_t)) / sizeof(Uuid::bytes);
    WireWriter w;
    w.be32(static_cast<std::uint32_t>(all.size()));
    for (std::size_t i = offset; i < std::min(all.size(), offset + room); ++i) {
        w.bytes(all[i].bytes);
    }
    return w.take();
}

Bytes encode(const VtpmStatus& s) {
    WireWriter w;
    w.be32(s.group);
    w.be32((s.open ? flag_open : 0) | (s.has_state ? flag_state : 0) | (s.administrator ? flag_administrator : 0));
    return w.be32(s.version).be64(s.created).be64(s.saves).take();
}

} // namespace vtpmd::proto::management
