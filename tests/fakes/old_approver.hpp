// A group's approver of Xen's old manager in tests: an RSA-2048 key that signs lists with SHA-1, and a half for recovery.
#pragma once

#include "manager/groups/vtpmmgr_recovery.hpp"
#include "openssl_key.hpp"
#include "proto/vtpmmgr/management.hpp"
#include "tpm/public_key.hpp"
#include "util/wire.hpp"

#include <algorithm>

namespace vtpmd::test {

struct OldApprover {
    OpensslKey key{"RSA"};
    manager::DhHalf half = manager::DhHalf::make().value();

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
    [[nodiscard]] proto::management::GroupRegister sign_half(std::uint32_t number_of_group, const Uuid& group,
                                                             proto::management::Number of,
                                                             proto::management::PcrMask pcrs) const {
        return {.group = number_of_group,
                .dh = of,
                .proof = number(key.sign_sha1(manager::register_message(group, of))),
                .pcrs = pcrs};
    }
    /// The group's key, out of the answer to GROUP_REGISTER.
    [[nodiscard]] SecretBytes take_key(const Uuid& group, ByteView answer) const {
        WireReader in(answer);
        const auto theirs = in.array<proto::management::number_size>();
        const auto blob = in.array<proto::management::blob_size>();
        const manager::DhExchange exchange{
            .name = manager::exchange_register, .group = group, .first = half.value(), .second = theirs};
        return manager::open_blob(exchange, half.share(theirs).value(), blob).value();
    }
    /// What brings a key back, to the half that GROUP_RECOVER1 answered.
    [[nodiscard]] static proto::management::GroupRecover2 give_key(std::uint32_t number_of_group, const Uuid& group,
                                                                   const proto::management::Number& theirs,
                                                                   const SecretBytes& group_key) {
        const auto own = manager::DhHalf::make().value();
        const manager::DhExchange exchange{
            .name = manager::exchange_recover, .group = group, .first = theirs, .second = own.value()};
        return {.group = number_of_group,
                .dh = own.value(),
                .blob = manager::close_blob(exchange, own.share(theirs).value(), group_key).value()};
    }
    /// A TPM_KEY (TPM Main part 2 section 10.2) of which there is the modulus alone.
    static Bytes tpm_key(ByteView modulus) {
        WireWriter w;
        w.be32(0x01010000).be16(0x12).be32(0).u8(1).be32(1).be16(1).be16(2).be32(12).be32(2048).be32(2).be32(0);
        return w.be32(0).be32(static_cast<std::uint32_t>(modulus.size())).bytes(modulus).be32(0).take();
    }
    static proto::management::Number number(const Bytes& bytes) {
        proto::management::Number out{};
        std::ranges::copy(bytes, out.begin());
        return out;
    }
};

} // namespace vtpmd::test
