#include "hwtpm/drivers/ring_device.hpp"

#include "ring/front_device.hpp"
#include "tpm/header.hpp"
#include "util/task_group.hpp"
#include "xen/kernel_driver.hpp"

#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <exception>
#include <optional>

namespace vtpmd::hwtpm {

namespace {

constexpr std::chrono::seconds ring_connect_limit{20};
constexpr std::chrono::seconds farewell_limit{2}; ///< for a task that was cancelled, and for what is said at the end

class RingDevice final : public TpmDevice {
  public:
    RingDevice(std::uint32_t handle, std::uint8_t locality, const Log& log)
        : clock_(io_.get_executor())
        , tasks_(io_.get_executor(), log)
        , handle_(handle)
        , locality_(locality) {}
    RingDevice(const RingDevice&) = delete;
    RingDevice& operator=(const RingDevice&) = delete;
    ~RingDevice() override;

    Result<void> open(const FabricMaker& make);

    [[nodiscard]] std::string description() const override { return fmt::format("xen:{}", handle_); }
    /// The ring is the domain's only way to this vTPM, and it is ours.
    [[nodiscard]] bool exclusive() const override { return true; }

    Result<Bytes> transmit(ByteView command, std::chrono::milliseconds limit) override;
    Result<void> claim() override;
    Result<void> restart() override;
    void cancel() noexcept override;

  private:
    /// Runs the loop until the task is done; cancels it when the time is up (Errc::timed_out).
    template <typename T>
    Result<T> run(Task<Result<T>> task, std::chrono::milliseconds limit, std::string_view what);
    Task<> watch_back_end();
    /// Of the back end; the ring is given back.
    Task<Result<void>> let_go();
    Task<Result<void>> end();

    asio::io_context io_;
    SystemClock clock_;
    TaskGroup tasks_;
    std::unique_ptr<xen::Fabric> fabric_;
    std::unique_ptr<ring::FrontDevice> front_;
    const std::uint32_t handle_;
    const std::uint8_t locality_;
    bool connected_ = false;
};

template <typename T>
Result<T> RingDevice::run(Task<Result<T>> task, std::chrono::milliseconds limit, std::string_view what) {
    struct State {
        std::optional<Result<T>> outcome;
        std::exception_ptr thrown;
        bool ended = false;
    } state;
    asio::cancellation_signal stop;
    asio::co_spawn(io_, std::move(task),
                   asio::bind_cancellation_slot(stop.slot(), [&](std::exception_ptr e, Result<T> r) {
                       state.ended = true;
                       state.thrown = e;
                       state.outcome.emplace(std::move(r));
                   }));
    const auto until = [&](std::chrono::steady_clock::time_point deadline) {
        io_.restart();
        while (!state.ended && std::chrono::steady_clock::now() < deadline) {
            (void)io_.run_one_until(deadline);
        }
        return state.ended;
    };
    if (until(std::chrono::steady_clock::now() + limit) && !state.thrown) {
        return std::move(*state.outcome);
    }
    const bool late = !state.ended;
    if (late) {
        stop.emit(asio::cancellation_type::terminal);
        // Every wait of a ring's front end ends when it is cancelled; what it captured must not go before.
        while (!state.ended) {
            io_.restart();
            (void)io_.run_one();
        }
    }
    connected_ = false;
    return late ? make_error(Errc::timed_out, "{}: {}: no answer in {} ms", description(), what, limit.count())
                : make_error(Errc::io, "{}: {} was interrupted", description(), what);
}

Result<void> RingDevice::open(const FabricMaker& make) {
    auto fabric = make(io_.get_executor(), clock_);
    if (!fabric) {
        return in_context(std::move(fabric).error(), "--tpm=" + description());
    }
    fabric_ = std::move(*fabric);
    fabric_->start();
    return restart();
}

Result<void> RingDevice::restart() {
    connected_ = false;
    (void)run(let_go(), farewell_limit, "letting go");
    front_ = std::make_unique<ring::FrontDevice>(ring::FrontDeviceOptions{.handle = handle_}, *fabric_);
    auto connected = run(front_->connect(), ring_connect_limit, "connecting to the back end");
    if (!connected) {
        Error e = std::move(connected).error();
        if (e.code == Errc::timed_out) {
            e.message += " (is the vTPM's back end running, and xen-tpmfront not bound to this device?)";
        } else if (e.code == Errc::not_found) {
            e.message += ": the toolstack gave this domain no vTPM of that handle (xl: vtpm=[...])";
        }
        return in_context(std::move(e), "--tpm=" + description());
    }
    connected_ = true;
    tasks_.spawn("back end", watch_back_end());
    return {};
}

Task<> RingDevice::watch_back_end() {
    (void)co_await front_->until_lost();
    connected_ = false;
}

Task<Result<void>> RingDevice::let_go() {
    tasks_.cancel();
    co_await tasks_.join();
    if (front_) {
        (void)co_await front_->disconnect();
    }
    co_return Result<void>();
}

Result<void> RingDevice::claim() {
    io_.restart();
    (void)io_.poll(); // what happened since the last batch
    return connected_ ? Result<void>()
                      : Result<void>(make_error(Errc::closed, "{}: the back end is not connected", description()));
}

Result<Bytes> RingDevice::transmit(ByteView command, std::chrono::milliseconds limit) {
    if (!connected_ || front_->ring() == nullptr) {
        return make_error(Errc::closed, "{}: the back end is not connected", description());
    }
    if (auto sent = front_->ring()->submit(command, locality_); !sent) {
        connected_ = false;
        return in_context(std::move(sent).error(), description());
    }
    auto answer = run(front_->ring()->answer(), limit, "a command");
    if (!answer) {
        connected_ = false; // an answer that comes now would be to an older question
        return answer;
    }
    if (auto header = tpm::parse_header(*answer); !header) {
        connected_ = false;
        return in_context(header.error(), description());
    }
    return answer;
}

void RingDevice::cancel() noexcept {
    try {
        asio::post(io_, [this] {
            if (front_ && front_->ring() != nullptr) {
                front_->ring()->cancel();
            }
        });
    } catch (const std::exception&) { // NOLINT(bugprone-empty-catch): no memory for a wish
    }
}

Task<Result<void>> RingDevice::end() {
    (void)co_await let_go();
    front_.reset();
    co_await fabric_->stop();
    co_return Result<void>();
}

RingDevice::~RingDevice() {
    if (fabric_) {
        (void)run(end(), farewell_limit, "the end");
    }
}

} // namespace

Result<std::unique_ptr<TpmDevice>> make_ring_device(const FabricMaker& make, std::uint32_t handle,
                                                    std::uint8_t locality, const Log& log) {
    auto device = std::make_unique<RingDevice>(handle, locality, log);
    if (auto r = device->open(make); !r) {
        return r.error();
    }
    return std::unique_ptr<TpmDevice>(std::move(device));
}

Result<std::unique_ptr<TpmDevice>> open_ring_device(std::uint32_t handle, unsigned locality, const Log& log) {
    if (auto ours = xen::not_the_kernels(handle, "use --tpm=device:/dev/tpm0, or "); !ours) {
        return in_context(ours.error(), fmt::format("--tpm=xen:{}", handle));
    }
    return make_ring_device([&log](asio::any_io_executor executor,
                                   Clock& clock) { return xen::open_fabric(std::move(executor), clock, log); },
                            handle, static_cast<std::uint8_t>(locality), log);
}

} // namespace vtpmd::hwtpm
