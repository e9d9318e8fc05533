#include "manager/groups/approval_list.hpp"

#include "tpm/pcr.hpp"
#include "util/wire.hpp"

#include <algorithm>

namespace vtpmd::manager {

namespace {

// An encoded list, all big-endian:
//   magic[8] "vtpmdAPL" | version u16 | group[16] | epoch u64 | sequence u64
//   u16 n, n * { bank u16 | u8 k, k * index u8 | k * digest (of the bank's size) | u16 size, signature }
//   u16 m, m * label[20]
//   u16 size, signature         (not in what is signed)
constexpr std::string_view magic = "vtpmdAPL";
constexpr std::uint16_t list_version = 1;
constexpr std::size_t signature_limit = 512;

void put_platform(WireWriter& w, const hwtpm::Approval& p) {
    w.be16(static_cast<std::uint16_t>(p.selection.bank)).u8(static_cast<std::uint8_t>(p.selection.pcrs.size()));
    for (unsigned index : p.selection.pcrs) {
        w.u8(static_cast<std::uint8_t>(index));
    }
    for (const hwtpm::PcrValue& v : p.values) {
        w.bytes(v.digest);
    }
    w.be16(static_cast<std::uint16_t>(p.signature.size())).bytes(p.signature);
}

Error corrupt(std::string_view what) { return make_error(Errc::corrupt, "an approval list: {}", what); }

Result<hwtpm::Approval> read_platform(WireReader& r) {
    hwtpm::Approval p;
    p.selection.bank = static_cast<hwtpm::HashAlg>(r.be16());
    const std::size_t digest = hwtpm::digest_size(p.selection.bank);
    const unsigned count = r.u8();
    if (!r.ok() || digest == 0 || count == 0 || count > hwtpm::pcr_count) {
        return corrupt("a platform of no known bank, or of no PCRs");
    }
    for (unsigned i = 0; i < count; ++i) {
        const unsigned index = r.u8();
        if (index >= hwtpm::pcr_count || (i > 0 && index <= p.selection.pcrs.back())) {
            return corrupt("PCR indices that do not ascend from 0 to 23");
        }
        p.selection.pcrs.push_back(index);
    }
    for (unsigned index : p.selection.pcrs) {
        p.values.push_back({p.selection.bank, index, to_bytes(r.bytes(digest))});
    }
    const std::size_t size = r.be16();
    if (size > signature_limit) {
        return corrupt("a signature that is too long");
    }
    p.signature = to_bytes(r.bytes(size));
    return r.ok() ? Result<hwtpm::Approval>(std::move(p)) : Result<hwtpm::Approval>(corrupt("it ends too early"));
}

bool same_platform(const hwtpm::Approval& a, const hwtpm::Approval& b) {
    return a.selection == b.selection && a.values == b.values;
}

} // namespace

Bytes reference_of(const Uuid& group, std::uint64_t epoch) {
    WireWriter w(24);
    return w.bytes(group.bytes).be64(epoch).take();
}

Bytes encode_for_signing(const ApprovalList& list) {
    WireWriter w;
    w.bytes(as_bytes(magic)).be16(list_version).bytes(list.group.bytes).be64(list.epoch).be64(list.sequence);
    w.be16(static_cast<std::uint16_t>(list.platforms.size()));
    for (const hwtpm::Approval& p : list.platforms) {
        put_platform(w, p);
    }
    w.be16(static_cast<std::uint16_t>(list.labels.size()));
    for (const LabelHash& label : list.labels) {
        w.bytes(label);
    }
    return w.take();
}

Bytes encode(const ApprovalList& list) {
    WireWriter w;
    w.bytes(encode_for_signing(list)).be16(static_cast<std::uint16_t>(list.signature.size())).bytes(list.signature);
    return w.take();
}

Result<ApprovalList> decode_approval_list(ByteView bytes) {
    WireReader r(bytes);
    const ByteView found = r.bytes(magic.size());
    if (!r.ok() || !std::ranges::equal(found, as_bytes(magic))) {
        return corrupt("it does not begin as one");
    }
    if (const unsigned version = r.be16(); r.ok() && version != list_version) {
        return make_error(Errc::version, "an approval list of version {}: this program knows {}", version,
                          list_version);
    }
    ApprovalList list;
    list.group.bytes = r.array<16>();
    list.epoch = r.be64();
    list.sequence = r.be64();
    const std::size_t platforms = r.be16();
    if (platforms > platform_limit) {
        return make_error(Errc::too_large, "an approval list of {} platforms: at most {}", platforms, platform_limit);
    }
    for (std::size_t i = 0; i < platforms; ++i) {
        auto p = read_platform(r);
        if (!p) {
            return p.error();
        }
        list.platforms.push_back(std::move(*p));
    }
    const std::size_t labels = r.be16();
    if (labels > label_limit) {
        return make_error(Errc::too_large, "an approval list of {} labels: at most {}", labels, label_limit);
    }
    for (std::size_t i = 0; i < labels && r.ok(); ++i) {
        list.labels.push_back(r.array<20>());
    }
    const std::size_t size = r.be16();
    if (size > signature_limit) {
        return corrupt("a signature that is too long");
    }
    list.signature = to_bytes(r.bytes(size));
    return r.expect_end() ? Result<ApprovalList>(std::move(list))
                          : Result<ApprovalList>(corrupt("it ends too early, or too late"));
}

Result<void> verify(const ApprovalList& list, const Uuid& group, ByteView approver) {
    if (list.group != group) {
        return make_error(Errc::mismatch, "the approval list is for group {}, this is {}", list.group, group);
    }
    if (auto r = hwtpm::verify_sha256(approver, encode_for_signing(list), list.signature); !r) {
        return in_context(r.error(), fmt::format("the approval list of group {}, sequence {}", group, list.sequence));
    }
    const hwtpm::Approver who{.key = to_bytes(approver), .reference = reference_of(group, list.epoch)};
    for (const hwtpm::Approval& p : list.platforms) {
        if (auto r = hwtpm::verify_approval(who, p); !r) {
            return in_context(r.error(), fmt::format("group {}, epoch {}", group, list.epoch));
        }
    }
    return {};
}

Result<void> may_replace(const ApprovalList& current, const ApprovalList& proposed) {
    if (proposed.sequence <= current.sequence) {
        return make_error(Errc::rollback,
                          "the approval list has sequence number {}, the group is at {} already: an old list is not "
                          "taken again",
                          proposed.sequence, current.sequence);
    }
    if (proposed.epoch < current.epoch) {
        return make_error(Errc::rollback, "the approval list is of epoch {}, the group is in {}", proposed.epoch,
                          current.epoch);
    }
    if (proposed.epoch > current.epoch) {
        return {};
    }
    for (const hwtpm::Approval& old : current.platforms) {
        if (std::none_of(proposed.platforms.begin(), proposed.platforms.end(),
                         [&](const hwtpm::Approval& p) { return same_platform(p, old); })) {
            return make_error(Errc::usage,
                              "a platform ({}) is gone from the approval list within epoch {}: the TPM would go on "
                              "honouring what was signed for it. Sign the list for epoch {}",
                              to_string(old.selection), current.epoch, current.epoch + 1);
        }
    }
    return {};
}

std::optional<std::size_t> find_platform(const ApprovalList& list, const std::vector<hwtpm::PcrValue>& present) {
    for (std::size_t i = 0; i < list.platforms.size(); ++i) {
        if (hwtpm::pcr_differences(list.platforms[i].values, present).empty()) {
            return i;
        }
    }
    return std::nullopt;
}

std::string explain_closed(const ApprovalList& list, const std::vector<hwtpm::PcrValue>& present) {
    if (list.platforms.empty()) {
        return "no platform is approved";
    }
    std::string out = "the present platform is none of those approved";
    for (std::size_t i = 0; i < list.platforms.size(); ++i) {
        out +=
            fmt::format("; {}: {}", i + 1, fmt::join(hwtpm::pcr_differences(list.platforms[i].values, present), ", "));
    }
    return out;
}

std::vector<hwtpm::PcrSelection> selections_of(const ApprovalList& list) {
    std::vector<hwtpm::PcrSelection> out;
    for (const hwtpm::Approval& p : list.platforms) {
        auto it = std::find_if(out.begin(), out.end(),
                               [&](const hwtpm::PcrSelection& s) { return s.bank == p.selection.bank; });
        if (it == out.end()) {
            out.push_back(p.selection);
            continue;
        }
        it->pcrs.insert(it->pcrs.end(), p.selection.pcrs.begin(), p.selection.pcrs.end());
        std::sort(it->pcrs.begin(), it->pcrs.end());
        it->pcrs.erase(std::unique(it->pcrs.begin(), it->pcrs.end()), it->pcrs.end());
    }
    return out;
}

Bytes recovery_message(const Uuid& group, ByteView recovery_key) {
    WireWriter w;
    return w.bytes(as_bytes("vtpmd recovery key")).bytes(group.bytes).bytes(recovery_key).take();
}

bool admits(const ApprovalList& list, const LabelHash& label) {
    return list.labels.empty() || std::find(list.labels.begin(), list.labels.end(), label) != list.labels.end();
}

} // namespace vtpmd::manager
