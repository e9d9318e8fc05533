#include "manager/groups/vtpmmgr_config_list.hpp"

#include "tpm/pcr.hpp"

#include <algorithm>

namespace vtpmd::manager {

namespace management = proto::management;

Bytes old_modulus(ByteView spki) {
    auto key = hwtpm::parse_public_key(spki);
    return key && key->modulus.size() == management::number_size ? std::move(key->modulus)
                                                                 : Bytes(management::number_size);
}

Result<management::ConfigList> old_list(const GroupInfo& group) {
    if (group.old && group.old->update) {
        return group.old->update->list;
    }
    management::ConfigList out{.sequence = group.sequence, .platforms = {}, .labels = group.labels};
    for (const hwtpm::Approval& p : group.platforms) {
        auto composite = hwtpm::pcr_composite(p.selection, p.values);
        if (!composite) {
            return composite.error();
        }
        std::ranges::copy(*composite, out.platforms.emplace_back().begin());
    }
    return out;
}

} // namespace vtpmd::manager
