// The words of Xen's vtpmmgr-stubdom (xen-vtpmmgr(7), stubdom/vtpmmgr/init.c), as options of the manager. Pure.
//
//   owner_auth=AUTH, srk_auth=AUTH   --owner-auth, --srk-auth (util/command_line takes these spellings); `random` is refused
//   srk_handle=HANDLE                --srk-handle; Xen reads hexadecimal digits with or without 0x
//   tpmdriver=tpm_tis|tpmfront       --tpm=tis, --tpm=xen
//   tpmiomem=ADDRESS                 --tpm=tis:ADDRESS
//   tpmirq=0|probe|N                 no effect: the TIS driver polls
//   tpmlocality=N                    --tpm-locality (util/command_line takes this spelling)
//   tpm2=0|1                         no effect: the TPM is asked for its family
#pragma once

#include "util/foreign_words.hpp"

namespace vtpmd::manager {

[[nodiscard]] Result<Translation> translate_xen_words(const std::vector<std::string>& arguments);

} // namespace vtpmd::manager
