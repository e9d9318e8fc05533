#include "tpm/attestation.hpp"
#include "tpm/pcr.hpp"
#include "util/wire.hpp"

#include <algorithm>
#include <array>

namespace vtpmd::hwtpm {

namespace {
constexpr std::uint32_t cc_policy_pcr = 0x17f; // TPM_CC_PolicyPCR, Library part 2 section 6.5.2
} // namespace

/// By hand, since approvers make it where there is no TPM and nothing of tpm2-tss.
Result<Bytes> pcr_policy_digest(const PcrSelection& selection, const std::vector<PcrValue>& values) {
    Bytes concatenated;
    std::array<std::byte, pcr_count / 8> bits{};
    for (unsigned index : selection.pcrs) {
        auto it = std::find_if(values.begin(), values.end(),
                               [&](const PcrValue& v) { return v.bank == selection.bank && v.index == index; });
        if (it == values.end()) {
            return make_error(Errc::pcr_mismatch, "{}:{}: no value", bank_name(selection.bank), index);
        }
        concatenated.insert(concatenated.end(), it->digest.begin(), it->digest.end());
        bits.at(index / 8) |= static_cast<std::byte>(1U << (index % 8));
    }
    auto pcr_digest = sha256({concatenated});
    if (!pcr_digest) {
        return pcr_digest;
    }
    WireWriter w;
    w.zeros(32).be32(cc_policy_pcr).be32(1).be16(static_cast<std::uint16_t>(selection.bank));
    w.u8(static_cast<std::uint8_t>(bits.size())).bytes(bits).bytes(*pcr_digest);
    return sha256({w.view()});
}

Result<Bytes> approval_message(const PcrSelection& selection, const std::vector<PcrValue>& values, ByteView reference) {
    if (selection.pcrs.empty()) {
        return make_error(Errc::usage, "an approval names PCRs: one of none would approve every platform");
    }
    if (reference.size() > reference_limit) {
        return make_error(Errc::too_large, "an approver's reference of {} bytes: at most {}", reference.size(),
                          reference_limit);
    }
    auto message = pcr_policy_digest(selection, values);
    if (message) {
        message->insert(message->end(), reference.begin(), reference.end());
    }
    return message;
}

Result<void> verify_approval(const Approver& approver, const Approval& approval) {
    auto message = approval_message(approval.selection, approval.values, approver.reference);
    if (!message) {
        return message.error();
    }
    auto verified = verify_sha256(approver.key, *message, approval.signature);
    if (!verified) {
        return in_context(verified.error(), fmt::format("the approval of {}", to_string(approval.selection)));
    }
    return verified;
}

} // namespace vtpmd::hwtpm
