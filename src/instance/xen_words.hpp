// The words of Xen's vtpm-stubdom (xen-vtpm(7), stubdom/vtpm/vtpm.c), as options of an instance. Pure.
//
//   loglevel=LEVEL               --log-level (util/command_line takes this spelling)
//   clear, save, deactivated     --startup=...
//   maintcmds=0|1                --maintcmds
//   hwinitpcr=SPEC               --hwinitpcrs, which reads SPEC as Xen does: from left to right, `none` forgets what came before
//   locality=LABEL=LIST          --locality-policy=label:LABEL=LIST
//   tpm2=...                     refused: a word of the manager's
#pragma once

#include "util/foreign_words.hpp"

namespace vtpmd::instance {

[[nodiscard]] Result<Translation> translate_xen_words(const std::vector<std::string>& arguments);

} // namespace vtpmd::instance
