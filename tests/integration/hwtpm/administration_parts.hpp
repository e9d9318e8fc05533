// What an Administration needs beside groups and vault, for as long as one request takes. Only management of groups is asked here.
#pragma once

#include "loop.hpp"

#include "manager/compat/vtpmmgr/administration.hpp"

namespace vtpmd::test {

struct AdministrationParts {
    AdministrationParts(fakes::Loop& loop, manager::Vault& vault, hwtpm::RootOfTrust& root, manager::Groups& groups)
        : service({}, {.executor = loop.io.get_executor(),
                       .vault = vault,
                       .root = root,
                       .clock = loop.clock,
                       .log = loop.log,
                       .admit = {},
                       .administer = {}})
        , administration({}, {.vault = vault, .groups = groups, .service = service, .root = root, .remove_vtpm = {}}) {}

    manager::KeyService service;
    manager::Administration administration;
};

} // namespace vtpmd::test
