// From --tpm= to a root of trust: the driver, the family, the operations.
#include "hwtpm/drivers/driver_spec.hpp"
#include "hwtpm/drivers/embedded_device.hpp"
#include "hwtpm/drivers/kernel_device.hpp"
#include "hwtpm/drivers/ring_device.hpp"
#include "hwtpm/drivers/swtpm_device.hpp"
#include "hwtpm/drivers/tis_device.hpp"
#include "hwtpm/queue/auth.hpp"
#include "hwtpm/queue/hardware_root.hpp"
#include "hwtpm/queue/probe.hpp"

#include <filesystem>

namespace vtpmd::hwtpm {

namespace {

constexpr unsigned highest_locality = 4;

/// The kernel speaks to the TPM at locality 0 and offers no other.
Result<std::unique_ptr<TpmDevice>> open_through_kernel(const std::string& path, unsigned locality) {
    if (locality != 0) {
        return make_error(
            Errc::usage,
            "--tpm-locality={}: the kernel's driver ({}) uses locality 0 only; another one needs --tpm=tis", locality,
            path);
    }
    return open_kernel_device(path);
}

/// The kernel's device, else the registers; hardware only: a host never falls back to software by itself. The resource
/// manager's node first, where the host's other users of the TPM can go on.
Result<std::unique_ptr<TpmDevice>> open_automatic(const DriverSpec& spec, unsigned locality, const Log& log) {
    for (const std::string& tpm : kernel_tpms()) {
        for (const std::string& path : {"/dev/tpmrm" + tpm.substr(3), "/dev/" + tpm}) {
            std::error_code ec;
            if (std::filesystem::exists(path, ec)) {
                return open_through_kernel(path, locality);
            }
        }
    }
    auto registers = open_tis(parse_driver("tis").value().address, locality, log);
    if (!registers) {
        return in_context(
            registers.error(),
            fmt::format("--tpm={}: the kernel has no TPM (in /sys/class/tpm); at the registers", to_string(spec)));
    }
    return registers;
}

Result<std::unique_ptr<TpmDevice>> open_device(const DriverSpec& spec, unsigned locality, const Log& log, bool create) {
    switch (spec.kind) {
    case DriverKind::swtpm_unix:
    case DriverKind::swtpm_tcp:
        return open_swtpm(spec, locality, log);
    case DriverKind::embedded:
        return open_embedded(spec.path, locality, create, log);
    case DriverKind::device:
        return open_through_kernel(spec.path, locality);
    case DriverKind::tis:
        return open_tis(spec.address, locality, log);
    case DriverKind::automatic:
        return open_automatic(spec, locality, log);
    case DriverKind::xen:
        return open_ring_device(static_cast<std::uint32_t>(spec.address), locality, log);
    }
    return make_error(Errc::unsupported, "--tpm={}: no such driver", to_string(spec));
}

} // namespace

Result<std::unique_ptr<RootOfTrust>> open_root(const OpenOptions& options, asio::any_io_executor executor,
                                               const Log& log, bool create) {
    auto spec = parse_driver(options.driver);
    if (!spec) {
        return spec.error();
    }
    if (options.locality > highest_locality) {
        return make_error(Errc::usage, "--tpm-locality={}: 0 to {}", options.locality, highest_locality);
    }
    auto opened = open_device(*spec, options.locality, log, create);
    if (!opened) {
        return opened.error();
    }
    std::unique_ptr<TpmDevice> device = std::move(*opened);
    auto family = probe_family(*device);
    if (!family) {
        return family.error();
    }
    auto owner = parse_auth("--owner-auth", options.owner_auth, *family);
    if (!owner) {
        return owner.error();
    }
    auto srk = parse_auth("--srk-auth", options.srk_auth, *family);
    if (!srk) {
        return srk.error();
    }
    Result<std::unique_ptr<RootOfTrust>> root =
        *family == TpmVersion::tpm12
            ? make_root12(std::move(device),
                          {.owner_auth = std::move(*owner), .srk_auth = std::move(*srk), .locality = options.locality},
                          std::move(executor), log)
            : make_root20(
                  std::move(device),
                  {.owner_auth = std::move(*owner), .srk_auth = std::move(*srk), .srk_handle = options.srk_handle},
                  std::move(executor), log);
    if (root) {
        log.info("TPM {}: {}", to_string((*root)->version()), (*root)->description());
        if (spec->kind == DriverKind::swtpm_unix || spec->kind == DriverKind::swtpm_tcp ||
            spec->kind == DriverKind::embedded) {
            log.warning("--tpm={} is SOFTWARE: good for trying and testing, no protection for production",
                        to_string(*spec));
        }
        if (crosses_network(*spec)) {
            log.warning("--tpm={}: the link to the TPM is neither encrypted nor authenticated; use a loopback address",
                        to_string(*spec));
        }
    }
    return root;
}

} // namespace vtpmd::hwtpm
