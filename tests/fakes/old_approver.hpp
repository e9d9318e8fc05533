// A group's approver of Xen's old manager in tests: an RSA-2048 key that signs lists with SHA-1.
#pragma once

#include "hwtpm/public_key.hpp"
#include "openssl_key.hpp"
#include "proto/management.hpp"

#include <algorithm>

namespace vtpmd::test {

struct OldApprover {
    OpensslKey key{"RSA"};

    [[nodiscard]] proto::management::Number modulus() const {
        return number(hwtpm::parse_public_key(key.spki())->modulus);
    }
    /// A list as GROUP_UPDATE takes it.
    [[nodiscard]] proto::management::GroupUpdate sign(std::uint32_t group, proto::management::ConfigList list,
                                                      proto::management::PcrMask selection) const {
        proto::management::GroupUpdate out{.group = group,
                                           .signature = number(key.sign_sha1(encode(list))),
                                           .list = std::move(list),
                                           .selections = {}};
        out.selections.assign(out.list.platforms.size(), selection);
        return out;
    }
    static proto::management::Number number(const Bytes& bytes) {
        proto::management::Number out{};
        std::ranges::copy(bytes, out.begin());
        return out;
    }
};

} // namespace vtpmd::test
