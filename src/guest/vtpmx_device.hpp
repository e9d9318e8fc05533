// Asks the kernel's tpm_vtpm_proxy for a TPM device (Linux, Documentation/security/tpm/tpm_vtpm_proxy.rst): /dev/tpmN,
// and for a TPM 2.0 /dev/tpmrmN, whose commands are read from the descriptor and whose answers are written to it.
//
// tools/vtpm-proxy uses it too and links with nothing of ours: there is only the C library and the kernel's header in
// here.
#pragma once

#include <cerrno>
#include <cstdint>
#include <fcntl.h>
#include <linux/vtpm_proxy.h>
#include <sys/ioctl.h>
#include <unistd.h>

namespace vtpmd::guest {

inline constexpr const char* vtpmx_control = "/dev/vtpmx";
/// The driver asks the TPM's place itself for a locality, before each command: header, u8 locality. The same for both
/// families.
inline constexpr std::uint32_t vtpmx_set_locality = TPM2_CC_SET_LOCALITY;

struct VtpmxDevice {
    int fd = -1; ///< the caller's; the device lives as long as it is open
    unsigned number = 0;
    int error = 0; ///< an errno instead of all that
};

/// The kernel begins to ask at once, and gives the device up if it gets no answers.
inline VtpmxDevice make_vtpmx_device(const char* control_path, bool tpm20) {
    VtpmxDevice out;
    const int control = ::open(control_path, O_RDWR | O_CLOEXEC);
    vtpm_proxy_new_dev request{};
    request.flags = tpm20 ? VTPM_PROXY_FLAG_TPM2 : 0;
    if (control < 0 || ::ioctl(control, VTPM_PROXY_IOC_NEW_DEV, &request) != 0) {
        out.error = errno;
    } else {
        out.fd = static_cast<int>(request.fd);
        out.number = request.tpm_num;
    }
    if (control >= 0) {
        ::close(control);
    }
    return out;
}

} // namespace vtpmd::guest
