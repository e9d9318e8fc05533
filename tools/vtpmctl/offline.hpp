// What needs no manager.
#pragma once

#include "options.hpp"

namespace vtpmctl {

/// A group's approver signs a list (manager/approval_list.hpp).
void approve(const Options& o);
/// A deep quote, from files alone (quote/deep_quote.hpp).
void verify_quote(const Options& o);

} // namespace vtpmctl
