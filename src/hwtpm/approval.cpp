#include "hwtpm/attestation.hpp"
#include "hwtpm/tpm20.hpp"

namespace vtpmd::hwtpm {

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
