#include "guest/vtpmx_guest.hpp"

#include "tpm/header.hpp"
#include "util/fd.hpp"
#include "util/secret_bytes.hpp"

#include <boost/asio/posix/stream_descriptor.hpp>

namespace vtpmd::guest {

namespace {

constexpr Clock::duration vtpmx_stop_step = std::chrono::milliseconds(5);
constexpr std::uint8_t vtpmx_highest_locality = 4;
constexpr std::uint32_t rc_success = 0;

Error vtpmx_error(const std::string& control, int error) {
    return make_error(error == EACCES || error == EPERM ? Errc::permission : Errc::unavailable,
                      "--guest=vtpmx: {}: {}; it belongs to the kernel's module tpm_vtpm_proxy (modprobe "
                      "tpm_vtpm_proxy), and to root",
                      control, error_code(error, boost::system::system_category()).message());
}

} // namespace

Result<void> check_vtpmx(const std::string& control) {
    const UniqueFd fd(::open(control.c_str(), O_RDWR | O_CLOEXEC));
    if (!fd) {
        return vtpmx_error(control, errno);
    }
    return {};
}

VtpmxGuest::VtpmxGuest(asio::any_io_executor executor, VtpmxOptions options, TpmService& service, Clock& clock,
                       const Log& log)
    : executor_(executor)
    , options_(std::move(options))
    , service_(service)
    , clock_(clock)
    , log_(log)
    , tries_left_(options_.tries)
    , group_(executor, log) {}

void VtpmxGuest::start(std::function<void(Error)> failed) { group_.spawn("vtpmx", run(std::move(failed))); }

Task<> VtpmxGuest::stop(Clock::duration patience) {
    stopping_ = true;
    const Clock::time_point until = clock_.now() + patience;
    while (busy_ && clock_.now() < until) {
        (void)co_await clock_.sleep_for(vtpmx_stop_step);
    }
    group_.cancel();
    co_await group_.join();
}

Task<> VtpmxGuest::run(std::function<void(Error)> failed) {
    while (!stopping_) {
        const VtpmxDevice device = options_.make(options_.control.c_str(), service_.version() == TpmVersion::tpm20);
        if (device.error != 0) {
            failed(vtpmx_error(options_.control, device.error));
            co_return;
        }
        log_.info("VTPM attached to Frontend vtpmx (/dev/tpm{})", device.number);
        auto ended = co_await serve(device.fd);
        if (!ended || *ended == Ended::stopped) {
            if (!ended) {
                failed(std::move(ended).error());
            }
            co_return;
        }
        if (tries_left_ == 0) {
            failed(make_error(Errc::unavailable,
                              "--guest=vtpmx: the kernel has given up /dev/tpm{}, as it did with those before; see its "
                              "own log (dmesg)",
                              device.number));
            co_return;
        }
        --tries_left_;
        log_.warning("vtpmx: the kernel has given up /dev/tpm{}; making another", device.number);
        (void)co_await clock_.sleep_for(options_.pause);
    }
}

/// Commands of one device; the descriptor is closed at the end.
Task<Result<VtpmxGuest::Ended>> VtpmxGuest::serve(int fd) {
    UniqueFd owned(fd);
    asio::posix::stream_descriptor link(executor_);
    error_code refused;
    (void)link.assign(owned.get(), refused);
    if (refused) {
        co_return make_error(Errc::unavailable, "--guest=vtpmx: the kernel's device cannot be waited for: {}",
                             refused.message());
    }
    (void)owned.release();
    while (!stopping_) {
        auto [ec] = co_await link.async_wait(asio::posix::stream_descriptor::wait_read, use_tuple);
        if (ec || stopping_) {
            co_return Ended::stopped;
        }
        Bytes command(command_limit);
        const ssize_t n = ::read(fd, command.data(), command.size());
        if (n < 0 && (errno == EINTR || errno == EAGAIN)) {
            continue;
        }
        if (n == 0 || (n < 0 && errno == EPIPE)) {
            co_return Ended::given_up;
        }
        if (n < 0) {
            co_return errno_error(errno, "--guest=vtpmx: reading a command");
        }
        command.resize(static_cast<std::size_t>(n));
        busy_ = true;
        Bytes answer = co_await answer_to(std::move(command));
        busy_ = false;
        if (answer.empty()) {
            co_return Ended::stopped;
        }
        const ssize_t written = ::write(fd, answer.data(), answer.size());
        const int error = written < 0 ? errno : 0;
        cleanse(answer);
        // EPIPE: the device is gone. EIO: only this command was given up. The kernel does not wait for it any more.
        if (error != 0 && error != EPIPE && error != EIO) {
            co_return errno_error(error, "--guest=vtpmx: writing an answer");
        }
    }
    co_return Ended::stopped;
}

Task<Bytes> VtpmxGuest::answer_to(Bytes command) {
    const TpmVersion version = service_.version();
    const tpm::Header header = tpm::peek_header(command);
    if (command.size() < tpm::header_size || header.size != command.size()) {
        co_return tpm::error_response(version, tpm::Refusal::bad_size);
    }
    if (header.code == vtpmx_set_locality) {
        const bool well_formed = command.size() == tpm::header_size + 1;
        const auto wanted = std::to_integer<std::uint8_t>(command.back());
        if (!well_formed || wanted > vtpmx_highest_locality) {
            co_return tpm::error_response(version, tpm::Refusal::bad_locality);
        }
        locality_ = wanted;
        co_return tpm::error_response(version, rc_success);
    }
    tries_left_ = options_.tries; // it got as far as that
    co_return co_await service_.execute(std::move(command), locality_);
}

} // namespace vtpmd::guest
