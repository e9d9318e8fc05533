// What does the commands of the table.
#pragma once

#include "options.hpp"

namespace vtpmctl {

// commands_vtpm.cpp
void list(const Options& o);
void show(const Options& o);
void create(const Options& o);
void rename(const Options& o);
void chown(const Options& o);
void move(const Options& o);
void start(const Options& o);
void stop(const Options& o);
void autostart(const Options& o);
void reset(const Options& o);
void remove(const Options& o);
void quote(const Options& o);

// commands_group.cpp
void group_list(const Options& o);
void group_show(const Options& o);
void group_create(const Options& o);
void group_update(const Options& o);
void group_recover(const Options& o);
void group_ca(const Options& o);
void group_delete(const Options& o);

// commands_host.cpp
void status(const Options& o);
void seal(const Options& o);
void freshness(const Options& o);
void metrics(const Options& o);
void live_view(const Options& o);
void make_backup(const Options& o);
void recovery_list(const Options& o);
void recovery_add(const Options& o);
void recovery_remove(const Options& o);
void store_grow(const Options& o);

/// approve.cpp: a group's approver signs a list (manager/groups/approval_list.hpp). Needs no manager.
void approve(const Options& o);
/// verify_quote.cpp: a deep quote, from files alone (quote/deep_quote.hpp).
void verify_quote(const Options& o);

} // namespace vtpmctl
