// A group's approver in tests: signs lists of platforms.
#pragma once

#include "manager/groups/approval_list.hpp"
#include "openssl_key.hpp"

namespace vtpmd::test {

struct ApproverAgent {
    OpensslKey key{"EC"};

    [[nodiscard]] manager::ApprovalList sign(manager::ApprovalList list) const {
        for (hwtpm::Approval& p : list.platforms) {
            p.signature = key.sign_sha256(
                hwtpm::approval_message(p.selection, p.values, manager::reference_of(list.group, list.epoch)).value());
        }
        list.signature = key.sign_sha256(manager::encode_for_signing(list));
        return list;
    }
};

} // namespace vtpmd::test
