// A group as the old protocol shows it (proto/vtpmmgr/management.hpp), whatever its form is.
#pragma once

#include "manager/groups/groups.hpp"

namespace vtpmd::manager {

/// An RSA-2048 key as the old protocol has them: its modulus; zeros for a key of another kind, or none.
[[nodiscard]] Bytes old_modulus(ByteView spki);

/// A group's list as GROUP_UPDATE would have brought it. One of our own form names values: their composites, of its banks.
[[nodiscard]] Result<proto::management::ConfigList> old_list(const GroupInfo& group);

} // namespace vtpmd::manager
