// The endpoint vtpmx: the host itself as the guest. It gets a /dev/tpmN like any other from the kernel's
// tpm_vtpm_proxy.
//
// The kernel has one command under way at a time, and gives the device up when an answer comes too late while it gets
// to know it; another is made then.
#pragma once

#include "guest/tpm_service.hpp"
#include "guest/vtpmx_device.hpp"
#include "util/clock.hpp"
#include "util/log.hpp"
#include "util/task_group.hpp"

#include <functional>
#include <string>

namespace vtpmd::guest {

struct VtpmxOptions {
    std::string control = vtpmx_control;
    std::function<VtpmxDevice(const char* control, bool tpm20)> make =
        make_vtpmx_device;                           ///< tests have a kernel of their own
    unsigned tries = 20;                             ///< to make the device again, in a row
    Clock::duration pause = std::chrono::seconds(1); ///< before each
};

/// Whether the kernel has the driver and lets us use it. Errc::unavailable, permission.
[[nodiscard]] Result<void> check_vtpmx(const std::string& control);

class VtpmxGuest {
  public:
    VtpmxGuest(asio::any_io_executor executor, VtpmxOptions options, TpmService& service, Clock& clock, const Log& log);

    /// Makes the device and serves it. `failed` is called, once, if that comes to an end by itself.
    void start(std::function<void(Error)> failed);
    /// Takes no more commands, lets the one that runs be answered, at most for `patience`; then the device is gone.
    Task<> stop(Clock::duration patience);

  private:
    /// Why a device is not served any more.
    enum class Ended { stopped, given_up };
    Task<> run(std::function<void(Error)> failed);
    Task<Result<Ended>> serve(int fd);
    Task<Bytes> answer_to(Bytes command);

    asio::any_io_executor executor_;
    const VtpmxOptions options_;
    TpmService& service_;
    Clock& clock_;
    const Log& log_;

    std::uint8_t locality_ = 0;
    unsigned tries_left_;
    bool busy_ = false;
    bool stopping_ = false;
    TaskGroup group_;
};

} // namespace vtpmd::guest
